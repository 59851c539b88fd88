"""Formats whose 4-bit code is looked up in a table: IQ4_NL, IQ4_XS and MXFP4. Source: ggml-common.h, ggml-quants.c's dequantize_row_*.

    IQ4_NL  d:f16 | qs[16]                                    w = d T[q], 32 columns; qs as in Q4_0
    IQ4_XS  d:f16 | scales_h:u16 | scales_l[4] | qs[128]      w = d (ls - 32) T[q], 8 sub-blocks of 32 columns, 16 bytes each as in Q4_0
            ls of sub-block b: nibble b of scales_l, bits 2b of scales_h above it
    MXFP4   e:u8 | qs[16]                                     w = 2**(e - 128) V[q], 32 columns (OCP MX: e8m0 scale, doubled e2m1 values)

Tiles, lane = row: IQ4_NL as Q4_0's; IQ4_XS d[16] | 8 x (ls - 32)[16]:int8 | 8 x 256 bytes of nibbles; MXFP4 e[16] | 256 bytes. The table is
stored with its zero point added (128; 16 for MXFP4), so that codes are unsigned bytes for the dot product.
"""
from __future__ import annotations

import numpy as np

from ..half import load_f16x16
from ..lookup import lookup
from ..matmul import Packing, jit
from ..simd import (
    and_i32,
    from_bits,
    get_i8,
    load_i8x16_as_i32,
    load_u8,
    load_u16,
    put_i8,
    shl_i32,
    splat_i32,
    store_u8,
    store_u16,
    to_f32,
    vmax_i32,
)
from .legacy import finite_half, half, place_words, unpack_nibbles

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


# -- NumPy reference decoders -----------------------------------------------------------------------------------------------------------------

def _look_up(qs: np.ndarray, table: tuple[int, ...]) -> np.ndarray:
    return np.array(table, np.float32)[np.concatenate([qs & 15, qs >> 4], axis=-1)]


def decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    return half(blocks, 0) * _look_up(blocks[:, 2:], IQ4_VALUES)


def iq4_xs_scales(blocks: np.ndarray) -> np.ndarray:
    """int8 [n, 8] of whole IQ4_XS blocks."""
    low = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    upper = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    return (low | upper.astype(np.uint8) << 4).astype(np.int8) - np.int8(32)


def decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    d = half(blocks, 0) * iq4_xs_scales(blocks).astype(np.float32)
    return (d[:, :, None] * _look_up(blocks[:, 8:].reshape(-1, 8, 16), IQ4_VALUES)).reshape(-1, 256)


def mxfp4_scale(e: np.ndarray) -> np.ndarray:
    """uint8 -> float32 2**(e - 128), by its bits (subnormal for e < 2)."""
    e = e.astype(np.uint32)
    return np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (np.maximum(e, 1) - 1) << 23).astype(np.uint32).view(np.float32)


def decode_mxfp4(blocks: np.ndarray) -> np.ndarray:
    return mxfp4_scale(blocks[:, :1]) * _look_up(blocks[:, 1:], MXFP4_VALUES)


# -- placing, unpacking -----------------------------------------------------------------------------------------------------------------------

@jit
def _place_iq4_nl(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src))
    place_words(src + 2, 4, dst + 32, lane)
    return finite_half(load_u16(src))


@jit
def _place_iq4_xs(src, dst, lane):
    store_u16(dst + 2 * lane, load_u16(src))
    upper = load_u16(src + 2)
    for b in range(8):
        low = (load_u8(src + 4 + b // 2) >> (4 * (b % 2))) & 15
        store_u8(dst + 32 + 16 * b + lane, (low | ((upper >> (2 * b)) & 3) << 4) - 32)
        place_words(src + 8 + 16 * b, 4, dst + 160 + 256 * b, lane)
    return finite_half(load_u16(src))


@jit
def _place_mxfp4(src, dst, lane):
    store_u8(dst + lane, load_u8(src))
    place_words(src + 1, 4, dst + 16, lane)
    return True


def unpacker(table: tuple[int, ...], offset: int, header: int):
    """unpack(tile, b, u) for 256-byte sub-blocks of nibbles after `header` bytes: entries of table + offset."""
    look_up = lookup(tuple(t + offset for t in table))

    @jit
    def unpack(tile, b, u):
        unpack_nibbles(tile + header + 256 * b, u)
        for i in range(8):
            put_i8(u, i, look_up(get_i8(u, i)))
    return unpack


@jit
def _scale(tile, b):
    return load_f16x16(tile)


@jit
def _scale_iq4_xs(tile, b):
    """d (ls - 32), exact."""
    return load_f16x16(tile) * to_f32(load_i8x16_as_i32(tile + 32 + 16 * b))


@jit
def _scale_mxfp4(tile, b):
    """2**(e - 128) by its bits, (e - 1) << 23: below e = 2 these are negative or zero, and subnormal ones are larger: 1 or 2 << 21. Lanes past a matrix's rows
    have the smallest scale, of codes whose dot product is zero."""
    e = and_i32(load_i8x16_as_i32(tile), 255)
    subnormal = splat_i32(2) - vmax_i32(splat_i32(1) - e, splat_i32(0))
    return from_bits(vmax_i32(shl_i32(e - splat_i32(1), 23), shl_i32(subnormal, 21)))


IQ4_NL = Packing("IQ4_NL", 32, 18, 288, decode_iq4_nl, _place_iq4_nl, unpacker(IQ4_VALUES, 128, 32), _scale, zero=128)
IQ4_XS = Packing("IQ4_XS", 256, 136, 160 + 8 * 256, decode_iq4_xs, _place_iq4_xs, unpacker(IQ4_VALUES, 128, 160), _scale_iq4_xs, zero=128)
MXFP4 = Packing("MXFP4", 32, 17, 16 + 256, decode_mxfp4, _place_mxfp4, unpacker(MXFP4_VALUES, 16, 16), _scale_mxfp4, zero=16, codes=32)
