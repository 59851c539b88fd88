"""The one product of the backward pass: out[i, n] goes on as a fma chain over k = 0, 1, … of a[i, k] × w[k, n], float32.

    gradients of inputs       dX[m, c] += dY[m, r] × W[r, c]         chain over output rows r
    gradients of parameters   dA[j, c] += dU[m, j] × X[m, c]         chain over tokens m
    attention                 dK[p, d] += dS[m, p] × Q[m, d]         chain over queries m

`a` is read with any two strides, one lane of a vector per column n. What is in `out` goes on, so a chain may be cut anywhere: blocks of i and n, which
registers hold, and chunks of k, whose rows of w stay in a first-level cache, never show in a result.
"""
from __future__ import annotations

from llvmlite import ir

from ..compile_cache import compiled
from ..deferred import intrinsic, jit, types
from ..simd import (
    I64,
    fma,
    get_f32,
    load_f32x16,
    load_i64,
    pointer,
    prefetch,
    put_f32,
    splat_f32,
    splat_load_f32,
    stack_vectors,
    store_f32x16,
)
from ..target import TARGET
from ..team_state import next_tile
from .packed import move, multiply_packed

M, C = (8, 2) if TARGET in ("avx512vnni", "avx512") else (4, 1)
"""Rows and vectors of columns whose chains the registers hold."""
PACKED = TARGET in ("avx2", "avxvnni")
"""Whether packed.py multiplies."""
CHUNK = 256
"""Rows of w that go through together."""
COLUMNS = 16 * C

MULTIPLY, A, A_I, A_K, W, LD_W, OUT, LD_OUT, ROWS, N, K = range(0, 88, 8)
"""Words of a product. A_I, A_K: bytes from a's element to the next i, and k. LD_W, LD_OUT: bytes from a row to the next."""
WORDS = 11


def _block(rows: int, C: int):
    """`rows` × C vectors of chains go on for n steps."""
    together = rows * C

    @jit
    def block(a, a_i, a_k, w, ldw, out, ldo, n):
        acc = stack_vectors(together)
        for m in range(rows):
            for c in range(C):
                put_f32(acc, m * C + c, load_f32x16(out + m * ldo + 64 * c))
        for m in range(rows):  # what the next block begins with: rows far apart, which no hardware foresees
            for c in range(C):
                prefetch(out + (rows + m) * ldo + 64 * c)
        for _ in range(n):
            for m in range(rows):
                x = splat_load_f32(a + m * a_i)
                for c in range(C):
                    put_f32(acc, m * C + c, fma(load_f32x16(w + 64 * c), x, get_f32(acc, m * C + c)))
            a += a_k
            w += ldw
        for m in range(rows):
            for c in range(C):
                store_f32x16(out + m * ldo + 64 * c, get_f32(acc, m * C + c))
    return block


_many, _one, _narrow = _block(M, C), _block(1, C), _block(M, 1)


@compiled("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _multiply(a, a_i, a_k, w, ldw, out, ldo, rows, columns, depth):
    """Strides in bytes. Rows of w are read up to a whole number of COLUMNS."""
    edge = stack_vectors(16)
    for i in range(16):
        put_f32(edge, i, splat_f32(0.0))
    for k in range(0, depth, CHUNK):
        steps, ak, wk = min(CHUNK, depth - k), a + k * a_k, w + k * ldw
        for n in range(0, columns, COLUMNS):
            width, i = min(COLUMNS, columns - n), 0
            while i < rows:
                many = i + M <= rows
                if many and width == 16:  # as wide as most pairs' rank
                    _narrow(ak + i * a_i, a_i, a_k, wk + 4 * n, ldw, out + i * ldo + 4 * n, ldo, steps)
                    i += M
                    continue
                to, ld = out + i * ldo + 4 * n, ldo
                if width < COLUMNS:
                    to, ld = edge, 4 * COLUMNS
                    move(out + i * ldo + 4 * n, ldo, edge, ld, M if many else 1, width)
                if many:
                    _many(ak + i * a_i, a_i, a_k, wk + 4 * n, ldw, to, ld, steps)
                else:
                    _one(ak + i * a_i, a_i, a_k, wk + 4 * n, ldw, to, ld, steps)
                if width < COLUMNS:
                    move(edge, ld, out + i * ldo + 4 * n, ldo, M if many else 1, width)
                i += M if many else 1


multiply = multiply_packed if PACKED else _multiply


@intrinsic
def call_multiply(typingctx, function, a, a_i, a_k, w, ldw, out, ldo, rows, columns, depth):
    """`multiply` by its address."""
    def codegen(context, builder, sig, args):
        values = [context.cast(builder, x, t, types.int64) for x, t in zip(args[1:], sig.args[1:])]
        builder.call(pointer(builder, args[0], ir.FunctionType(ir.VoidType(), [I64] * len(values))), values)
        return context.get_dummy_value()
    return types.void(function, a, a_i, a_k, w, ldw, out, ldo, rows, columns, depth), codegen


@compiled("int64(int64, int64, int64, int64)")
def product(tid, n_threads, team, words):
    """A product on all threads: they divide its rows, or its columns if there are more blocks of those."""
    rows, columns, ldo = load_i64(words + ROWS), load_i64(words + N), load_i64(words + LD_OUT)
    by_rows, by_columns, i0, i1, n0, n1 = (rows + M - 1) // M, (columns + COLUMNS - 1) // COLUMNS, 0, rows, 0, columns
    if by_rows >= by_columns:
        i0, i1 = min(rows, M * (tid * by_rows // n_threads)), min(rows, M * ((tid + 1) * by_rows // n_threads))
    else:
        n0, n1 = min(columns, COLUMNS * (tid * by_columns // n_threads)), min(columns, COLUMNS * ((tid + 1) * by_columns // n_threads))
    if i0 < i1 and n0 < n1:
        call_multiply(load_i64(words + MULTIPLY), load_i64(words + A) + i0 * load_i64(words + A_I), load_i64(words + A_I), load_i64(words + A_K),
                      load_i64(words + W) + 4 * n0, load_i64(words + LD_W), load_i64(words + OUT) + i0 * ldo + 4 * n0, ldo, i1 - i0, n1 - n0,
                      load_i64(words + K))
    return 0


@compiled("int64(int64, int64, int64, int64)")
def products(tid, n_threads, team, words):
    """Products none of which reads or goes on with what another makes: a number, then the words of each. Pieces of up to 96 rows (where there are few, of 128
    columns) go to whoever is free."""
    at, before = next_tile(team, 0, 1), 0
    for i in range(load_i64(words)):
        p = words + 8 + 8 * WORDS * i
        rows, columns, ldo, a_i = load_i64(p + ROWS), load_i64(p + N), load_i64(p + LD_OUT), load_i64(p + A_I)
        by_rows = rows >= 48
        whole, size = (rows, 96) if by_rows else (columns, 128)
        step = 6 if by_rows else 16
        size = min(size, (whole // (2 * n_threads) // step + 1) * step)
        pieces = (whole + size - 1) // size
        while at < before + pieces:
            first = (at - before) * size
            here = min(size, whole - first)
            i0, n0 = (first, 0) if by_rows else (0, first)
            call_multiply(load_i64(p + MULTIPLY), load_i64(p + A) + i0 * a_i, a_i, load_i64(p + A_K), load_i64(p + W) + 4 * n0, load_i64(p + LD_W),
                          load_i64(p + OUT) + i0 * ldo + 4 * n0, ldo, here if by_rows else rows, columns if by_rows else here, load_i64(p + K))
            at = next_tile(team, 0, 1)
        before += pieces
    return 0
