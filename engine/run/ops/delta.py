"""The gated delta rule (kernels/delta.py): a piece of work is 64 values of a head over a sequence's tokens."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.compile_cache import compiled
from ....kernels.conv import FEED_WORDS
from ....kernels.delta import BLOCK, scan
from ....kernels.simd import load_f32, load_i64
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, SCRATCH, SCRATCH_BYTES, end

(
    STATES, OFFSET, ROWS, LD_ROWS, OUT, LD_OUT, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, ALPHA, BETA, DT, A, FACTOR, GROUP, TOGETHER,
) = range(HEADER, HEADER + 8 * 17, 8)
"""STATES: as in conv.py. OFFSET: of the heads' matrices in a state. ROWS: address of float32 [tokens, LD_ROWS]: queries, keys, values, and from columns ALPHA
and BETA on what the gates are made of. OUT: of float32 [tokens, LD_OUT]. DT, A: addresses of float32 [value heads]. FACTOR: float32, of
queries. GROUP: value heads side by side that share a key head; 0: value head h has the query and key of key head h mod KEY_HEADS.
TOGETHER: 0, or so many heads' numbers of ALPHA and of BETA stand side by side by turns."""
WORDS = 17


@compiled(ENTRY)
def delta(tid, n_threads, team, step, stage):
    """OUT = what the heads' matrices answer."""
    states, key_heads, heads = load_i64(stage + STATES), load_i64(stage + KEY_HEADS), load_i64(stage + VALUE_HEADS)
    key_dim, value_dim, ld = load_i64(stage + KEY_DIM), load_i64(stage + VALUE_DIM), load_i64(stage + LD_ROWS)
    blocks, rows, out = (value_dim + BLOCK - 1) // BLOCK, load_i64(stage + ROWS), load_i64(stage + OUT)
    scratch = load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES)
    pieces, at = load_i64(states) * heads * blocks, next_tile(team, 0, 1)
    while at < pieces:
        feed, head, block = at // (heads * blocks), at // blocks % heads, at % blocks
        first, group = head * value_dim + BLOCK * block, load_i64(stage + GROUP)
        key_head, together = head // group if group else head % key_heads, load_i64(stage + TOGETHER)
        at_gates = head // together * 2 * together + head % together if together else head
        scan(load_i64(states + 8) + 8 * FEED_WORDS * feed, load_i64(stage + OFFSET) + 4 * BLOCK * key_dim * (head * blocks + block),
             rows + 4 * key_head * key_dim, rows + 4 * (key_heads + key_head) * key_dim, rows + 4 * (2 * key_heads * key_dim + first),
             rows + 4 * (load_i64(stage + ALPHA) + at_gates), rows + 4 * (load_i64(stage + BETA) + at_gates), ld, load_f32(load_i64(stage + DT) + 4 * head),
             load_f32(load_i64(stage + A) + 4 * head), key_dim, load_f32(stage + FACTOR), value_dim - BLOCK * block, out + 4 * first, load_i64(stage + LD_OUT),
             scratch)
        at = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "block" (Delta)."""
    b = stage.args["block"]
    alpha, beta, width = b.columns
    for word, value in (
        (STATES, layout.feeds.ctypes.data), (OFFSET, 4 * (layout.state_places[b.layer] + b.conv_floats)), (ROWS, layout.address("mixer")),
        (LD_ROWS, -(-width // 32) * 32), (OUT, layout.address("mixed")), (LD_OUT, -(-b.values // 32) * 32), (KEY_HEADS, b.key_heads),
        (VALUE_HEADS, b.value_heads), (KEY_DIM, b.key_dim), (VALUE_DIM, b.value_dim), (ALPHA, alpha), (BETA, beta), (DT, layout.vector(b.dt.name)),
        (A, layout.vector(b.a.name)), (GROUP, b.value_heads // b.key_heads if b.grouped else 0),
        (TOGETHER, b.value_heads // b.key_heads if b.gates else 0),
    ):
        words[word // 8] = value
    words.view(np.float32)[FACTOR // 4] = np.float32(1.0) / np.sqrt(np.float32(b.key_dim))
