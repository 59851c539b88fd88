"""Activations for the integer matmuls: quantised to int8 in blocks of 32 columns, in groups of 8 tokens.

Layout: uint8 [group of 8 tokens, block of 32 columns, RECORD bytes]; one record holds what a kernel needs of one block for 8 tokens:

    offset   0  int8    [8, 32]   q       rounded x / d, in -127..127, never -128
           256  float32 [8]       d       absmax / 127 (0 where absmax < 1e-30)
           288  float32 [8]       d * s   where s = sum of the block's q: multiplies a format's minimum
           320  int32   [8]       -8 s    zero point of 4-bit codes, folded in exactly; twice this is 5-bit's
           352  int32   [8]       -128 s  zero point of bytes stored as code + 128
           384  int32   [2, 8]    -32 s of columns 0..15 and 16..31: zero point of formats with a scale per 16 columns

Tokens of one group lie next to each other because strides of whole rows fight over the same L1 sets (measured on the prototype: 243 -> 320 GMAC/s).
"""
from __future__ import annotations

import numpy as np

from .deferred import jit
from .simd import (
    and_i32,
    bits_of,
    load_f32x16,
    splat_f32,
    store_f32,
    store_i8x16,
    store_i32,
    vmax_across_i32,
    vmax_i32,
    vsum_i32,
)
from .vecmath import round_to_bits

GROUP, BLOCK, RECORD = 8, 32, 448
D, DS, ZERO8, ZERO128, ZERO32 = 256, 288, 320, 352, 384
INFINITY_BITS = 0x7F800000
_TINY_BITS = int(np.array(1e-30, np.float32).view(np.int32))
_127 = np.float32(127.0)


def record_bytes(tokens: int, columns: int) -> int:
    """Bytes for the records of `tokens` rows of `columns` activations."""
    return -(-tokens // GROUP) * -(-columns // BLOCK) * RECORD


@jit
def quantize_block(v0, v1):
    """32 numbers -> (absmax as float bits, d, two vectors of q)."""
    bits = vmax_across_i32(vmax_i32(and_i32(bits_of(v0), 0x7FFFFFFF), and_i32(bits_of(v1), 0x7FFFFFFF)))
    d, inverse = np.float32(0.0), np.float32(0.0)
    if bits >= _TINY_BITS:
        absmax = _scalar(bits)
        d, inverse = absmax / _127, _127 / absmax
    return bits, d, round_to_bits(v0 * splat_f32(inverse)), round_to_bits(v1 * splat_f32(inverse))


@jit
def quantize_row(x, columns, m, records):
    """Quantise token m's float32 row at x (`columns` a multiple of 32) into the records. -> largest |x| as float bits (>= INFINITY_BITS: not finite).

    q = round(x * (127 / absmax)), d = absmax / 127, all in float32.
    """
    return quantize_part(x, 0, columns, columns, m, records)


@jit
def quantize_part(x, first, last, columns, m, records):
    """Columns [first, last) of the row, both multiples of 32."""
    r = records + ((m // GROUP) * (columns // BLOCK) + first // BLOCK) * RECORD
    lane = m % GROUP
    worst = np.int32(0)
    for b in range(first // BLOCK, last // BLOCK):
        bits, d, q0, q1 = quantize_block(load_f32x16(x + 4 * BLOCK * b), load_f32x16(x + 4 * BLOCK * b + 64))
        worst = max(worst, bits)
        store_i8x16(r + BLOCK * lane, q0)
        store_i8x16(r + BLOCK * lane + 16, q1)
        low, high = vsum_i32(q0), vsum_i32(q1)
        total = low + high
        store_f32(r + D + 4 * lane, d)
        store_f32(r + DS + 4 * lane, d * np.float32(total))
        store_i32(r + ZERO8 + 4 * lane, -8 * total)
        store_i32(r + ZERO128 + 4 * lane, -128 * total)
        store_i32(r + ZERO32 + 4 * lane, -32 * low)
        store_i32(r + ZERO32 + 32 + 4 * lane, -32 * high)
        r += RECORD
    return worst


@jit
def _scalar(bits):
    return np.int32(bits).view(np.float32)


