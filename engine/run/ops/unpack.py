"""Rows of a matrix as float32, out of its tiles: the matmul with rows of ones and zeros, which works for every format."""
from __future__ import annotations

from ....kernels.activations import quantize_row
from ....kernels.compile_cache import compiled
from ....kernels.matmul import call_kernel
from ....kernels.simd import load_i64
from .common import COLUMNS, FLOAT_INPUT, KERNEL, WEIGHTS


@compiled("int64(int64, int64, int64)")
def record_rows(x, ld, n):
    """Records of n rows, float32 [n, ld] at x, behind them."""
    for m in range(n):
        quantize_row(x + 4 * m * ld, ld, m, n, x + 4 * n * ld)
    return 0


@compiled("int64(int64, int64, int64, int64, int64, int64)")
def unpack_tile(matrix, tile, x, ld, n, out):
    """out, float32 [n, 16]: the tile's 16 rows times n rows at x, whose records lie behind them (`record_rows`). No bias, no factor."""
    source = x if load_i64(matrix + FLOAT_INPUT) != 0 else x + 4 * n * ld
    call_kernel(load_i64(matrix + KERNEL), load_i64(matrix + WEIGHTS), load_i64(matrix + COLUMNS), tile, tile + 1, source, ld, out - 64 * tile, 16, n)
    return 0
