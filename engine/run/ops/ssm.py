"""Mamba-2's state space (kernels/ssm.py): a piece of work is 64 values of a head over a sequence's tokens."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.compile_cache import compiled
from ....kernels.conv import FEED_WORDS
from ....kernels.simd import load_f32, load_i64
from ....kernels.ssm import BLOCK, scan
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, SCRATCH, SCRATCH_BYTES, end

(
    STATES, OFFSET, ROWS, LD_ROWS, OUT, LD_OUT, HEADS, HEAD_DIM, N_STATE, GROUP, B, C, DT, BIAS, A, D,
) = range(HEADER, HEADER + 8 * 16, 8)
"""STATES: as in conv.py. OFFSET: of the heads' matrices in a state. ROWS: address of float32 [tokens, LD_ROWS]: the heads' values, and from columns B, C and DT
on the groups' B and C and the heads' step sizes. OUT: of float32 [tokens, LD_OUT]. GROUP: heads of a group, which share B and C. BIAS, A, D: addresses
of float32 [heads]."""
WORDS = 16


@compiled(ENTRY)
def ssm(tid, n_threads, team, step, stage):
    """OUT = what the heads' matrices answer."""
    states, heads, head_dim, n_state = load_i64(stage + STATES), load_i64(stage + HEADS), load_i64(stage + HEAD_DIM), load_i64(stage + N_STATE)
    blocks, rows, out, ld = (head_dim + BLOCK - 1) // BLOCK, load_i64(stage + ROWS), load_i64(stage + OUT), load_i64(stage + LD_ROWS)
    scratch = load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES)
    pieces, at = load_i64(states) * heads * blocks, next_tile(team, 0, 1)
    while at < pieces:
        feed, head, block = at // (heads * blocks), at // blocks % heads, at % blocks
        first, group = head * head_dim + BLOCK * block, head // load_i64(stage + GROUP)
        scan(load_i64(states + 8) + 8 * FEED_WORDS * feed, load_i64(stage + OFFSET) + 4 * BLOCK * n_state * (head * blocks + block), rows + 4 * first,
             rows + 4 * (load_i64(stage + B) + group * n_state), rows + 4 * (load_i64(stage + C) + group * n_state), rows + 4 * (load_i64(stage + DT) + head),
             ld, load_f32(load_i64(stage + BIAS) + 4 * head), load_f32(load_i64(stage + A) + 4 * head), load_f32(load_i64(stage + D) + 4 * head), n_state,
             head_dim - BLOCK * block, out + 4 * first, load_i64(stage + LD_OUT), scratch)
        at = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "block" (Mamba2)."""
    b = stage.args["block"]
    for word, value in (
        (STATES, layout.feeds.ctypes.data), (OFFSET, 4 * (layout.state_places[b.layer] + b.conv_floats)), (ROWS, layout.address("mixer")),
        (LD_ROWS, -(-b.columns[1] // 32) * 32), (OUT, layout.address("mixed")), (LD_OUT, -(-b.values // 32) * 32), (HEADS, b.heads), (HEAD_DIM, b.head_dim),
        (N_STATE, b.state), (GROUP, b.heads // b.groups), (B, b.values), (C, b.values + b.groups * b.state), (DT, b.columns[0]),
        (BIAS, layout.vector(b.dt.name)), (A, layout.vector(b.a.name)), (D, layout.vector(b.d.name)),
    ):
        words[word // 8] = value
