"""Activations for the integer matmuls: quantised to int8 in blocks of 32 columns, in groups of 8 tokens.

Layout: [group of 8 tokens, block of 32 columns, record]; one record holds what a kernel needs of one block for the W tokens of its group: W = 8, and
in the last group 1, 2, 4 or 8, as many as are left or one more power of two:

    offset  0      int8    [W, 32]   q       rounded x / d, in -127..127, never -128
            32 W   float32 [W]       d       absmax / 127 (0 where absmax < 1e-30)
            36 W   float32 [W]       d * s   where s = sum of the block's q: multiplies a format's minimum
            40 W   int32   [W]       -8 s    zero point of 4-bit codes, folded in exactly; twice this is 5-bit's
            44 W   int32   [W]       -128 s  zero point of bytes stored as code + 128
            48 W   int32   [2, W]    -32 s of columns 0..15 and 16..31: zero point of formats with a scale per 16 columns
            56 W   padding to whole cache lines

Tokens of one group lie next to each other because strides of whole rows fight over the same L1 sets (measured on the prototype: 243 -> 320 GMAC/s). A lone
token has one cache line a block: weights streaming through L1 drive out what is spread over more (records of 8 for one token cost a fifth of the bandwidth).
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

GROUP, BLOCK = 8, 32
D, DS, ZERO8, ZERO128, ZERO32, END = 32, 36, 40, 44, 48, 56
"""Offsets in a record, times its width."""
INFINITY_BITS = 0x7F800000
_TINY_BITS = int(np.array(1e-30, np.float32).view(np.int32))
_127 = np.float32(127.0)


def record_size(width: int) -> int:
    """Bytes of a record for `width` tokens."""
    return (END * width + 63) // 64 * 64


RECORD = record_size(GROUP)
_record_size = jit(record_size)


def record_bytes(tokens: int, columns: int) -> int:
    """Bytes that the records of up to `tokens` rows of `columns` activations take at most."""
    return -(-tokens // GROUP) * -(-columns // BLOCK) * RECORD


@jit
def group_width(m, n_tokens):
    """Tokens that a record of token m's group has room for."""
    rest = n_tokens - m // GROUP * GROUP
    return GROUP if rest > 4 else 4 if rest > 2 else rest


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
def quantize_row(x, columns, m, n_tokens, records):
    """Quantise the row at x (float32 [columns], a multiple of 32) of token m of n_tokens into the records. -> largest |x| as float bits (>= INFINITY_BITS:
    not finite).

    q = round(x * (127 / absmax)), d = absmax / 127, all in float32.
    """
    return quantize_part(x, 0, columns, columns, m, n_tokens, records)


@jit
def quantize_part(x, first, last, columns, m, n_tokens, records):
    """Columns [first, last) of the row, both multiples of 32."""
    width = group_width(m, n_tokens)
    size, lane = _record_size(width), m % GROUP
    r = records + (m // GROUP) * (columns // BLOCK) * RECORD + first // BLOCK * size
    n = r + width * D + 4 * lane  # this token's numbers, `width` words apart
    worst = np.int32(0)
    for b in range(first // BLOCK, last // BLOCK):
        bits, d, q0, q1 = quantize_block(load_f32x16(x + 4 * BLOCK * b), load_f32x16(x + 4 * BLOCK * b + 64))
        worst = max(worst, bits)
        store_i8x16(r + BLOCK * lane, q0)
        store_i8x16(r + BLOCK * lane + 16, q1)
        low, high = vsum_i32(q0), vsum_i32(q1)
        total = low + high
        store_f32(n, d)
        store_f32(n + width * (DS - D), d * np.float32(total))
        store_i32(n + width * (ZERO8 - D), -8 * total)
        store_i32(n + width * (ZERO128 - D), -128 * total)
        store_i32(n + width * (ZERO32 - D), -32 * low)
        store_i32(n + width * (ZERO32 + 4 - D), -32 * high)
        r += size
        n += size
    return worst


@jit
def _scalar(bits):
    return np.int32(bits).view(np.float32)


