"""Attention's weights or scores as rows of numbers, for whoever looks at an open layer: the chain of kernels/attention.py, up to the values.

    a token and a head of the step ──► products with every page (KVType.dots) ──► scale, cap, selection ──► scores,  or  softmax ──► weights

A weight is what the kernel multiplies a position's value by in all: e[p] of its page, times the factors by which merging rescales that page's part afterwards
(a or b of `merge_part`, in the same order), times the last factor, sinks included. (q8_0 rounds e[p] times the value's scale to 16 bits before it multiplies;
the weights here are those before that.)
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ....kernels.atomics import call_pointer5
from ....kernels.attention import (
    AHEAD,
    HEAD_DIM,
    LD_Q,
    N_HEADS,
    N_KV_HEADS,
    PAGE_TABLES,
    PART_HEADER,
    POSITIONS,
    Q_NORM,
    Q_SCALES,
    QUERY_BYTES,
    SCALE,
    SINKS,
    SOFT_CAP,
    SPAN,
    TABLE_ROW,
    V_DIM,
    WINDOW,
    KVType,
    Q,
    clear_part,
    merge_part,
    norm_and_turn,
    softmax,
)
from ....kernels.compile_cache import Compiled, compiled
from ....kernels.elementwise import PAGE, jit
from ....kernels.norms import scale_row
from ....kernels.simd import (
    drop_first,
    fma,
    get_f32,
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    stack_vectors,
    store_f32,
    store_f32x16,
    vmax_across,
    vsum,
)
from ....kernels.team import next_tile
from ....kernels.vecmath import soft_cap, vexp
from .common import ENTRY, HEADER, end

(GEOMETRY, KERNEL, KV_OFFSET, SCORES, ROWS, N_ROWS, HEADS, N_WANTED_HEADS, OUT, LD, ROOM, ROOM_BYTES, LENGTH) = range(HEADER, HEADER + 8 * 13, 8)
"""KERNEL: address of the row kernel. SCORES: whether scores are wanted. ROWS: address of int64 [N_ROWS], tokens of the step, all of one sequence, which has
LENGTH positions by now. HEADS: of int64 [N_WANTED_HEADS]. OUT: of float32 [heads, rows, LD], LD a multiple of 64, cleared. ROOM: of ROOM_BYTES for each
thread (`room_bytes`)."""
WORDS = 13
_HEAD = 3 * PART_HEADER + 64


def room_bytes(kv: KVType, head_dim: int, pages: int) -> int:
    """Memory of one thread for rows of up to so many pages."""
    return (_HEAD + kv.query_bytes(head_dim) + 4 * head_dim + 128 + 4 * pages + 127) // 64 * 64


@jit
def _rescale(weights, first, last, factor):
    if factor != np.float32(1.0):
        for p in range(first, last):
            store_f32(weights + 4 * p, load_f32(weights + 4 * p) * factor)


@jit
def _merged(state, part, weights, first, middle, last):
    """merge_part of a part without values; pages [first, middle) are the state's, [middle, last) the part's."""
    before, m = load_f32(state), load_f32(part)
    now = max(before, m)
    _rescale(weights, first, middle, vmax_across(vexp(splat_f32(before - now))))
    _rescale(weights, middle, last, vmax_across(vexp(splat_f32(m - now))))
    merge_part(state, part, PART_HEADER)


@jit
def _final(state, sink):
    """The factor of attention.py's `_write`."""
    total, share = vsum(load_f32x16(state + 64)), np.float32(1.0)
    if sink != 0:
        before, s = load_f32(state), load_f32(sink)
        now = max(before, s)
        share = vmax_across(vexp(splat_f32(before - now)))
        total = vmax_across(fma(splat_f32(total), splat_f32(share), vexp(splat_f32(s - now))))
    return share / total


