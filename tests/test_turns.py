"""Processes that compile the same functions at once: each is compiled by one of them; nobody waits for ever, nor for one that was killed."""
from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from llamina.kernels import native_code, turns
from llamina.kernels.turns import turn
from test_compile_cache import EXPECTED, Program

pytestmark = pytest.mark.skipif(not native_code.SUPPORTED, reason="only Linux links machine code without Numba")

HOLDER = """
import sys
from pathlib import Path
from llamina.kernels.turns import turn
with turn(Path(sys.argv[1]), "marker", sys.argv[2]) as waited:
    print(waited, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process has its turn."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "False\n"
        yield process
        process.kill()


def test_each_function_is_compiled_by_one_process(tmp_path: Path) -> None:
    program = Program(tmp_path)
    found = [program.finish(process) for process in [program.start() for _ in range(3)]]
    assert all(one["values"] == [*EXPECTED, 2, 2.5] for one in found)
    assert sum(name.endswith("kernel") for one in found for name in one["names"]) == len(EXPECTED)


def test_one_that_stays_or_is_killed_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.2)
    (tmp_path / "marker").touch()
    with held(tmp_path, "f") as other:
        for name, waited in ("f", True), ("g", False), ("f", True):
            with turn(tmp_path, "marker", name) as found:
                assert found == waited
        monkeypatch.setattr(turns, "PATIENCE", 60.0)
        other.kill()
        other.wait()
        with turn(tmp_path, "marker", "f") as found:
            assert not found


def test_an_error_ends_the_turn_and_a_folder_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    for _ in range(2):
        folder.mkdir()
        (folder / "marker").touch()
        with pytest.raises(ZeroDivisionError), turn(folder, "marker", "f"):
            1 / 0  # noqa: B018
        monkeypatch.setattr(turns, "PATIENCE", 0.2)
        with held(folder, "f"), turn(folder, "marker", "f") as waited:
            assert waited
        shutil.rmtree(folder)
    for nowhere in None, folder:
        with turn(nowhere, "marker", "f") as waited:
            assert not waited
