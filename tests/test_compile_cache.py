"""The compile cache: what a second process finds, closures, corrupt files, processes compiling at once, which folder, cleaning, notes."""
from __future__ import annotations

import json
import os
import platform
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llamina.kernels import compile_cache, native_code
from llamina.kernels.formats import registry
from llamina.kernels.formats.table import RUNNABLE
from llvmlite import ir

PROGRAM = """
import json, sys, time
from llamina.kernels import compile_cache
from llamina.kernels.compile_cache import compiled, jit, on_compile

names = []
on_compile(names.append)

ZERO = 0

@jit(cache=False)
def square(x):
    return x * x + ZERO

@jit(cache=False)
def cube(x):
    return x * x * x

def make(factor, shape, f):
    @compiled("int64(int64, int64)")
    def kernel(a, n):
        total = a
        for i in range(n):
            total += f(i) * factor * shape[0]
        return total
    return kernel

kernels = [make(k, (1 + k % 2,), f) for k in range(5) for f in (square, cube)]

@jit()
def lazy(x):
    return x + 1

start = time.perf_counter()
only = [int(i) for i in sys.argv[1:]] or range(len(kernels))
values = [kernels[i].ctypes(1, 4) for i in only]
seconds = time.perf_counter() - start
values += [lazy(1), lazy(1.5)]
folder = compile_cache.cache_folder()
print(json.dumps(dict(values=values, names=[n for n in names if "square" not in n and "cube" not in n], loaded=compile_cache.stats.loaded,
                      folder=str(folder) if folder else None, note=compile_cache.cache_note(), seconds=seconds,
                      compile_seconds=compile_cache.stats.seconds)))
"""
EXPECTED = [1 + sum(i**power for i in range(4)) * k * (1 + k % 2) for k in range(5) for power in (2, 3)]


class Program:
    """PROGRAM as a file, run in processes of its own against a cache folder of its own."""

    def __init__(self, folder: Path):
        self.path, self.cache = folder / "program.py", folder / "cache"
        self.path.write_text(PROGRAM)

    def start(self, *arguments: int, **environment: str) -> subprocess.Popen[str]:
        env = {**os.environ, "LLAMINA_COMPILE_CACHE": str(self.cache), **environment}
        return subprocess.Popen([sys.executable, str(self.path), *map(str, arguments)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, process: subprocess.Popen[str]) -> dict:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and not err, err
        return json.loads(out)

    def run(self, *arguments: int, **environment: str) -> dict:
        return self.finish(self.start(*arguments, **environment))

    def files(self) -> list[Path]:
        return sorted(path for path in self.cache.glob("llamina-*/*") if path.name != compile_cache.MARKER)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, dict]:
    program = Program(tmp_path_factory.mktemp("program"))
    return program, program.run()


def test_the_first_process_compiles_and_announces_all(filled: tuple[Program, dict]) -> None:
    program, first = filled
    assert first["values"] == [*EXPECTED, 2, 2.5] and first["loaded"] == 0
    assert len(first["names"]) == 12 and all(name.startswith("__main__.") for name in first["names"])
    assert Path(first["folder"]).parent == program.cache and len(program.files()) == 12
    assert 0 < first["compile_seconds"] < 60


