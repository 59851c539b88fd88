"""The encoder table, and `encode`: float32 rows to blocks of any format that has an encoder, on all threads."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from ..compile_cache import Compiled, compiled
from ..matmul import jit
from ..simd import fma, load_f32x16, splat_f32, store_f32x16, vsum
from .encode import encode_bf16, encode_f16, encode_f32, encode_iq4_nl, encode_q4_0, encode_q4_1, encode_q5_0, encode_q5_1, encode_q8_0
from .encode_k import encode_iq4_xs, encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k
from .table import FORMATS

ENCODERS = {
    "F32": encode_f32, "F16": encode_f16, "BF16": encode_bf16, "Q8_0": encode_q8_0, "Q4_0": encode_q4_0, "Q4_1": encode_q4_1, "Q5_0": encode_q5_0,
    "Q5_1": encode_q5_1, "Q2_K": encode_q2_k, "Q3_K": encode_q3_k, "Q4_K": encode_q4_k, "Q5_K": encode_q5_k, "Q6_K": encode_q6_k,
    "IQ4_NL": encode_iq4_nl, "IQ4_XS": encode_iq4_xs,
}
_ROWS_A_TASK_BYTES = 1 << 20


@jit
def _error_weights(x, importance, columns, out):
    """llama.cpp's weighting by an importance matrix: importance * sqrt(mean x^2 of the row's block + x^2), for one block of columns."""
    squares = splat_f32(0.0)
    for i in range(0, 4 * columns, 64):
        v = load_f32x16(x + i)
        squares = fma(v, v, squares)
    mean = np.float32(2.0) * vsum(squares) / np.float32(columns)
    scratch = np.zeros(16, np.float32)
    for i in range(0, 4 * columns, 64):
        v = load_f32x16(x + i)
        store_f32x16(np.int64(scratch.ctypes.data), fma(v, v, splat_f32(mean)))
        for j in range(16):
            scratch[j] = np.sqrt(scratch[j])
        store_f32x16(out + i, load_f32x16(importance + i) * load_f32x16(np.int64(scratch.ctypes.data)))


@cache
def encoder(name: str) -> Compiled:
    """(x, rows, columns, importance or 0, ones, dst, row_bytes): encode whole rows; x: float32 [rows, columns]; ones: float32 [256] of 1."""
    encode_block, block_columns, block_bytes = ENCODERS[name], FORMATS[name].columns, FORMATS[name].bytes
    weighted = block_columns > 1

    def encode_rows(x, rows, columns, importance, ones, dst, row_bytes):
        weights = np.ones(256, np.float32)
        for r in range(rows):
            source, target = x + 4 * r * columns, dst + r * row_bytes
            for b in range(columns // block_columns):
                w = ones
                if weighted and importance != 0:
                    w = np.int64(weights.ctypes.data)
                    _error_weights(source + 4 * b * block_columns, importance + 4 * b * block_columns, block_columns, w)
                encode_block(source + 4 * b * block_columns, w, target + b * block_bytes)
    encode_rows.__name__ = encode_rows.__qualname__ = f"encode_{name}"
    return compiled("void(int64, int64, int64, int64, int64, int64, int64)")(encode_rows)


def encode(name: str, x: np.ndarray, importance: np.ndarray | None = None, threads: ThreadPoolExecutor | None = None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, row bytes] in format `name`; columns a multiple of its block.

    importance: float32 [columns] weights >= 0 of the squared errors (mean squared activations), or None. x must be finite (the caller checks).
    The result does not depend on the number of threads or on the CPU. KeyError for a format without an encoder, ValueError for wrong shapes.
    """
    rows, columns = x.shape
    block = FORMATS[name]
    if columns % block.columns:
        raise ValueError(f"{name} takes multiples of {block.columns} columns, not {columns}")
    if importance is not None and importance.shape != (columns,):
        raise ValueError(f"importance must have {columns} entries, not {importance.shape}")
    x = np.ascontiguousarray(x, np.float32)
    if name == "F32":
        return x.view(np.uint8)
    importance = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out, ones = np.empty((rows, block.row_bytes(columns)), np.uint8), np.ones(256, np.float32)
    function = encoder(name).ctypes
    step = max(1, _ROWS_A_TASK_BYTES // (4 * columns))

    def task(first: int) -> None:
        n = min(step, rows - first)
        weights = 0 if importance is None else importance.ctypes.data
        function(x[first:].ctypes.data, n, columns, weights, ones.ctypes.data, out[first:].ctypes.data, out.shape[1])
    for _ in (threads.map if threads else map)(task, range(0, rows, step)):
        pass
    return out
