"""The smaller K-quants, Q2_K and Q3_K, and the ternary formats TQ2_0 and TQ1_0: 256 columns, codes of two or three bits.

    Q2_K   scales[16] | qs[64] | d:f16 | dmin:f16             w = d (sc & 15) q - dmin (sc >> 4), one sc per 16 columns
    Q3_K   hmask[32] | qs[64] | scales[12] | d:f16            w = d (sc - 32) (q - 4), bit 2 of q from hmask
           scales, 16 x 6 bits: bytes 0..7 hold the low 4 bits (0..7 low nibbles, 8..15 high nibbles), bits 2(i/4) of byte 8 + i%4 the upper 2 of sc i
    TQ2_0  qs[64] | d:f16                                     w = d (q - 1)
           qs in all three: column 128 h + 32 k + l is bits 2k of byte 32 h + l; hmask: bit 4 h + k of byte l
    TQ1_0  qs[48] | qh[4] | d:f16                             w = d (q - 1), base 3: five digits a byte (qh: four); digit n of byte x: (3**n x mod 256) * 3 >> 8

Tiles, lane = row, sub-block b = 32 columns; "upper" = 2 x 64 bytes, word i's two bits at bits 2 (i & 3) of vector i / 4 (as in Q6_K):

    Q2_K   d[16] | dmin[16] | 16 x sc[16]:u8 | 8 x upper
    Q3_K   d[16] | 16 x (sc - 32)[16]:int8 | 8 x (upper | H: 64 bytes, bit i of a row's byte k = bit 2 of column 4i + k)
    TQ1_0, TQ2_0   d[16] | 8 x upper
"""
from __future__ import annotations

import numpy as np

from ..half import load_f16x16
from ..matmul import Packing, jit
from ..simd import (
    and_i32,
    and_u8,
    get_i8,
    load_i8x16_as_i32,
    load_i8x64,
    load_u8,
    load_u16,
    load_u32,
    put_i8,
    sar_i32,
    shl_u8,
    shr_u8,
    splat_f32,
    store_u8,
    store_u16,
    store_u32,
)
from .legacy import finite_half, half

_ONES2, _ONES1 = np.uint32(0x03030303), np.uint32(0x01010101)
_Q2, _Q3, _TQ = 64 + 256, 32 + 256, 32


# -- NumPy reference decoders: uint8 [n, block bytes] -> float32 [n, 256] ---------------------------------------------------------------------

def _two_bits(qs: np.ndarray) -> np.ndarray:
    """uint8 [n, 64] -> codes uint8 [n, 256]."""
    return (qs.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3).reshape(-1, 256)


def q3_k_scales(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 12] -> int8 [n, 16], 32 already taken off."""
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    upper = np.concatenate([packed[:, 8:] >> s & 3 for s in (0, 2, 4, 6)], axis=1)
    return (low | upper << 4).astype(np.int8) - np.int8(32)


def decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    sc, q = blocks[:, :16], _two_bits(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    d, dmin = half(blocks, 80) * (sc & 15).astype(np.float32), half(blocks, 82) * (sc >> 4).astype(np.float32)
    return (d[:, :, None] * q - dmin[:, :, None]).reshape(-1, 256)


def decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    third = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1).reshape(-1, 256)
    q = (_two_bits(blocks[:, 32:96]) | third << 2).astype(np.float32).reshape(-1, 16, 16) - 4
    d = half(blocks, 108) * q3_k_scales(blocks[:, 96:108]).astype(np.float32)
    return (d[:, :, None] * q).reshape(-1, 256)


def decode_tq2_0(blocks: np.ndarray) -> np.ndarray:
    return half(blocks, 64) * (_two_bits(blocks[:, :64]).astype(np.float32) - 1)


def decode_tq1_0(blocks: np.ndarray) -> np.ndarray:
    return half(blocks, 52) * (_ternary_digits(blocks).astype(np.float32) - 1)


def _ternary_digits(blocks: np.ndarray) -> np.ndarray:
    powers = np.array([1, 3, 9, 27, 81], np.uint8)
    parts = [blocks[:, None, a:b] * powers[:n, None] for a, b, n in ((0, 32, 5), (32, 48, 5), (48, 52, 4))]
    digits = np.concatenate([p.reshape(len(blocks), -1) for p in parts], axis=1)
    return (digits.astype(np.uint16) * 3 >> 8).astype(np.uint8)


# -- placing one file block (256 columns of a row) into a lane of a tile ----------------------------------------------------------------------

@jit
def _place_two_bits(qs, b, dst, lane):
    """Sub-block b's 32 two-bit codes from qs[64]."""
    source, shift = qs + 32 * (b // 4), np.uint32(2 * (b % 4))
    for h in range(2):
        word = np.uint32(0)
        for i in range(4):
            word |= ((load_u32(source + 16 * h + 4 * i) >> shift) & _ONES2) << np.uint32(2 * i)
        store_u32(dst + 64 * h + 4 * lane, word)


@jit
def _place_q2_k(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src + 80))
    store_u16(dst + 32 + 2 * lane, load_u16(src + 82))
    for s in range(16):
        store_u8(dst + 64 + 16 * s + lane, load_u8(src + s))
    for b in range(8):
        _place_two_bits(src + 16, b, dst + _Q2 + 128 * b, lane)
    return finite_half(load_u16(src + 80)) and finite_half(load_u16(src + 82))


