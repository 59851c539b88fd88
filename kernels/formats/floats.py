"""The float formats: F32, F16, BF16. A tile is 16 rows x all columns, lane = row: [column][16], in the file's own width.

BF16 is the upper half of a float32. Float matrices multiply float activations: one fma chain over the columns per output (matmul_float.py).
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..half import load_bf16x16, load_f16x16
from ..matmul import jit
from ..simd import load_f32x16, load_u16, load_u32, store_u16, store_u32


class FloatPacking(NamedTuple):
    """A float format; `place` copies one row's element into a lane and says whether it is finite."""

    name: str
    item_bytes: int
    decode: Any
    place: Any
    load16: Any


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view(np.float32)


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@jit
def _place_f32(src, dst, lane):
    bits = load_u32(src)
    store_u32(dst + 4 * lane, bits)
    return bits & 0x7F800000 != 0x7F800000


@jit
def _place_f16(src, dst, lane):
    bits = load_u16(src)
    store_u16(dst + 2 * lane, bits)
    return bits & 0x7C00 != 0x7C00


@jit
def _place_bf16(src, dst, lane):
    bits = load_u16(src)
    store_u16(dst + 2 * lane, bits)
    return bits & 0x7F80 != 0x7F80


F32 = FloatPacking("F32", 4, decode_f32, _place_f32, load_f32x16)
F16 = FloatPacking("F16", 2, decode_f16, _place_f16, load_f16x16)
BF16 = FloatPacking("BF16", 2, decode_bf16, _place_bf16, load_bf16x16)
