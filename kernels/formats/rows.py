"""Rows of a matrix as they lie in the file, decoded by compiled code: token embeddings, of which a step needs a few at once.

    table (blocks as in the file), ids, factor  ──►  float32 rows, the bits of registry.decode times factor

NumPy's decoders make a dozen passes, which cost a small model a tenth of its step. Formats without a function here keep to them.
"""
from __future__ import annotations

from functools import cache

import numpy as np

from ..activations import INFINITY_BITS
from ..compile_cache import Compiled, compiled
from ..half import load_f16
from ..matmul import jit
from ..simd import (
    and_i32,
    bits_of,
    load_f32x16,
    load_i8x16_as_i32,
    load_i64,
    load_u8,
    sar_i32,
    shl_i32,
    splat_f32,
    splat_i32,
    store_f32x16,
    to_f32,
    vmax_across_i32,
    vmax_i32,
)
from .table import FORMATS

_ENTRY = "int64(int64, int64, int64, int64, int64, int64, int64, float32)"

# -- one block of the file at `block` -> float32 [its columns] at `out`; the operations of the reference decoders, in their order ---------------


@jit
def _q4_0(block, out):
    d, eight, q = splat_f32(load_f16(block)), splat_f32(np.float32(8.0)), load_i8x16_as_i32(block + 2)
    store_f32x16(out, d * (to_f32(and_i32(q, 15)) - eight))
    store_f32x16(out + 64, d * (to_f32(and_i32(sar_i32(q, 4), 15)) - eight))


@jit
def _q4_1(block, out):
    d, m, q = splat_f32(load_f16(block)), splat_f32(load_f16(block + 2)), load_i8x16_as_i32(block + 4)
    store_f32x16(out, d * to_f32(and_i32(q, 15)) + m)
    store_f32x16(out + 64, d * to_f32(and_i32(sar_i32(q, 4), 15)) + m)


@jit
def _q8_0(block, out):
    d = splat_f32(load_f16(block))
    for i in range(2):
        store_f32x16(out + 64 * i, to_f32(load_i8x16_as_i32(block + 2 + 16 * i)) * d)


@jit
def _q4_k(block, out):
    d, dmin = load_f16(block), load_f16(block + 2)
    for b in range(8):
        s, m, both = load_u8(block + 4 + b % 4), load_u8(block + 8 + b % 4), load_u8(block + 12 + b % 4)
        scale, low = (s & 63, m & 63) if b < 4 else ((both & 15) | (s >> 6 << 4), (both >> 4) | (m >> 6 << 4))
        ds, dm = splat_f32(d * np.float32(scale)), splat_f32(dmin * np.float32(low))
        for i in range(2):
            q = load_i8x16_as_i32(block + 16 + 32 * (b // 2) + 16 * i)
            if b % 2:
                q = sar_i32(q, 4)
            store_f32x16(out + 128 * b + 64 * i, ds * to_f32(and_i32(q, 15)) - dm)


@jit
def _q6_k_part(d, scales, low, upper, out):
    """16 columns: 4 lower bits in `low`, 2 upper ones in `upper`."""
    s = (np.int64(load_u8(scales)) ^ 128) - 128
    q = to_f32(and_i32(low, 15)) + to_f32(shl_i32(and_i32(upper, 3), 4)) - splat_f32(np.float32(32.0))  # whole numbers: exact in any order
    store_f32x16(out, splat_f32(d * np.float32(s)) * q)


@jit
def _q6_k(block, out):
    d = load_f16(block + 208)
    for half in range(2):
        for i in range(2):
            first, second = load_i8x16_as_i32(block + 64 * half + 16 * i), load_i8x16_as_i32(block + 64 * half + 32 + 16 * i)
            upper, scales, to = load_i8x16_as_i32(block + 128 + 32 * half + 16 * i), block + 192 + 8 * half + i, out + 512 * half + 64 * i
            _q6_k_part(d, scales, first, upper, to)
            _q6_k_part(d, scales + 2, second, sar_i32(upper, 2), to + 128)
            _q6_k_part(d, scales + 4, sar_i32(first, 4), sar_i32(upper, 4), to + 256)
            _q6_k_part(d, scales + 6, sar_i32(second, 4), sar_i32(upper, 6), to + 384)


_BLOCKS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q6_K": _q6_k}


@cache
def decoder(name: str) -> Compiled | None:
    """None, or (table, row bytes, ids, how many, blocks of a row, out, floats between two rows of it, factor) -> 0, or 1 + index of the first id whose row
    is not finite before the factor. ids: address of int64; out: of float32."""
    if name not in _BLOCKS:
        return None
    block, size, columns = _BLOCKS[name], FORMATS[name].bytes, FORMATS[name].columns

    def decode_rows(table, row_bytes, ids, n, blocks, out, ldo, factor):
        for m in range(n):
            source, target, worst = table + load_i64(ids + 8 * m) * row_bytes, out + 4 * m * ldo, splat_i32(0)
            for b in range(blocks):
                block(source + b * size, target + 4 * b * columns)
            for i in range(0, 4 * blocks * columns, 64):
                v = load_f32x16(target + i)
                worst = vmax_i32(worst, and_i32(bits_of(v), 0x7FFFFFFF))
                store_f32x16(target + i, v * splat_f32(factor))
            if vmax_across_i32(worst) >= INFINITY_BITS:
                return 1 + m
        return 0
    decode_rows.__name__ = decode_rows.__qualname__ = f"rows_{name}"
    return compiled(_ENTRY)(decode_rows)
