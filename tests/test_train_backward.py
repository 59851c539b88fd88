"""bench/train_backward.py: both ways from one beginning, what is compared, its table."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from llamina.bench import train_backward
from small_models import write_small_model


@pytest.mark.parametrize(("format", "same"), [("Q8_0", False), ("F32", True)])
def test_both_ways(format: str, same: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A float base has one way only: equal losses and gradients."""
    model, data, found = write_small_model(tmp_path / "m.gguf", format), tmp_path / "d.jsonl", tmp_path / "found.json"
    data.write_text("".join(json.dumps({"text": f"{word} {word}"}) + "\n" for word in ("abc", "cab", "bca", "aab", "cba")))
    assert train_backward.main([str(model), str(data), "--valid", str(data), "--steps", "3", "--batch", "2", "--rank", "2", "--rounds", "2", "--tokens", "40",
                                "--json", str(found)]) == 0
    said, out = json.loads(found.read_text()), capsys.readouterr().out.splitlines()
    assert len(out) == 6 and out[2].startswith("| bfloat16 |") and "float32 takes" in out[5]
    assert {way: len(seconds) for way, seconds in said["seconds"].items()} == {"bfloat16": 2, "float32": 2}
    assert (said["losses"]["bfloat16"] == said["losses"]["float32"]) == same and len(said["losses"]["float32"]) == 3
    for cosine, difference in said["compared"].values():
        assert cosine > 0.999 and difference < 0.03 and (difference == 0) == same
    assert len(said["compared"]) % 2 == 0 and said["valid"]["bfloat16"][1] == pytest.approx(said["valid"]["float32"][1], abs=0.2)
