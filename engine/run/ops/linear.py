"""A matrix of its own (attention output, down), and rows to records where no other op makes them."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.activations import GROUP, INFINITY_BITS, quantize_row
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import jit
from ....kernels.norms import scale_row
from ....kernels.simd import and_i32, bits_of, load_f32, load_f32x16, load_i64, splat_i32, store_f32x16, vmax_across_i32, vmax_i32
from ....kernels.team import next_tile
from ....kernels.vecmath import soft_cap
from . import low_rank
from .common import (
    ADAPTERS,
    ENTRY,
    FLOAT_INPUT,
    HEADER,
    HIDDEN,
    LD_LOGITS,
    LD_X,
    LEAST,
    LOGITS,
    LOW_RANK,
    MATRIX_BYTES,
    N_TOKENS,
    N_WANTED,
    TILES,
    WANTED,
    copy,
    end,
    low_rank_of,
    matmul,
    normed_records,
    normed_rows,
    own_memory,
    piece,
    spoiled,
    take,
)

MATRIX = HEADER
(ROWS, LD_ROWS, RECORDS, OUT, LD_OUT) = range(HEADER + MATRIX_BYTES, HEADER + MATRIX_BYTES + 8 * 5, 8)
"""ROWS: address of float32 [tokens, LD_ROWS], the input; RECORDS: of the records made of it; OUT: of float32 [tokens, LD_OUT]."""
WORDS = MATRIX_BYTES // 8 + 5
(FACTOR, SOFT_CAP) = (ROWS, LD_ROWS)
"""Of `output`: float32; logits * FACTOR (1: as they are), then SOFT_CAP * tanh(logits / SOFT_CAP) unless it is 0."""


@compiled(ENTRY)
def linear(tid, n_threads, team, step, stage):
    """OUT = the matrix times each token's row."""
    records, rows, ld, n_tokens = load_i64(stage + RECORDS), load_i64(stage + ROWS), load_i64(stage + LD_ROWS), load_i64(step + N_TOKENS)
    low = low_rank_of(step, tid, n_threads, team, stage + MATRIX, 1, 0, records, rows, ld, n_tokens)
    matmul(stage + MATRIX, tid, n_threads, team, 0, records, rows, ld, load_i64(stage + OUT), load_i64(stage + LD_OUT), n_tokens, step, low, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def quantize(tid, n_threads, team, step, stage):
    """RECORDS of ROWS; the matrix is not read. A piece of work is a group of rows: threads that write into the same records slow each other down."""
    n_tokens, rows, ld, records = load_i64(step + N_TOKENS), load_i64(stage + ROWS), load_i64(stage + LD_ROWS), load_i64(stage + RECORDS)
    some, worst = max(1, min(GROUP, n_tokens // n_threads)), 0
    m0 = next_tile(team, 0, some)
    while m0 < n_tokens:
        for m in range(m0, min(m0 + some, n_tokens)):
            worst = max(worst, quantize_row(rows + 4 * m * ld, ld, m, n_tokens, records))
        m0 = next_tile(team, 0, some)
    if worst >= INFINITY_BITS:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@jit
def _shape_logits(row, factor, cap, columns):
    if factor != np.float32(1.0):
        scale_row(row, factor, columns)
    if cap != np.float32(0.0):
        for i in range(0, 4 * columns, 64):
            store_f32x16(row + i, soft_cap(load_f32x16(row + i), cap))


@jit
def _worst(row, columns):
    """Largest magnitude of float32 [columns] as float bits (>= INFINITY_BITS: not finite)."""
    magnitudes = splat_i32(0)
    for i in range(0, 4 * columns, 64):
        magnitudes = vmax_i32(magnitudes, and_i32(bits_of(load_f32x16(row + i)), 0x7FFFFFFF))
    return vmax_across_i32(magnitudes)


@compiled(ENTRY)
def output(tid, n_threads, team, step, stage):
    """The wanted tokens' logits, or their normed rows if these are wanted instead. Nothing follows in a run, so no barrier ends it."""
    n_wanted, own, ld, ldo = load_i64(step + N_WANTED), own_memory(step, tid), load_i64(step + LD_X), load_i64(step + LD_LOGITS)
    if n_wanted == 0:
        return 0
    if load_i64(step + HIDDEN) != 0:
        for i in range(tid, n_wanted, n_threads):
            row = load_i64(step + LOGITS) + 4 * i * ldo
            copy(normed_rows(step, own) + 4 * i * ld, row, ldo)
            if _worst(row, ldo) >= INFINITY_BITS:
                spoiled(step, stage, 1)
        return 0
    matrix, turn, factor, cap = stage + MATRIX, 0, load_f32(stage + FACTOR), load_f32(stage + SOFT_CAP)
    logits, tiles, adapters, low = load_i64(step + LOGITS), load_i64(matrix + TILES), load_i64(step + ADAPTERS), 0
    if adapters != 0:
        low = low_rank.begin(adapters, tid, n_threads, team, matrix + LOW_RANK, 1, 0, normed_records(step, own), normed_rows(step, own), ld, n_wanted,
                             matrix + FLOAT_INPUT, load_i64(step + WANTED), n_wanted)
    while True:
        turn, tile0, tile1 = take(team, 0, tid, n_threads, turn, tiles, LEAST, tiles)
        if turn == n_threads:
            return 0
        piece(matrix, tile0, tile1, normed_records(step, own), normed_rows(step, own), ld, logits, ldo, n_wanted, step, low, 0)
        for i in range(n_wanted):
            row, columns = logits + 4 * (i * ldo + 16 * tile0), 16 * (tile1 - tile0)
            _shape_logits(row, factor, cap, columns)
            if _worst(row, columns) >= INFINITY_BITS:  # while they are in this thread's cache
                spoiled(step, stage, 0)


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
    """args: "matrix" (None: there are only normed rows), "factor", "soft_cap" (0: none)."""
    if stage.args["matrix"] is not None:
        words[MATRIX // 8:(MATRIX + MATRIX_BYTES) // 8] = layout.matrix(stage.args["matrix"])
    words.view(np.float32)[FACTOR // 4], words.view(np.float32)[SOFT_CAP // 4] = stage.args["factor"], stage.args["soft_cap"]
