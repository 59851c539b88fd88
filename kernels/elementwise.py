"""The per-token stages: RMSNorm, RoPE, SwiGLU, appending to the KV cache. One token's row per call, rows padded with zeros to 32 columns.

Sums along a row use 16 partial accumulators (one per lane, columns i, i + 16, …) and one fixed tree on every target.
"""
from __future__ import annotations

import numpy as np

from .activations import INFINITY_BITS
from .deferred import jit
from .half import store_f16x16
from .simd import (
    and_i32,
    bits_of,
    f32_bits,
    f64_from_bits,
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    load_u16,
    splat_f32,
    splat_i32,
    stack_vectors,
    store_f32,
    store_f32x16,
    store_u16,
    vmax_across_i32,
    vmax_i32,
    vsum,
)
from .vecmath import sin_cos, vexp

PAGE = 64
"""Positions in a page of the KV cache."""
_HALF_LIMIT_BITS = 0x477FF000  # 65520.0: from here on, rounding to f16 gives infinity


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
def rope(x, n_heads, head_dim, rope_dim, table):
    """Rotate the pairs (2i, 2i + 1) of each head's first rope_dim columns; table: float32 [rope_dim / 2, 2] = (cos, sin) of this position.

    Interleaved pairs are GGUF's llama convention; Hugging Face's half-split weights are permuted at conversion. (Su et al. 2021.)
    """
    for h in range(n_heads):
        p = x + 4 * h * head_dim
        for i in range(0, 4 * rope_dim, 8):
            a, b, c, s = load_f32(p + i), load_f32(p + i + 4), load_f32(table + i), load_f32(table + i + 4)
            store_f32(p + i, a * c - b * s)
            store_f32(p + i + 4, a * s + b * c)


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


@jit
def append_kv(k, v, n_kv_heads, head_dim, v_dim, slot, page, item):
    """Store one token's keys and values at position `slot` of a layer's page (layout: attention.py); item: 2 (rounded to f16) or 4 (float32).

    -> True if one of them is NaN or beyond the stored type's range (f16: 65520), which attention would turn into plausible numbers.
    """
    small, magnitudes = stack_vectors(1), splat_i32(0)
    limit = INFINITY_BITS if item == 4 else _HALF_LIMIT_BITS
    for h in range(n_kv_heads):
        keys = page + item * (h * head_dim * PAGE + slot)
        values = page + item * (PAGE * (n_kv_heads * head_dim + h * v_dim) + slot * v_dim)
        for d in range(0, head_dim, 16):
            # lanes past head_dim hold the next head's numbers: harmless, nothing reads them where they are stored
            x, y = load_f32x16(k + 4 * (h * head_dim + d)), load_f32x16(v + 4 * (h * head_dim + d))
            magnitudes = vmax_i32(magnitudes, vmax_i32(and_i32(bits_of(x), 0x7FFFFFFF), and_i32(bits_of(y), 0x7FFFFFFF)))
            if item == 4:
                store_f32x16(small, x)
                store_f32x16(values + 4 * d, y)
                for i in range(min(16, head_dim - d)):
                    store_f32(keys + 4 * PAGE * (d + i), load_f32(small + 4 * i))
            else:
                store_f16x16(small, x)
                store_f16x16(values + 2 * d, y)
                for i in range(min(16, head_dim - d)):
                    store_u16(keys + 2 * PAGE * (d + i), load_u16(small + 2 * i))
    return vmax_across_i32(magnitudes) >= limit
