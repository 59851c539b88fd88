"""Rows that are made ready in place for the way back: zeros, or rounded as a KV cache of halves keeps them, float32, to the nearest half."""
from __future__ import annotations

from ..compile_cache import compiled
from ..deferred import jit
from ..half import load_f16x16, store_f16x16
from ..simd import load_f32x16, load_i64, splat_f32, store_f32x16
from ..team_state import next_tile

ROWS, N, ZEROS = range(0, 24, 8)
"""Words of rows: address of float32 [N], N a multiple of 16; whether they are to be zeros."""
WORDS = 3
PIECE = 1 << 14
"""Numbers that go to a thread at once."""


@jit
def to_halves(rows, n):
    for at in range(rows, rows + 4 * n, 64):
        store_f16x16(at, load_f32x16(at))
        store_f32x16(at, load_f16x16(at))


@compiled("int64(int64, int64, int64, int64)")
def ready(tid, n_threads, team, words):
    """How many rows, then the words of each."""
    at, before = next_tile(team, 0, 1), 0
    for i in range(load_i64(words)):
        p = words + 8 + 8 * WORDS * i
        n = load_i64(p + N)
        pieces = (n + PIECE - 1) // PIECE
        while at < before + pieces:
            first = (at - before) * PIECE
            rows, some = load_i64(p + ROWS) + 4 * first, min(PIECE, n - first)
            if load_i64(p + ZEROS) != 0:
                for to in range(rows, rows + 4 * some, 64):
                    store_f32x16(to, splat_f32(0.0))
            else:
                to_halves(rows, some)
            at = next_tile(team, 0, 1)
        before += pieces
    return 0