@jit
def _place_q3_k(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src + 108))
    for s in range(16):
        low = (load_u8(src + 96 + s % 8) >> (4 * (s // 8))) & 15
        upper = (load_u8(src + 104 + s % 4) >> (2 * (s // 4))) & 3
        store_u8(dst + 32 + 16 * s + lane, (low | upper << 4) - 32)
    for b in range(8):
        p = dst + _Q3 + 192 * b
        _place_two_bits(src + 32, b, p, lane)
        word = np.uint32(0)
        for i in range(8):
            word |= ((load_u32(src + 4 * i) >> np.uint32(b)) & _ONES1) << np.uint32(i)
        store_u32(p + 128 + 4 * lane, word)
    return finite_half(load_u16(src + 108))


@jit
def _place_tq2_0(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src + 64))
    for b in range(8):
        _place_two_bits(src, b, dst + _TQ + 128 * b, lane)
    return finite_half(load_u16(src + 64))


@jit
def _ternary_digit(src, column):
    """The base-3 digit of a column of a TQ1_0 block."""
    if column < 160:
        byte, n = load_u8(src + column % 32), column // 32
    elif column < 240:
        byte, n = load_u8(src + 32 + (column - 160) % 16), (column - 160) // 16
    else:
        byte, n = load_u8(src + 48 + (column - 240) % 4), (column - 240) // 4
    power = 1
    for _ in range(n):
        power *= 3
    return ((np.int64(byte) * power & 255) * 3) >> 8


@jit
def _place_tq1_0(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src + 52))
    for b in range(8):
        for i in range(0, 8, 4):
            word = 0
            for c in range(16):
                word |= _ternary_digit(src, 32 * b + 4 * i + c) << (8 * (c % 4) + 2 * (c // 4))
            store_u32(dst + _TQ + 128 * b + 16 * i + 4 * lane, np.uint32(word))
    return finite_half(load_u16(src + 52))


# -- unpacking sub-block b of a tile ----------------------------------------------------------------------------------------------------------

@jit
def _unpack_two_bits(p, u):
    for h in range(2):
        v = load_i8x64(p + 64 * h)
        put_i8(u, 4 * h, and_u8(v, 3))
        put_i8(u, 4 * h + 1, and_u8(shr_u8(v, 2), 3))
        put_i8(u, 4 * h + 2, and_u8(shr_u8(v, 4), 3))
        put_i8(u, 4 * h + 3, shr_u8(v, 6))


@jit
def _or_third(u, i, bits):
    put_i8(u, i, get_i8(u, i) | and_u8(bits, 4))


@jit
def _unpack_q2_k(tile, b, u):
    _unpack_two_bits(tile + _Q2 + 128 * b, u)


@jit
def _unpack_q3_k(tile, b, u):
    p = tile + _Q3 + 192 * b
    _unpack_two_bits(p, u)
    bits = load_i8x64(p + 128)
    _or_third(u, 0, shl_u8(bits, 2))
    _or_third(u, 1, shl_u8(bits, 1))
    _or_third(u, 2, bits)
    _or_third(u, 3, shr_u8(bits, 1))
    _or_third(u, 4, shr_u8(bits, 2))
    _or_third(u, 5, shr_u8(bits, 3))
    _or_third(u, 6, shr_u8(bits, 4))
    _or_third(u, 7, shr_u8(bits, 5))


@jit
def _unpack_tq(tile, b, u):
    _unpack_two_bits(tile + _TQ + 128 * b, u)


@jit
def _scale(tile, b):
    return load_f16x16(tile)


@jit
def _minimum_q2_k(tile, b):
    """dmin / 32: its integer factor is minimum * -32 * sum."""
    return load_f16x16(tile + 32) * splat_f32(0.03125)


@jit
def _half_scales_q2_k(tile, b, h):
    return and_i32(load_i8x16_as_i32(tile + 64 + 16 * (2 * b + h)), 15)


@jit
def _half_minimums_q2_k(tile, b, h):
    return and_i32(sar_i32(load_i8x16_as_i32(tile + 64 + 16 * (2 * b + h)), 4), 15)


@jit
def _half_scales_q3_k(tile, b, h):
    return load_i8x16_as_i32(tile + 32 + 16 * (2 * b + h))


Q2_K = Packing("Q2_K", 256, 84, _Q2 + 8 * 128, decode_q2_k, _place_q2_k, _unpack_q2_k, _scale,
               minimum=_minimum_q2_k, half_scales=_half_scales_q2_k, half_minimums=_half_minimums_q2_k, codes=4)
Q3_K = Packing("Q3_K", 256, 110, _Q3 + 8 * 192, decode_q3_k, _place_q3_k, _unpack_q3_k, _scale, half_scales=_half_scales_q3_k, zero=4, codes=8)
TQ2_0 = Packing("TQ2_0", 256, 66, _TQ + 8 * 128, decode_tq2_0, _place_tq2_0, _unpack_tq, _scale, zero=1, codes=4)
TQ1_0 = Packing("TQ1_0", 256, 54, _TQ + 8 * 128, decode_tq1_0, _place_tq1_0, _unpack_tq, _scale, zero=1, codes=4)
