"""The per-token stages: RMSNorm, RoPE, SwiGLU, appending to the KV cache. One token's row per call, rows padded with zeros to 32 columns.

Sums along a row use 16 partial accumulators (one per lane, columns i, i + 16, …) and one fixed tree on every target.
"""
from __future__ import annotations

import numpy as np

from .activations import INFINITY_BITS
from .deferred import jit
from .simd import (
    even_twice,
    f32_bits,
    f64_from_bits,
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    negate_even,
    odd_twice,
    splat_f32,
    store_f32,
    store_f32x16,
    swap_pairs,
    vsum,
)
from .vecmath import sin_cos, vexp

PAGE = 64
"""Positions in a page of the KV cache."""


@jit
def not_finite(x):
    """Whether a float32 is NaN or infinite."""
    return f32_bits(x) & 0x7FFFFFFF >= INFINITY_BITS


@jit
def add_rows(x, y, columns):
    """x += y, float32 rows."""
    for i in range(0, 4 * columns, 64):
        store_f32x16(x + i, load_f32x16(x + i) + load_f32x16(y + i))


@jit
def rms_norm(x, gain, n, columns, eps, out):
    """out = x / sqrt(mean(x^2) + eps) * gain over n columns (rows padded to `columns`). -> True if x is not finite.

    (Zhang and Sennrich 2019.) The squares' sum may overflow for finite x beyond 1e18: that counts as not finite too.
    """
    squares = splat_f32(0.0)
    for i in range(0, 4 * columns, 64):
        v = load_f32x16(x + i)
        squares = fma(v, v, squares)
    total = vsum(squares)
    r = splat_f32(np.float32(1.0) / np.sqrt(total / np.float32(n) + eps))
    for i in range(0, 4 * columns, 64):
        store_f32x16(out + i, load_f32x16(x + i) * r * load_f32x16(gain + i))
    return not_finite(total)


@jit
def silu_mul(gate, up, columns):
    """gate = gate / (1 + exp(-gate)) * up (SwiGLU, Shazeer 2020)."""
    one, zero = splat_f32(1.0), splat_f32(0.0)
    for i in range(0, 4 * columns, 64):
        g = load_f32x16(gate + i)
        store_f32x16(gate + i, g / (one + vexp(zero - g)) * load_f32x16(up + i))


@jit
def rope(x, head_dim, rope_dim, table):
    """Rotate the pairs (2i, 2i + 1) of a head's first rope_dim columns: a c - b s, a s + b c; table: float32 [rope_dim / 2, 2] = (cos, sin) of this position.

    Interleaved pairs are GGUF's llama convention; Hugging Face's half-split weights are permuted at conversion. (Su et al. 2021.)
    """
    i = 0
    while i + 64 <= 4 * rope_dim:
        v, turn = load_f32x16(x + i), load_f32x16(table + i)
        store_f32x16(x + i, v * even_twice(turn) + swap_pairs(v) * negate_even(odd_twice(turn)))
        i += 64
    while i < 4 * rope_dim:
        a, b, c, s = load_f32(x + i), load_f32(x + i + 4), load_f32(table + i), load_f32(table + i + 4)
        store_f32(x + i, a * c - b * s)
        store_f32(x + i + 4, a * s + b * c)
        i += 8


@jit
def rope_halves(x, rope_dim, table):
    """Rotate the pairs (i, rope_dim / 2 + i) of a head's first rope_dim columns, "NeoX" style: a c - b s, b c + a s; table: float32 [2, rope_dim / 2]: the
    cosines of this position, then its sines. (Black et al. 2022, GPT-NeoX; what Hugging Face calls rotate_half.)"""
    half, i = 2 * rope_dim, 0  # bytes
    while i + 64 <= half:
        a, b, c, s = load_f32x16(x + i), load_f32x16(x + half + i), load_f32x16(table + i), load_f32x16(table + half + i)
        store_f32x16(x + i, a * c - b * s)
        store_f32x16(x + half + i, b * c + a * s)
        i += 64
    while i < half:
        a1, b1, c1, s1 = load_f32(x + i), load_f32(x + half + i), load_f32(table + i), load_f32(table + half + i)
        store_f32(x + i, a1 * c1 - b1 * s1)
        store_f32(x + half + i, b1 * c1 + a1 * s1)
        i += 4


NO_ROPE, PAIRS, HALVES = range(3)
"""How a layer's RoPE makes pairs: not at all, (2i, 2i + 1), or (i, rope_dim / 2 + i)."""


@jit
def turn(kind, x, head_dim, rope_dim, table):
    """RoPE of one head by its kind; table: this position's row."""
    if kind == PAIRS:
        rope(x, head_dim, rope_dim, table)
    elif kind == HALVES:
        rope_halves(x, rope_dim, table)


@jit
def fill_rope_halves(frequencies, pairs, table, first, last, scale):
    """As `fill_rope_table`, in the layout of `rope_halves`: float32 [positions, 2, pairs]."""
    for position in range(first, last):
        for i in range(pairs):
            s, c = sin_cos(position * f64_from_bits(load_i64(frequencies + 8 * i)))
            at = table + 8 * position * pairs + 4 * i
            store_f32(at, np.float32(c * scale))
            store_f32(at + 4 * pairs, np.float32(s * scale))


@jit
def fill_rope_table(frequencies, pairs, table, first, last, scale):
    """Rows [first, last) of table: float32 [positions, pairs, 2] = scale * (cos, sin)(position * frequency), computed in float64.

    frequencies, table: addresses of float64 [pairs] and of the table's row 0.
    """
    for position in range(first, last):
        for i in range(pairs):
            s, c = sin_cos(position * f64_from_bits(load_i64(frequencies + 8 * i)))
            at = table + 8 * (position * pairs + i)
            store_f32(at, np.float32(c * scale))
            store_f32(at + 4, np.float32(s * scale))

