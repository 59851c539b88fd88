"""The package as a whole: what setup.cfg ships, who imports whom, what importing costs, and rules that every file keeps."""
from __future__ import annotations

import ast
import configparser
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llamina
import pytest
from conftest import REPOSITORY

LAYERS = {
    "kernels": {"kernels"}, "engine": {"kernels", "engine"}, "convert": {"kernels", "engine", "convert"}, "bench": {"kernels", "engine", "convert", "bench"},
}
"""Folder -> what it may import. The command line, engine/cli, sees everything."""
WINGS = {
    "gguf": set(), "text": set(), "architectures": {"gguf"}, "run": {"gguf", "architectures"}, "sampling": {"text"},
    "home": {"gguf", "text", "architectures", "run", "sampling"}, "answers": {"gguf", "text", "architectures", "run", "sampling"},
    "score": {"gguf", "text", "architectures", "run", "sampling", "answers"},
    "look": {"gguf", "text", "architectures", "run", "sampling", "answers"},
    "train": {"gguf", "text", "architectures", "run", "sampling", "answers", "score"},
}
"""Wing of engine/ -> the others it may import, for types too (docs/architecture.md). Only engine/cli, engine/serve and the face see everything."""
FACES = {"__init__", "model", "chat", "selftest"}
"""Modules at engine's root that see all wings. The others there know no wing, and every wing knows them."""
TOO_LONG = 450


