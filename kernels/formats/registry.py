"""The kernel table: for every runnable format its reference decoder, its retiler and its matmul kernel, each compiled when a model first needs it.

Adding a format: a `Packing` in a file of this folder, which goes into `PACKINGS` here, and its name into `table.RUNNABLE`.
"""
from __future__ import annotations

from functools import cache

import numpy as np

from ..compile_cache import Compiled, compiled
from ..low_rank import KINDS, tile_up
from ..matmul import ROWS, Packing, beside_kernel, block_kernel, jit
from ..matmul_float import float_kernel
from .floats import BF16, F16, F32, FloatPacking
from .kquants import Q4_K, Q5_K, Q6_K
from .kquants_small import Q2_K, Q3_K, TQ1_0, TQ2_0
from .legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from .nonlinear import IQ4_NL, IQ4_XS, MXFP4
from .table import FORMATS

PACKINGS: dict[str, Packing | FloatPacking] = {p.name: p for p in (
    F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4)}
"""All but the codebook formats, whose grids come from a package that is slow to import (codebook.py)."""

_KERNEL = "void(int64, int64, int64, int64, int64, int64, int64, int64, int64)"
_BESIDE = f"int64({', '.join(['int64'] * 11)})"
_RETILE = "int64(int64, int64, int64, int64, int64, int64, int64)"


def packing(name: str) -> Packing | FloatPacking:
    """The format's layout functions; KeyError for one that has no kernel."""
    if name in PACKINGS:
        return PACKINGS[name]
    from . import codebook
    if name not in codebook.NAMES:
        raise KeyError(name)
    return codebook.packing(name)


def decode(name: str, data: np.ndarray) -> np.ndarray:
    """Reference decoder: uint8 [rows, row bytes] -> float32 [rows, columns], bit for bit what `gguf.quants.dequantize` gives."""
    block = FORMATS[name].bytes
    rows = data.shape[0]
    return packing(name).decode(np.ascontiguousarray(data).reshape(-1, block)).reshape(rows, -1)


def takes_floats(name: str) -> bool:
    """Whether the format's kernel reads float activations rather than int8 records."""
    return isinstance(packing(name), FloatPacking)


@cache
def kernel(name: str) -> Compiled:
    """The format's matmul kernel (signature: matmul.block_kernel)."""
    layout = packing(name)
    function = block_kernel(layout) if isinstance(layout, Packing) else float_kernel(layout.steps)
    return _named(f"matmul_{name}", _KERNEL, function)


@cache
def kernel_beside(name: str, kind: str) -> Compiled | None:
    """The format's kernel for one token with an adapter's pair of this kind (matmul.beside_kernel); None: float formats have none."""
    layout = packing(name)
    if not isinstance(layout, Packing):
        return None
    return _named(f"matmul_{name}_beside_{kind}", _BESIDE, beside_kernel(layout, tile_up(kind), KINDS[kind][0].itemsize))


@cache
def retiler(name: str) -> Compiled:
    """(src, row_bytes, rows, blocks, tile0, tile1, dst) -> -1, or the first row with a NaN or infinite weight or scale, all int64.

    src: address of the file's rows; dst: address of the whole retiled matrix, whose memory is zero. Lanes past `rows` stay zero: scale 0.
    """
    layout, block_bytes = packing(name), FORMATS[name].bytes
    blocks_a_step, step_bytes = _steps(layout)
    place = layout.place if isinstance(layout, FloatPacking) else _placed_by_tile(layout.place, step_bytes)

    def retile(src, row_bytes, rows, blocks, tile0, tile1, dst):
        bad = -1
        for t in range(tile0, tile1):
            tiles = dst + t * ((blocks + blocks_a_step - 1) // blocks_a_step * step_bytes)
            for b in range(blocks):
                for lane in range(min(ROWS, rows - t * ROWS)):
                    row = t * ROWS + lane
                    if not place(src + row * row_bytes + b * block_bytes, tiles, b, lane) and bad < 0:
                        bad = row
        return bad
    return _named(f"retile_{name}", _RETILE, retile)


def _steps(layout: Packing | FloatPacking) -> tuple[int, int]:
    """File blocks that 16 rows have in one tile, or a float kernel's step; bytes of it."""
    return (layout.steps.columns, layout.steps.weight_bytes) if isinstance(layout, FloatPacking) else (1, layout.tile_bytes)


def _placed_by_tile(place, tile_bytes: int):
    @jit
    def place_block(src, tiles, b, lane):
        return place(src, tiles + b * tile_bytes, lane)
    return place_block


def tiled_bytes(name: str, rows: int, columns: int) -> int:
    """Bytes of a matrix of this format once retiled: rows rounded up to 16."""
    blocks_a_step, step_bytes = _steps(packing(name))
    return -(-rows // ROWS) * -(-(columns // FORMATS[name].columns) // blocks_a_step) * step_bytes


def _named(name: str, signature: str, function) -> Compiled:
    function.__name__ = function.__qualname__ = name
    return compiled(signature)(function)
