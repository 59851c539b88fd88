"""The backward pass's product and its gradients through weights, bit for bit against one fma after the other."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from llamina.engine.train.ops import Ops, Product, rows_of
from llamina.kernels.backward import chains, packed, weight_pairs, weights
from llamina.kernels.compile_cache import Compiled
from llamina.kernels.target import HAS_BF16_DOT
from llamina.kernels.team import Team
from naive_kernels import fma32
from small_models import write_small_model
from train_cases import opened

if TYPE_CHECKING:
    from llamina.engine.run.runtime import Runtime

f32 = np.float32
SHAPES = [(1, 1, 1), (2, 16, 3), (3, 15, 64), (5, 17, 65), (6, 16, 257), (7, 16, 300), (8, 33, 70), (9, 32, 9), (16, 70, 130), (23, 16, 31),
          (49, 40, 66), (53, 300, 7), (39, 13, 150), (16, 16, 129), (9, 150, 16), (31, 48, 49)]
"""Rows, columns, depth: every number of rows that goes together, one group of rows and two, one panel and several, a part of a vector; few columns, few rows,
and little depth, which are walked through in orders of their own."""


def random(rng: np.random.Generator, n: int, columns: int) -> np.ndarray:
    rows = rows_of(n, columns)
    rows[:, :columns] = rng.standard_normal((n, columns)) * 10.0 ** rng.uniform(-2, 2, (n, columns))
    return rows


def chained(a: np.ndarray, w: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out[i, n] goes on over k of a[i, k] × w[k, n]."""
    for k in range(len(w)):
        out = fma32(a[:, k, None], w[None, k], out)
    return out


@pytest.mark.parametrize("multiply", [chains._multiply, packed.multiply_packed], ids=["plain", "packed"])
@pytest.mark.parametrize("order", ["rows", "columns", "apart"])
def test_a_product_is_chains(multiply: Compiled, order: str) -> None:
    rng = np.random.default_rng(5)
    for rows, columns, depth in SHAPES:
        a, w, out = random(rng, rows, depth)[:, :depth], random(rng, depth, columns), random(rng, rows, columns)
        at, (a_i, a_k) = a, a.strides
        if order == "columns":
            at = random(rng, depth, rows)
            a, a_i, a_k = at[:, :rows].T, 4, at.strides[0]
        elif order == "apart":
            at = random(rng, rows, 3 * depth)
            a, a_i, a_k = at[:, :3 * depth:3], at.strides[0], 12
        expected = chained(a, w[:, :columns], out[:, :columns])
        beside = out[:, columns:].copy()
        multiply.ctypes(at.ctypes.data, a_i, a_k, w.ctypes.data, w.strides[0], out.ctypes.data, out.strides[0], rows, columns, depth)
        assert (out[:, :columns].view(np.int32) == expected.view(np.int32)).all(), (rows, columns, depth)
        assert (out[:, columns:] == beside).all(), "nothing is written past the columns"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_that_read_each_other(threads: int) -> None:
    """A list that is divided by rows: a product, one that goes on with it, its scale, and one that reads it; and one by columns, of several; beside others."""
    rng = np.random.default_rng(8)
    with Team(3) as team:
        ops = Ops(cast("Runtime", SimpleNamespace(team=team)), threads)
        for n in 1, 7, 130:
            x, w, b, more = random(rng, n, 70), random(rng, 70, 16), random(rng, 33, 16), random(rng, n, 33)
            a, dx, out, others = random(rng, 16, 300), random(rng, n, 300), rows_of(n, 16), [random(rng, rows, 300) for rows in (16, 5)]
            left = [random(rng, n, 16), random(rng, n, 5)]
            by, before, first = f32(0.37), dx.copy(), [o.copy() for o in others]
            expected = chained(more[:, :33], b[:, :16], chained(x[:, :70], w[:, :16], np.zeros((n, 16), f32))) * by
            ops.products(
                [[Product(x, x.strides[0], 4, w, out, n, 16, 70), Product(more, more.strides[0], 4, b, out, n, 16, 33, float(by)),
                  Product(out, out.strides[0], 4, a, dx, n, 300, 16)]],
                [[Product(u, 4, u.strides[0], before, o, len(o), 300, n) for u, o in zip(left, others)]])
            assert (out[:, :16].view(np.int32) == expected.view(np.int32)).all()
            assert (dx[:, :300] == chained(expected, a[:, :300], before[:, :300])).all()
            for u, o, was in zip(left, others, first):
                assert (o[:, :300] == chained(u.T[:len(o), :n], before[:, :300], was[:, :300])).all()


