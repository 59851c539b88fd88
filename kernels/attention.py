"""Attention over pages of 64 positions, for a block of tokens of one sequence and one KV head.

How keys and values lie in a page is a `KVType`'s matter (kv_float.py: f16, f32; kv_q8_0.py): it plugs in how a query is laid out, and how R queries together
meet one page. All of them give, per query and page, a *part*: m (its highest score), l (16 partial sums of exp(score - m)), o (weighted values):

    f16, f32:  score[p] = (fma chain over d = 0, 1, ... of q[d] * k[d, p]) * scale
               m = max of the valid scores; e[p] = exp(score[p] - m); l[i] = (e[i] + e[16+i]) + (e[32+i] + e[48+i])
               o[d] = fma chain over the valid p = 0, 1, ... of e[p] * v[p, d]

and parts are merged by one formula, from M = -1e30, L = 0, O = 0: the pages of a *span* (8 pages, 512 positions) in order, then the spans in order:

    M' = max(M, m);  a = exp(M - M');  b = exp(m - M');  L = fma(L, a, l * b);  O = fma(O, a, o * b)
    result = O * (1 / tree sum of L)

Where the stage says so (all words 0: none of it):

    norm       q and k of a head by head_norm, before RoPE (NORM_LAST: after it); v without a gain (V_NORM)
    query      q = q * Q_SCALES[position]                                            after RoPE
    soft cap   score = cap * tanh(score / cap), by vecmath.soft_cap, before the maximum
    window     a query at P sees positions P - window + 1 ... P: earlier ones are selected away; pages and spans stay where they are
    ahead      a query at P sees positions up to min(P + ahead, the sequence's last), which all are there; causal: ahead = 0
    sink       result = O * (a / fma(tree sum of L, a, b)) with M' = max(M, sink), a = exp(M - M'), b = exp(sink - M')

Positions past the query's own are selected away (scores) or skipped (values), never multiplied. How many queries share a loaded page, and which thread
computed a span, never enters these chains: one piece of work is a block with all its spans, or, where blocks are few and contexts long, one span of
a block, whose parts are left for whoever finishes the block's last span to merge.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .activations import INFINITY_BITS, quantize_part
from .atomics import atomic_add, atomic_store
from .compile_cache import Compiled, compiled
from .elementwise import PAGE, jit, turn
from .norms import head_norm, scale_row
from .simd import (
    drop_first,
    fma,
    get_f32,
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    put_f32,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
    vmax,
    vmax_across,
    vsum,
)
from .vecmath import soft_cap, vexp

SPAN = 8
"""Pages whose parts are merged before they meet other spans'."""
MAX_QUERIES = 256
"""Queries (tokens x heads of the group) of one block."""
TOGETHER = 4
"""Queries that share a loaded page's vectors."""
NOTHING = np.float32(-1e30)
PART_HEADER = 128  # bytes of a part before its values: m in the first 64, l (16 lanes) in the second