@cache
def row_kernel(kv: KVType) -> Compiled:
    """(stage, head, token, room, row): one head's row of one token, float32 [LD]."""
    lay_out, dots = kv.lay_out, kv.dots

    def row_of(stage, head, token, room, out):
        geometry = load_i64(stage + GEOMETRY)
        n_kv, head_dim, v_dim = load_i64(geometry + N_KV_HEADS), load_i64(geometry + HEAD_DIM), load_i64(geometry + V_DIM)
        kv_head, query_bytes, scale, cap = head // (load_i64(geometry + N_HEADS) // n_kv), load_i64(geometry + QUERY_BYTES), load_f32(geometry + SCALE), \
            load_f32(geometry + SOFT_CAP)
        position, window, sinks = load_i64(load_i64(geometry + POSITIONS) + 8 * token), load_i64(geometry + WINDOW), load_i64(geometry + SINKS)
        table = load_i64(load_i64(geometry + PAGE_TABLES) + 8 * token) + load_i64(geometry + TABLE_ROW)
        offset = load_i64(stage + KV_OFFSET)
        state, span, part = room, room + PART_HEADER, room + 2 * PART_HEADER
        query = room + _HEAD
        row = query + query_bytes
        weights = row + 4 * head_dim + 128
        q = load_i64(geometry + Q) + 4 * (token * load_i64(geometry + LD_Q) + head * head_dim)
        for d in range(0, head_dim, 16):
            store_f32x16(row + 4 * d, load_f32x16(q + 4 * d))
        norm_and_turn(geometry, load_i64(geometry + Q_NORM), row, head_dim, position)
        if load_i64(geometry + Q_SCALES) != 0:
            scale_row(row, load_f32(load_i64(geometry + Q_SCALES) + 4 * position), (head_dim + 15) // 16 * 16)
        lay_out(row, head_dim, query)
        seen = min(position + 1 + load_i64(geometry + AHEAD), load_i64(stage + LENGTH))
        first, end_page = max(0, position - window + 1) // PAGE if window > 0 else 0, (seen + PAGE - 1) // PAGE
        s = stack_vectors(4)
        clear_part(state, PART_HEADER)
        page = first
        while page < end_page:
            span_end, span_first = min(end_page, (page // SPAN + 1) * SPAN), page
            clear_part(span, PART_HEADER)
            while page < span_end:
                left, skip = min(PAGE, seen - page * PAGE), max(0, position - window + 1 - page * PAGE) if window > 0 else 0
                dots(query, query_bytes, load_i64(table + 8 * page) + offset, n_kv, kv_head, head_dim, v_dim, s)
                if load_i64(stage + SCORES) != 0:
                    for i in range(4):
                        v = get_f32(s, i) * splat_f32(scale)
                        if cap != np.float32(0.0):
                            v = soft_cap(v, cap)
                        v = keep_first(v, left - 16 * i, np.float32(-np.inf))
                        if skip > 16 * i:
                            v = drop_first(v, skip - 16 * i, np.float32(-np.inf))
                        store_f32x16(out + 4 * (PAGE * page + 16 * i), v)
                else:
                    softmax(s, left, skip, scale, cap, part)
                    for i in range(4):
                        store_f32x16(out + 4 * (PAGE * page + 16 * i), get_f32(s, i))
                    store_f32(weights + 4 * page, np.float32(1.0))
                    _merged(span, part, weights, span_first, page, page + 1)
                page += 1
            if load_i64(stage + SCORES) == 0:
                _merged(state, span, weights, first, span_first, span_end)
        if load_i64(stage + SCORES) == 0:
            last = _final(state, sinks + 4 * head if sinks != 0 else 0)
            for p in range(first, end_page):
                w = splat_f32(load_f32(weights + 4 * p) * last)
                for i in range(4):
                    at = out + 4 * (PAGE * p + 16 * i)
                    store_f32x16(at, load_f32x16(at) * w)
        return 0
    row_of.__name__ = row_of.__qualname__ = f"pattern_{kv.name}"
    return compiled("int64(int64, int64, int64, int64, int64)")(row_of)


@compiled(ENTRY)
def pattern(tid, n_threads, team, step, stage):
    """A piece of work is a head and a token."""
    kernel, rows, n_rows, ld = load_i64(stage + KERNEL), load_i64(stage + ROWS), load_i64(stage + N_ROWS), load_i64(stage + LD)
    heads, pieces, room = load_i64(stage + HEADS), load_i64(stage + N_WANTED_HEADS) * n_rows, load_i64(stage + ROOM) + tid * load_i64(stage + ROOM_BYTES)
    at = next_tile(team, 0, 1)
    while at < pieces:
        call_pointer5(kernel, stage, load_i64(heads + 8 * (at // n_rows)), load_i64(rows + 8 * (at % n_rows)), room, load_i64(stage + OUT) + 4 * at * ld)
        at = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "attention" (the block), "scores", "rows" and "heads" (int64), "length", "out" (float32 [heads, rows, LD]), "room" (uint8 [threads, bytes])."""
    a, args = stage.args["attention"], stage.args
    words[GEOMETRY // 8], words[KERNEL // 8] = layout.geometry_of(a, turned=True), row_kernel(layout.kv).address
    words[KV_OFFSET // 8], words[SCORES // 8] = layout.kv_offsets[a.kv_layer], args["scores"]
    words[ROWS // 8], words[N_ROWS // 8] = args["rows"].ctypes.data, len(args["rows"])
    words[HEADS // 8], words[N_WANTED_HEADS // 8] = args["heads"].ctypes.data, len(args["heads"])
    words[OUT // 8], words[LD // 8] = args["out"].ctypes.data, args["out"].shape[2]
    words[ROOM // 8], words[ROOM_BYTES // 8] = args["room"].ctypes.data, args["room"].shape[1]
    words[LENGTH // 8] = args["length"]
