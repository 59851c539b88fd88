"""bench/adapters.py: as many steps of each as rounds, pairs of both kinds beside all matrices, costs from what was measured."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from llamina.bench import adapters
from small_models import write_small_model


def test_what_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, kept = write_small_model(tmp_path / "small.gguf", "Q4_0"), tmp_path / "found.json"
    assert adapters.main([str(path), "--rank", "4", "--rounds", "3", "--batch", "2", "--depth", "5", "--json", str(kept)]) == 0
    found, shown = json.loads(kept.read_text()), capsys.readouterr().out
    assert [len(found[name]) for name in ("none", "empty", "F16", "F32")] == [3] * 4
    assert found["bytes"]["F16"] > 0 and found["bytes"]["F32"] == 2 * found["bytes"]["F16"]
    assert shown.startswith("2 x 1 token") and "3 rounds" in shown


def test_costs() -> None:
    """The median of the rounds' ratios, and the ratio of the fastest."""
    found = {"none": [1.0, 2.0, 4.0], "empty": [1.0, 2.0, 4.0], "F16": [1.1, 2.4, 4.2], "F32": [1.5, 2.2, 8.0], "bytes": {"F16": 1_000_000, "F32": 2_000_000}}
    lines = adapters.lines(found, "here")
    assert "2000.00 ms (fastest tenth 1000.00)" in lines[0]
    assert ["+  0.00 %" in lines[1], "+ 10.00 %" in lines[2], "+ 50.00 %" in lines[3]] == [True] * 3
    assert "1.0 MB" in lines[2] and "2.0 MB" in lines[3]
