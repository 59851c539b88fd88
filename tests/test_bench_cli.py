"""`llamina bench` as a user sees it: the table on standard output, and on a terminal each result as it comes."""
from __future__ import annotations

import json
import sys

import pytest
from llamina.bench import report
from llamina.bench.limits import Limits
from llamina.engine.cli import main

ARGV = ["bench", "demo", "--prompt", "16", "--generate", "4", "--repetitions", "1", "--threads", "1", "--batch", "1,2"]


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Made up: measuring them takes seconds. They come last: by then everything else was told."""
    def measure(threads: int) -> Limits:
        print("limits", file=sys.stderr)
        return Limits("generic", [1e10], [1e11], [1e10], [1e10])
    monkeypatch.setattr(report, "measure", measure)


def test_results_as_they_come(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(ARGV) == 0
    out, err = capsys.readouterr()
    found = [line.rpartition("\x1b[K")[2].split(": ") for line in err.split("limits")[0].splitlines() if "tokens/s" in line]
    assert [name for _, name, _ in found] == ["pp16", "tg4", "tg4 x 2"]
    for _, name, speed in found:
        assert f"| {name} | {speed.removesuffix(' tokens/s')} |" in out
    assert "measuring pp16 ..." in err and "of 0" not in err


def test_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGV, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "limits\n" and [t["test"] for t in json.loads(out)["tests"]] == ["pp16", "tg4", "tg4 x 2"]
