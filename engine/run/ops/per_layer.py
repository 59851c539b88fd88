"""Per-layer embeddings: what a token gives each layer is mixed at the pass's beginning, and gates the layer's own matrix (architectures/per_layer_blocks.py).

    mix:   per_layer = (head_norm(raw * factor, gain) + per_layer) * 2^-1/2, each layer's part on its own; per_layer held the table's row
    gate:  gate = act(the matrix times the row) * the layer's part, and its records
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ....kernels.activations import INFINITY_BITS, quantize_part
from ....kernels.compile_cache import Compiled, compiled
from ....kernels.gates import ROWS
from ....kernels.norms import head_norm
from ....kernels.simd import load_f32, load_i64, store_f32
from ....kernels.team import next_tile
from ...architectures.per_layer_blocks import padded
from .common import ENTRY, HEADER, LD_X, LEAST, MATRIX_BYTES, N_TOKENS, end, low_rank_of, normed_records, normed_rows, own_memory, piece, spoiled, take

(RAW, LD_RAW, MIXED, LD_MIXED, MIX_GAIN, LAYERS, MIX_WIDTH, PART, MIX_EPS, MIX_FACTOR) = range(HEADER, HEADER + 8 * 10, 8)
"""RAW: address of float32 [tokens, LD_RAW], MIX_WIDTH numbers a layer; MIXED: of float32 [tokens, LD_MIXED], PART
numbers a layer. MIX_EPS, MIX_FACTOR: float32."""
MIX_WORDS = 10
W_GATE = HEADER
(GATE, LD, GIVEN, LD_GIVEN, OUT_RECORDS, MAKE_RECORDS) = range(HEADER + MATRIX_BYTES, HEADER + MATRIX_BYTES + 8 * 6, 8)
"""GATE: address of float32 [tokens, LD]. GIVEN: of this layer's part in the first token's row of float32 [tokens, LD_GIVEN]."""
WORDS = MATRIX_BYTES // 8 + 6
_HALF = np.float32(0.5**0.5)


@compiled(ENTRY)
def mix(tid, n_threads, team, step, stage):
    """A piece of work is a token."""
    n_tokens, layers, width, part = load_i64(step + N_TOKENS), load_i64(stage + LAYERS), load_i64(stage + MIX_WIDTH), load_i64(stage + PART)
    gain, eps, factor, bad = load_i64(stage + MIX_GAIN), load_f32(stage + MIX_EPS), load_f32(stage + MIX_FACTOR), False
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        for layer in range(layers):
            raw = load_i64(stage + RAW) + 4 * (m * load_i64(stage + LD_RAW) + layer * width)
            to = load_i64(stage + MIXED) + 4 * (m * load_i64(stage + LD_MIXED) + layer * part)
            for i in range(width):
                store_f32(raw + 4 * i, load_f32(raw + 4 * i) * factor)
            bad |= head_norm(raw, gain, width, eps)
            for i in range(width):
                store_f32(to + 4 * i, (load_f32(raw + 4 * i) + load_f32(to + 4 * i)) * _HALF)
        m = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@cache
def gate(activation: str) -> Compiled:
    """The op for one activation (kernels/gates.py)."""
    act = ROWS[activation]

    def per_layer_gate(tid, n_threads, team, step, stage):
        """A piece of work is some columns, an even number of tiles."""
        n_tokens, ld_x, own = load_i64(step + N_TOKENS), load_i64(step + LD_X), own_memory(step, tid)
        inputs, floats = normed_records(step, own), normed_rows(step, own)
        out, ld, given, ld_given = load_i64(stage + GATE), load_i64(stage + LD), load_i64(stage + GIVEN), load_i64(stage + LD_GIVEN)
        records, quantize, worst, pairs, turn = load_i64(stage + OUT_RECORDS), load_i64(stage + MAKE_RECORDS), 0, ld // 32, 0
        low = low_rank_of(step, tid, n_threads, team, stage + W_GATE, 1, 0, inputs, floats, ld_x, n_tokens)
        while True:
            turn, pair0, pair1 = take(team, 0, tid, n_threads, turn, pairs, LEAST, pairs)
            if turn == n_threads:
                break
            piece(stage + W_GATE, 2 * pair0, 2 * pair1, inputs, floats, ld_x, out, ld, n_tokens, step, low, 0)
            for m in range(n_tokens):
                row, here = out + 4 * m * ld, 4 * 32 * pair0
                act(row + here, given + 4 * m * ld_given + here, 32 * (pair1 - pair0))
                if quantize:
                    worst = max(worst, quantize_part(row, 32 * pair0, 32 * pair1, ld, m, n_tokens, records))
        if worst >= INFINITY_BITS:
            spoiled(step, stage, 0)
        return end(n_threads, team, step, stage)
    per_layer_gate.__name__ = per_layer_gate.__qualname__ = f"per_layer_gate_{activation}"
    return compiled(ENTRY)(per_layer_gate)


@cache
def activate(activation: str) -> Compiled:
    """The open form: whole rows, in place."""
    act = ROWS[activation]

    def per_layer_activate(tid, n_threads, team, step, stage):
        n_tokens, out, ld, given, ld_given = (load_i64(step + N_TOKENS), load_i64(stage + GATE), load_i64(stage + LD), load_i64(stage + GIVEN),
                                              load_i64(stage + LD_GIVEN))
        m = next_tile(team, 0, 1)
        while m < n_tokens:
            act(out + 4 * m * ld, given + 4 * m * ld_given, ld)
            m = next_tile(team, 0, 1)
        return end(n_threads, team, step, stage)
    per_layer_activate.__name__ = per_layer_activate.__qualname__ = f"per_layer_activate_{activation}"
    return compiled(ENTRY)(per_layer_activate)


def fill_mix(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "block" (PerLayerInputs)."""
    b, floats = stage.args["block"], words.view(np.float32)
    words[RAW // 8], words[LD_RAW // 8] = layout.address("per_layer_mix"), layout.columns("per_layer_mix")
    words[MIXED // 8], words[LD_MIXED // 8], words[PART // 8] = layout.address("per_layer"), layout.columns("per_layer"), padded(b.width)
    words[MIX_GAIN // 8], words[LAYERS // 8], words[MIX_WIDTH // 8] = layout.gain(b.norm), b.layers, b.width
    floats[MIX_EPS // 4], floats[MIX_FACTOR // 4] = b.norm.eps, 1 / np.sqrt(b.dim)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "block" (PerLayer), "activation", "records" (whether its projection reads them)."""
    b = stage.args["block"]
    words[W_GATE // 8:(W_GATE + MATRIX_BYTES) // 8] = layout.matrix(b.gate)
    words[GATE // 8], words[LD // 8], words[OUT_RECORDS // 8] = layout.address("gate"), padded(b.width), layout.address("down_records")
    words[GIVEN // 8], words[LD_GIVEN // 8] = layout.address("per_layer") + 4 * b.layer * padded(b.width), layout.columns("per_layer")
    words[MAKE_RECORDS // 8] = stage.args["records"]
