"""Causal attention over pages of 64 positions, for a block of tokens of one sequence and one KV head.

A layer's page, f16 or float32 (`item`: 2 or 4 bytes):    keys [kv head][head_dim][64]  |  values [kv head][64][v_dim]      (v_dim: head_dim rounded up to 16)

so that scores and values both run one lane per output, with no sum across lanes. The canonical operations, per query and head:

    score[p]  = (fma chain over d = 0, 1, ... of q[d] * k[d, p]) * scale
    a page    : m = max of its valid scores; e[p] = exp(score[p] - m); l = 16 partial sums ((e[i] + e[16+i]) + (e[32+i] + e[48+i]));
                o[d] = fma chain over its valid p = 0, 1, ... of e[p] * v[p, d]
    merge     : pages in order, from M = -1e30, L = 0, O = 0:
                M' = max(M, m);  a = exp(M - M');  b = exp(m - M');  L = fma(L, a, l * b);  O = fma(O, a, o * b)
    result    = O * (1 / tree sum of L)

Positions past the query's own are selected away (scores) or skipped (values), never multiplied. How many queries share a loaded page, and whether
the page was widened to float32 first, never enters these chains.
"""
from __future__ import annotations

import numpy as np

from .elementwise import PAGE, jit
from .half import load_f16x16
from .simd import (
    fma,
    get_f32,
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    put_f32,
    splat_f32,
    splat_load_f32,
    stack_vectors,
    store_f32,
    store_f32x16,
    vmax,
    vmax_across,
    vsum,
)
from .vecmath import vexp

MAX_QUERIES = 256
"""Queries (tokens x heads of the group) of one block."""
FEW_QUERIES = 4
"""Up to this many queries read the f16 page directly; more share one widened to float32."""
_NOTHING = np.float32(-1e30)
_HEADER = 128  # bytes of a query's running state before its values: M in the first 64, L (16 lanes) in the second


