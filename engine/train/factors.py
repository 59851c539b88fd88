"""A pair of a matrix, laid out for its products: the forward pass's where the runtime does not compute it, and the backward pass's.

    u = x Aᵀ (chain over columns),  y += (scale × u) Bᵀ (chain over the rank)
    dU = scale × (chain over output rows r of dY[m, r] × B[r, j]);   dB goes on over tokens with dY × (scale × u), dA with dU × x;   dX over j with dU × A
    dropout: x × mask instead of x, and dX + (chain over j of dU × A) × mask

Matrices that are parts of one tensor (fused q, k, v) share a pair: dU is one chain over all their rows, in their order.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .ops import Ops, Product, padded, rows_of

if TYPE_CHECKING:
    from ..architectures.spec import Matrix
    from .adapter import Pair

Mask = Callable[[int, int], np.ndarray]
"""(first token of a micro-batch, how many) -> what the pair's inputs are multiplied with, float32 [tokens, columns]."""
FactorsOf = Callable[[str], "Factors | None"]
"""Of a tensor."""
Parts = list[tuple["Matrix", np.ndarray]]
"""Matrices of one tensor, and the rows [tokens, ld] that each made, or their gradients."""


def _readable(a: np.ndarray) -> np.ndarray:
    """With rows that can be read up to a whole number of 32 columns."""
    return a if a.shape[1] % 32 == 0 and a.flags.c_contiguous else padded(a)


class Factors:
    """Of one tensor's pair. da, db: the running sums of its gradients, which go on, or None."""

    def __init__(self, ops: Ops, pair: Pair, da: np.ndarray | None = None, db: np.ndarray | None = None, mask: Mask | None = None) -> None:
        self._ops, self._scale, self._mask = ops, np.float32(pair.scale), mask
        self._a, self._b, self._a_turned = _readable(pair.a), _readable(pair.b), _readable(np.ascontiguousarray(pair.a.T))
        self._b_original = pair.b
        self._rank, self._columns = pair.a.shape
        self._da, self._db = da, db

    def _low(self, x: np.ndarray) -> np.ndarray:
        """u: [tokens, rank rounded up]."""
        u = rows_of(len(x), self._rank)
        self._ops.product(x, x.strides[0], 4, self._a_turned, u, len(x), self._rank, self._columns)
        return u

    def _dropped(self, x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return x
        out = rows_of(*x.shape)
        np.multiply(x[:, :self._columns], mask, out=out[:, :self._columns])
        return out

    def forward(self, x: np.ndarray, parts: Parts, at: int) -> None:
        """Adds the pair's part to the rows that each matrix made of x, of the tokens from `at` on."""
        u = self._low(self._dropped(x, self._mask(at, len(x)) if self._mask else None))
        u *= self._scale
        for matrix, y in parts:
            b = rows_of(self._rank, matrix.rows)
            b[:, :matrix.rows] = self._b_original[matrix.first:matrix.first + matrix.rows].T
            self._ops.product(u, u.strides[0], 4, b, y, len(x), matrix.rows, self._rank)

    def backward(self, x: np.ndarray, parts: Parts, dx: np.ndarray | None) -> None:
        """The gradients of what x, and the parts' gradients, say."""
        ops, n, rank = self._ops, len(x), self._rank
        mask = self._mask(0, n) if self._mask else None
        x = self._dropped(x, mask)
        u, du = rows_of(n, rank), rows_of(n, rank)
        low: list[Product] = [(x, x.strides[0], 4, self._a_turned, u, n, rank, self._columns)]
        for matrix, dy in parts:  # one chain over all of them
            ops.products([*low, (dy, dy.strides[0], 4, self._b[matrix.first:], du, n, rank, matrix.rows)])
            low = []
        u *= self._scale
        du *= self._scale
        last: list[Product] = []
        if self._da is not None and self._db is not None:
            last = [(dy, 4, dy.strides[0], u, self._db[matrix.first:], matrix.rows, rank, n) for matrix, dy in parts]
            last.append((du, 4, du.strides[0], x, self._da, rank, self._columns, n))
        if dx is not None and mask is None:
            last.append((du, du.strides[0], 4, self._a, dx, n, self._columns, rank))
        ops.products(last)
        if dx is not None and mask is not None:
            through = rows_of(*dx.shape)
            ops.product(du, du.strides[0], 4, self._a, through, n, self._columns, rank)
            dx[:, :self._columns] += through[:, :self._columns] * mask


def of_tensors(parts: Parts) -> dict[str, Parts]:
    """Parts by tensor, in order."""
    found: dict[str, Parts] = {}
    for matrix, rows in parts:
        found.setdefault(matrix.tensor, []).append((matrix, rows))
    return found


