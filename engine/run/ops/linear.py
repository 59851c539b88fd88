"""A matrix of its own (attention output, down), and rows to records where no other op makes them."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.activations import INFINITY_BITS, quantize_row
from ....kernels.compile_cache import compiled
from ....kernels.simd import load_i64
from ....kernels.team import next_tile
from .common import (
    ENTRY,
    HEADER,
    HIDDEN,
    LD_LOGITS,
    LD_X,
    LOGITS,
    MATRIX_BYTES,
    N_TOKENS,
    N_WANTED,
    copy,
    end,
    matmul,
    normed_records,
    normed_rows,
    own_memory,
    spoiled,
)

MATRIX = HEADER
(ROWS, LD_ROWS, RECORDS, OUT, LD_OUT) = range(HEADER + MATRIX_BYTES, HEADER + MATRIX_BYTES + 8 * 5, 8)
"""ROWS: address of float32 [tokens, LD_ROWS], the input; RECORDS: of the records made of it; OUT: of float32 [tokens, LD_OUT]."""
WORDS = MATRIX_BYTES // 8 + 5


@compiled(ENTRY)
def linear(tid, n_threads, team, step, stage):
    """OUT = the matrix times each token's row."""
    matmul(stage + MATRIX, tid, n_threads, team, 0, load_i64(stage + RECORDS), load_i64(stage + ROWS), load_i64(stage + LD_ROWS), load_i64(stage + OUT),
           load_i64(stage + LD_OUT), load_i64(step + N_TOKENS))
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def quantize(tid, n_threads, team, step, stage):
    """RECORDS of ROWS; the matrix is not read."""
    n_tokens, rows, ld, records = load_i64(step + N_TOKENS), load_i64(stage + ROWS), load_i64(stage + LD_ROWS), load_i64(stage + RECORDS)
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        if quantize_row(rows + 4 * m * ld, ld, m, n_tokens, records) >= INFINITY_BITS:
            spoiled(step, stage, 0)
        m = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def output(tid, n_threads, team, step, stage):
    """The wanted tokens' logits, or their normed rows if these are wanted instead. Nothing follows in a run, so no barrier ends it."""
    n_wanted, own, ld, ldo = load_i64(step + N_WANTED), own_memory(step, tid), load_i64(step + LD_X), load_i64(step + LD_LOGITS)
    if n_wanted == 0:
        return 0
    if load_i64(step + HIDDEN) != 0:
        for i in range(tid, n_wanted, n_threads):
            copy(normed_rows(step, own) + 4 * i * ld, load_i64(step + LOGITS) + 4 * i * ldo, ldo)
        return 0
    matmul(stage + MATRIX, tid, n_threads, team, 0, normed_records(step, own), normed_rows(step, own), ld, load_i64(step + LOGITS), ldo, n_wanted)
    return 0


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "matrix", and the buffers "rows", "records", "out", whose rows are as far apart as their columns, rounded up to 32."""
    a, m = stage.args, stage.args["matrix"]
    words[MATRIX // 8:(MATRIX + MATRIX_BYTES) // 8] = layout.matrix(m)
    words[ROWS // 8], words[RECORDS // 8], words[OUT // 8] = (layout.address(a[name]) for name in ("rows", "records", "out"))
    words[LD_ROWS // 8], words[LD_OUT // 8] = -(-m.columns // 32) * 32, -(-m.rows // 32) * 32


def fill_quantize(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: the buffers "rows" and "records", "columns"."""
    a = stage.args
    words[ROWS // 8], words[RECORDS // 8], words[LD_ROWS // 8] = layout.address(a["rows"]), layout.address(a["records"]), -(-a["columns"] // 32) * 32


def fill_output(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "matrix"."""
    words[MATRIX // 8:(MATRIX + MATRIX_BYTES) // 8] = layout.matrix(stage.args["matrix"])
