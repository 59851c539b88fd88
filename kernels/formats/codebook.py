"""The codebook formats IQ2_XXS/XS/S, IQ3_XXS/S, IQ1_S/M: groups of 8 (or 4) columns are entries of a fixed grid, with signs (or an offset) beside.

Source: ggml-common.h, ggml-quants.c's dequantize_row_iq*. The grids are those of the `gguf` package, which this module imports (0.2 s) when a file
first needs it; all other formats run without that package. Reference decoders are gguf's own.

Every weight is d * (integer scale of its 16 or 32 columns) * (one of 16 small integers), so all seven formats share one tile, in which the grid is
already resolved: nibble = grid level | sign << 3, looked up like IQ4_XS's codes.

    d[16]:float32 | 16 x sc[16]:int8 (one per 16 columns) | 8 x 256 bytes of nibbles as in Q4_K

That is 4.6 bits a weight in memory whatever the file's format: these formats save download and disk, not memory bandwidth.

    format   scale        levels                          sign bit
    IQ2_*    d (2s+1)/8   8, 25, 43                       weight is negative
    IQ3_XXS  d (2s+1)/4   4, 12, 20, 28, 36, 44, 52, 62   weight is negative
    IQ3_S    d (2s+1)     1, 3, 5, ..., 15                weight is negative
    IQ1_*    d (2s+1)/8   -8, 0, 8                        offset is -1 (else +1)
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..half import load_f16
from ..matmul import Packing, jit
from ..simd import f32_bits, load_f32x16, load_i8x16_as_i32, load_u8, load_u16, load_u32, store_f32, store_u8, store_u32
from .legacy import spread_bits
from .nonlinear import unpacker
from .table import FORMATS

NAMES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M")
_HEADER = 64 + 256


@cache
def _grid(name: str) -> np.ndarray:
    """The grid as level indices packed four to a word: uint32 [entries, 2 (or 1)]."""
    from gguf import quants
    cls = getattr(quants, name)
    cls.init_grid()
    levels = list(cls.grid_map)
    values = cls.grid.reshape(cls.grid_shape)
    index = np.searchsorted(np.array(levels, np.float32), values).astype(np.uint8)
    return np.ascontiguousarray(index).view(np.uint32)


@jit
def _put_group(g, first, second, dst, lane):
    """Columns 8g..8g+7 of a sub-block, two words of nibbles: words 2g and 2g + 1 (low nibbles for g < 2, else high)."""
    p = dst + 128 * (g % 2) + 4 * lane
    if g < 2:
        store_u32(p, first)
        store_u32(p + 64, second)
    else:
        store_u32(p, load_u32(p) | (first << np.uint32(4)))
        store_u32(p + 64, load_u32(p + 64) | (second << np.uint32(4)))


@jit
def _signed(word, signs):
    """Levels with sign bits 0..3 of `signs` at bit 3 of each byte."""
    return word | (spread_bits(np.uint32(signs)) << np.uint32(3))


@jit
def _put_scale(value, s, dst, lane):
    store_u8(dst + 64 + 16 * s + lane, value)


@jit
def _put_d(d, dst, lane):
    store_f32(dst + 4 * lane, d)
    return f32_bits(d) & 0x7F800000 != 0x7F800000


@jit
def _even_parity(seven):
    """ksigns: the seven stored signs, and an eighth that makes their number even."""
    p = seven ^ (seven >> 4)
    p ^= p >> 2
    p ^= p >> 1
    return seven | ((p & 1) << 7)


def _placer(name: str) -> Any:
    grid = _grid("IQ1_S" if name == "IQ1_M" else name)

    @jit
    def place_iq2_xxs(src, dst, lane):
        for b in range(8):
            extra = np.int64(load_u32(src + 2 + 8 * b + 4))
            _put_scale(2 * (extra >> 28) + 1, 2 * b, dst, lane)
            _put_scale(2 * (extra >> 28) + 1, 2 * b + 1, dst, lane)
            for g in range(4):
                entry, signs = load_u8(src + 2 + 8 * b + g), _even_parity(extra >> (7 * g) & 127)
                _put_group(g, _signed(grid[entry, 0], signs), _signed(grid[entry, 1], signs >> 4), dst + _HEADER + 256 * b, lane)
        return _put_d(load_f16(src) * np.float32(0.125), dst, lane)

    @jit
    def place_iq2_xs(src, dst, lane):
        for b in range(8):
            scales = load_u8(src + 66 + b)
            _put_scale(2 * (scales & 15) + 1, 2 * b, dst, lane)
            _put_scale(2 * (scales >> 4) + 1, 2 * b + 1, dst, lane)
            for g in range(4):
                code = np.int64(load_u16(src + 2 + 8 * b + 2 * g))
                entry, signs = code & 511, _even_parity(code >> 9)
                _put_group(g, _signed(grid[entry, 0], signs), _signed(grid[entry, 1], signs >> 4), dst + _HEADER + 256 * b, lane)
        return _put_d(load_f16(src) * np.float32(0.125), dst, lane)

    @jit
    def place_iq2_s(src, dst, lane):
        for b in range(8):
            scales, upper = load_u8(src + 74 + b), np.int64(load_u8(src + 66 + b))
            _put_scale(2 * (scales & 15) + 1, 2 * b, dst, lane)
            _put_scale(2 * (scales >> 4) + 1, 2 * b + 1, dst, lane)
            for g in range(4):
                entry = np.int64(load_u8(src + 2 + 4 * b + g)) | (upper >> (2 * g) & 3) << 8
                signs = load_u8(src + 34 + 4 * b + g)
                _put_group(g, _signed(grid[entry, 0], signs), _signed(grid[entry, 1], signs >> 4), dst + _HEADER + 256 * b, lane)
        return _put_d(load_f16(src) * np.float32(0.125), dst, lane)

    @jit
    def place_iq3_xxs(src, dst, lane):
        for b in range(8):
            extra = np.int64(load_u32(src + 66 + 4 * b))
            _put_scale(2 * (extra >> 28) + 1, 2 * b, dst, lane)
            _put_scale(2 * (extra >> 28) + 1, 2 * b + 1, dst, lane)
            for g in range(4):
                signs = _even_parity(extra >> (7 * g) & 127)
                e0, e1 = load_u8(src + 2 + 8 * b + 2 * g), load_u8(src + 2 + 8 * b + 2 * g + 1)
                _put_group(g, _signed(grid[e0, 0], signs), _signed(grid[e1, 0], signs >> 4), dst + _HEADER + 256 * b, lane)
        return _put_d(load_f16(src) * np.float32(0.25), dst, lane)

    @jit
    def place_iq3_s(src, dst, lane):
        for b in range(8):
            scale, upper = 2 * (load_u8(src + 106 + b // 2) >> (4 * (b % 2)) & 15) + 1, np.int64(load_u8(src + 66 + b))
            _put_scale(scale, 2 * b, dst, lane)
            _put_scale(scale, 2 * b + 1, dst, lane)
            for g in range(4):
                signs = load_u8(src + 74 + 4 * b + g)
                e0 = np.int64(load_u8(src + 2 + 8 * b + 2 * g)) | (upper >> (2 * g) & 1) << 8
                e1 = np.int64(load_u8(src + 2 + 8 * b + 2 * g + 1)) | (upper >> (2 * g + 1) & 1) << 8
                _put_group(g, _signed(grid[e0, 0], signs), _signed(grid[e1, 0], signs >> 4), dst + _HEADER + 256 * b, lane)
        return _put_d(load_f16(src), dst, lane)

    @jit
    def place_iq1_s(src, dst, lane):
        for b in range(8):
            qh = np.int64(load_u16(src + 34 + 2 * b))
            _put_scale(2 * (qh >> 12 & 7) + 1, 2 * b, dst, lane)
            _put_scale(2 * (qh >> 12 & 7) + 1, 2 * b + 1, dst, lane)
            signs = 255 if qh & 0x8000 else 0
            for g in range(4):
                entry = np.int64(load_u8(src + 2 + 4 * b + g)) | (qh >> (3 * g) & 7) << 8
                _put_group(g, _signed(grid[entry, 0], signs), _signed(grid[entry, 1], signs), dst + _HEADER + 256 * b, lane)
        return _put_d(load_f16(src) * np.float32(0.125), dst, lane)

    @jit
    def place_iq1_m(src, dst, lane):
        d = np.int64(0)
        for i in range(4):
            d |= (np.int64(load_u16(src + 48 + 2 * i)) >> 12) << (4 * i)
        for b in range(8):
            scales = np.int64(load_u16(src + 48 + 2 * (b // 2))) >> (6 * (b % 2))
            _put_scale(2 * (scales & 7) + 1, 2 * b, dst, lane)
            _put_scale(2 * (scales >> 3 & 7) + 1, 2 * b + 1, dst, lane)
            for g in range(4):
                qh = np.int64(load_u8(src + 32 + 2 * b + g // 2)) >> (4 * (g % 2))
                entry, signs = np.int64(load_u8(src + 4 * b + g)) | (qh & 7) << 8, 255 if qh & 8 else 0
                _put_group(g, _signed(grid[entry, 0], signs), _signed(grid[entry, 1], signs), dst + _HEADER + 256 * b, lane)
        store_u32(dst + 4 * lane, np.uint32(d))  # as half bits first: converted in place
        return _put_d(load_f16(dst + 4 * lane) * np.float32(0.125), dst, lane)

    return {"IQ2_XXS": place_iq2_xxs, "IQ2_XS": place_iq2_xs, "IQ2_S": place_iq2_s, "IQ3_XXS": place_iq3_xxs, "IQ3_S": place_iq3_s,
            "IQ1_S": place_iq1_s, "IQ1_M": place_iq1_m}[name]


def _table(name: str) -> tuple[int, ...]:
    """The sixteen integers that a nibble stands for."""
    if name.startswith("IQ1"):
        levels = [-8, 0, 8, 0, 0, 0, 0, 0]
        return tuple([v + 1 for v in levels] + [v - 1 for v in levels])
    levels = [8, 25, 43, 0, 0, 0, 0, 0] if name.startswith("IQ2") else [1, 3, 5, 7, 9, 11, 13, 15] if name == "IQ3_S" else [4, 12, 20, 28, 36, 44, 52, 62]
    return tuple(levels + [-v for v in levels])


@jit
def _scale(tile, b):
    return load_f32x16(tile)


@jit
def _half_scales(tile, b, h):
    return load_i8x16_as_i32(tile + 64 + 16 * (2 * b + h))


def _decoder(name: str) -> Any:
    def decode(blocks: np.ndarray) -> np.ndarray:
        from gguf import GGMLQuantizationType, quants
        return quants.dequantize(blocks, GGMLQuantizationType[name])
    return decode


@cache
def packing(name: str) -> Packing:
    """The Packing of one of NAMES, made (and gguf imported) on first use."""
    return Packing(name, 256, FORMATS[name].bytes, _HEADER + 8 * 256, _decoder(name), _placer(name), unpacker(_table(name), 64, _HEADER), _scale,
                   half_scales=_half_scales, zero=64)
