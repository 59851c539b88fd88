"""Short convolutions of recurrent layers: a piece of work is some channels of a sequence's tokens (kernels/conv.py)."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.compile_cache import compiled
from ....kernels.conv import FEED_WORDS, gated_conv, silu_conv
from ....kernels.simd import load_i64
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, end

CHANNELS_A_PIECE = 128
(STATES, OFFSET, ROWS, LD_ROWS, CHANNELS, TAPS, KERNEL, LD_STATE, OUT, LD_OUT, BIAS) = range(HEADER, HEADER + 8 * 11, 8)
"""STATES: address of how many feeds the step has, and of their words (kernels/conv.py). OFFSET: of the layer in a state. ROWS: address of float32 [tokens,
LD_ROWS], what the projections made. KERNEL: of float32 [TAPS, LD_STATE]. OUT: of float32 [tokens, LD_OUT]; silu_conv works in place. BIAS: address
of float32 [LD_STATE], or 0; of silu_conv alone."""
WORDS = 11


@compiled(ENTRY)
def conv(tid, n_threads, team, step, stage):
    """OUT = c * conv(b * x)."""
    states, channels = load_i64(stage + STATES), load_i64(stage + CHANNELS)
    blocks = (channels + CHANNELS_A_PIECE - 1) // CHANNELS_A_PIECE
    pieces, at = load_i64(states) * blocks, next_tile(team, 0, 1)
    while at < pieces:
        first = at % blocks * CHANNELS_A_PIECE
        gated_conv(load_i64(states + 8) + 8 * FEED_WORDS * (at // blocks), load_i64(stage + OFFSET), load_i64(stage + ROWS), load_i64(stage + LD_ROWS),
                   channels, load_i64(stage + TAPS), load_i64(stage + KERNEL), load_i64(stage + LD_STATE), load_i64(stage + OUT), load_i64(stage + LD_OUT),
                   first, min(first + CHANNELS_A_PIECE, channels))
        at = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def conv_silu(tid, n_threads, team, step, stage):
    """ROWS = silu(conv(ROWS)), the first CHANNELS columns."""
    states, channels = load_i64(stage + STATES), load_i64(stage + CHANNELS)
    blocks = (channels + CHANNELS_A_PIECE - 1) // CHANNELS_A_PIECE
    pieces, at = load_i64(states) * blocks, next_tile(team, 0, 1)
    while at < pieces:
        first = at % blocks * CHANNELS_A_PIECE
        silu_conv(load_i64(states + 8) + 8 * FEED_WORDS * (at // blocks), load_i64(stage + OFFSET), load_i64(stage + ROWS), load_i64(stage + LD_ROWS),
                  load_i64(stage + TAPS), load_i64(stage + KERNEL), load_i64(stage + BIAS), load_i64(stage + LD_STATE), first,
                  min(first + CHANNELS_A_PIECE, channels))
        at = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: a recurrent "block", the buffers "rows" and "out" ("" in place), "columns" of the rows, "bias" (a vector, or "")."""
    block, a = stage.args["block"], stage.args
    words[STATES // 8], words[OFFSET // 8] = layout.feeds.ctypes.data, 4 * layout.state_places[block.layer]
    words[ROWS // 8], words[LD_ROWS // 8] = layout.address(a["rows"]), -(-a["columns"] // 32) * 32
    words[CHANNELS // 8], words[TAPS // 8], words[KERNEL // 8] = block.channels, block.taps, layout.vector(block.kernel.name)
    words[BIAS // 8] = layout.vector(a.get("bias", ""))
    words[LD_STATE // 8] = -(-block.channels // 32) * 32
    if a["out"]:
        words[OUT // 8], words[LD_OUT // 8] = layout.address(a["out"]), -(-block.channels // 32) * 32