@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_gradients_through_weights_are_chains(format: str, tmp_path: Path) -> None:
    """Of a matrix whose weights are what it makes of the identity: more rows than a panel has, parts of a block of tokens, more of these than go at once."""
    rng = np.random.default_rng(6)
    with opened(write_small_model(tmp_path / "m.gguf", format)) as model:
        ops, matrix = Ops(model.runtime), model.config.output.matrix
        one, w = rows_of(matrix.rows, matrix.rows), rows_of(matrix.rows, model.config.dim)
        one[:, :matrix.rows] = np.eye(matrix.rows, dtype=f32)
        ops.through_weights(matrix, one, w)
        assert w.any(axis=1).all() and matrix.rows > 128
        for tokens in 1, 6, 8, 11, 521:
            dy, dx = random(rng, tokens, matrix.rows), random(rng, tokens, model.config.dim)
            expected = chained(dy[:, :matrix.rows], w, dx)
            ops.through_weights(matrix, dy, dx)
            assert (dx.view(np.int32) == expected.view(np.int32)).all(), tokens


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even, zero below 2**-55: by way of float64, not of bits."""
    m, e = np.frexp(x.astype(np.float64))
    rounded = np.ldexp(np.rint(m * 256) / 256, e)
    return np.where(np.abs(x) < 2.0**-55, 0.0, rounded).astype(f32)


WAYS = {"plain": weights.through(True, False), "packed": weights.through(True, True), "pairs": weight_pairs.through_weight_pairs}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("format", ["Q4_0", "BF16"])
def test_rounded_gradients_through_weights_are_chains(format: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every way that any CPU takes: an odd number of rows, of which the last is alone in its pair, more rows than a panel has; numbers that count as zero,
    and what a gradient goes on from far below the products."""
    if way == "pairs" and not HAS_BF16_DOT:
        pytest.skip("this CPU has no dot product of bfloat16")
    monkeypatch.setattr(weights, "through_rounded_weights", WAYS[way])
    monkeypatch.setattr(weight_pairs, "through_weight_pairs", WAYS[way])
    rng = np.random.default_rng(8)
    with opened(write_small_model(tmp_path / "m.gguf", format), threads=2) as model:
        exact, ops, matrix = Ops(model.runtime), Ops(model.runtime, rounded=True), model.config.output.matrix
        one, w = rows_of(matrix.rows, matrix.rows), rows_of(matrix.rows, model.config.dim)
        one[:, :matrix.rows] = np.eye(matrix.rows, dtype=f32)
        exact.through_weights(matrix, one, w)
        whole = matrix.rows
        for tokens, rows in (1, whole), (6, whole - 1), (8, 33), (11, 1), (521, whole - 3):
            part = replace(matrix, rows=rows)
            dy, dx = random(rng, tokens, matrix.rows), random(rng, tokens, model.config.dim)
            dy *= f32(10.0) ** rng.integers(-22, 1, dy.shape).astype(f32)
            dx *= f32(10.0) ** rng.integers(-38, 1, dx.shape).astype(f32)
            dx[0, ::3] = -0.0
            before = np.where(np.abs(dx) < 2.0**-100, f32(0), dx)
            expected = chained(to_bfloat16(dy[:, :rows]), to_bfloat16(w[:rows]), before)
            ops.through_weights(part, dy, dx)
            assert (dx.view(np.int32) == expected.view(np.int32)).all(), (tokens, rows)
            again = dx.copy()
            exact.through_weights(part, dy, again)
            assert (again != dx).any(), "and not what float32 gives"


def test_only_formats_that_are_not_float_are_rounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    for format, rounded in ("F32", False), ("F16", False), ("BF16", True), ("Q8_0", True):
        with opened(write_small_model(tmp_path / f"{format}.gguf", format)) as model:
            matrix, results = model.config.output.matrix, []
            dy = random(rng, 3, matrix.rows)
            for ops in Ops(model.runtime), Ops(model.runtime, rounded=True):
                results.append(rows_of(3, model.config.dim))
                ops.through_weights(matrix, dy, results[-1])
            assert (results[0] != results[1]).any() == rounded, format
