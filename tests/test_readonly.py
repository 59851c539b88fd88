"""An install that cannot be written to, for a user without a home: everything still runs, compiled anew, and says so."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(a folder for PYTHONPATH that holds a copy of the package, an environment without any place to write).

    Permissions would not stop root, so files stand where folders would have to be made.
    """
    site = tmp_path_factory.mktemp("site")
    package = site / "llamina"
    for path in [*REPOSITORY.glob("*.py"), *(p for folder in ("engine", "kernels", "convert", "bench") for p in (REPOSITORY / folder).rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            copy = package / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    for folder in {p.parent for p in package.rglob("*.py")}:
        (folder / "__pycache__").write_text("not a folder")
    nowhere = site / "file"
    nowhere.write_text("not a folder")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PYTHON", "LLAMINA_"))}
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "LLAMINA_COMPILE_CACHE"):
        environment[name] = str(nowhere / name)
    return site, {**environment, "PYTHONPATH": str(site), "PYTHONUTF8": "1"}


def llamina(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llamina", *arguments], env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)


def test_generates_and_says_that_nothing_is_kept(install: tuple[Path, dict[str, str]]) -> None:
    site, environment = install
    where = subprocess.run([sys.executable, "-c", "import llamina; print(llamina.__file__)"], env=environment, capture_output=True, text=True)
    assert where.stdout.strip() == str(site / "llamina" / "__init__.py")
    arguments = ["generate", "-p", "Once upon a time", "-n", "8", "--temperature", "0"]
    result = llamina(arguments, environment)
    assert result.returncode == 0, result.stderr
    assert "compiles anew" in result.stderr and "LLAMINA_COMPILE_CACHE" in result.stderr
    usual = subprocess.run([sys.executable, "-m", "llamina", *arguments], capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert usual.returncode == 0 and "compiles anew" not in usual.stderr, usual.stderr
    assert result.stdout == usual.stdout != ""
    assert not [p for p in site.rglob("*") if p.suffix in (".nbc", ".nbi", ".pyc")]


def test_the_user_folder_is_next(install: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Only the install is read-only: compiled code goes to the user's own folder, without a word."""
    _, environment = install
    kept = {k: v for k, v in environment.items() if k != "LLAMINA_COMPILE_CACHE"} | {"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    program = "from llamina.kernels import compile_cache as c; print(c.cache_folder()); assert c.cache_note() is None"
    result = subprocess.run([sys.executable, "-c", program], env=kept, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)