# -- geometry of a model, int64 words (byte offsets); forward.py's model block begins with them
(
    N_HEADS, N_KV_HEADS, HEAD_DIM, V_DIM, ROPE_DIM, QUERY_BYTES, SCALE, LD_ATT, LD_KV, Q, K, V, ATT, RECORDS, ROPE_TABLE, POSITIONS, PAGE_TABLES,
    QUANTIZE, TOKENS, VALUE_DIM, ROPE_KIND, WINDOW, SOFT_CAP, SINKS, Q_NORM, K_NORM, NORM_EPS, NORM_LAST, Q_SCALES, LD_Q,
    LD_V, TABLE_ROW, AHEAD, V_NORM,
) = range(0, 8 * 34, 8)
"""QUANTIZE: whether results go into the RECORDS of ATT, too. POSITIONS, PAGE_TABLES: int64 [TOKENS of the step].
VALUE_DIM: columns of a value, V_DIM: the same rounded up to 16. ROPE_KIND: elementwise.PAIRS, HALVES or NO_ROPE. WINDOW: positions a query sees, its own
included, or 0: all. SOFT_CAP: float32, or 0. SINKS: float32 [heads], Q_NORM, K_NORM: gains, float32 [head_dim], Q_SCALES: float32 [positions]: addresses, or 0.
LD_Q, LD_KV, LD_V: floats to the next row of Q, K and V. TABLE_ROW: bytes from a page table to this layer's row of it.
AHEAD: positions after its own that a query sees, 0: none. V_NORM: whether a head's values are normed, too, by NORM_EPS and without a gain."""
GEOMETRY_WORDS = 34
# -- one piece of work: tokens [M0, M1) of one sequence, M0 at POSITION0; PAGE_TABLE: address of its pages' addresses; pages [FIRST_PAGE, LAST_PAGE).
# PARTS: 0, or the address for the block's parts, [span, kv head, query]; DONE: address of int64 [kv heads], 0 before and after; SPANS: of the whole block;
# LENGTH: positions that the sequence has after this step
(M0, M1, POSITION0, PAGE_TABLE, FIRST_PAGE, LAST_PAGE, PARTS, DONE, SPANS, LENGTH) = range(0, 8 * 10, 8)
ITEM_WORDS = 10

_CALL = "int64(int64, int64, int64, int64, int64)"


class KVType(NamedTuple):
    """How keys and values of one layer lie in a page. Functions are compiled ones, on addresses."""

    name: str
    layer_bytes: Callable[[int, int, int], int]
    """(KV heads, head_dim, value_dim) -> bytes of one layer's keys and values in a page, a multiple of 64."""
    query_bytes: Callable[[int], int]
    """head_dim -> bytes of a laid-out query, a multiple of 64."""
    lay_out: Any
    """(q, head_dim, query) -> bool: float32 [head_dim] at q to what the page kernels read; True if a number is not finite."""
    one: Any
    """(queries, query_bytes, page, next page, n_kv, kv head, head_dim, v_dim, left, scale, cap, parts, part_bytes, 1): one query against the layer's page;
    left: address of int64 [queries, 2]: of the page's positions each query sees those before the first number, without those before the second."""
    several: Any
    """The same for TOGETHER queries, later ones seeing at least as far."""
    append_key: Any
    """(x, n_kv, kv head, head_dim, value_dim, v_dim, slot, page) -> bool: store a token's key, float32 [head_dim] at x, as position `slot` of a layer's page;
    True if a number is NaN or too large for the type."""
    append_value: Any
    """The same for a value, float32 [value_dim]."""
    dots: Any
    """(query, query_bytes, page, n_kv, kv head, head_dim, v_dim, s): the products of one laid-out query and the page's 64 keys, by the chain of `one`, into 4
    vectors at s: before the scale, the cap and the selection."""