def tracked() -> list[Path]:
    """Every file under version control."""
    result = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return [path for name in result.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


def modules(*folders: str) -> list[Path]:
    """All Python files of these folders of the repository, on disk."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def all_modules() -> list[Path]:
    return [*sorted(REPOSITORY.glob("*.py")), *modules(*LAYERS, "tests", "demo", "docs", ".ci")]


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(level, module, line) of every import statement; `from . import a` counts as module "a"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.level, f"{node.module}.{alias.name}" if node.module else alias.name, node.lineno


def test_every_subpackage_is_listed() -> None:
    """One that is missing in setup.cfg works in editable installs and is absent from wheels."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = {path.parent.relative_to(REPOSITORY).parts for path in modules(*LAYERS)}
    assert sorted(listed) == sorted(["llamina", *(".".join(("llamina", *parts)) for parts in folders)])
    assert all((REPOSITORY / Path(*parts) / "__init__.py").is_file() for parts in folders)


def test_every_data_file_is_listed() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    data = {package: patterns.split(",") for package, patterns in setup["options.package_data"].items() if package != "llamina"}
    folders = {package: REPOSITORY / Path(*package.split(".")[1:]) for package in data}
    shipped = {path for package, patterns in data.items() for pattern in patterns for path in folders[package].glob(pattern.strip())}
    assert {path for path in tracked() if path.parent == REPOSITORY / "engine" / "data"} <= shipped
    checkout_only = {REPOSITORY / "bench" / "pytest.ini"}
    assert all(path.suffix == ".py" or path in shipped | checkout_only for path in tracked() if path.relative_to(REPOSITORY).parts[0] in LAYERS)


def test_collected_files_import_absolutely() -> None:
    """pytest imports these under names of its own, so `from . import` would find nothing, or the package a second time."""
    for path in [*modules("tests"), *(p for p in modules("bench") if p.name.startswith("test_"))]:
        for level, name, line in imports(path):
            assert level == 0, f"{path.name}:{line}: relative import of {name}"
            assert name.split(".")[0] not in LAYERS, f"{path.name}:{line}: import llamina.{name}"


def test_imports_go_one_way() -> None:
    """kernels <- engine <- convert, bench; the command line sees all."""
    seen = set()
    for path in (p for p in modules(*LAYERS) if not (p.parent.name == "bench" and p.name.startswith("test_"))):  # collected: see above
        here = path.relative_to(REPOSITORY).parts
        allowed = set(LAYERS) if here[:2] == ("engine", "cli") else LAYERS[here[0]]
        for level, name, line in imports(path):
            if level == 0:
                assert name.split(".")[0] not in {"llamina", *LAYERS}, f"{path}:{line}: import relatively"
                continue
            top = (*here[:len(here) - level], *name.split("."))[0]
            assert top in allowed or top not in LAYERS, f"{path}:{line}: {here[0]} must not import {top}"
            seen.add((here[0], top))
    assert {("engine", "kernels"), ("kernels", "kernels")} <= seen  # the check does see imports


def wrong_arrows(root: Path) -> list[str]:
    """Imports that WINGS doesn't allow, in the engine below `root`; also those inside functions and for types."""
    found = []
    for path in sorted(root.rglob("*.py")):
        here = path.relative_to(root).with_suffix("").parts
        if here[0] in {"cli", "serve"} | FACES:
            continue
        allowed = WINGS[here[0]] | {here[0]} if len(here) > 1 else set()
        for level, name, line in imports(path):
            there = (*("llamina", "engine", *here)[:len(here) + 2 - level], *name.split("."))
            if level and there[:2] == ("llamina", "engine"):
                room = (*there[2:], "__init__")[0]
                is_leaf = (root / f"{room}.py").is_file() and room not in FACES
                if not is_leaf and room not in allowed:
                    found.append(f"{path}:{line}: {here[0]} must not import {room}")
    return found


def test_wings_know_only_what_they_may(tmp_path: Path) -> None:
    """The engine's wings import what WINGS says, and a wrong arrow is seen wherever it stands."""
    engine = REPOSITORY / "engine"
    assert not wrong_arrows(engine)
    assert {p.name for p in engine.iterdir() if (p / "__init__.py").is_file()} == {*WINGS, "cli", "serve"}
    planted = {"run": "from ..text import stops", "text": "def f():\n    from ..run.runtime import Runtime",
               "answers": "if TYPE_CHECKING:\n    from ..model import M",
               "home": "from .. import answers", "score": "from ..cli.options import x", "units": "from .run import memory"}
    for wing, text in planted.items():
        (tmp_path / wing).mkdir(exist_ok=True)
        (tmp_path / (f"{wing}.py" if wing == "units" else f"{wing}/a.py")).write_text(text + "\n")
    assert len(wrong_arrows(tmp_path)) == len(planted)


def test_module_docstrings() -> None:
    missing = [str(path) for path in all_modules() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not missing


def test_no_file_is_two_ideas() -> None:
    lengths = {str(path): len(path.read_bytes().splitlines()) for path in all_modules()}
    assert not {path: n for path, n in lengths.items() if n > TOO_LONG}


MACHINE = re.compile(r"(?<![\w.~$}>])/(?:home|Users|root|work|farm|tmp|mnt|media)/[\w.-]+|\b[A-Z]:\\\\?Users\\")
"""A path that exists on one machine only."""


def test_no_path_of_one_machine() -> None:
    found = []
    for path in tracked():
        if path.suffix in (".gguf", ".png", ".npz", ".safetensors"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE.search(line) and path != Path(__file__):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert not found


@pytest.mark.parametrize(("text", "hit"), [
    ("see /home/ann/models", True), ("open('/tmp/x.gguf')", True), ('"/work/main"', True), ("C:\\Users\\ann", True),
    ("https://example.org/work/main", False), ("demo/work/latest.pt", False), ("/proc/meminfo", False), ("<checkout>/work/x", False),
])
def test_the_check_for_paths(text: str, hit: bool) -> None:
    assert bool(MACHINE.search(text)) is hit


def python(program: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_importing_is_cheap() -> None:
    """`import llamina` brings in no NumPy, no Numba, no tokenizer library; the names below it arrive when they are used."""
    result = python("import sys, llamina; print(llamina.__version__, *sorted(sys.modules))")
    assert result.returncode == 0, result.stderr
    version, *loaded = result.stdout.split()
    assert version == llamina.__version__
    heavy = {"numpy", "numba", "llvmlite", "gguf", "sentencepiece", "tokenizers", "jinja2", "click", "rich", "llamina.engine", "llamina.kernels"}
    assert "llamina" in loaded and not heavy & set(loaded)


def test_help_is_cheap() -> None:
    result = python("import sys\nfrom llamina.engine.cli import main\nassert main(['--help']) == 0\nprint('modules', *sys.modules)")
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.partition("\nmodules ")[2].split())
    assert "click" in loaded and not {"numpy", "numba", "gguf", "sentencepiece", "tokenizers", "jinja2"} & loaded


def test_public_names() -> None:
    assert sorted(llamina.__all__) == sorted(["__version__", *llamina._PUBLIC])
    for name in llamina.__all__:
        assert getattr(llamina, name) is not None
    assert issubclass(llamina.LlaminaError, Exception) and llamina.errors.LlaminaError is llamina.LlaminaError
    with pytest.raises(AttributeError, match="no_such_name"):
        llamina.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", ["kernels", "checkout.kernels"])
def test_kernels_refuse_another_name(name: str, tmp_path: Path) -> None:
    """The same module under two names poisons the compile cache."""
    # a copy, so that the checkout itself need not be importable; only __init__.py matters
    for parent in range(name.count(".") + 1):
        folder = tmp_path / Path(*name.split(".")[:parent + 1])
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    source = importlib.util.find_spec("llamina.kernels")
    assert source and source.origin
    (tmp_path / Path(*name.split(".")) / "__init__.py").write_bytes(Path(source.origin).read_bytes())
    result = python(f"import {name}", cwd=tmp_path)
    assert result.returncode != 0
    assert f"imported as '{name}'; import llamina.kernels" in result.stderr
