"""Running a model in tests without a tokenizer: open it, feed ids in chunks, get logits or their digest.

As a script, in a process with another CPU target or environment:  python runs.py THREADS CHUNK MODEL...  prints one JSON object,
{"target": "avx2", "numpy": ["X86_V3", ...], "digests": {"MODEL": "sha256", ...}, "said": "sha256"}.
"""
from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llamina.engine.architectures.config import ModelConfig, check_tensors
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run.runtime import Feed, Runtime

N_TOKENS = 330  # crosses five borders of KV pages (64)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, both float32."""
    return a.dtype == b.dtype == np.float32 and a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


@contextmanager
def open_runtime(path: Path | str, threads: int = 1, context: int = 1024, kv: str | None = None) -> Iterator[Runtime]:
    with open_gguf(Path(path)) as gguf:
        config = ModelConfig.from_gguf(gguf)
        check_tensors(gguf, config)
        runtime = Runtime(gguf, config, threads=threads, context=context, kv=kv)
        try:
            yield runtime
        finally:
            runtime.close()


def resident_megabytes(which: str) -> float:
    """Resident memory now (VmRSS), or its peak since the last call with VmRSS (VmHWM); 0 where the system doesn't tell."""
    try:
        if which == "VmRSS":
            Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/status").read_text().split(which + ":")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def run(runtime: Runtime, ids: list[int], chunk: int = 512) -> np.ndarray:
    """Logits of a fresh sequence that is fed `chunk` ids a step: float32 [len(ids), n_vocab]."""
    sequence = runtime.new_sequence()
    parts = [runtime.step([Feed(sequence, ids[i:i + chunk], "all")]).copy() for i in range(0, len(ids), chunk)]
    sequence.close()
    return np.concatenate(parts)


def logits_of(path: Path | str, ids: list[int], threads: int = 2, chunk: int = 512) -> np.ndarray:
    with open_runtime(path, threads, max(len(ids), 64)) as runtime:
        return run(runtime, ids, chunk)


def digest(logits: np.ndarray) -> str:
    """sha256 of the bits of float32 logits."""
    assert logits.dtype == np.float32
    return hashlib.sha256(np.ascontiguousarray(logits).astype("<f4", copy=False).tobytes()).hexdigest()


def said_digest(path: Path | str, threads: int = 2) -> str:
    """sha256 of what the op `summary` (lenses and traces) finds in rows of seeded logits, ties and a tail that fills no vector among them."""
    with open_runtime(path, threads, 64) as runtime:
        n, rng = runtime.config.n_vocab, np.random.default_rng(11)
        logits = np.round(rng.standard_normal((37, n)) * 10.0 ** rng.uniform(-2, 2, (37, 1)), 2).astype(np.float32)
        targets = rng.integers(0, n, 37)
        numbers: list[np.ndarray] = []
        kept = runtime._run_alone

        def keep(op: str, args: dict[str, Any]) -> None:
            kept(op, args)
            numbers.append(args["numbers"].copy())
        runtime._run_alone = keep  # type: ignore[method-assign]
        said = runtime.summary(logits, targets, 7)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert (said.top_ids == order[:, :7]).all() and (order[np.arange(37), said.rank - 1] == targets).all()
    return hashlib.sha256(b"".join(a.tobytes() for a in (*numbers, said.top_ids, said.rank, said.top_logits))).hexdigest()


def numpy_dispatch() -> list[str]:
    """CPU features beyond its baseline that NumPy uses in this process."""
    try:
        umath: Any = importlib.import_module("numpy._core._multiarray_umath")
    except ImportError:  # NumPy 1
        umath = importlib.import_module("numpy.core._multiarray_umath")
    return [f for f in umath.__cpu_dispatch__ if umath.__cpu_features__.get(f)]


def main() -> None:
    from llamina.kernels.target import TARGET
    from small_models import random_ids

    threads, chunk, paths = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    digests = {Path(p).name: digest(logits_of(p, random_ids(N_TOKENS), threads, chunk)) for p in paths}
    print(json.dumps({"target": TARGET, "numpy": numpy_dispatch(), "digests": digests, "said": said_digest(paths[0], threads)}))


if __name__ == "__main__":
    main()
