"""bench/train_speed.py with a stand-in for PEFT: whose steps are asked for and how often, its table, a peer that fails."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from llamina.bench import train_speed
from small_models import write_small_model

PEERS = Path(train_speed.__file__).parent / "peers"
STAND_IN = """
import json, sys
sys.path.insert(0, {peers!r})
from child import serve
SECONDS = {seconds!r}
def load(shape, dtype, rank):
    global kind
    kind = dtype
    return {{"version": "stand-in 1", "system": dtype, "trained": rank}}
def step(rows, tokens, threads):
    with open({asked!r}, "a") as file:
        print(json.dumps([kind, threads]), file=file)
    seconds = SECONDS[kind]
    if seconds == "dies":
        sys.exit(3)
    return {{"seconds": seconds / threads, "peak_memory": 5}}
serve({{"load": load, "step": step}})
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """bench({dtype: seconds of a step with one thread}) -> (exit code, standard output, standard error, measurements, what steps were asked for)."""
    if sys.platform == "win32":
        pytest.skip("the stand-in is a shell script")
    model = write_small_model(tmp_path / "m.gguf", "F32", n_layers=1)

    def run(seconds: dict[str, Any]) -> tuple[int, str, str, dict[str, Any], list[list[Any]]]:
        asked, found, script, python = (tmp_path / name for name in ("asked", "found.json", "stand_in.py", "python"))
        asked.write_text("")
        script.write_text(STAND_IN.format(peers=str(PEERS), seconds=seconds, asked=str(asked)))
        python.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}'\n")
        python.chmod(0o755)
        monkeypatch.setenv(train_speed.VARIABLE, str(python))
        code = train_speed.main([str(model), "--tokens", "16", "--rank", "2", "--rounds", "3", "--threads", "2", "--json", str(found)])
        out, err = capsys.readouterr()
        return code, out, err, json.loads(found.read_text()) if found.exists() else {}, [json.loads(line) for line in asked.read_text().splitlines()]
    return run


def test_each_in_its_turn(bench: Any) -> None:
    """The number of threads that is faster; every round has one step of each, and the table their medians."""
    code, out, _, found, asked = bench({"float32": 4, "bfloat16": 0.5})
    assert code == 0 and [len(found[name]["seconds"]) for name in ("ours", "prompt", "float32", "bfloat16")] == [3] * 4
    assert found["float32"]["threads"] == 2 and found["float32"]["seconds"] == [2.0] * 3 and found["float32"]["peak_memory"] == 5 and found["machine"]
    assert asked[:5] == [["float32", 2], ["float32", 1], ["float32", 1], ["float32", 2], ["float32", 2]] and asked[10:] == [["float32", 2], ["bfloat16", 2]] * 3
    table = out.splitlines()
    assert table[3].startswith("| stand-in 1, float32, 2 threads | 8 (8, 8) |") and table[4].startswith("| stand-in 1, bfloat16, 2 threads | 64 (64, 64) |")
    assert "A training token costs" in table[-1]


def test_a_slow_peer_is_measured_once(bench: Any) -> None:
    code, out, _, found, asked = bench({"float32": 4, "bfloat16": 50})
    assert code == 0 and found["bfloat16"]["seconds"] == [25.0] and len(found["float32"]["seconds"]) == 3
    assert asked.count(["bfloat16", 2]) == 2 and ["bfloat16", 1] not in asked, "one to see that it is slow, one measured"
    assert "| stand-in 1, bfloat16, 2 threads | 0.6, measured once: a step takes 25 s |" in out


def test_lines() -> None:
    """Medians of ratios of neighbours, not ratios of medians."""
    peer = {"version": "v", "system": "s", "threads": 1, "slow": False}
    found = {"ours": {"seconds": [1.0, 2.0, 4.0]}, "prompt": {"seconds": [1.0, 1.0, 8.0]}, "float32": {**peer, "seconds": [3.0, 4.0, 20.0]},
             "bfloat16": {**peer, "seconds": [100.0], "slow": True}}
    table = train_speed.lines(found, 2, 256)
    assert table[2:5] == ["| llamina | 256 (128, 512) |  |", "| v, s, 1 threads | 128 (26, 171) | 3.00 |",
                          "| v, s, 1 threads | 5.1, measured once: a step takes 100 s | 100.00 |"]
    assert table[-1] == "A training token costs 1.0 times a token of a prompt of 512."


@pytest.mark.parametrize(("seconds", "message"), [
    ({"float32": "dies"}, "peft float32 cannot step: SystemExit"), ({"float32": 1}, "peft bfloat16 cannot step: KeyError: 'bfloat16'")])
def test_a_peer_that_fails(bench: Any, seconds: dict[str, Any], message: str) -> None:
    code, out, err, found, _ = bench(seconds)
    assert code == 1 and not out and not found and message.split(" cannot")[0] in err and f"{train_speed.VARIABLE}=..." in err and err.count("\n") == 1
    assert ("exit code 3" if seconds["float32"] == "dies" else message) in err
