"""The one product of the backward pass: out[i, n] goes on as a fma chain over k = 0, 1, … of a[i, k] × w[k, n], float32.

    gradients of inputs       dX[m, c] += dY[m, r] × W[r, c]         chain over output rows r
    gradients of parameters   dA[j, c] += dU[m, j] × X[m, c]         chain over tokens m
    attention                 dK[p, d] += dS[m, p] × Q[m, d]         chain over queries m

`a` is read with any two strides, one lane of a vector per column n. What is in `out` goes on, so a chain may be cut anywhere: blocks of i and n, which
registers hold, and chunks of k, whose rows of w stay in a first-level cache, never show in a result.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from ..compile_cache import compiled
from ..deferred import intrinsic, jit, types
from ..simd import (
    I64,
    fma,
    get_f32,
    load_f32,
    load_f32x16,
    load_i64,
    pointer,
    prefetch,
    prefetch_l2,
    put_f32,
    splat_f32,
    splat_load_f32,
    stack_vectors,
    store_f32,
    store_f32x16,
)
from ..target import TARGET
from ..team_state import next_tile
from .packed import move, multiply_packed

M, C, TALL = (8, 2, 16) if TARGET in ("avx512vnni", "avx512") else (4, 1, 4)
"""Rows and vectors of columns whose chains the registers hold; rows of a single vector."""
PACKED = TARGET in ("avx2", "avxvnni")
"""Whether packed.py multiplies."""
CHUNK, NARROW, SHALLOW = 256, 128, 48
"""Rows of w that go through together; where of each row of w or a only 64 bytes are read; most of those that all go through together."""
COLUMNS = 16 * C

MULTIPLY, A, A_I, A_K, W, LD_W, OUT, LD_OUT, ROWS, N, K, SCALE, TOGETHER, BY_ROWS, PIECE = range(0, 120, 8)
"""Words of a product. A_I, A_K: bytes from a's element to the next i, and k. LD_W, LD_OUT: bytes from a row to the next. SCALE: float32 that what has come out
is multiplied with; 1: not. TOGETHER: see `products`; BY_ROWS, PIECE: how they are divided, and how many rows (or columns) a piece has."""
WORDS = 15


def block(rows: int, C: int, ahead: str = "out", multiply_add: Any = fma, fresh: bool = False):
    """`rows` × C vectors of chains go on for n steps. ahead: what is fetched meanwhile of what comes next, far apart as its parts lie: "out", its next rows;
    "rows", a's next ones; "a", its next 16 columns; "w", its next columns; "": nothing. multiply_add: (16 of w, of a, acc), a step. fresh: chains from 0."""
    together, of_out, of_rows, of_a, of_w = rows * C, ahead == "out", ahead == "rows", ahead == "a", ahead == "w"

    @jit
    def block(a, a_i, a_k, w, ldw, out, ldo, n):
        acc = stack_vectors(together)
        for m in range(rows):
            for c in range(C):
                put_f32(acc, m * C + c, splat_f32(0.0) if fresh else load_f32x16(out + m * ldo + 64 * c))
        if of_out:
            for m in range(rows):
                for c in range(C):
                    prefetch(out + (rows + m) * ldo + 64 * c)
        if of_rows:
            coming = a + rows * a_i
            for _ in range(n // 16):
                line = coming
                for _ in range(16):
                    prefetch_l2(line)
                    for m in range(rows):
                        x = splat_load_f32(a + m * a_i)
                        for c in range(C):
                            put_f32(acc, m * C + c, multiply_add(load_f32x16(w + 64 * c), x, get_f32(acc, m * C + c)))
                    a += a_k
                    w += ldw
                    line += a_i
                coming += 64
            n %= 16
        for _ in range(n):
            if of_a:
                prefetch(a + 64)
            if of_w:
                prefetch(w + 64 * C)
            for m in range(rows):
                x = splat_load_f32(a + m * a_i)
                for c in range(C):
                    put_f32(acc, m * C + c, multiply_add(load_f32x16(w + 64 * c), x, get_f32(acc, m * C + c)))
            a += a_k
            w += ldw
        for m in range(rows):
            for c in range(C):
                store_f32x16(out + m * ldo + 64 * c, get_f32(acc, m * C + c))
    return block


_many, _four, _two, _one = (block(m, C) for m in (M, 4, 2, 1))
_narrow, _narrow_four, _narrow_two, _narrow_one = (block(m, 1) for m in (M, 4, 2, 1))
_tall, _tall_rows, _tall_a, _tall_w = (block(TALL, 1, ahead) for ahead in ("out", "rows", "a", "w"))


@jit
def _several(left, width):
    """How many of the rows that are left go together."""
    if width <= 16 and left >= TALL:
        return TALL
    return M if left >= M else 4 if left >= 4 else 2 if left >= 2 else 1


@jit
def _blocks(a, a_i, a_k, w, ldw, out, ldo, rows, columns, steps, edge):
    """All rows of up to COLUMNS columns, for some steps."""
    i = 0
    while i < rows:
        here, ai, goal = _several(rows - i, columns), a + i * a_i, out + i * ldo
        to, ld = goal, ldo
        if columns % 16:
            to, ld = edge, 4 * COLUMNS
            move(goal, ldo, edge, ld, here, columns)
        if columns <= 16:
            if here == TALL:
                if a_i == 4:
                    _tall_a(ai, a_i, a_k, w, ldw, to, ld, steps)
                elif a_k == 4:
                    _tall_rows(ai, a_i, a_k, w, ldw, to, ld, steps)
                else:
                    _tall(ai, a_i, a_k, w, ldw, to, ld, steps)
            elif here == M:
                _narrow(ai, a_i, a_k, w, ldw, to, ld, steps)
            elif here == 4:
                _narrow_four(ai, a_i, a_k, w, ldw, to, ld, steps)
            elif here == 2:
                _narrow_two(ai, a_i, a_k, w, ldw, to, ld, steps)
            else:
                _narrow_one(ai, a_i, a_k, w, ldw, to, ld, steps)
        elif here == M:
            _many(ai, a_i, a_k, w, ldw, to, ld, steps)
        elif here == 4:
            _four(ai, a_i, a_k, w, ldw, to, ld, steps)
        elif here == 2:
            _two(ai, a_i, a_k, w, ldw, to, ld, steps)
        else:
            _one(ai, a_i, a_k, w, ldw, to, ld, steps)
        if columns % 16:
            move(edge, ld, goal, ldo, here, columns)
        i += here


@compiled("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _multiply(a, a_i, a_k, w, ldw, out, ldo, rows, columns, depth):
    """Strides in bytes. Rows of w are read up to a whole number of 16 columns."""
    edge = stack_vectors(32)
    for i in range(32):
        put_f32(edge, i, splat_f32(0.0))
    if columns <= 16:  # a is read once: its rows from one end to the other, or some of each
        most = depth if a_k == 4 else NARROW
        for k in range(0, depth, most):
            _blocks(a + k * a_k, a_i, a_k, w + k * ldw, ldw, out, ldo, rows, columns, min(most, depth - k), edge)
    elif rows == TALL:  # w is read once
        for k in range(0, depth, NARROW):
            ak, wk, steps = a + k * a_k, w + k * ldw, min(NARROW, depth - k)
            for n in range(0, columns & -16, 16):
                _tall_w(ak, a_i, a_k, wk + 4 * n, ldw, out + 4 * n, ldo, steps)
            if columns % 16:
                n = columns & -16
                _blocks(ak, a_i, a_k, wk + 4 * n, ldw, out + 4 * n, ldo, rows, columns - n, steps, edge)
    elif depth <= SHALLOW:  # the most is to be read and written of out: along its rows, of as much of w as stays in a first-level cache
        wide = max(COLUMNS, 2048 // max(1, depth) // COLUMNS * COLUMNS)
        for first in range(0, columns, wide):
            last = min(columns, first + wide)
            for i in range(0, rows, M):
                ai, to, n = a + i * a_i, out + i * ldo, first
                if i + M <= rows:
                    while n + COLUMNS <= last:
                        _many(ai, a_i, a_k, w + 4 * n, ldw, to + 4 * n, ldo, depth)
                        n += COLUMNS
                while n < last:
                    _blocks(ai, a_i, a_k, w + 4 * n, ldw, to + 4 * n, ldo, min(M, rows - i), min(COLUMNS, last - n), depth, edge)
                    n += COLUMNS
    else:
        for k in range(0, depth, CHUNK):
            for n in range(0, columns, COLUMNS):
                _blocks(a + k * a_k, a_i, a_k, w + k * ldw + 4 * n, ldw, out + 4 * n, ldo, rows, min(COLUMNS, columns - n), min(CHUNK, depth - k), edge)


multiply = multiply_packed if PACKED else _multiply


@intrinsic
def call_multiply(typingctx, function, a, a_i, a_k, w, ldw, out, ldo, rows, columns, depth):
    """`multiply` by its address."""
    def codegen(context, builder, sig, args):
        values = [context.cast(builder, x, t, types.int64) for x, t in zip(args[1:], sig.args[1:])]
        builder.call(pointer(builder, args[0], ir.FunctionType(ir.VoidType(), [I64] * len(values))), values)
        return context.get_dummy_value()
    return types.void(function, a, a_i, a_k, w, ldw, out, ldo, rows, columns, depth), codegen


@jit
def _scale(out, ld, rows, columns, by):
    for i in range(rows):
        for n in range(0, 4 * columns, 4):
            store_f32(out + i * ld + n, load_f32(out + i * ld + n) * by)


@compiled("int64(int64, int64, int64, int64)")
def products(tid, n_threads, team, words):
    """Products: how many, then the words of each. Pieces go to whoever is free. Some are TOGETHER, as the first of them says: all are divided alike, by their
    rows or by their columns, of which they have as many, and a piece is of all, one after the other. So these may go on with what another of them has made, or,
    divided by rows, read it as `a`; nothing else that is made here is read here."""
    at, before, i, n = next_tile(team, 0, 1), 0, 0, load_i64(words)
    while i < n:
        p = words + 8 + 8 * WORDS * i
        together, by_rows, size = load_i64(p + TOGETHER), load_i64(p + BY_ROWS) != 0, load_i64(p + PIECE)
        whole = load_i64(p + ROWS) if by_rows else load_i64(p + N)
        pieces = (whole + size - 1) // size
        while at < before + pieces:
            first = (at - before) * size
            here = min(size, whole - first)
            for one in range(p, p + 8 * WORDS * together, 8 * WORDS):
                i0, n0, rows, columns = (first, 0, here, load_i64(one + N)) if by_rows else (0, first, load_i64(one + ROWS), here)
                a_i, ldo, by = load_i64(one + A_I), load_i64(one + LD_OUT), load_f32(one + SCALE)
                out = load_i64(one + OUT) + i0 * ldo + 4 * n0
                call_multiply(load_i64(one + MULTIPLY), load_i64(one + A) + i0 * a_i, a_i, load_i64(one + A_K), load_i64(one + W) + 4 * n0,
                              load_i64(one + LD_W), out, ldo, rows, columns, load_i64(one + K))
                if by != np.float32(1.0):
                    _scale(out, ldo, rows, columns, by)
            at = next_tile(team, 0, 1)
        before += pieces
        i += together
    return 0
