"""Every matmul kernel x tokens, the retilers and the activation quantiser, on one thread."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llamina.bench.speed import Work, matrix_work
from llamina.bench.suite import FORMATS, ROUNDS, aligned, record, size
from llamina.bench.synthetic import random_blocks
from llamina.kernels.activations import quantize_row, record_bytes
from llamina.kernels.compile_cache import compiled
from llamina.kernels.formats import registry
from llamina.kernels.formats.table import FORMATS as TABLE

COLUMNS = size(4096, 256)
MATRIX_BYTES = size(96 << 20, 1 << 13)  # more than a last-level cache holds
TOKENS = (1, 2, 4, 8, 32)


@compiled("int64(int64, int64, int64, int64)")
def quantize(x, columns, tokens, records):
    for m in range(tokens):
        quantize_row(x + 4 * m * columns, columns, m, tokens, records)
    return 0


def rows_of(name: str) -> int:
    return max(16, MATRIX_BYTES // TABLE[name].row_bytes(COLUMNS) // 16 * 16)


def tiles_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(the matrix as a file holds it, and as the kernel wants it)"""
    rows = random_blocks(np.random.default_rng(0), name, rows_of(name), COLUMNS, COLUMNS**-0.5)
    tiles = aligned(registry.tiled_bytes(name, len(rows), COLUMNS))
    retile(name, rows, tiles)
    return rows, tiles


def retile(name: str, rows: np.ndarray, tiles: np.ndarray) -> None:
    bad = registry.retiler(name).ctypes(rows.ctypes.data, rows.shape[1], len(rows), COLUMNS // TABLE[name].columns, 0, len(rows) // 16, tiles.ctypes.data)
    assert bad < 0


@pytest.fixture(scope="module", params=FORMATS)
def matrix(request: Any) -> tuple[str, np.ndarray, np.ndarray]:
    return request.param, *tiles_of(request.param)


def inputs_of(name: str, tokens: int) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((tokens, COLUMNS), np.float32)
    if registry.takes_floats(name):
        return x
    records = aligned(record_bytes(tokens, COLUMNS))
    quantize.ctypes(x.ctypes.data, COLUMNS, tokens, records.ctypes.data)
    return records


@pytest.mark.parametrize("tokens", TOKENS)
def test_matmul(benchmark: Any, matrix: tuple[str, np.ndarray, np.ndarray], tokens: int) -> None:
    name, file_rows, tiles = matrix
    rows = len(file_rows)
    x, out, kernel = inputs_of(name, tokens), np.empty((tokens, rows), np.float32), registry.kernel(name).ctypes
    arguments = tiles.ctypes.data, COLUMNS, 0, rows // 16, x.ctypes.data, COLUMNS, out.ctypes.data, rows, tokens
    benchmark.pedantic(kernel, arguments, rounds=2 * ROUNDS, warmup_rounds=1)
    assert np.isfinite(out).all()
    macs = float(rows) * COLUMNS * tokens
    record(benchmark, matrix_work(name, tiles.nbytes, macs), 1, format=name, tokens=tokens)


def test_retile(benchmark: Any, matrix: tuple[str, np.ndarray, np.ndarray]) -> None:
    name, rows, tiles = matrix
    benchmark.pedantic(retile, (name, rows, tiles), rounds=ROUNDS, warmup_rounds=1)
    record(benchmark, Work(rows.nbytes + tiles.nbytes), 1, format=name)


@pytest.mark.parametrize("tokens", (1, 8, 256))
def test_quantize_activations(benchmark: Any, tokens: int) -> None:
    x = np.random.default_rng(1).standard_normal((tokens, COLUMNS), np.float32)
    records = aligned(record_bytes(tokens, COLUMNS))
    benchmark.pedantic(quantize.ctypes, (x.ctypes.data, COLUMNS, tokens, records.ctypes.data), rounds=4 * ROUNDS, warmup_rounds=1)
    record(benchmark, Work(x.nbytes + records.nbytes), 1, tokens=tokens)
