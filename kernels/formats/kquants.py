"""The K-quants: Q4_K, Q5_K (minimum and scale per 32 columns) and Q6_K (scale per 16). Source: ggml-common.h, ggml-quants.c's dequantize_row_*_K.

    Q4_K  d:f16 | dmin:f16 | scales[12] | qs[128]              w = d sc q - dmin m
    Q5_K  d:f16 | dmin:f16 | scales[12] | qh[32] | qs[128]     bit b of qh[c]: bit 4 of column c of sub-block b
          qs: 32 bytes hold two sub-blocks of 32 columns, the even one in the low, the odd one in the high nibbles
          scales: 8 x (sc, m) of 6 bits:   0..3  EEAAAAAA FFBBBBBB GGCCCCCC HHDDDDDD   sc 0..3 = A..D
                                           4..7  eeaaaaaa ffbbbbbb ggcccccc hhdddddd   m 0..3 = a..d
                                           8..11 eeeeEEEE ffffFFFF ggggGGGG hhhhHHHH   sc 4..7 = E..H, m 4..7 = e..h
    Q6_K  ql[128] | qh[64] | scales[16]:int8 | d:f16           w = d sc (q - 32)
          each half (128 columns): column 32 k + l takes its low 4 bits from ql[l + 32 (k & 1)] (high nibble for k >= 2), its upper 2 from qh[l] >> 2 k

Tiles (16 rows x 256 columns, lane = row), sub-block b = 32 columns, "word" i = its columns 4i..4i+3:

    Q4_K  d[16] | dmin[16] | 8 x sc[16]:u8 | 8 x m[16]:u8 | 8 x (4 x 64 bytes: low nibbles word j, high nibbles word 4 + j)
    Q5_K  the same header | 8 x (H: 64 bytes, bit i of a row's byte k = bit 4 of column 4i + k | 4 x 64 bytes)
    Q6_K  d[16] | 16 x sc[16]:int8 | 8 x (4 x 64 bytes | 2 x 64 bytes: word i's upper bits at bits 2 (i & 3) of vector i / 4)

The 6-bit scales are widened to bytes: + 2.8 % of the bytes, and no bit-twiddling while the weights stream.
"""
from __future__ import annotations

import numpy as np

from ..half import load_f16x16
from ..matmul import Packing, jit
from ..simd import (
    and_u8,
    get_i8,
    load_i8x16_as_i32,
    load_i8x64,
    load_u8,
    load_u8x16_as_f32,
    load_u16,
    load_u32,
    put_i8,
    shl_u8,
    shr_u8,
    splat_f32,
    store_u8,
    store_u16,
    store_u32,
)
from .legacy import finite_half, half, unpack_five_bits, unpack_nibbles

_LOW, _HIGH = np.uint32(0x0F0F0F0F), np.uint32(0xF0F0F0F0)
_Q4, _Q5, _Q6 = 64 + 256, 64 + 256, 32 + 256  # bytes of a tile's header


# -- NumPy reference decoders: uint8 [n, block bytes] -> float32 [n, 256] ---------------------------------------------------------------------

def scales_and_minimums(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 12] -> (sc, m), each uint8 [n, 8]."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    sc = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1)
    m = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1)
    return sc, m


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """uint8 [n, 128] -> codes uint8 [n, 8, 32]."""
    pairs = qs.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return (pairs & 15).reshape(-1, 8, 32)


def _decode_with_minimum(blocks: np.ndarray, q: np.ndarray) -> np.ndarray:
    sc, m = scales_and_minimums(blocks[:, 4:16])
    d, dmin = half(blocks, 0) * sc.astype(np.float32), half(blocks, 2) * m.astype(np.float32)
    return (d[:, :, None] * q.astype(np.float32) - dmin[:, :, None]).reshape(-1, 256)


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    return _decode_with_minimum(blocks, _nibbles(blocks[:, 16:]))


def decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1
    return _decode_with_minimum(blocks, _nibbles(blocks[:, 48:]) | fifth << 4)


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    ql, qh = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = (ql >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15).reshape(-1, 2, 4, 32)
    upper = qh >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    q = (low | upper << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    sc = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return ((half(blocks, 208) * sc)[:, :, None] * q).reshape(-1, 256)


# -- placing one file block (256 columns of a row) into a lane of a tile ----------------------------------------------------------------------

@jit
def _place_header(src, dst, lane):
    """d, dmin and the eight (sc, m), widened to bytes."""
    store_u16(dst + 2 * lane, load_u16(src))
    store_u16(dst + 32 + 2 * lane, load_u16(src + 2))
    for b in range(4):
        s, m, both = load_u8(src + 4 + b), load_u8(src + 8 + b), load_u8(src + 12 + b)
        store_u8(dst + 64 + 16 * b + lane, s & 63)
        store_u8(dst + 64 + 16 * (4 + b) + lane, (both & 15) | (s >> 6 << 4))
        store_u8(dst + 192 + 16 * b + lane, m & 63)
        store_u8(dst + 192 + 16 * (4 + b) + lane, (both >> 4) | (m >> 6 << 4))
    return finite_half(load_u16(src)) and finite_half(load_u16(src + 2))


@jit
def _place_nibble_pair(first, second, odd, dst):
    """Columns 4j.. (word `first`) and 16 + 4j.. (`second`) of the even (low nibbles) or odd (high) sub-block, as one word."""
    if odd:
        store_u32(dst, ((first >> np.uint32(4)) & _LOW) | (second & _HIGH))
    else:
        store_u32(dst, (first & _LOW) | ((second & _LOW) << np.uint32(4)))


@jit
def _place_nibbles(qs, b, dst, lane):
    for j in range(4):
        first, second = load_u32(qs + 32 * (b // 2) + 4 * j), load_u32(qs + 32 * (b // 2) + 16 + 4 * j)
        _place_nibble_pair(first, second, b % 2, dst + 64 * j + 4 * lane)


@jit
def _place_q4_k(src, dst, lane):
    for b in range(8):
        _place_nibbles(src + 16, b, dst + _Q4 + 256 * b, lane)
    return _place_header(src, dst, lane)


@jit
def _place_q5_k(src, dst, lane):
    for b in range(8):
        p, word = dst + _Q5 + 320 * b, np.uint32(0)
        for i in range(8):
            word |= ((load_u32(src + 16 + 4 * i) >> np.uint32(b)) & np.uint32(0x01010101)) << np.uint32(i)
        store_u32(p + 4 * lane, word)
        _place_nibbles(src + 48, b, p + 64, lane)
    return _place_header(src, dst, lane)


@jit
def _place_q6_k(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src + 208))
    for s in range(16):
        store_u8(dst + 32 + 16 * s + lane, load_u8(src + 192 + s))
    for b in range(8):
        k = b % 4
        ql, qh, p = src + 64 * (b // 4) + 32 * (k % 2), src + 128 + 32 * (b // 4), dst + _Q6 + 384 * b
        for j in range(4):
            _place_nibble_pair(load_u32(ql + 4 * j), load_u32(ql + 16 + 4 * j), k // 2, p + 64 * j + 4 * lane)
        for h in range(2):
            word = np.uint32(0)
            for i in range(4):
                word |= ((load_u32(qh + 16 * h + 4 * i) >> np.uint32(2 * k)) & np.uint32(0x03030303)) << np.uint32(2 * i)
            store_u32(p + 256 + 64 * h + 4 * lane, word)
    return finite_half(load_u16(src + 208))


# -- unpacking sub-block b of a tile ----------------------------------------------------------------------------------------------------------

@jit
def _unpack_q4_k(tile, b, u):
    unpack_nibbles(tile + _Q4 + 256 * b, u)


@jit
def _unpack_q5_k(tile, b, u):
    p = tile + _Q5 + 320 * b
    unpack_five_bits(p, p + 64, u)


@jit
def _unpack_q6_k(tile, b, u):
    p = tile + _Q6 + 384 * b
    unpack_nibbles(p, u)
    for h in range(2):
        upper = load_i8x64(p + 256 + 64 * h)
        _or_upper(u, 4 * h, shl_u8(upper, 4))
        _or_upper(u, 4 * h + 1, shl_u8(upper, 2))
        _or_upper(u, 4 * h + 2, upper)
        _or_upper(u, 4 * h + 3, shr_u8(upper, 2))


@jit
def _or_upper(u, i, bits):
    put_i8(u, i, get_i8(u, i) | and_u8(bits, 48))


@jit
def _scale(tile, b):
    """d * sc, exact in float32 (11 + 6 bits)."""
    return load_f16x16(tile) * load_u8x16_as_f32(tile + 64 + 16 * b)


@jit
def _minimum(tile, b):
    """-(dmin * m), exact."""
    return splat_f32(0.0) - load_f16x16(tile + 32) * load_u8x16_as_f32(tile + 192 + 16 * b)


@jit
def _scale_q6_k(tile, b):
    return load_f16x16(tile)


@jit
def _half_scales_q6_k(tile, b, h):
    return load_i8x16_as_i32(tile + 32 + 16 * (2 * b + h))


Q4_K = Packing("Q4_K", 256, 144, _Q4 + 8 * 256, decode_q4_k, _place_q4_k, _unpack_q4_k, _scale, minimum=_minimum, codes=16)
Q5_K = Packing("Q5_K", 256, 176, _Q5 + 8 * 320, decode_q5_k, _place_q5_k, _unpack_q5_k, _scale, minimum=_minimum, codes=32)
Q6_K = Packing("Q6_K", 256, 210, _Q6 + 8 * 384, decode_q6_k, _place_q6_k, _unpack_q6_k, _scale_q6_k, half_scales=_half_scales_q6_k, zero=32, codes=64)
