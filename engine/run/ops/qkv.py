"""Queries, keys and values of a layer, and keys and values into the KV cache at once: a KV head's rows are one piece of work, which then goes into the pages."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.atomics import call_pointer5
from ....kernels.attention import LD_ATT, LD_KV, N_KV_HEADS, K, Q, V, append_kernel
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import jit
from ....kernels.simd import load_i64
from .common import (
    ENTRY,
    HEADER,
    LD_X,
    MATRIX_BYTES,
    N_TOKENS,
    TILES,
    end,
    matmul,
    normed_records,
    normed_rows,
    own_memory,
    piece,
    spoiled,
    take,
)

(WQ, WK, WV) = range(HEADER, HEADER + 3 * MATRIX_BYTES, MATRIX_BYTES)
(GEOMETRY, APPEND, KV_OFFSET, HEAD_TILES) = range(HEADER + 3 * MATRIX_BYTES, HEADER + 3 * MATRIX_BYTES + 8 * 4, 8)
"""GEOMETRY: address of attention's words. APPEND: of the kernel (kernels/attention.py), or 0: the rows stay in K and V. KV_OFFSET: of the layer in a page. HEAD_TILES: tiles of
a KV head's rows, if that is a whole number, else 0."""
WORDS = 3 * MATRIX_BYTES // 8 + 4


@jit
def _keys_and_values(stage, tid, n_threads, team, geometry, records, floats, ld_floats, n_tokens):
    """-> not finite"""
    n_kv, ldo, bad, append = load_i64(geometry + N_KV_HEADS), load_i64(geometry + LD_KV), 0, load_i64(stage + APPEND)
    per_head, kv_offset = load_i64(stage + HEAD_TILES), load_i64(stage + KV_OFFSET)
    pieces, turn = 2 * n_kv if per_head else 2, 0
    while True:
        turn, at, _ = take(team, 0, tid, n_threads, turn, pieces, 1, 1)
        if turn == n_threads:
            return bad
        is_value, head0, head1 = at % 2, at // 2, at // 2 + 1
        tile0, tile1 = head0 * per_head, head1 * per_head
        if per_head == 0:
            head1, tile1 = n_kv, load_i64(stage + WK + MATRIX_BYTES * is_value + TILES)
        piece(stage + WK + MATRIX_BYTES * is_value, tile0, tile1, records, floats, ld_floats, load_i64(geometry + V if is_value else geometry + K), ldo, n_tokens)
        if append != 0:
            for head in range(head0, head1):
                bad |= call_pointer5(append, geometry, is_value, head, kv_offset, n_tokens)


@compiled(ENTRY)
def qkv(tid, n_threads, team, step, stage):
    """Keys and values first: they are the small pieces."""
    n_tokens, ld, own, geometry = load_i64(step + N_TOKENS), load_i64(step + LD_X), own_memory(step, tid), load_i64(stage + GEOMETRY)
    records, normed = normed_records(step, own), normed_rows(step, own)
    if _keys_and_values(stage, tid, n_threads, team, geometry, records, normed, ld, n_tokens):
        spoiled(step, stage, 0)
    matmul(stage + WQ, tid, n_threads, team, 1, records, normed, ld, load_i64(geometry + Q), load_i64(geometry + LD_ATT), n_tokens)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "q", "k", "v" (Matrix), "attention" (the block)."""
    a = stage.args["attention"]
    for to, name in ((WQ, "q"), (WK, "k"), (WV, "v")):
        words[to // 8:(to + MATRIX_BYTES) // 8] = layout.matrix(stage.args[name])
    words[GEOMETRY // 8], words[APPEND // 8] = layout.geometry_of(a), append_kernel(layout.kv).address
    words[KV_OFFSET // 8], words[HEAD_TILES // 8] = layout.kv_offsets[a.kv_layer], 0 if a.head_dim % 16 else a.head_dim // 16