def block_tokens(n_heads: int, n_kv_heads: int) -> int:
    """Most tokens of one attention block."""
    return max(1, min(32, MAX_QUERIES // (n_heads // n_kv_heads)))


def scratch_bytes(n_heads: int, n_kv_heads: int, head_dim: int) -> int:
    """Scratch memory of one thread: a widened page, and the running states of a block's queries."""
    v_dim = -(-head_dim // 16) * 16
    queries = block_tokens(n_heads, n_kv_heads) * (n_heads // n_kv_heads)
    return 4 * PAGE * (head_dim + v_dim) + queries * (_HEADER + 4 * v_dim)


@jit
def _widen(source, n, target):
    for i in range(0, n, 16):
        store_f32x16(target + 4 * i, load_f16x16(source + 2 * i))


def _page_kernel(R: int, load16, item: int):
    """R queries (1 or 2) against one page whose elements are `item` bytes wide."""
    R4 = 4 * R

    def value_chunk(C):
        """C vectors of value columns at once, for R queries."""
        RC = R * C

        @jit
        def chunk(values, row_bytes, weights, left0, left1, corrections, o0, o1):
            acc = stack_vectors(RC)
            for i in range(RC):
                put_f32(acc, i, splat_f32(0.0))
            for p in range(left0):
                for r in range(R):
                    e = splat_load_f32(weights + 256 * r + 4 * p)
                    for c in range(C):
                        put_f32(acc, r * C + c, fma(e, load16(values + p * row_bytes + 16 * item * c), get_f32(acc, r * C + c)))
            for p in range(left0, left1):  # the second query sees at least as many positions as the first
                e = splat_load_f32(weights + 256 * (R - 1) + 4 * p)
                for c in range(C):
                    put_f32(acc, (R - 1) * C + c, fma(e, load16(values + p * row_bytes + 16 * item * c), get_f32(acc, (R - 1) * C + c)))
            for r in range(R):
                a, b = get_f32(corrections, 2 * r), get_f32(corrections, 2 * r + 1)
                for c in range(C):
                    o = (o0 if r == 0 else o1) + 64 * c
                    store_f32x16(o, fma(load_f32x16(o), a, get_f32(acc, r * C + c) * b))
        return chunk

    four, one = value_chunk(4), value_chunk(1)

    @jit
    def page_kernel(q0, q1, keys, values, head_dim, v_dim, left0, left1, scale, state0, state1):
        s, corrections = stack_vectors(R4), stack_vectors(4)
        for i in range(R4):
            put_f32(s, i, splat_f32(0.0))
        for d in range(head_dim):
            k = keys + PAGE * item * d
            for r in range(R):
                x = splat_load_f32((q0 if r == 0 else q1) + 4 * d)
                for i in range(4):
                    put_f32(s, 4 * r + i, fma(x, load16(k + 16 * item * i), get_f32(s, 4 * r + i)))
        for r in range(R):
            left, state = (left0, state0) if r == 0 else (left1, state1)
            c, highest = splat_f32(scale), splat_f32(_NOTHING)
            for i in range(4):
                v = keep_first(get_f32(s, 4 * r + i) * c, left - 16 * i, _NOTHING)
                put_f32(s, 4 * r + i, v)
                highest = vmax(v, highest)
            m = vmax_across(highest)
            for i in range(4):
                put_f32(s, 4 * r + i, keep_first(vexp(get_f32(s, 4 * r + i) - splat_f32(m)), left - 16 * i, np.float32(0.0)))
            before = load_f32(state)
            now = max(before, m)
            a, b = vexp(splat_f32(before - now)), vexp(splat_f32(m - now))
            put_f32(corrections, 2 * r, a)
            put_f32(corrections, 2 * r + 1, b)
            page_sum = (get_f32(s, 4 * r) + get_f32(s, 4 * r + 1)) + (get_f32(s, 4 * r + 2) + get_f32(s, 4 * r + 3))
            store_f32(state, now)
            store_f32x16(state + 64, fma(load_f32x16(state + 64), a, page_sum * b))
        d = 0
        while d < v_dim:
            o0, o1, v = state0 + _HEADER + 4 * d, state1 + _HEADER + 4 * d, values + item * d
            if v_dim - d >= 64:
                four(v, item * v_dim, s, left0, left1, corrections, o0, o1)
                d += 64
            else:
                one(v, item * v_dim, s, left0, left1, corrections, o0, o1)
                d += 16
    return page_kernel


_one_half, _two_half = _page_kernel(1, load_f16x16, 2), _page_kernel(2, load_f16x16, 2)
_one_wide, _two_wide = _page_kernel(1, load_f32x16, 4), _page_kernel(2, load_f32x16, 4)


@jit
def attend_block(q, q_stride, m0, m1, position0, pages, layer_offset, n_kv_heads, kv_head, group, head_dim, v_dim, item, scale, out, out_stride, scratch):
    """Tokens [m0, m1) of one sequence (token m0 at position0), all `group` query heads of one KV head.

    q, out: addresses of float32 [tokens, stride] rows, query heads at kv_head * group ...; pages: address of the sequence's int64 page addresses;
    layer_offset: bytes from a page's start to the layer; item: bytes of a stored number; scratch: scratch_bytes(...) of this thread.
    """
    queries = (m1 - m0) * group
    keys_wide, values_wide = scratch, scratch + 4 * PAGE * head_dim
    states, state_bytes = values_wide + 4 * PAGE * v_dim, _HEADER + 4 * v_dim
    for i in range(queries):
        state = states + i * state_bytes
        store_f32(state, _NOTHING)
        for b in range(64, state_bytes, 64):
            store_f32x16(state + b, splat_f32(0.0))
    head0 = 4 * kv_head * group * head_dim
    for page in range((position0 + (m1 - 1 - m0)) // PAGE + 1):
        base = load_i64(pages + 8 * page) + layer_offset
        keys = base + item * PAGE * kv_head * head_dim
        values = base + item * PAGE * (n_kv_heads * head_dim + kv_head * v_dim)
        first = max(0, page * PAGE - position0) * group  # earlier tokens of the block do not see this page
        wide = item == 4
        if not wide and queries - first > FEW_QUERIES:
            _widen(keys, PAGE * head_dim, keys_wide)
            _widen(values, PAGE * v_dim, values_wide)
            keys, values, wide = keys_wide, values_wide, True
        i = first
        while i < queries:
            t0, t1 = i // group, (i + 1) // group
            q0, q1 = q + 4 * (m0 + t0) * q_stride + head0 + 4 * (i % group) * head_dim, q + 4 * (m0 + t1) * q_stride + head0 + 4 * ((i + 1) % group) * head_dim
            left0, left1 = min(PAGE, position0 + t0 + 1 - page * PAGE), min(PAGE, position0 + t1 + 1 - page * PAGE)
            s0, s1 = states + i * state_bytes, states + (i + 1) * state_bytes
            if i + 1 == queries and wide:
                _one_wide(q0, q0, keys, values, head_dim, v_dim, left0, left0, scale, s0, s0)
            elif i + 1 == queries:
                _one_half(q0, q0, keys, values, head_dim, v_dim, left0, left0, scale, s0, s0)
            elif wide:
                _two_wide(q0, q1, keys, values, head_dim, v_dim, left0, left1, scale, s0, s1)
            else:
                _two_half(q0, q1, keys, values, head_dim, v_dim, left0, left1, scale, s0, s1)
            i += 2
    for i in range(queries):
        state = states + i * state_bytes
        inverse = splat_f32(np.float32(1.0) / vsum(load_f32x16(state + 64)))
        o = out + 4 * (m0 + i // group) * out_stride + head0 + 4 * (i % group) * head_dim
        d = 0
        while d + 16 <= head_dim:
            store_f32x16(o + 4 * d, load_f32x16(state + _HEADER + 4 * d) * inverse)
            d += 16
        if d < head_dim:
            store_f32x16(state + _HEADER + 4 * d, load_f32x16(state + _HEADER + 4 * d) * inverse)
            while d < head_dim:
                store_f32(o + 4 * d, load_f32(state + _HEADER + 4 * d))
                d += 1