def v_dim(value_dim: int) -> int:
    """Columns of a value row in a page: value_dim rounded up to the 16 lanes of a vector."""
    return -(-value_dim // 16) * 16


def part_bytes(value_dim: int) -> int:
    return PART_HEADER + 4 * v_dim(value_dim)


def block_tokens(n_heads: int, n_kv_heads: int) -> int:
    """Most tokens of one attention block."""
    return max(1, min(32, MAX_QUERIES // (n_heads // n_kv_heads)))


def scratch_bytes(kv: KVType, n_heads: int, n_kv_heads: int, head_dim: int, value_dim: int | None = None) -> int:
    """Scratch memory of one thread: of a block's queries the layouts, the running parts of a span and of all spans, what each sees, and a head's row."""
    queries, part = block_tokens(n_heads, n_kv_heads) * (n_heads // n_kv_heads), part_bytes(value_dim or head_dim)
    return queries * (kv.query_bytes(head_dim) + 2 * part + 16) + TOGETHER * part + 4 * v_dim(head_dim) + 192


@jit
def clear_part(part, size):
    """The state before the first merge."""
    store_f32(part, NOTHING)
    for b in range(64, size, 64):
        store_f32x16(part + b, splat_f32(0.0))


@jit
def merge_part(state, part, size):
    """state += part."""
    before, m = load_f32(state), load_f32(part)
    now = max(before, m)
    a, b = vexp(splat_f32(before - now)), vexp(splat_f32(m - now))
    store_f32(state, now)
    for i in range(64, size, 64):
        store_f32x16(state + i, fma(load_f32x16(state + i), a, load_f32x16(part + i) * b))


@jit
def _drop_first(s, skip, fill):
    """The first `skip` numbers of 4 vectors at s become `fill`."""
    for i in range(4):
        if skip > 16 * i:
            put_f32(s, i, drop_first(get_f32(s, i), skip - 16 * i, fill))


@jit
def softmax(s, left, skip, scale, cap, part):
    """Scores of one query and page, 4 vectors at s, become e[p] (0 past `left` and before `skip`); the part's m and l are stored."""
    c, highest = splat_f32(scale), splat_f32(NOTHING)
    if cap != np.float32(0.0):  # in loops of their own, what few models or pages have: the others' four vectors are then one straight piece of code
        for i in range(4):
            put_f32(s, i, soft_cap(get_f32(s, i) * c, cap))
        c = splat_f32(np.float32(1.0))
    for i in range(4):
        put_f32(s, i, keep_first(get_f32(s, i) * c, left - 16 * i, NOTHING))
    if skip > 0:
        _drop_first(s, skip, NOTHING)
    for i in range(4):
        highest = vmax(get_f32(s, i), highest)
    m = vmax_across(highest)
    for i in range(4):
        put_f32(s, i, keep_first(vexp(get_f32(s, i) - splat_f32(m)), left - 16 * i, np.float32(0.0)))
    if skip > 0:
        _drop_first(s, skip, np.float32(0.0))
    store_f32(part, m)
    store_f32x16(part + 64, (get_f32(s, 0) + get_f32(s, 1)) + (get_f32(s, 2) + get_f32(s, 3)))


@jit
def _write(state, value_dim, sink, out):
    """The result of one query and head; sink: address of the head's, or 0."""
    total, share = vsum(load_f32x16(state + 64)), np.float32(1.0)
    if sink != 0:
        before, s = load_f32(state), load_f32(sink)
        now = max(before, s)
        share = vmax_across(vexp(splat_f32(before - now)))
        total = vmax_across(fma(splat_f32(total), splat_f32(share), vexp(splat_f32(s - now))))
    inverse = splat_f32(share / total)
    d = 0
    while d + 16 <= value_dim:
        store_f32x16(out + 4 * d, load_f32x16(state + PART_HEADER + 4 * d) * inverse)
        d += 16
    if d < value_dim:
        store_f32x16(state + PART_HEADER + 4 * d, load_f32x16(state + PART_HEADER + 4 * d) * inverse)
        while d < value_dim:
            store_f32(out + 4 * d, load_f32(state + PART_HEADER + 4 * d))
            d += 1


@jit
def norm_and_turn(geometry, gain, x, head_dim, position):
    """A head's query or key, float32 [head_dim] at x, in place: norm (if there is a gain) and RoPE. -> not finite"""
    bad, kind, rope_dim = False, load_i64(geometry + ROPE_KIND), load_i64(geometry + ROPE_DIM)
    row = load_i64(geometry + ROPE_TABLE) + 4 * position * rope_dim
    if gain != 0 and load_i64(geometry + NORM_LAST) == 0:
        bad = head_norm(x, gain, head_dim, load_f32(geometry + NORM_EPS))
    turn(kind, x, head_dim, rope_dim, row)
    if gain != 0 and load_i64(geometry + NORM_LAST) != 0:
        bad = head_norm(x, gain, head_dim, load_f32(geometry + NORM_EPS))
    return bad


@cache
def attention_kernel(kv: KVType) -> Compiled:
    """(geometry, item, layer's offset in a page, KV head, scratch of this thread) -> 1 if a query was not finite, + 2 if a result wasn't: attention of one
    item's tokens for all query heads of one KV head, written into ATT (and its records) once all spans are there."""
    lay_out, one, several, together = kv.lay_out, kv.one, kv.several, TOGETHER

    def attend(geometry, item, layer_offset, kv_head, scratch):
        n_kv, head_dim, v_dim = load_i64(geometry + N_KV_HEADS), load_i64(geometry + HEAD_DIM), load_i64(geometry + V_DIM)
        group, scale, stride = load_i64(geometry + N_HEADS) // n_kv, load_f32(geometry + SCALE), 4 * load_i64(geometry + LD_ATT)
        m0, m1, position0 = load_i64(item + M0), load_i64(item + M1), load_i64(item + POSITION0)
        table, page1 = load_i64(item + PAGE_TABLE) + load_i64(geometry + TABLE_ROW), load_i64(item + LAST_PAGE)
        queries, size, query_size = (m1 - m0) * group, PART_HEADER + 4 * v_dim, load_i64(geometry + QUERY_BYTES)
        laid_out = scratch
        span_states = laid_out + queries * query_size
        states = span_states + queries * size
        parts = states + queries * size
        left = parts + together * size
        row = left + 16 * queries
        row += -row & 63
        value_dim, window, cap, sinks = load_i64(geometry + VALUE_DIM), load_i64(geometry + WINDOW), load_f32(geometry + SOFT_CAP), load_i64(geometry + SINKS)
        later, length = load_i64(geometry + AHEAD), load_i64(item + LENGTH)
        head0 = kv_head * group * value_dim * 4
        bad = 0
        for i in range(queries):
            position = position0 + i // group
            q = load_i64(geometry + Q) + (m0 + i // group) * load_i64(geometry + LD_Q) * 4 + (kv_head * group + i % group) * head_dim * 4
            for d in range(0, head_dim, 16):
                store_f32x16(row + 4 * d, load_f32x16(q + 4 * d))
            bad |= norm_and_turn(geometry, load_i64(geometry + Q_NORM), row, head_dim, position)
            if load_i64(geometry + Q_SCALES) != 0:
                scale_row(row, load_f32(load_i64(geometry + Q_SCALES) + 4 * position), (head_dim + 15) // 16 * 16)
            bad |= lay_out(row, head_dim, laid_out + i * query_size)
        for i in range(queries):
            clear_part(states + i * size, size)
        first_page = load_i64(item + FIRST_PAGE)
        visible = max(0, position0 - window + 1) // PAGE if window > 0 else 0  # pages before: no query of the block sees them, and they may be gone
        page = max(first_page, min(visible, page1))
        while page < page1:
            span_end = min(page1, (page // SPAN + 1) * SPAN)
            for i in range(queries):
                clear_part(span_states + i * size, size)
            for p in range(page, span_end):
                base = load_i64(table + 8 * p) + layer_offset
                ahead = base
                if p + 1 < page1:
                    ahead = load_i64(table + 8 * (p + 1)) + layer_offset
                first = max(0, p * PAGE - later - position0) * group  # earlier tokens of the block do not see this page
                last = queries
                if window > 0:  # nor do later ones, whose window begins after it
                    last = max(first, min(queries, ((p + 1) * PAGE + window - 1 - position0) * group))
                for i in range(first, last):
                    position = position0 + i // group
                    store_i64(left + 16 * i, min(PAGE, min(position + 1 + later, length) - p * PAGE))
                    store_i64(left + 16 * i + 8, max(0, position - window + 1 - p * PAGE) if window > 0 else 0)
                i = first
                while i < last:
                    query, n = laid_out + i * query_size, 1
                    if last - i >= together:
                        n = together
                        several(query, query_size, base, ahead, n_kv, kv_head, head_dim, v_dim, left + 16 * i, scale, cap, parts, size, n)
                    else:
                        one(query, query_size, base, ahead, n_kv, kv_head, head_dim, v_dim, left + 16 * i, scale, cap, parts, size, n)
                    for r in range(n):
                        merge_part(span_states + (i + r) * size, parts + r * size, size)
                    i += n
            first = max(0, page * PAGE - later - position0) * group
            if load_i64(item + PARTS) != 0:
                target = load_i64(item + PARTS) + (page // SPAN * n_kv + kv_head) * queries * size
                for b in range(0, queries * size, 64):
                    store_f32x16(target + b, load_f32x16(span_states + b))
            else:
                for i in range(first, queries):
                    merge_part(states + i * size, span_states + i * size, size)
            page = span_end
        if load_i64(item + PARTS) != 0 and first_page < page1 and visible >= page1:  # a span that nobody sees any more
            target = load_i64(item + PARTS) + (first_page // SPAN * n_kv + kv_head) * queries * size
            for i in range(queries):
                clear_part(target + i * size, size)
        if load_i64(item + PARTS) != 0:
            done, spans = load_i64(item + DONE) + 8 * kv_head, load_i64(item + SPANS)
            if atomic_add(done, 1) != spans - 1:
                return bad
            atomic_store(done, 0)
            for span in range(spans):
                source = load_i64(item + PARTS) + (span * n_kv + kv_head) * queries * size
                for i in range(max(0, span * SPAN * PAGE - later - position0) * group, queries):
                    merge_part(states + i * size, source + i * size, size)
        for i in range(queries):
            sink = sinks + 4 * (kv_head * group + i % group) if sinks != 0 else 0
            _write(states + i * size, value_dim, sink, load_i64(geometry + ATT) + (m0 + i // group) * stride + head0 + 4 * (i % group) * value_dim)
        if load_i64(geometry + QUANTIZE) != 0:
            worst = np.int32(0)
            for m in range(m0, m1):
                worst = max(worst, quantize_part(load_i64(geometry + ATT) + m * stride, head0 // 4, head0 // 4 + group * value_dim, stride // 4, m,
                                                 load_i64(geometry + TOKENS), load_i64(geometry + RECORDS)))
            if worst >= INFINITY_BITS:
                bad |= 2
        return bad
    attend.__name__ = attend.__qualname__ = f"attend_{kv.name}"
    return compiled(_CALL)(attend)


@cache
def append_kernel(kv: KVType) -> Compiled:
    """(geometry, is it a value?, KV head, layer's offset in a page, tokens) -> 1 if a number is NaN or too large for the type, else 0: a head's columns of K,
    which are turned (RoPE) in place, or of V, into the pages of all tokens of a step."""
    append_key, append_value = kv.append_key, kv.append_value

    def append(geometry, is_value, kv_head, layer_offset, tokens):
        n_kv, head_dim, v_dim = load_i64(geometry + N_KV_HEADS), load_i64(geometry + HEAD_DIM), load_i64(geometry + V_DIM)
        stride, bad = 4 * load_i64(geometry + LD_KV), False
        row, value_dim = load_i64(geometry + TABLE_ROW), load_i64(geometry + VALUE_DIM)
        positions, tables = load_i64(geometry + POSITIONS), load_i64(geometry + PAGE_TABLES)
        x, gain = load_i64(geometry + K) + 4 * kv_head * head_dim, load_i64(geometry + K_NORM)
        if is_value:
            x, stride = load_i64(geometry + V) + 4 * kv_head * value_dim, 4 * load_i64(geometry + LD_V)
        for m in range(tokens):
            position = load_i64(positions + 8 * m)
            page = load_i64(load_i64(tables + 8 * m) + row + 8 * (position // PAGE)) + layer_offset
            if is_value:
                if load_i64(geometry + V_NORM) != 0:
                    bad |= head_norm(x + m * stride, 0, value_dim, load_f32(geometry + NORM_EPS))
                bad |= append_value(x + m * stride, n_kv, kv_head, head_dim, value_dim, v_dim, position % PAGE, page)
            else:
                bad |= norm_and_turn(geometry, gain, x + m * stride, head_dim, position)
                bad |= append_key(x + m * stride, n_kv, kv_head, head_dim, value_dim, v_dim, position % PAGE, page)
        return bad
    append.__name__ = append.__qualname__ = f"append_{kv.name}"
    return compiled(_CALL)(append)
