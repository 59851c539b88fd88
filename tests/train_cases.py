"""Training in tests: adapters with random pairs, rows of random tokens, gradients of a model file.

As a script, in a process with another CPU target:  python train_cases.py MODEL [full]  prints {"target": "avx2", "digest": of the gradients}.
"""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import adapters
import numpy as np
from llamina.engine.architectures.config import ModelConfig, check_tensors
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run.runtime import Runtime
from llamina.engine.run.scheduler import Scheduler
from llamina.engine.train import optimiser
from llamina.engine.train.full import FullGradients
from llamina.engine.train.gradients import Gradients
from llamina.engine.train.model_weights import ModelWeights
from llamina.engine.train.rows import Row

LENGTHS = [37, 70, 2, 9]


class Opened:
    """What gradients need of a model."""

    def __init__(self, path: Path, runtime: Runtime) -> None:
        self.path, self.runtime, self.config, self.scheduler = path, runtime, runtime.config, Scheduler(runtime)


@contextmanager
def opened(path: Path, threads: int = 1, **options: Any) -> Iterator[Any]:
    with open_gguf(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        check_tensors(gguf, config)
        runtime = Runtime(gguf, config, threads=threads, context=options.pop("context", 512), **options)
        try:
            yield Opened(path, runtime)
        finally:
            runtime.close()


random_adapter = partial(adapters.random_adapter, only=lambda name: name != "output.weight")
"""Of the layers' matrices: those that are trained."""


def random_rows(n_vocab: int, lengths: list[int], seed: int = 5) -> list[Row]:
    rng, rows, first = np.random.default_rng(seed), [], 0
    for i, n in enumerate(lengths):
        mask = rng.random(n) < 0.7
        mask[0], mask[max(1, n - 1 - i % 2)] = False, True
        rows.append(Row(rng.integers(0, n_vocab, n).astype(np.int32), mask, first))
        first += n
    return rows


def gradients(path: Path, lengths: list[int], split: int = 0, threads: int = 1, dropout: float = 0.0,
              **options: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """-> (arrays, losses) of random rows, `split` at a time (0: all)."""
    with opened(path, threads, **options) as model:
        rows = random_rows(model.config.n_vocab, lengths)
        found = Gradients(model, random_adapter(model.config), dropout=dropout, seed=9)
        divisor, nll = float(sum(row.targets for row in rows)), []
        for start in range(0, len(rows), split or len(rows)):
            nll.append(found.accumulate(rows[start:start + (split or len(rows))], divisor, 0).nll)
        return found.arrays, np.concatenate(nll)


def full_gradients(path: Path, threads: int, split: int = 0) -> dict[str, np.ndarray]:
    """Of all weights, of random rows, `split` at a time (0: all)."""
    with opened(path, threads) as model:
        rows, found = random_rows(model.config.n_vocab, LENGTHS), FullGradients(ModelWeights(model))
        for start in range(0, len(rows), split or len(rows)):
            found.accumulate(rows[start:start + (split or len(rows))], float(sum(row.targets for row in rows)), 0)
        return found.arrays


def full_step(path: Path, many: int) -> str:
    """Digest of all weights after a step of AdamW. many: from how many numbers of an array on kernels make it."""
    before, optimiser.MANY = optimiser.MANY, many
    try:
        with opened(path) as model:
            weights = ModelWeights(model).arrays
        gradients = full_gradients(path, 2)
        optimiser.make("adamw", weights).step(gradients, 1e-3, optimiser.clip_factor(optimiser.gradient_norm(gradients), 0.1))
        return found_digest({**weights, **gradients})
    finally:
        optimiser.MANY = before


def kill_at_a_checkpoint(command: list[str], output: Path) -> None:
    """SIGKILL once the first checkpoint of `output` is there, or when the command has ended."""
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not output.with_name(f"{output.name}.training").joinpath("checkpoint-0").exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    child.kill()
    child.wait()


def found_digest(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(arrays[name].astype("<f4").tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    from llamina.kernels.target import TARGET

    path, full = Path(sys.argv[1]), sys.argv[2:] == ["full"]
    print(json.dumps({"target": TARGET, "digest": full_step(path, 8) if full else found_digest(gradients(path, LENGTHS, threads=2)[0])}))


if __name__ == "__main__":
    main()
