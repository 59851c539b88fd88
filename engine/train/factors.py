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

from ...kernels.low_rank import pack_a
from ..architectures.spec import round_up
from .ops import SPARE, Ops, Product, flat_rows, padded, rows_of

if TYPE_CHECKING:
    from ..architectures.spec import Matrix
    from .adapter import Pair

Mask = Callable[[int, int], np.ndarray]
"""(first token of a micro-batch, how many) -> what the pair's inputs are multiplied with, float32 [tokens, columns]."""
FactorsOf = Callable[[str], "Factors | None"]
"""Of a tensor."""
Parts = list[tuple["Matrix", np.ndarray]]
"""Matrices of one tensor, and the rows [tokens, ld] that each made, or their gradients."""


TILE = 16


def turned(a: np.ndarray) -> np.ndarray:
    """A, [rank, columns], as [tiles of 16 ranks, columns, 16], zeros where there are no more ranks."""
    rank, columns = a.shape
    out = np.zeros((-(-rank // TILE), columns, TILE), np.float32)
    pack_a(a, out)
    return out


def _readable(a: np.ndarray) -> np.ndarray:
    """With rows that can be read up to a whole number of 16 columns."""
    return a if a.shape[1] % TILE == 0 and a.flags.c_contiguous else padded(a)


def _low_rows(n: int, rank: int) -> np.ndarray:
    """Zeros, [n, rank rounded up to 16]: close together, as a first-level cache likes them."""
    ld = round_up(rank, TILE)
    return flat_rows(n * ld + SPARE)[:n * ld].reshape(n, ld)


class Factors:
    """Of one tensor's pair. da, db: the running sums of its gradients, which go on, or None. a_turned: `turned` of its a, if that is there already."""

    def __init__(self, ops: Ops, pair: Pair, da: np.ndarray | None = None, db: np.ndarray | None = None, mask: Mask | None = None,
                 a_turned: np.ndarray | None = None) -> None:
        self._ops, self._scale, self._mask = ops, float(np.float32(pair.scale)), mask
        self._a, self._b, self._a_turned = _readable(pair.a), _readable(pair.b), turned(pair.a) if a_turned is None else a_turned
        self._b_original = pair.b
        self._rank, self._columns = pair.a.shape
        self._da, self._db = da, db

    def _low(self, x: np.ndarray, u: np.ndarray) -> list[Product]:
        """u, [tokens, rank rounded up], times the scale."""
        return [Product(x, x.strides[0], 4, tile, u[:, TILE * i:], len(x), min(TILE, self._rank - TILE * i), self._columns, self._scale)
                for i, tile in enumerate(self._a_turned)]

    def _dropped(self, x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return x
        out = rows_of(*x.shape)
        np.multiply(x[:, :self._columns], mask, out=out[:, :self._columns])
        return out

    def forward(self, x: np.ndarray, parts: Parts, at: int) -> None:
        """Adds the pair's part to the rows that each matrix made of x, of the tokens from `at` on."""
        u, low = _low_rows(len(x), self._rank), self._dropped(x, self._mask(at, len(x)) if self._mask else None)
        self._ops.products([self._low(low, u)], [])
        for matrix, y in parts:
            b = rows_of(self._rank, matrix.rows)
            b[:, :matrix.rows] = self._b_original[matrix.first:matrix.first + matrix.rows].T
            self._ops.product(u, u.strides[0], 4, b, y, len(x), matrix.rows, self._rank)

    def _back_dropped(self, mask: np.ndarray, x: np.ndarray, parts: Parts, dx: np.ndarray | None) -> None:
        through = None if dx is None else rows_of(*dx.shape)
        tokens, b, a = self._back(self._dropped(x, mask), parts, through)
        self._ops.products([tokens], [])
        self._ops.products(b, [a] if a else [])
        if dx is not None and through is not None:
            dx[:, :self._columns] += through[:, :self._columns] * mask

    def _back(self, x: np.ndarray, parts: Parts, dx: np.ndarray | None) -> tuple[list[Product], list[list[Product]], list[Product]]:
        """(what is divided by tokens, of what that makes the gradient of B, and of A)."""
        n, rank = len(x), self._rank
        u, du = _low_rows(n, rank), _low_rows(n, rank)
        tokens = self._low(x, u)
        for i, (matrix, dy) in enumerate(parts):  # one chain over all of them
            tokens.append(Product(dy, dy.strides[0], 4, self._b[matrix.first:], du, n, rank, matrix.rows, self._scale if i == len(parts) - 1 else 1.0))
        if dx is not None:
            tokens.append(Product(du, du.strides[0], 4, self._a, dx, n, self._columns, rank))
        if self._da is None or self._db is None:
            return tokens, [], []
        return (tokens, [[Product(dy, 4, dy.strides[0], u, self._db[matrix.first:], matrix.rows, rank, n)] for matrix, dy in parts],
                [Product(du, 4, du.strides[0], x, self._da, rank, self._columns, n)])


def back(ops: Ops, several: list[tuple[Factors, Parts]], x: np.ndarray, dx: np.ndarray | None) -> None:
    """The gradients of some tensors' pairs, which read the same x: what they add to dx is one chain, in their order."""
    tokens: list[Product] = []
    b: list[list[Product]] = []
    a: list[Product] = []
    for factors, parts in several:
        if factors._mask is not None:
            factors._back_dropped(factors._mask(0, len(x)), x, parts, dx)
            continue
        for_tokens, for_b, for_a = factors._back(x, parts, dx)
        tokens, b, a = tokens + for_tokens, b + for_b, a + for_a
    if tokens:
        ops.products([tokens], [])
    if a:
        ops.products(b, [a])


def of_tensors(parts: Parts) -> dict[str, Parts]:
    """Parts by tensor, in order."""
    found: dict[str, Parts] = {}
    for matrix, rows in parts:
        found.setdefault(matrix.tensor, []).append((matrix, rows))
    return found


