"""The small ops of the open form, where every site is a buffer that the next stage reads: add | norm | quantise | matmul | rotate | append | attend | activate.

The same functions on the same rows as in the coarse ops, hence the same bits. They always share the residual stream between threads (never OWN).
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.atomics import call_pointer5
from ....kernels.attention import (
    HEAD_DIM,
    LD_ATT,
    LD_KV,
    N_HEADS,
    N_KV_HEADS,
    POSITIONS,
    ROPE_DIM,
    ROPE_TABLE,
    K,
    Q,
    append_kernel,
)
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import jit, rope, silu_mul
from ....kernels.simd import load_i64
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, LD_X, N_TOKENS, NORMED, X, end, spoiled
from .gated import GATE, LD, UP
from .join import add_pending, norm_row

(GEOMETRY, TURNED, APPEND, KV_OFFSET) = range(HEADER, HEADER + 8 * 4, 8)
"""GEOMETRY: address of attention's words; TURNED: the same without positions, for what is rotated already. APPEND: of the kernel. KV_OFFSET: of the layer in a page."""
WORDS = 4


@compiled(ENTRY)
def add(tid, n_threads, team, step, stage):
    """What a sublayer made joins the residual stream; words of join.py."""
    n_tokens, ld, x, normed, bad = load_i64(step + N_TOKENS), load_i64(step + LD_X), load_i64(step + X), load_i64(step + NORMED), False
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        bad |= add_pending(stage, x + 4 * m * ld, m, normed + 4 * m * ld, ld)
        m = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def norm(tid, n_threads, team, step, stage):
    """NORMED = norm of every row of the residual stream; words of join.py."""
    n_tokens, ld, x, normed, bad = load_i64(step + N_TOKENS), load_i64(step + LD_X), load_i64(step + X), load_i64(step + NORMED), False
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        bad |= norm_row(stage, x + 4 * m * ld, ld, normed + 4 * m * ld, m, n_tokens, 0)
        m = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@jit
def _turn_heads(geometry, x, heads, position):
    head_dim, rope_dim = load_i64(geometry + HEAD_DIM), load_i64(geometry + ROPE_DIM)
    for head in range(heads):
        rope(x + 4 * head * head_dim, head_dim, rope_dim, load_i64(geometry + ROPE_TABLE) + 4 * position * rope_dim)


@compiled(ENTRY)
def rotate(tid, n_threads, team, step, stage):
    """Rotary positions of all heads' queries and keys, in place."""
    n_tokens, geometry = load_i64(step + N_TOKENS), load_i64(stage + GEOMETRY)
    q, k, positions = load_i64(geometry + Q), load_i64(geometry + K), load_i64(geometry + POSITIONS)
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        _turn_heads(geometry, q + 4 * m * load_i64(geometry + LD_ATT), load_i64(geometry + N_HEADS), load_i64(positions + 8 * m))
        _turn_heads(geometry, k + 4 * m * load_i64(geometry + LD_KV), load_i64(geometry + N_KV_HEADS), load_i64(positions + 8 * m))
        m = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def append(tid, n_threads, team, step, stage):
    """K and V, rotated already, into the KV cache: a piece of work is a head's keys or values."""
    n_tokens, geometry, bad = load_i64(step + N_TOKENS), load_i64(stage + TURNED), 0
    pieces, at = 2 * load_i64(geometry + N_KV_HEADS), next_tile(team, 0, 1)
    while at < pieces:
        bad |= call_pointer5(load_i64(stage + APPEND), geometry, at % 2, at // 2, load_i64(stage + KV_OFFSET), n_tokens)
        at = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def activate(tid, n_threads, team, step, stage):
    """gate = act(gate) * up, whole rows; words of gated.py."""
    n_tokens, gate, up, ld = load_i64(step + N_TOKENS), load_i64(stage + GATE), load_i64(stage + UP), load_i64(stage + LD)
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        silu_mul(gate + 4 * m * ld, up + 4 * m * ld, ld)
        m = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "attention" (the block)."""
    a = stage.args["attention"]
    words[GEOMETRY // 8], words[TURNED // 8] = layout.geometry_of(a), layout.geometry_of(a, turned=True)
    words[APPEND // 8], words[KV_OFFSET // 8] = append_kernel(layout.kv).address, layout.kv_offsets[a.kv_layer]


def fill_activate(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "columns", "activation"."""
    words[GATE // 8], words[UP // 8], words[LD // 8] = layout.address("gate"), layout.address("up"), -(-stage.args["columns"] // 32) * 32
