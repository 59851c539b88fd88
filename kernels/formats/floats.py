"""The float formats: F32, F16, BF16. A tile is 16 rows x all columns, lane = row: [column][16], in the file's own width.

BF16 is the upper half of a float32. Where the CPU multiplies pairs of them, its tile is [pair of columns][16][second column, first column]; an odd last
column stands beside a zero. Float matrices multiply float activations: one fma chain over the columns per output (matmul_float.py).
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..bfloat16 import TINY_BITS, dot_bf16, load_bf16_pairs, load_bf16x16, round_bf16
from ..half import load_f16x16
from ..matmul import ROWS, jit
from ..matmul_float import Steps
from ..simd import fma, load_f32x16, load_u16, load_u32, store_u16, store_u32
from ..target import HAS_BF16_DOT


class FloatPacking(NamedTuple):
    """A float format; `place` (src, tiles, column, lane) copies one row's element into the tiles of 16 rows and says whether it is finite."""

    name: str
    decode: Any
    place: Any
    steps: Steps


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view(np.float32)


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@jit
def _place_f32(src, tiles, column, lane):
    bits = load_u32(src)
    store_u32(tiles + 4 * (ROWS * column + lane), bits)
    return bits & 0x7F800000 != 0x7F800000


@jit
def _place_f16(src, tiles, column, lane):
    bits = load_u16(src)
    store_u16(tiles + 2 * (ROWS * column + lane), bits)
    return bits & 0x7C00 != 0x7C00


@jit
def _place_bf16(src, tiles, column, lane):
    bits = load_u16(src)
    at = 2 * (ROWS * column + lane)
    if HAS_BF16_DOT:
        at = 4 * (ROWS * (column // 2) + lane) + 2 * (1 - column % 2)
    store_u16(tiles + at, bits if bits & 0x7FFF >= TINY_BITS else 0)
    return bits & 0x7F80 != 0x7F80


@jit
def _load_rounded(x):
    return round_bf16(load_f32x16(x))


F32 = FloatPacking("F32", decode_f32, _place_f32, Steps(1, 4 * ROWS, load_f32x16, fma, load_f32x16))
F16 = FloatPacking("F16", decode_f16, _place_f16, Steps(1, 2 * ROWS, load_f16x16, fma, load_f32x16))
BF16 = FloatPacking("BF16", decode_bf16, _place_bf16, Steps(2, 4 * ROWS, load_f32x16, dot_bf16, load_bf16_pairs) if HAS_BF16_DOT else
                    Steps(1, 2 * ROWS, load_bf16x16, fma, _load_rounded))
