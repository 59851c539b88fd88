"""Short runs of the fuzzers in tests/fuzz, and that they see what they are there for: errors that are not ours, crashes, hangs, memory.

LLAMINA_FUZZ=100000 runs more cases of each; LLAMINA_FUZZ_SEED others.
"""
from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY
from fuzz import KINDS, run
from llamina.engine.errors import FileError

CASES = int(os.environ.get("LLAMINA_FUZZ", 0))
SEED = int(os.environ.get("LLAMINA_FUZZ_SEED", 0))
SHORT = {"gguf": 150, "checkpoints": 150, "sessions": 150, "journals": 60, "guard": 120, "training": 60, "rows": 300}
LEAST = {"gguf": {"ran", "FormatError", "UnsupportedError"}, "checkpoints": {"opened", "FormatError"}, "sessions": {"taken up", "recomputed", "FormatError"},
         "journals": {"went on", "FormatError", "OptionError"}, "guard": {"Q4_0", "F16", "Q6_K"},
         "training": {"from 2", "went on from one that was damaged", "FormatError"}, "rows": {"text", "label", "FormatError", "OptionError"}}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc of Linux")


@pytest.mark.parametrize("kind", KINDS)
def test_short(kind: str, tmp_path: Path) -> None:
    """In this process: what a case finds fails with its number, for --only."""
    fuzzer = importlib.import_module(f"fuzz.{KINDS[kind]}").Fuzzer(tmp_path, SEED)
    outcomes = set()
    for n in range(CASES or SHORT[kind]):
        outcome, finding = run.attempt(fuzzer, n)
        assert finding is None, f"python -m tests.fuzz {kind} --seed {SEED} --only {n}: {finding}"
        outcomes.add(outcome)
    assert outcomes >= LEAST[kind], outcomes


def planted(action: object) -> SimpleNamespace:
    return SimpleNamespace(case=action)


def test_what_counts_as_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def untyped(n: int) -> str:
        raise IndexError("list index out of range")

    def silent(n: int) -> str:
        raise FileError("")

    def fine(n: int) -> str:
        raise FileError("x: no such file")

    def large(n: int) -> str:
        return str(len(bytearray(b"x" * (64 << 20))))
    assert "IndexError" in (run.attempt(planted(untyped), 0)[1] or "")
    assert "a message of 0 characters" in (run.attempt(planted(silent), 0)[1] or "")
    assert run.attempt(planted(fine), 0) == ("FileError", None)
    monkeypatch.setattr(run, "MEGABYTES", 32)
    assert "MB" in (run.attempt(planted(large), 0)[1] or "")


PLANTED = """
import os, signal, time
class Fuzzer:
    def __init__(self, folder, seed):
        self.folder = folder
    def case(self, n):
        (self.folder / "input").write_text(str(n))
        if n == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if n == 4:
            time.sleep(1000)
        if n == 5:
            raise ValueError("untyped")
        return "fine"
"""


def test_crashes_and_hangs_are_seen_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process above the worker, which goes on behind them."""
    (tmp_path / "planted_kind.py").write_text(PLANTED)
    program = tmp_path / "worker.py"
    program.write_text(f"import sys\nsys.path[:0] = [{str(REPOSITORY / 'tests')!r}, {str(tmp_path)!r}]\nimport importlib, fuzz\nfrom pathlib import Path\n"
                       "from fuzz import run\nimport planted_kind\nsys.modules['fuzz.planted_kind'] = planted_kind\nfuzz.KINDS['planted'] = 'planted_kind'\n"
                       "first = int(sys.argv[sys.argv.index('--worker') + 1])\nrun.limited('planted', first, 7, 0, Path(sys.argv[-1]))\n")
    popen = run.subprocess.Popen
    monkeypatch.setattr(run.subprocess, "Popen", lambda command, **options: popen([command[0], str(program), *command[3:]], **options))
    monkeypatch.setattr(run, "SECONDS", 1.0)
    start = time.monotonic()
    found = run.watch("planted", 7, 0, tmp_path / "saved")
    assert [text.partition("case ")[2][:1] for text in found] == ["2", "4", "5"], found
    assert "ended with -11" in found[0] and "hangs" in found[1] and "untyped" in found[2]
    assert [(tmp_path / "saved" / f"planted-0-{n}" / "input").read_text() for n in (2, 4, 5)] == ["2", "4", "5"]
    assert time.monotonic() - start < 60
