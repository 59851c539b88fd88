"""Several matrices of the same normed rows as one op: what a recurrent layer makes of a token, and attention's output gate."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.compile_cache import compiled
from ....kernels.simd import load_i64
from .common import ENTRY, HEADER, LD_X, LEAST, MATRIX_BYTES, N_TOKENS, TILES, end, low_rank_of, normed_records, normed_rows, own_memory, piece, take

MOST = 4
"""Matrices."""
(OUT, LD_OUT) = range(MATRIX_BYTES, MATRIX_BYTES + 16, 8)
"""Of each, after its descriptor: address of its first column's floats in the first row, and floats from row to row."""
STRIDE = MATRIX_BYTES + 16
N = HEADER + MOST * STRIDE
"""How many there are."""
WORDS = MOST * STRIDE // 8 + 1


@compiled(ENTRY)
def project(tid, n_threads, team, step, stage):
    """A piece of work is some tiles of all matrices' tiles in a row."""
    n_tokens, ld, own, n = load_i64(step + N_TOKENS), load_i64(step + LD_X), own_memory(step, tid), load_i64(stage + N)
    records, floats, total, turn = normed_records(step, own), normed_rows(step, own), 0, 0
    for i in range(n):
        total += load_i64(stage + HEADER + i * STRIDE + TILES)
    low = low_rank_of(step, tid, n_threads, team, stage + HEADER, n, STRIDE, records, floats, ld, n_tokens)
    while True:
        turn, first, last = take(team, 0, tid, n_threads, turn, total, LEAST, total)
        if turn == n_threads:
            return end(n_threads, team, step, stage)
        before = 0
        for i in range(n):
            matrix = stage + HEADER + i * STRIDE
            tiles = load_i64(matrix + TILES)
            tile0, tile1 = max(first - before, 0), min(last - before, tiles)
            if tile0 < tile1:
                piece(matrix, tile0, tile1, records, floats, ld, load_i64(matrix + OUT), load_i64(matrix + LD_OUT), n_tokens, step, low, i)
            before += tiles


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "matrices": ((Matrix, buffer, first column in it, the buffer's columns), …)."""
    parts = stage.args["matrices"]
    assert len(parts) <= MOST
    words[N // 8] = len(parts)
    for i, (matrix, buffer, column, columns) in enumerate(parts):
        at = (HEADER + i * STRIDE) // 8
        words[at:at + MATRIX_BYTES // 8] = layout.matrix(matrix)
        words[at + OUT // 8], words[at + LD_OUT // 8] = layout.address(buffer) + 4 * column, -(-columns // 32) * 32
