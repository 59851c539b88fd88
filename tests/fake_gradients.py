"""Gradients of a quadratic, for tests of the training loop: each token pulls every number towards one of its own. As the real ones, each element is one chain
of float32 additions over the tokens in order."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from llamina.engine.train.data import DataSet
from llamina.engine.train.examples import Example
from llamina.engine.train.rows import Row, RowLosses
from llamina.kernels.team import Team


class Quadratic:
    """nan_at: the step whose loss is not a number."""

    def __init__(self, weights: Mapping[str, np.ndarray], nan_at: int | None = None) -> None:
        self.weights, self.nan_at = weights, nan_at
        self.arrays = {name: np.zeros_like(w) for name, w in weights.items()}
        self.calls = 0

    def zero(self) -> None:
        for array in self.arrays.values():
            array.fill(0)

    def accumulate(self, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        self.calls += 1
        for row in rows:
            for at, id in enumerate(row.ids.tolist()):
                if not row.loss_mask[at]:
                    continue
                pull = np.float32((id + row.first_token + at) % 17 / 8 - 1)
                for name, w in self.weights.items():
                    self.arrays[name] += (w - pull) / np.float32(divisor)
        found = self.losses(rows)
        return RowLosses(found.nll * np.nan, 0, found.tokens) if step == self.nan_at else found

    def losses(self, rows: Sequence[Row]) -> RowLosses:
        first = next(iter(self.weights.values())).reshape(-1)[0]
        nll = [0.5 * float(first - (id % 17 / 8 - 1)) ** 2 for row in rows for id in row.ids[row.loss_mask].tolist()]
        return RowLosses(np.array(nll), sum(x < 0.01 for x in nll), len(nll))

    def run(self, entry: int, args: int) -> int:
        return Team(1).run(entry, args)

    def memory(self, tokens: int, longest: int | None = None) -> int:
        return 100 * tokens


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"a": (2, 5), "b": (4, 2)}
    return {f"blk.{i}.attn_q.weight.lora_{end}": rng.standard_normal(shape).astype(np.float32) for i in range(2) for end, shape in shapes.items()}


def data(n: int = 21, seed: int = 0) -> DataSet:
    """Rows of uneven length; every first token is no target."""
    rng = np.random.default_rng(seed)
    found = DataSet("rows.jsonl", "text", f"digest of {n} {seed}")
    for line in range(n):
        ids = rng.integers(0, 100, rng.integers(2, 9)).astype(np.int32)
        found.examples.append(Example(ids, np.arange(len(ids)) > 0, line + 1))
    return found


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of their bytes."""
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
