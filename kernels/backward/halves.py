"""Rows rounded as a KV cache of halves keeps them: float32, to the nearest half, in place."""
from __future__ import annotations

from ..compile_cache import compiled
from ..half import load_f16x16, store_f16x16
from ..simd import load_f32x16, store_f32x16


@compiled("void(int64, int64)")
def to_halves(rows, n):
    """The first n float32, a multiple of 16, at an address."""
    for at in range(rows, rows + 4 * n, 64):
        store_f16x16(at, load_f32x16(at))
        store_f32x16(at, load_f16x16(at))
