"""The per-token stages: RMSNorm, RoPE, SwiGLU, appending to the KV cache. One token's row per call, rows padded with zeros to 32 columns.

Sums along a row use 16 partial accumulators (one per lane, columns i, i + 16, …) and one fixed tree on every target.
"""
from __future__ import annotations

import numpy as np
from numba import njit

from .activations import INFINITY_BITS
from .half import store_f16x16
from .simd import (
    f32_bits,
    fma,
    load_f32,
    load_f32x16,
    load_u16,
    splat_f32,
    stack_vectors,
    store_f32,
    store_f32x16,
    store_u16,
    vsum,
)
from .vecmath import sin_cos, vexp

jit = njit(nogil=True, error_model="numpy")
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
def fill_rope_table(frequencies, table, first, last, scale):
    """Rows [first, last) of table: float32 [positions, pairs, 2] = scale * (cos, sin)(position * frequency), computed in float64."""
    for position in range(first, last):
        for i in range(frequencies.size):
            s, c = sin_cos(position * frequencies[i])
            table[position, i, 0] = np.float32(c * scale)
            table[position, i, 1] = np.float32(s * scale)


@jit
def append_kv(k, v, n_kv_heads, head_dim, v_dim, slot, page):
    """Round one token's keys and values to f16 into position `slot` of a layer's page (layout: attention.py)."""
    halves = stack_vectors(1)
    for h in range(n_kv_heads):
        keys = page + 2 * h * head_dim * PAGE + 2 * slot
        for d in range(0, head_dim, 16):
            store_f16x16(halves, load_f32x16(k + 4 * (h * head_dim + d)))
            for i in range(min(16, head_dim - d)):
                store_u16(keys + 2 * PAGE * (d + i), load_u16(halves + 2 * i))
        values = page + 2 * PAGE * (n_kv_heads * head_dim + h * v_dim) + 2 * slot * v_dim
        for d in range(0, head_dim, 16):
            # past head_dim lie the next head's values: harmless, nothing reads those lanes
            store_f16x16(values + 2 * d, load_f32x16(v + 4 * (h * head_dim + d)))
