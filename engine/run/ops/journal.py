"""What a recurrent layer made of guessed tokens, kept: taking guesses back then replays the layer's scan alone, from the state before them, not the step."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.compile_cache import compiled
from ....kernels.simd import load_i64
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, copy, end

TOKENS = 32
"""Most tokens that are kept: a draft, or a few."""
(TABLE, ROWS, LD, JOURNAL, RESTORE) = range(HEADER, HEADER + 8 * 5, 8)
"""TABLE: address of how many rows there are, and of each its place in the step and in the journal, int64 [1 + 2 TOKENS]. ROWS: address of float32 [tokens,
LD], what the projections made; JOURNAL: of float32 [TOKENS, LD]. RESTORE: from the journal, not into it."""
WORDS = 5


@compiled(ENTRY)
def journal(tid, n_threads, team, step, stage):
    """A row a piece of work; nothing, and no barrier, if there is none."""
    table, rows, kept, ld = load_i64(stage + TABLE), load_i64(stage + ROWS), load_i64(stage + JOURNAL), load_i64(stage + LD)
    n, restore = load_i64(table), load_i64(stage + RESTORE)
    if n == 0:
        return 0
    i = next_tile(team, 0, 1)
    while i < n:
        row, place = rows + 4 * ld * load_i64(table + 8 + 16 * i), kept + 4 * ld * load_i64(table + 16 + 16 * i)
        copy(place if restore else row, row if restore else place, ld)
        i = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: a recurrent "block", "restore"."""
    block = stage.args["block"]
    words[TABLE // 8], words[ROWS // 8], words[LD // 8] = layout.kept_rows.ctypes.data, layout.address("mixer"), -(-block.buffers()["mixer"] // 32) * 32
    words[JOURNAL // 8], words[RESTORE // 8] = layout.journals[block.layer].ctypes.data, stage.args["restore"]
