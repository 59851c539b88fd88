"""Queries, keys and values of a layer; a KV head's rows are one piece of work, which goes into the KV cache at once."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.atomics import call_pointer5
from ....kernels.attention import LD_KV, LD_Q, LD_V, K, Q, V, append_kernel
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import jit
from ....kernels.simd import load_i64
from .common import (
    ENTRY,
    HEADER,
    LD_X,
    LEAST,
    MATRIX_BYTES,
    N_TOKENS,
    TILES,
    end,
    low_rank_of,
    matmul,
    normed_records,
    normed_rows,
    own_memory,
    piece,
    spoiled,
    take,
)

(WQ, WK, WV) = range(HEADER, HEADER + 3 * MATRIX_BYTES, MATRIX_BYTES)
(GEOMETRY, APPEND, KV_OFFSET, KEY_TILES, VALUE_TILES, N_KV) = range(HEADER + 3 * MATRIX_BYTES, HEADER + 3 * MATRIX_BYTES + 8 * 6, 8)
"""GEOMETRY: address of attention's words. APPEND: of the kernel (kernels/attention.py), or 0: the rows stay in K and V. KV_OFFSET: of the layer in a page.
KEY_TILES, VALUE_TILES: tiles of a KV head's rows, if both are whole numbers, else 0. N_KV: KV heads; 0 for a layer that reads another's keys and values."""
WORDS = 3 * MATRIX_BYTES // 8 + 6


@jit
def _keys_and_values(step, stage, tid, n_threads, team, geometry, records, floats, ld_floats, n_tokens, low):
    """-> not finite"""
    n_kv, bad, append = load_i64(stage + N_KV), 0, load_i64(stage + APPEND)
    whole_heads, kv_offset = load_i64(stage + KEY_TILES) != 0, load_i64(stage + KV_OFFSET)
    pieces, turn = 2 * n_kv if whole_heads else min(2, 2 * n_kv), 0
    while True:
        turn, at, _ = take(team, 0, tid, n_threads, turn, pieces, 1, 1)
        if turn == n_threads:
            return bad
        is_value, head0, head1 = at % 2, at // 2, at // 2 + 1
        matrix, per_head = stage + WK + MATRIX_BYTES * is_value, load_i64(stage + VALUE_TILES if is_value else stage + KEY_TILES)
        tile0, tile1 = head0 * per_head, head1 * per_head
        if not whole_heads:
            head1, tile1 = n_kv, load_i64(matrix + TILES)
        out, ldo = load_i64(geometry + V if is_value else geometry + K), load_i64(geometry + LD_V if is_value else geometry + LD_KV)
        piece(matrix, tile0, tile1, records, floats, ld_floats, out, ldo, n_tokens, step, low, 1 + is_value)
        if append != 0:
            for head in range(head0, head1):
                bad |= call_pointer5(append, geometry, is_value, head, kv_offset, n_tokens)


@compiled(ENTRY)
def qkv(tid, n_threads, team, step, stage):
    """Keys and values first: they are the small pieces. Adapters wait for others' work after a thread's first piece: that is a large one, of the queries."""
    n_tokens, ld, own, geometry = load_i64(step + N_TOKENS), load_i64(step + LD_X), own_memory(step, tid), load_i64(stage + GEOMETRY)
    records, normed = normed_records(step, own), normed_rows(step, own)
    low = low_rank_of(step, tid, n_threads, team, stage + WQ, 3, MATRIX_BYTES, records, normed, ld, n_tokens)
    if low != 0:
        turn, tile0, tile1 = take(team, 1, tid, n_threads, 0, load_i64(stage + WQ + TILES), LEAST, load_i64(stage + WQ + TILES))
        if turn != n_threads:
            piece(stage + WQ, tile0, tile1, records, normed, ld, load_i64(geometry + Q), load_i64(geometry + LD_Q), n_tokens, step, low, 0)
    if _keys_and_values(step, stage, tid, n_threads, team, geometry, records, normed, ld, n_tokens, low):
        spoiled(step, stage, 0)
    matmul(stage + WQ, tid, n_threads, team, 1, records, normed, ld, load_i64(geometry + Q), load_i64(geometry + LD_Q), n_tokens, step, low, 0)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "q", "k", "v" (Matrix, k and v None where another layer's are read), "attention" (the block), "append" (whether to, at once)."""
    a, args = stage.args["attention"], stage.args
    for to, name in ((WQ, "q"), (WK, "k"), (WV, "v")):
        if args[name]:
            words[to // 8:(to + MATRIX_BYTES) // 8] = layout.matrix(args[name])
    words[GEOMETRY // 8], words[KV_OFFSET // 8], words[N_KV // 8] = layout.geometry_of(a), layout.kv_offsets[a.kv_layer], a.kv_heads if args["k"] else 0
    words[APPEND // 8] = append_kernel(layout.kv).address if args["append"] else 0
    if a.head_dim % 16 == 0 and a.value_dim % 16 == 0:
        words[KEY_TILES // 8], words[VALUE_TILES // 8] = a.head_dim // 16, a.value_dim // 16
