"""A file of 2 GB with places for half of it (takes minutes: set LLAMINA_LONG): the bits of the model that has all of it in memory, and memory that is kept to.

The file is made here (random weights in Qwen 3 30B-A3B's shape, some layers); each run is a process of its own, whose peak is what it ever held."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from llamina.bench.synthetic import write_model
from runs import digest, resident_megabytes
from small_models import random_ids

SHAPE, TYPE, CONTEXT = "qwen3-30b-a3b:4", "q4_k_m", 512


def child(path: str, memory: int | None) -> None:
    """Prints one JSON object: digest of logits of a prompt and of single tokens, ids of an answer, what the experts cost, peak memory in MB."""
    from llamina import load

    peaks = [resident_megabytes("VmHWM")]
    with load(path, threads=2, context=CONTEXT, memory=memory) as model:
        peaks.append(resident_megabytes("VmHWM"))
        ids = random_ids(100, 1000)
        sequence = model.new_sequence()
        rows = [digest(model.feed(sequence, part, "last")) for part in (ids[:90], ids[90:91], ids[91:])]
        sequence.close()
        peaks.append(resident_megabytes("VmHWM"))
        start = time.perf_counter()
        answer = model.generate(ids[:30], max_tokens=100, ignore_eos=True, temperature=0.0, speculate=False)
        answer.text()
        seconds, stats = time.perf_counter() - start, answer.stats
        print(json.dumps({
            "digests": rows, "ids": answer.ids, "wanted": stats.experts_wanted, "read": stats.experts_read, "seconds": seconds,
            "peaks": [*peaks, resident_megabytes("VmHWM")], "plan": str(model.memory_plan)}))


def run(path: Path, memory: int | None) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, str(path), str(memory or 0)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_half_of_two_gigabytes(tmp_path: Path) -> None:
    if not os.environ.get("LLAMINA_LONG"):
        pytest.skip("writes 2 GB and takes minutes (set LLAMINA_LONG)")
    path = write_model(tmp_path / "m.gguf", SHAPE, TYPE)
    size = path.stat().st_size
    assert size > 1.8e9
    whole, half = run(path, None), run(path, size // 2)  # in this order: compiling what is not in the compile cache yet takes 150 MB
    print({key: value for key, value in half.items() if key != "ids"}, f"{half['read'] / half['seconds']:.0f} misses/s", whole["seconds"], whole["peaks"])
    assert (half["digests"], half["ids"]) == (whole["digests"], whole["ids"])
    assert 0 < half["read"] < half["wanted"] and whole["wanted"] == 0
    assert half["peaks"][-1] * 2**20 < size // 2 + 250e6 < whole["peaks"][-1] * 2**20  # Python, libraries, the vocabulary


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]) or None)