def test_a_second_process_compiles_nothing(filled: tuple[Program, dict], tmp_path: Path) -> None:
    program, _ = filled
    again = program.run(NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    assert again["values"] == [*EXPECTED, 2, 2.5]
    assert again["names"] == [] and again["loaded"] == 12 and again["compile_seconds"] == 0
    assert not (tmp_path / "numba").exists(), "Numba's own cache must not be used"
    assert not list(program.path.parent.glob("__pycache__/*.nbi"))
    assert len(program.files()) == 12, "nothing but finished files may lie there"


def test_damaged_files_are_compiled_again_and_replaced(filled: tuple[Program, dict]) -> None:
    program, _ = filled
    good = [path.read_bytes() for path in program.files()]
    flipped = bytearray(good[3])
    flipped[len(flipped) // 2] ^= 1  # inside the machine code, where an unpickler sees nothing wrong
    for path, damaged in zip(program.files(), (good[0][:-10], b"", b"garbage" * 100, bytes(flipped), good[4][:40])):
        path.write_bytes(damaged)
    again = program.run()
    assert again["values"] == [*EXPECTED, 2, 2.5] and again["loaded"] == 7 and len(again["names"]) == 5
    assert program.run()["loaded"] == 12


def test_a_pickle_of_something_else_is_compiled_again(filled: tuple[Program, dict]) -> None:
    import hashlib
    import pickle
    program, _ = filled
    blob = pickle.dumps(("not", "a", "function"))
    program.files()[0].write_bytes(hashlib.sha256(blob).digest() + blob)
    again = program.run()
    assert again["values"] == [*EXPECTED, 2, 2.5] and again["loaded"] == 11
    assert program.run()["loaded"] == 12


def test_processes_compiling_variants_of_one_function_at_once_keep_them_apart(tmp_path: Path) -> None:
    program = Program(tmp_path)
    both = [program.start(*variants) for variants in ((0, 2, 4, 6, 8), (9, 7, 5, 3, 1))]
    for process, variants in zip(both, ((0, 2, 4, 6, 8), (9, 7, 5, 3, 1))):
        assert program.finish(process)["values"][:5] == [EXPECTED[i] for i in variants]
    after = program.run()
    assert after["values"] == [*EXPECTED, 2, 2.5] and after["names"] == []


@pytest.mark.parametrize("old, new, expected", [("return x * x +", "return x + x +", 25), ("ZERO = 0", "ZERO = 1", 37)])
def test_an_edit_is_noticed_in_a_helper_and_in_a_global_constant(filled: tuple[Program, dict], tmp_path: Path, old: str, new: str, expected: int) -> None:
    program = Program(tmp_path)
    program.cache = filled[0].cache
    program.path.write_text(PROGRAM.replace(old, new))
    assert program.run(2)["values"][0] == expected


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the other CPU here is an x86")
def test_another_cpu_gets_a_folder_of_its_own(filled: tuple[Program, dict]) -> None:
    program, first = filled
    other = program.run(0, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2")
    assert other["folder"] != first["folder"] and other["loaded"] == 0 and other["values"][0] == EXPECTED[0]


def test_a_folder_that_cannot_be_kept_is_said_and_survived(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = Program(tmp_path)
    elsewhere = program.run(0, LLAMINA_COMPILE_CACHE=str(tmp_path / "file" / "below"))
    assert elsewhere["values"][0] == EXPECTED[0]
    assert "LLAMINA_COMPILE_CACHE" in elsewhere["note"] and str(tmp_path) not in elsewhere["folder"]


@pytest.fixture
def fresh() -> Iterator[None]:
    """The folder is chosen once per process: let the test choose again."""
    compile_cache._choose.cache_clear()
    yield
    compile_cache._choose.cache_clear()


@pytest.mark.usefixtures("fresh")
class TestFolder:
    def test_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMINA_COMPILE_CACHE", str(tmp_path / "asked"))
        if os.name != "nt":
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        places = compile_cache._places()
        assert places[0] == tmp_path / "asked"
        assert places[1] == compile_cache.PACKAGE / "kernels" / "__pycache__"
        assert os.name == "nt" or places[2] == tmp_path / "xdg" / "llamina"
        folder = compile_cache.cache_folder()
        assert folder is not None and folder.is_dir() and folder.parent == tmp_path / "asked"
        assert compile_cache.cache_note() is None and compile_cache.fingerprint() in folder.name

    def test_an_installed_package_is_left_as_pip_made_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or `pip uninstall` leaves a folder that Python takes for the package, before an editable install."""
        monkeypatch.delenv("LLAMINA_COMPILE_CACHE", raising=False)
        monkeypatch.setattr(compile_cache, "user_folder", lambda: tmp_path / "user")
        monkeypatch.setattr(compile_cache, "PACKAGE", tmp_path / "llamina")
        own = tmp_path / "llamina" / "kernels" / "__pycache__"
        assert compile_cache._places() == [tmp_path / "user", own]
        (tmp_path / "llamina").mkdir()
        (tmp_path / "llamina" / "setup.cfg").write_text("")
        assert compile_cache._places() == [own, tmp_path / "user"]

    def test_the_next_place_is_taken_if_one_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LLAMINA_COMPILE_CACHE", raising=False)
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(compile_cache, "_places", lambda: [tmp_path / "file" / "package", tmp_path / "user"])
        folder = compile_cache.cache_folder()
        assert folder is not None and folder.parent == tmp_path / "user" and compile_cache.cache_note() is None

    def test_nothing_writable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(compile_cache, "_places", lambda: [tmp_path / "file" / "a", tmp_path / "file" / "b"])
        assert compile_cache.cache_folder() is None
        note = compile_cache.cache_note()
        assert note is not None and "compiles anew" in note and "LLAMINA_COMPILE_CACHE" in note and "\n" not in note

        @compile_cache.jit()
        def double(x: int) -> int:
            return 2 * x
        assert double(21) == 42

    def test_no_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_home() -> Path:
            raise RuntimeError("no home")
        for name in ("LLAMINA_COMPILE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(compile_cache.Path, "home", no_home)
        assert compile_cache._places() == [compile_cache.PACKAGE / "kernels" / "__pycache__"]

    def test_old_folders_go_the_most_recent_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for age in range(12):
            old = tmp_path / f"llamina-{age:020x}"
            old.mkdir()
            (old / "f.nbc").write_text("")
            (old / compile_cache.MARKER).write_bytes(compile_cache.MARKED)
            os.utime(old, (time.time() - 1000 * (age + 1),) * 2)
        (tmp_path / "other").mkdir()
        monkeypatch.setattr(compile_cache, "_places", lambda: [tmp_path])
        folder = compile_cache.cache_folder()
        assert folder is not None
        left = sorted(p.name for p in tmp_path.iterdir())
        assert left == sorted([folder.name, "other", *(f"llamina-{age:020x}" for age in range(compile_cache.KEPT_FOLDERS - 1))])

    def test_only_what_is_marked_as_ours_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Folders of such a name that somebody else made, and in our own the files that are not ours, stay; links are not followed."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for age in range(30):
            old = tmp_path / ("llamina-models" if age == 20 else f"llamina-{age:020x}")
            if age == 21:
                old.symlink_to(elsewhere)
            else:
                old.mkdir()
            (old / "f.nbc").write_text("")
            if age % 3:
                (old / compile_cache.MARKER).write_bytes(compile_cache.MARKED if age % 3 == 1 or age > 19 else b"something else")
            if age == 28:
                (old / "thesis.txt").write_text("")
            os.utime(old, (time.time() - 1000 * (age + 1),) * 2)
        before = set(tmp_path.rglob("*"))
        monkeypatch.setattr(compile_cache, "_places", lambda: [tmp_path])
        folder = compile_cache.cache_folder()
        gone = before - set(tmp_path.rglob("*"))
        assert folder is not None and elsewhere.joinpath("f.nbc").exists() and (tmp_path / f"llamina-{28:020x}" / "thesis.txt").exists()
        ours = {age for age in range(30) if (age % 3 == 1 or age > 19 and age % 3) and age not in (20, 21)}
        removed = sorted(ours)[compile_cache.KEPT_FOLDERS - 1:]
        assert {path.name for path in gone if path.name.startswith("llamina-")} == {f"llamina-{age:020x}" for age in removed if age != 28}

    def test_a_folder_removed_meanwhile_comes_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import shutil
        monkeypatch.setattr(compile_cache, "_places", lambda: [tmp_path])
        folder = compile_cache.cache_folder()
        assert folder is not None
        shutil.rmtree(folder)

        @compile_cache.jit()
        def triple(x: int) -> int:
            return 3 * x
        assert triple(2) == 6 and len(list(folder.glob("*.nbc"))) == 1


def test_listeners_can_leave_and_numba_keeps_its_setting() -> None:
    import numba.core.config
    config: Any = numba.core.config
    heard: list[str] = []
    before = config.CACHE_DIR
    leave = compile_cache.on_compile(heard.append)

    @compile_cache.jit(cache=True)
    def one(x: float) -> float:
        return x + time_of_writing
    time_of_writing = time.time()  # a closure value nobody had before: never in the cache
    one(1.0)
    leave()
    leave()
    one(1)
    assert heard == ["test_compile_cache.test_listeners_can_leave_and_numba_keeps_its_setting.<locals>.one"] and before == config.CACHE_DIR


def test_options_and_signature_make_different_entries() -> None:
    @compile_cache.jit("int64(int64)", boundscheck=True)
    def f(x: int) -> int:
        return x
    assert f(3) == 3 and f.targetoptions["boundscheck"] is True and f.targetoptions["nogil"] and f.targetoptions["error_model"] == "numpy"
    plain, checked = (compile_cache._Store(f.py_func, options).identity for options in ({}, {"boundscheck": True}))
    assert plain != checked


def test_same_closure_same_key_in_any_process_other_values_other_keys() -> None:
    import numpy as np
    source = textwrap.dedent("""
    import numpy as np
    def make(*cells):
        def f(): return cells
        return f
    """)
    space: dict = {"__name__": "made"}
    exec(compile(source, "made.py", "exec"), space)
    made = [(1,), (1.0,), (True,), ("1",), (b"1",), (None,), ((1,),), ([1],), (np.float32(1),), (np.int64(1),), (np.zeros(2),), (np.ones(2),),
            (np.zeros((2, 1)),), (np.dtype("f4"),), ({1: 2},), (frozenset([1, 2]),), (np,), (len,), (float("nan"),), (-0.0,), (0.0,)]
    keys = [compile_cache._Store(space["make"](*cells), {}).identity for cells in made]
    assert len(set(keys)) == len(keys)
    assert keys == [compile_cache._Store(space["make"](*cells), {}).identity for cells in made]


TWINS = """
import sys
import numba
from llamina.kernels.compile_cache import compiled, stats

def make(k):
    @numba.njit
    def body(x):
LONG
        return x

    @compiled("int64(int64)")
    def kernel(x):
        return body(x) + body(x + 1) + body(x + 2)
    return body, kernel

for k in map(int, sys.argv[1:]):
    body, kernel = make(k)
    assert kernel.ctypes(5) == sum(body.py_func(x) for x in (5, 6, 7)), k
print(stats.compiled, stats.loaded)
""".replace("LONG", "        x = (x ^ x >> 7) * 3 % 1000003 + k\n" * 100)  # too long to be inlined


def test_code_from_several_processes_is_told_apart(tmp_path: Path) -> None:
    """Closures of one name, each compiled by a process of its own and then loaded together: each kernel calls its own inner function."""
    (tmp_path / "twins.py").write_text(TWINS)

    def run(*args: str) -> str:
        environment = {**os.environ, "LLAMINA_COMPILE_CACHE": str(tmp_path / "cache")}
        return subprocess.run([sys.executable, tmp_path / "twins.py", *args], env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert [run("1"), run("2"), run("1", "2"), run("2", "1")] == ["1 0", "1 0", "0 2", "0 2"]


def test_no_kernel_depends_on_pickled_objects() -> None:
    """What a pickle holds may change as an object is used, and the kernel would be compiled again by every second process."""
    for name in sorted(RUNNABLE):
        for one in (registry.kernel(name), registry.retiler(name)):
            assert "'pickled'" not in compile_cache._Store(one.__wrapped__, {}).identity, one
    llvm_type = ir.VectorType(ir.FloatType(), 16)
    before = compile_cache._describe(llvm_type)
    llvm_type.as_pointer()
    assert before == compile_cache._describe(llvm_type) == ("VectorType", "<16 x float>")
    assert compile_cache._describe(object())[0] == "pickled"


@pytest.mark.parametrize("signature", ["int64(int64)", "void(int64, int64)", "int64(int64,float64)", "float32(int64, float32, int32)"])
def test_a_signature_is_written_as_numba_writes_it(signature: str) -> None:
    """Files are found by it before Numba is there to ask."""
    from numba.core import sigutils
    arguments, result = sigutils.normalize_signature(signature)
    assert compile_cache.compiled(signature)(lambda x: x)._key == str(result(*arguments))


def test_a_warm_start_needs_no_numba() -> None:
    """A process that finds all its machine code on disk computes logits without ever importing Numba; whoever then compiles something else still can.

    The first process fills the folder that all tests share, if they haven't; that compiling gives the same tokens as loading is test_readonly.py's.
    """
    if not native_code.SUPPORTED:
        pytest.skip("only Linux links machine code without Numba")
    program = """
import sys
import llamina
from llamina.kernels import compile_cache, deferred, native_code
model = llamina.load("demo", threads=2)
print(float(model.logits([1, 2, 3]).sum()).hex(), compile_cache.stats.compiled > 0, "numba" in sys.modules)
import numba
from llamina.kernels.vecmath import sin_cos
print(numba.njit(lambda x: sin_cos(x)[0])(0.5) > 0.47)
"""
    outputs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert outputs[1][1:] == ["False", "False", "True"] and outputs[0][0] == outputs[1][0] and outputs[0][1] == outputs[0][2]


def test_code_that_needs_what_is_not_there_is_left_to_numba() -> None:
    missing = struct.pack("<6s34xQ10xHH", b"\x7fELF\x02\x01", 64, 64, 3) + bytes(2)
    assert len(missing) == 64
    names = b"\0no_such_function_anywhere\0"
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 16, 0, 0, 0, 0)
    headers = (bytes(64), struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 256, 48, 2, 0, 0, 24), struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 304, len(names), 0, 0, 0, 0))
    elf = missing + b"".join(headers) + symbols + names
    assert native_code.undefined_symbols(elf) == {"no_such_function_anywhere"}
    assert native_code.undefined_symbols(b"MZ" + elf) is None and native_code.pack("f", elf) is None
