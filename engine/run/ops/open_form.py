"""The small ops of the open form, where every site is a buffer that the next stage reads: add | norm | quantise | matmul | rotate | append | attend | activate.
Fused layers use some where an architecture needs whole rows.

The same functions on the same rows as in the coarse ops, hence the same bits. They always share the residual stream between threads (never OWN).
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ....kernels.atomics import call_pointer5
from ....kernels.attention import (
    HEAD_DIM,
    K_NORM,
    LD_KV,
    LD_Q,
    N_HEADS,
    N_KV_HEADS,
    POSITIONS,
    Q_NORM,
    Q_SCALES,
    K,
    Q,
    append_kernel,
    norm_and_turn,
)
from ....kernels.compile_cache import Compiled, compiled
from ....kernels.elementwise import jit
from ....kernels.gates import ROWS
from ....kernels.norms import head_layer_norm, head_norm, scale_row
from ....kernels.simd import load_f32, load_f32x16, load_i64, store_f32, store_f32x16
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, LD_X, N_TOKENS, NORMED, SCRATCH, SCRATCH_BYTES, X, end, spoiled
from .gated import GATE, LD, UP
from .join import add_pending, norm_row

(GEOMETRY, TURNED, APPEND, KV_OFFSET, KEYS) = range(HEADER, HEADER + 8 * 5, 8)
"""GEOMETRY: address of attention's words; TURNED: the same, or, for keys that are rotated already, without positions. APPEND: of the kernel. KV_OFFSET: of the
layer in a page. KEYS: whether the layer has keys of its own."""
WORDS = 5
(P_EPS, P_ROWS, P_LD, P_GAIN, P_COLUMNS, P_HEADS) = range(HEADER, HEADER + 8 * 6, 8)
"""Of `projection_norm`; P_ROWS (0: none) to P_HEADS once more, for keys. P_HEADS: heads of P_COLUMNS with a gain each; 0: the whole row is P_COLUMNS."""
_P_NEXT = P_HEADS + 8 - P_ROWS
P_WORDS = 11


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
def _turn_heads(geometry, x, heads, gain, position, factor, row):
    """Norm and RoPE of the heads of a row: where they are whole vectors, in place; else each in `row`, where up to 15 numbers after its last may be touched.
    -> not finite"""
    head_dim, bad = load_i64(geometry + HEAD_DIM), False
    whole = head_dim % 16 == 0
    for head in range(heads):
        at = x + 4 * head * head_dim
        here = at if whole else row
        if not whole:
            for d in range(0, head_dim, 16):
                store_f32x16(row + 4 * d, load_f32x16(at + 4 * d))
        bad |= norm_and_turn(geometry, gain, here, head_dim, position)
        if factor != np.float32(1.0):
            scale_row(here, factor, (head_dim + 15) // 16 * 16)
        if not whole:
            for d in range(head_dim):
                store_f32(at + 4 * d, load_f32(row + 4 * d))
    return bad


@compiled(ENTRY)
def rotate(tid, n_threads, team, step, stage):
    """Norms of heads, rotary positions and position factors of all heads' queries and keys, in place."""
    n_tokens, geometry, bad = load_i64(step + N_TOKENS), load_i64(stage + GEOMETRY), False
    q, k, positions, factors = load_i64(geometry + Q), load_i64(geometry + K), load_i64(geometry + POSITIONS), load_i64(geometry + Q_SCALES)
    q_norm, k_norm, heads, n_kv = load_i64(geometry + Q_NORM), load_i64(geometry + K_NORM), load_i64(geometry + N_HEADS), load_i64(geometry + N_KV_HEADS)
    row, one = load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES), np.float32(1.0)
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        position = load_i64(positions + 8 * m)
        factor = load_f32(factors + 4 * position) if factors != 0 else one
        bad |= _turn_heads(geometry, q + 4 * m * load_i64(geometry + LD_Q), heads, q_norm, position, factor, row)
        if load_i64(stage + KEYS) != 0:
            bad |= _turn_heads(geometry, k + 4 * m * load_i64(geometry + LD_KV), n_kv, k_norm, position, one, row)
        m = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def projection_norm(tid, n_threads, team, step, stage):
    """RMSNorm of each token's whole row of queries, and of keys, in place; or LayerNorm of each head."""
    n_tokens, bad, eps = load_i64(step + N_TOKENS), False, load_f32(stage + P_EPS)
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        for i in range(0, 2 * _P_NEXT, _P_NEXT):
            rows, gain, n, heads = load_i64(stage + i + P_ROWS), load_i64(stage + i + P_GAIN), load_i64(stage + i + P_COLUMNS), load_i64(stage + i + P_HEADS)
            if rows == 0:
                continue
            rows += 4 * m * load_i64(stage + i + P_LD)
            if heads == 0:
                bad |= head_norm(rows, gain, n, eps)
            for head in range(heads):
                bad |= head_layer_norm(rows + 4 * head * n, gain + 4 * head * n, n, eps)
        m = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def append(tid, n_threads, team, step, stage):
    """K and V into the KV cache: a piece of work is a head's keys or values."""
    n_tokens, geometry, bad = load_i64(step + N_TOKENS), load_i64(stage + TURNED), 0
    pieces, at = 2 * load_i64(geometry + N_KV_HEADS), next_tile(team, 0, 1)
    while at < pieces:
        bad |= call_pointer5(load_i64(stage + APPEND), geometry, at % 2, at // 2, load_i64(stage + KV_OFFSET), n_tokens)
        at = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@cache
def activate(activation: str) -> Compiled:
    """The op for one activation (kernels/gates.py)."""
    act = ROWS[activation]

    def activate(tid, n_threads, team, step, stage):
        """gate = act(gate) * up, whole rows, or act(gate) without an `up`; words of gated.py."""
        n_tokens, gate, up, ld = load_i64(step + N_TOKENS), load_i64(stage + GATE), load_i64(stage + UP), load_i64(stage + LD)
        m = next_tile(team, 0, 1)
        while m < n_tokens:
            act(gate + 4 * m * ld, up + 4 * m * ld if up != 0 else 0, ld)
            m = next_tile(team, 0, 1)
        return end(n_threads, team, step, stage)
    activate.__name__ = activate.__qualname__ = f"activate_{activation}"
    return compiled(ENTRY)(activate)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "attention" (the block), "turned" (whether queries and keys are rotated already)."""
    a = stage.args["attention"]
    words[GEOMETRY // 8], words[TURNED // 8] = layout.geometry_of(a), layout.geometry_of(a, turned=stage.args["turned"])
    words[APPEND // 8], words[KV_OFFSET // 8], words[KEYS // 8] = append_kernel(layout.kv).address, layout.kv_offsets[a.kv_layer], a.k is not None


def fill_projection_norm(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "q_norm" and "k_norm" (Norm, or None)."""
    norms = (stage.args["q_norm"], stage.args["k_norm"])
    for i, (name, norm) in enumerate(zip("qk", norms)):
        if norm:
            at = (P_ROWS + _P_NEXT * i) // 8
            words[at:at + 5] = layout.address(name), -(-norm.numbers // 32) * 32, layout.gain(norm), norm.dim, norm.heads
    words.view(np.float32)[P_EPS // 4] = next(norm.eps for norm in norms if norm)


def fill_activate(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "columns", "activation", "plain"."""
    words[GATE // 8], words[UP // 8] = layout.address("gate"), 0 if stage.args["plain"] else layout.address("up")
    words[LD // 8] = -(-stage.args["columns"] // 32) * 32
