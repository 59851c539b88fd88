"""The feed-forward block up to `down`: gate = act(gate) * up, or act(up) alone (a plain block), and the records of the result, in one op."""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ....kernels.activations import INFINITY_BITS, quantize_part
from ....kernels.atomics import fence
from ....kernels.compile_cache import Compiled, compiled
from ....kernels.elementwise import jit
from ....kernels.gates import ROWS
from ....kernels.matmul import TILES_A_GROUP
from ....kernels.simd import load_i64
from .common import (
    ENTRY,
    HEADER,
    KERNEL,
    LD_X,
    LEAST,
    MANY_TOKENS,
    MATRIX_BYTES,
    N_TOKENS,
    end,
    low_rank_of,
    normed_records,
    normed_rows,
    own_memory,
    piece,
    spoiled,
    take,
)
from .keep import AIM_BYTES, AIM_WORDS, LD_TO, TO, keep_row

COMPACT = 4
"""Blocks of 32 columns of a piece of gate and up with MANY_TOKENS: both pieces of 512 tokens then stay in a second-level cache until they are quantised."""

(W_GATE, W_UP) = range(HEADER, HEADER + 2 * MATRIX_BYTES, MATRIX_BYTES)
(GATE, UP, LD, OUT_RECORDS, MAKE_RECORDS, KEEP) = range(HEADER + 2 * MATRIX_BYTES, HEADER + 2 * MATRIX_BYTES + 8 * 6, 8)
"""A plain block has its one matrix in W_GATE and none in W_UP. GATE, UP: addresses of float32 [tokens, LD]. OUT_RECORDS: of the result's. MAKE_RECORDS, KEEP:
whether `down` reads records, or rows."""
WORDS = 2 * MATRIX_BYTES // 8 + 6
_AIMS = HEADER + 8 * (WORDS + 1)
COLUMNS = _AIMS - 8
"""Of `gated_keeping`, before the words of where gate's rows and up's go (keep.py): of one of them."""
KEEPING_WORDS = WORDS + 1 + AIM_WORDS


@jit
def _keep(stage, number, x, m, first, n):
    """Columns [first, first + n) of token m, which begin at x, of gate (number 0) or up."""
    aim = stage + _AIMS + AIM_BYTES * number
    to = load_i64(aim + TO)
    if to != 0:
        keep_row(x, to + 4 * (m * load_i64(aim + LD_TO) + first), min(n, load_i64(stage + COLUMNS) - first))


@cache
def gated(activation: str, keeping: bool = False) -> Compiled:
    """The op for one activation (kernels/gates.py). keeping: see keep.py."""
    activate = ROWS[activation]

    def gated(tid, n_threads, team, step, stage):
        """A piece of work is some columns, an even number of tiles.

        Of many tokens, a thread keeps only the piece at hand, in its own part of GATE and UP: whole rows of 512 tokens would go through memory.
        """
        n_tokens, ld_x, own = load_i64(step + N_TOKENS), load_i64(step + LD_X), own_memory(step, tid)
        inputs, floats = normed_records(step, own), normed_rows(step, own)
        plain = load_i64(stage + W_UP + KERNEL) == 0
        gate, up, ld = load_i64(stage + GATE), load_i64(stage + UP), load_i64(stage + LD)
        records, quantize, worst, pairs = load_i64(stage + OUT_RECORDS), load_i64(stage + MAKE_RECORDS), 0, ld // 32
        most, compact = pairs, n_tokens >= MANY_TOKENS and not load_i64(stage + KEEP) and COMPACT * n_threads <= pairs
        if n_tokens >= MANY_TOKENS:
            most = TILES_A_GROUP
        if compact:
            most, ld = COMPACT, 32 * COMPACT
            gate += 4 * tid * n_tokens * ld
            up += 4 * tid * n_tokens * ld
        low = low_rank_of(step, tid, n_threads, team, stage + W_GATE, 2, MATRIX_BYTES, inputs, floats, ld_x, n_tokens)
        turn = 0
        while True:
            turn, pair0, pair1 = take(team, 0, tid, n_threads, turn, pairs, LEAST, most)
            if turn == n_threads:
                break
            left = 4 * 32 * pair0 if compact else 0  # of the first column that is kept
            piece(stage + W_GATE, 2 * pair0, 2 * pair1, inputs, floats, ld_x, gate - left, ld, n_tokens, step, low, 0)
            if not plain:
                piece(stage + W_UP, 2 * pair0, 2 * pair1, inputs, floats, ld_x, up - left, ld, n_tokens, step, low, 1)
            for m in range(n_tokens):
                row, here = 4 * m * ld - left, 4 * 32 * pair0
                if keeping:
                    _keep(stage, 0, gate + row + here, m, 32 * pair0, 32 * (pair1 - pair0))
                    if not plain:
                        _keep(stage, 1, up + row + here, m, 32 * pair0, 32 * (pair1 - pair0))
                activate(gate + row + here, 0 if plain else up + row + here, 32 * (pair1 - pair0))
                if quantize:
                    worst = max(worst, quantize_part(gate + row, 32 * pair0, 32 * pair1, 32 * pairs, m, n_tokens, records))
        if worst >= INFINITY_BITS:
            spoiled(step, stage, 0)
        if keeping:
            fence()
        return end(n_threads, team, step, stage)
    gated.__name__ = gated.__qualname__ = f"gated_{'keeping_' if keeping else ''}{activation}"
    return compiled(ENTRY)(gated)


def gated_keeping(activation: str) -> Compiled:
    return gated(activation, True)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "gate" (Matrix, or None for a plain block), "up" (Matrix), "activation", "records" (whether `down` reads them)."""
    a = stage.args
    for to, matrix in zip((W_GATE, W_UP), [m for m in (a["gate"], a["up"]) if m]):
        words[to // 8:(to + MATRIX_BYTES) // 8] = layout.matrix(matrix)
    words[GATE // 8], words[UP // 8], words[OUT_RECORDS // 8] = layout.address("gate"), layout.address("up"), layout.address("down_records")
    words[LD // 8], words[MAKE_RECORDS // 8], words[KEEP // 8] = -(-a["up"].rows // 32) * 32, a["records"], not a["records"]


def fill_keeping(words: np.ndarray, stage: Any, layout: Any) -> None:
    """The same; the sites after the stage are gate's (or the plain block's) rows, then up's."""
    fill(words, stage, layout)
    words[COLUMNS // 8] = stage.args["up"].rows
