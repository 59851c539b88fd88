"""AdamW and the norm of gradients on many numbers, compiled: engine/train/optimiser.py's operations, one after the other, hence its bits.

    weights, moments float32 ──► 8 float64 lanes: * + / and square root, never joined ──► rounded to float32 once
"""
from __future__ import annotations

import numpy as np
from llvmlite import ir

from ..compile_cache import compiled
from ..deferred import intrinsic, jit
from ..simd import F32, call, load_f32, load_i64, store_vector
from ..simd64 import F64x8, load_f32x8_as_f64, load_f64, splat_f64, sum_f64
from ..team_state import next_tile

FACTOR, KEEP, SIZE, ROOT, BETA1, REST1, BETA2, REST2, EPS = range(0, 72, 8)
"""Of float64: what gradients are multiplied with; 1 - rate decay; rate / c1; sqrt(c2); the betas and 1 less them; epsilon."""
NUMBERS = 9


@intrinsic
def _store_f32(typingctx, address, value):
    """8 float64, each rounded, as float32 -> these, as float64."""
    def codegen(context, builder, sig, args):
        rounded = builder.fptrunc(args[1], ir.VectorType(F32, 8))
        store_vector(builder, args[0], rounded)
        return builder.fpext(rounded, F64x8.llvm)
    return F64x8(address, value), codegen


@intrinsic
def _sqrt(typingctx, v):
    """Lane-wise, correctly rounded."""
    def codegen(context, builder, sig, args):
        return call(builder, "llvm.sqrt.v8f64", F64x8.llvm, args)
    return F64x8(v), codegen


W, G, FIRST, SECOND, N, ARRAY_NUMBERS = range(0, 48, 8)
"""Words of an array: addresses of float32 [N], N a multiple of 8, and of its numbers."""
WORDS = 6
PIECE = 1 << 14
"""Numbers that go to a thread at once."""


@jit
def _adamw(w, g, m, v, n, numbers):
    """w, m, v change in place. -> whether one of them isn't finite"""
    factor, keep, size, root = (splat_f64(load_f64(numbers + FACTOR)), splat_f64(load_f64(numbers + KEEP)), splat_f64(load_f64(numbers + SIZE)),
                                splat_f64(load_f64(numbers + ROOT)))
    beta1, rest1, beta2, rest2 = (splat_f64(load_f64(numbers + BETA1)), splat_f64(load_f64(numbers + REST1)), splat_f64(load_f64(numbers + BETA2)),
                                  splat_f64(load_f64(numbers + REST2)))
    eps, bad = splat_f64(load_f64(numbers + EPS)), splat_f64(0.0)
    for i in range(0, 4 * n, 32):
        gradient = load_f32x8_as_f64(g + i) * factor
        first = load_f32x8_as_f64(m + i) * beta1 + gradient * rest1
        second = load_f32x8_as_f64(v + i) * beta2 + (gradient * gradient) * rest2
        new = load_f32x8_as_f64(w + i) * keep - (first * size) / (_sqrt(second) / root + eps)
        bad = bad + (_store_f32(m + i, first) + _store_f32(v + i, second) + _store_f32(w + i, new)) * splat_f64(0.0)  # 0, or NaN for ever
    total = sum_f64(bad)
    return total != total


@compiled("int64(int64, int64, int64, int64)")
def adamw(tid, n_threads, team, words):
    """A step of arrays: how many, then the words of each. -> 1 if a weight or a moment isn't finite after it"""
    at, before, bad = next_tile(team, 0, 1), 0, False
    for i in range(load_i64(words)):
        p = words + 8 + 8 * WORDS * i
        n = load_i64(p + N)
        pieces = (n + PIECE - 1) // PIECE
        while at < before + pieces:
            first = (at - before) * PIECE
            bad |= _adamw(load_i64(p + W) + 4 * first, load_i64(p + G) + 4 * first, load_i64(p + FIRST) + 4 * first, load_i64(p + SECOND) + 4 * first,
                          min(PIECE, n - first), load_i64(p + ARRAY_NUMBERS))
            at = next_tile(team, 0, 1)
        before += pieces
    return 1 if bad else 0


@compiled("float64(int64, int64, float64)")
def squares(g, n, total):
    """total + g[0]² + g[1]² + …, one chain; a square of a float32 is exact."""
    for i in range(0, 4 * n, 4):
        x = np.float64(load_f32(g + i))
        total = total + x * x
    return total
