"""Weights of a whole vocabulary to 11 digits, in half the time that sampling.py needs for all of their bits.

A stage decides by comparing sums. Estimates settle nearly every comparison, and where they can't, within `DOUBT`, the caller asks sampling.py. So what is
decided, and hence every token, is the exact arithmetic's; the estimates' own last bits matter to nobody, and may differ between CPUs.

    2**y, y = (logit - greatest) * log2(e) / divisor:  n = round(y), and 2**(y - n) by a polynomial
"""
from __future__ import annotations

from .compile_cache import compiled
from .deferred import intrinsic, jit
from .sampling import BLOCK, FAR, MAGIC, MAGIC_BITS, _scores
from .simd import call, stack_vectors
from .simd64 import (
    F64x8,
    bits_of_f64x8,
    f64x8_from_bits,
    load_f32x8_as_f64,
    load_f64x8,
    shl_i64,
    splat_f64,
    splat_i64,
    store_f64,
    store_f64x8,
    sum_f64,
    where_less,
)

DOUBT = 1e-11
"""No estimate is off by more than this share of its weight, but for weights below 2**-1000 (tests: a tenth of that), and so no sum of them either, but for
its own rounding."""
C1, C2, C3, C4 = 0.6931471805568324, 0.24022650695888503, 0.055504109063258665, 0.00961812913523614
C5, C6, C7, C8 = 0.0013333478473685416, 0.00015403475186530786, 1.5303700711365693e-05, 1.325080551750225e-06
"""2**f = 1 + f (C1 + f (C2 + …)) for |f| <= 1/2: (2**f - 1) / f at the 8 nodes of Chebyshev."""


@intrinsic
def _muladd(typingctx, a, b, c):
    """a * b + c of f64x8, rounded once or twice, whichever is faster: for estimates alone."""
    def codegen(context, builder, sig, args):
        return call(builder, "llvm.fmuladd.v8f64", F64x8.llvm, args)
    return F64x8(a, b, c), codegen


@jit
def _exp2(y):
    """2**y of f64x8, y <= 0; 2**-1000 below that."""
    lowest = splat_f64(-1000.0)
    y = where_less(y, lowest, lowest, y)
    shifted = y + splat_f64(MAGIC)
    f = y - (shifted - splat_f64(MAGIC))
    p = _muladd(splat_f64(C8), f, splat_f64(C7))
    p = _muladd(p, f, splat_f64(C6))
    p = _muladd(p, f, splat_f64(C5))
    p = _muladd(p, f, splat_f64(C4))
    p = _muladd(p, f, splat_f64(C3))
    p = _muladd(p, f, splat_f64(C2))
    p = _muladd(p, f, splat_f64(C1))
    p = _muladd(p, f, splat_f64(1.0))
    return p * f64x8_from_bits(shl_i64(bits_of_f64x8(shifted) - splat_i64(MAGIC_BITS - 1023), 52))


@compiled("float64(int64, int64, int64, float64, float64, int64, int64)")
def estimate(x, doubles, n, greatest, factor, weights, sums):
    """sampling.weigh, estimated. factor: log2(e) / divisor, finite. weights: float64 [n rounded up to 16], or 0."""
    buffer = stack_vectors(32)
    total, top, scale = 0.0, splat_f64(greatest), splat_f64(factor)
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        low, high = splat_f64(0.0), splat_f64(0.0)
        if m < BLOCK:
            for i in range(0, 8 * BLOCK, 64):
                store_f64x8(buffer + i, splat_f64(FAR))
            _scores(x, doubles, first, m, greatest, 1.0, buffer)
        for i in range(0, m, 16):
            at = first + i
            if m < BLOCK:
                a, b = load_f64x8(buffer + 8 * i), load_f64x8(buffer + 8 * i + 64)
            elif doubles:
                a, b = load_f64x8(x + 8 * at) - top, load_f64x8(x + 8 * at + 64) - top
            else:
                a, b = load_f32x8_as_f64(x + 4 * at) - top, load_f32x8_as_f64(x + 4 * at + 32) - top
            a, b = _exp2(a * scale), _exp2(b * scale)
            if weights != 0:
                store_f64x8(weights + 8 * at, a)
                store_f64x8(weights + 8 * at + 64, b)
            low, high = low + a, high + b
        total = total + sum_f64(low + high)
        store_f64(sums + first // BLOCK * 8, total)
    return total


@compiled("float64(int64, int64, int64, float64, float64)")
def squares(x, doubles, n, greatest, divisor):
    """The sum of the squares of what the scores differ by from their mean, by sums in any order."""
    buffer = stack_vectors(32)
    mean = 0.0
    for power in range(1, 3):
        total = splat_f64(0.0)
        for first in range(0, n, BLOCK):
            m = min(BLOCK, n - first)
            _scores(x, doubles, first, m, greatest, divisor, buffer)
            for i in range(m, (m + 7) // 8 * 8):
                store_f64(buffer + 8 * i, mean)
            for i in range(0, 8 * m, 64):
                off = load_f64x8(buffer + i) - splat_f64(mean)
                total = total + (off if power == 1 else off * off)
        if power == 1:
            mean = sum_f64(total) / n
    return sum_f64(total)
