"""From a text's rows to its embedding, or to its score: in float64 and in one order, so that the bits are the same on every CPU.

    rows of a text, a chunk at a time ──► Pool.add ──► Pool.row() ──► dense (the file's matrices) ──► shorten ──► normalise ──► float32
    a pair's pooled row ──► head_scores ──► scores

Sums run over tokens, or over columns, from the first to the last (np.add.accumulate); NumPy's own sums and products change their bits with the CPU.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..architectures.pooling import Head, Pooling
from ..architectures.spec import Matrix
from ..errors import NumericError
from ..sampling.arithmetic import exp

_LEAST = 1e-12
"""Shortest vector that is divided by its length, as in PyTorch's normalize."""


class Pool:
    """Rows of one text, float32 [tokens, dim], in their order, pooled as `kind` says: "none", "mean", "cls" or "last"."""

    def __init__(self, kind: str) -> None:
        self.kind, self._count = kind, 0
        self._sum: np.ndarray | None = None
        self._kept: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        if self.kind == "mean":
            total = np.zeros(rows.shape[1]) if self._sum is None else self._sum
            for row in rows:
                total = total + row
            self._sum = total
        elif self.kind == "none":
            self._kept.append(rows.astype(np.float64))
        elif self.kind == "last":
            self._sum = rows[-1].astype(np.float64)
        elif self._sum is None:
            self._sum = rows[0].astype(np.float64)
        self._count += len(rows)

    def result(self) -> np.ndarray:
        """float64 [dim], of "none" [tokens, dim]."""
        if self.kind == "none":
            return np.concatenate(self._kept)
        assert self._sum is not None
        return self._sum / self._count if self.kind == "mean" else self._sum


def finish(pooled: np.ndarray, pooling: Pooling, kept: Mapping[str, np.ndarray], dim: int | None, normalise: bool) -> np.ndarray:
    """What the file does with a pooled row, then its first `dim` numbers, then unit length. pooled: float64 [..., dim] -> float32. NumericError."""
    rows = np.atleast_2d(pooled)
    for matrix in pooling.dense:
        rows = np.stack([multiply(kept, matrix, row) for row in rows])
    rows = rows[:, :dim]
    if normalise:
        rows = np.stack([row / max(length(row), _LEAST) for row in rows])
    return finite(rows).reshape(*pooled.shape[:-1], -1)


def finite(values: np.ndarray) -> np.ndarray:
    """In float32. NumericError: too large for it."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        raise NumericError("NaN or infinity in what is made of a text's rows: the weights of its head or of the matrices after pooling may be damaged")
    return found


def length(row: np.ndarray) -> float:
    return float(np.sqrt(np.add.accumulate(row * row)[-1]))


def multiply(kept: Mapping[str, np.ndarray], matrix: Matrix, row: np.ndarray) -> np.ndarray:
    """Weights [rows, columns] times a row, with the bias: every number is one sum over the columns in their order."""
    weights, total = kept[matrix.tensor], np.zeros(matrix.rows)
    for first in range(0, matrix.columns, 64):  # columns of a piece lie in a cache
        piece = np.ascontiguousarray(weights[:, first:first + 64].T, np.float64) * row[first:first + 64, None]
        for column in piece:
            total = total + column
    return total + kept[matrix.bias] if matrix.bias else total


def head_scores(head: Head, kept: Mapping[str, np.ndarray], row: np.ndarray) -> np.ndarray:
    """The head's scores of a pair's pooled row, float64 [labels]. NumericError."""
    if head.dense:
        row = ACTIVATIONS[head.activation](multiply(kept, head.dense, row))
    if head.norm:
        mean = np.add.accumulate(row)[-1] / len(row)
        spread = row - mean
        row = spread / np.sqrt(np.add.accumulate(spread * spread)[-1] / len(row) + head.norm.eps) * kept[head.norm.tensor]
    scores = multiply(kept, head.out, row) if head.out else row
    if head.softmax:
        shares = exp(scores - scores.max())
        scores = shares / np.add.accumulate(shares)[-1]
    finite(scores)
    return scores


def tanh(x: np.ndarray) -> np.ndarray:
    e = exp(-2.0 * np.abs(x))
    return np.copysign((1.0 - e) / (1.0 + e), x)


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def erf(x: np.ndarray) -> np.ndarray:
    """To about 1e-15: its power series below 2, a continued fraction above (Abramowitz and Stegun 7.1.6, 7.1.14)."""
    z = np.minimum(np.abs(x), 6.0)
    term = total = z * (2.0 / np.sqrt(np.pi)) * exp(-z * z)
    for k in range(1, 60):
        term = term * (2.0 * z * z / (2 * k + 1))
        total = total + term
    big = np.maximum(z, 2.0)
    fraction = big
    for k in range(80, 0, -1):
        fraction = big + 0.5 * k / fraction
    far = 1.0 - exp(-big * big) / (fraction * np.sqrt(np.pi))
    return np.copysign(np.where(z < 2.0, total, far), x)


ACTIVATIONS = {"tanh": tanh, "gelu_erf": gelu_erf}
