"""The 32-column formats: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1. Source: ggml-common.h's block structs, ggml-quants.c's dequantize_row_*.

    Q4_0  d:f16 | qs[16]                       w = d (q - 8)          byte i of qs: column i in its low, column 16 + i in its high nibble
    Q4_1  d:f16 | m:f16 | qs[16]               w = d q + m
    Q5_0  d:f16 | qh:u32 | qs[16]              w = d (q - 16)         bit c of qh: bit 4 of column c's code
    Q5_1  d:f16 | m:f16 | qh:u32 | qs[16]      w = d q + m
    Q8_0  d:f16 | qs[32] int8                  w = d q

A tile (16 rows x 32 columns, lane = row) keeps the bits packed, four bytes a row at a time ("word" i = columns 4i..4i+3):

    d[16]:f16 | m[16]:f16 (4_1, 5_1) | H: 64 bytes (5_0, 5_1) | 4 x 64 bytes: low nibbles word j, high nibbles word 4 + j     (8_0: 8 x 64 bytes, code + 128)
    H: byte (row, k), bit i = bit 4 of column 4i + k
"""
from __future__ import annotations

import numpy as np

from ..half import load_f16x16
from ..matmul import Packing, jit
from ..simd import and_u8, get_i8, load_i8x64, load_u16, load_u32, put_i8, shl_u8, shr_u8, store_u16, store_u32

# -- NumPy reference decoders: uint8 [n, block bytes] -> float32 [n, 32] ----------------------------------------------------------------------

def half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The f16 at byte `at` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at:at + 2]).view(np.float16).astype(np.float32)


def _nibbles(qs: np.ndarray) -> np.ndarray:
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(blocks[:, at:at + 4]), axis=1, bitorder="little") << 4


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32) * half(blocks, 0)


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    return half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    return half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + half(blocks, 2)


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return half(blocks, 0) * (q.astype(np.float32) - 16)


def decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return half(blocks, 0) * q.astype(np.float32) + half(blocks, 2)


# -- placing one file block into a lane of a tile ---------------------------------------------------------------------------------------------

@jit
def finite_half(bits):
    """Whether f16 bits are neither NaN nor infinite."""
    return bits & 0x7C00 != 0x7C00


@jit
def spread_bits(n):
    """Bits 0..3 of n to bit 0 of bytes 0..3."""
    return ((n & 15) * np.uint32(0x00204081)) & np.uint32(0x01010101)


@jit
def place_words(src, count, dst, lane):
    """`count` 4-byte words of one row, each into its own 64-byte row of lanes."""
    for j in range(count):
        store_u32(dst + 64 * j + 4 * lane, load_u32(src + 4 * j))


@jit
def _place_fifth_bits(qh, dst, lane):
    word = np.uint32(0)
    for i in range(8):
        word |= spread_bits(qh >> np.uint32(4 * i)) << np.uint32(i)
    store_u32(dst + 4 * lane, word)


@jit
def _place_q8_0(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src))
    for j in range(8):
        store_u32(dst + 32 + 64 * j + 4 * lane, load_u32(src + 2 + 4 * j) ^ np.uint32(0x80808080))
    return finite_half(load_u16(src))


@jit
def _place_q4_0(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src))
    place_words(src + 2, 4, dst + 32, lane)
    return finite_half(load_u16(src))


@jit
def _place_q4_1(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src))
    store_u16(dst + 32 + 2 * lane, load_u16(src + 2))
    place_words(src + 4, 4, dst + 64, lane)
    return finite_half(load_u16(src)) and finite_half(load_u16(src + 2))


@jit
def _place_q5_0(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src))
    _place_fifth_bits(load_u32(src + 2), dst + 32, lane)
    place_words(src + 6, 4, dst + 96, lane)
    return finite_half(load_u16(src))


@jit
def _place_q5_1(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src))
    store_u16(dst + 32 + 2 * lane, load_u16(src + 2))
    _place_fifth_bits(load_u32(src + 4), dst + 64, lane)
    place_words(src + 8, 4, dst + 128, lane)
    return finite_half(load_u16(src)) and finite_half(load_u16(src + 2))


# -- unpacking a tile -------------------------------------------------------------------------------------------------------------------------

@jit
def unpack_nibbles(p, u):
    """4 x 64 bytes at p -> 8 vectors: word j from the low, word 4 + j from the high nibbles."""
    for j in range(4):
        v = load_i8x64(p + 64 * j)
        put_i8(u, j, and_u8(v, 15))
        put_i8(u, 4 + j, shr_u8(v, 4))


@jit
def unpack_five_bits(h, p, u):
    """The same with a fifth bit from the 64 bytes at h: bit i belongs to word i."""
    bits = load_i8x64(h)
    unpack_nibbles(p, u)
    _or_bit(u, 0, shl_u8(bits, 4))
    _or_bit(u, 1, shl_u8(bits, 3))
    _or_bit(u, 2, shl_u8(bits, 2))
    _or_bit(u, 3, shl_u8(bits, 1))
    _or_bit(u, 4, bits)
    _or_bit(u, 5, shr_u8(bits, 1))
    _or_bit(u, 6, shr_u8(bits, 2))
    _or_bit(u, 7, shr_u8(bits, 3))


@jit
def _or_bit(u, i, bits):
    put_i8(u, i, get_i8(u, i) | and_u8(bits, 16))


@jit
def _unpack_q8_0(tile, b, u):
    for j in range(8):
        put_i8(u, j, load_i8x64(tile + 32 + 64 * j))


@jit
def _unpack_q4_0(tile, b, u):
    unpack_nibbles(tile + 32, u)


@jit
def _unpack_q4_1(tile, b, u):
    unpack_nibbles(tile + 64, u)


@jit
def _unpack_q5_0(tile, b, u):
    unpack_five_bits(tile + 32, tile + 96, u)


@jit
def _unpack_q5_1(tile, b, u):
    unpack_five_bits(tile + 64, tile + 128, u)


@jit
def _scale(tile, b):
    return load_f16x16(tile)


@jit
def _minimum(tile, b):
    return load_f16x16(tile + 32)


Q8_0 = Packing("Q8_0", 32, 34, 544, decode_q8_0, _place_q8_0, _unpack_q8_0, _scale, zero=128)
Q4_0 = Packing("Q4_0", 32, 18, 288, decode_q4_0, _place_q4_0, _unpack_q4_0, _scale, zero=8, codes=16)
Q4_1 = Packing("Q4_1", 32, 20, 320, decode_q4_1, _place_q4_1, _unpack_q4_1, _scale, minimum=_minimum, codes=16)
Q5_0 = Packing("Q5_0", 32, 22, 352, decode_q5_0, _place_q5_0, _unpack_q5_0, _scale, zero=16, codes=32)
Q5_1 = Packing("Q5_1", 32, 24, 384, decode_q5_1, _place_q5_1, _unpack_q5_1, _scale, minimum=_minimum, codes=32)
