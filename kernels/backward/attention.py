"""Backwards through attention: gradients of turned queries, kept keys and values from those of the results, a sequence and a KV head at a time.

    for the heads h of the group, in order:  for 32 queries, in order:
        l[m, p] = (chain over d of q[m, d] × k[p, d]) × scale, soft-capped          P[m, p] = exp(l − max l) × (1 ÷ Σ), 0 where m does not see p
        dP[m, p] = chain over d of dz[m, d] × v[p, d];   D[m] = Σ_d dz × z          dS[m, p] = (P × (dP − D)) [× (1 − (l ÷ cap)²)] × scale
        dQ[m, d] = chain over p of dS[m, p] × k[p, d]                               p from the first position of the page that the 32 queries' windows begin in
        dV[p, d] goes on over m with P[m, p] × dz[m, d];  dK[p, d] with dS[m, p] × q[m, d]

So a key's and a value's gradients are one chain: the group's heads in order, in each the later queries in order. Keys and values are those that were kept, in
float16 if that is how; a piece of work is a sequence and a KV head, hence nothing is shared between threads.
"""
from __future__ import annotations

import numpy as np

from ..compile_cache import compiled
from ..deferred import jit
from ..simd import (
    drop_first,
    fma,
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_f32,
    store_f32x16,
    vmax,
    vmax_across,
    vsum,
)
from ..team import next_tile
from ..vecmath import soft_cap, vexp
from .chains import PACKED, call_multiply
from .unpack import turn_tile

QUERIES = 32
_PAGE = 64
_NOTHING = np.float32(-1e30)
_APART = 16 if PACKED else 0
"""Floats more from a row of positions to the next: of powers of two a first-level cache would have all rows in few sets."""
_KEEP = 1 if PACKED else 0
"""Rows of exponentials that are kept between their two uses; else they are computed again."""

(
    MULTIPLY, Q, K, V, Z, DZ, DQ, DK, DV, LD_Q, LD_K, LD_V, LD_Z, HEADS, N_KV, HEAD_DIM, VALUE_DIM, SCALE, SOFT_CAP, WINDOW, SINKS, ITEMS, N_ITEMS, ROOM,
    ROOM_BYTES,
) = range(0, 8 * 25, 8)
"""Addresses of float32 rows, LD_* floats apart; DQ, DK, DV: like Q, K, V, zeros before. SCALE, SOFT_CAP (0: none): float32. WINDOW: 0: all. SINKS: float32
[HEADS], or 0. ITEMS: int64 [N_ITEMS, 2]: a sequence's first row, how many it has. ROOM: ROOM_BYTES for each thread."""
WORDS = 25


def room_bytes(longest: int, head_dim: int, value_dim: int) -> int:
    """For sequences of at most so many tokens."""
    return 4 * (-(-longest // 32) * 32 + _APART) * (head_dim + value_dim + 2 * QUERIES + _KEEP) + 64


@jit
def _turn_over(rows, ld, n, padded, columns, out):
    """out[c, p] = rows[p, c], zeros for p past n: float32 [columns, padded]."""
    first = 0
    if PACKED and columns % 8 == 0:
        first = n & -8
        for p in range(0, first, 8):
            for c in range(0, columns, 8):
                turn_tile(rows + 4 * (p * ld + c), 4 * ld, out + 4 * (c * padded + p), 4 * padded)
    for p in range(first, n):
        for c in range(columns):
            store_f32(out + 4 * (c * padded + p), load_f32(rows + 4 * (p * ld + c)))
    for c in range(columns):
        for p in range(n, padded):
            store_f32(out + 4 * (c * padded + p), 0.0)


@jit
def _clear(out, rows, ld, columns):
    for i in range(rows):
        for n in range(0, 4 * columns, 64):
            store_f32x16(out + i * ld + n, splat_f32(0.0))


@jit
def _select(v, valid, skip, fill):
    return drop_first(keep_first(v, valid, fill), skip, fill)


@jit
def _softmax_back(s, ds, kept, columns, valid, skip, scale, cap, sink, z, dz, value_dim):
    """Products at s become P, those at ds, of dz and the values, become dS: one query's rows. kept: room for another."""
    by, highest, sums, zero = splat_f32(scale), splat_f32(_NOTHING), splat_f32(0.0), np.float32(0.0)
    for i in range(0, columns, 16):
        x = load_f32x16(s + 4 * i) * by
        if cap != zero:
            x = soft_cap(x, cap)
        x = _select(x, valid - i, skip - i, _NOTHING)
        store_f32x16(s + 4 * i, x)
        highest = vmax(x, highest)
    m = vmax_across(highest)
    if sink != 0:
        m = max(m, load_f32(sink))
    top = splat_f32(m)
    for i in range(0, columns, 16):
        e = vexp(load_f32x16(s + 4 * i) - top)
        if _KEEP:
            store_f32x16(kept + 4 * i, e)
        sums = sums + _select(e, valid - i, skip - i, zero)
    total = vsum(sums)
    if sink != 0:
        total += vmax_across(vexp(splat_f32(load_f32(sink)) - top))
    share, both = splat_f32(np.float32(1.0) / total), splat_f32(0.0)
    for d in range(0, value_dim, 16):
        both = fma(keep_first(load_f32x16(z + 4 * d), value_dim - d, zero), keep_first(load_f32x16(dz + 4 * d), value_dim - d, zero), both)
    mean = splat_f32(vsum(both))
    for i in range(0, columns, 16):
        x = load_f32x16(s + 4 * i)
        e = load_f32x16(kept + 4 * i) if _KEEP else vexp(x - top)
        p = _select(e * share, valid - i, skip - i, zero)
        g = p * (load_f32x16(ds + 4 * i) - mean)
        if cap != zero:
            t = x / splat_f32(cap)
            g = g * fma(t, splat_f32(0.0) - t, splat_f32(1.0))
        store_f32x16(s + 4 * i, p)
        store_f32x16(ds + 4 * i, _select(g * by, valid - i, skip - i, zero))


@compiled("int64(int64, int64, int64, int64)")
def attention_back(tid, n_threads, team, words):
    multiply, n_kv, head_dim, value_dim = load_i64(words + MULTIPLY), load_i64(words + N_KV), load_i64(words + HEAD_DIM), load_i64(words + VALUE_DIM)
    group, scale, cap, window = load_i64(words + HEADS) // n_kv, load_f32(words + SCALE), load_f32(words + SOFT_CAP), load_i64(words + WINDOW)
    ldq, ldk, ldv, ldz = 4 * load_i64(words + LD_Q), 4 * load_i64(words + LD_K), 4 * load_i64(words + LD_V), 4 * load_i64(words + LD_Z)
    pieces, sinks = load_i64(words + N_ITEMS) * n_kv, load_i64(words + SINKS)
    room = load_i64(words + ROOM) + tid * load_i64(words + ROOM_BYTES)
    at = next_tile(team, 0, 1)
    while at < pieces:
        item, kv_head = load_i64(words + ITEMS) + 16 * (at // n_kv), at % n_kv
        first, n = load_i64(item), load_i64(item + 8)
        padded = (n + 31) // 32 * 32
        padded += _APART
        ld = 4 * padded
        keys, values = room, room + head_dim * ld
        p, ds, kept = values + value_dim * ld, values + (value_dim + QUERIES) * ld, values + (value_dim + 2 * QUERIES) * ld
        k, v = load_i64(words + K) + first * ldk + 4 * kv_head * head_dim, load_i64(words + V) + first * ldv + 4 * kv_head * value_dim
        dk, dv = load_i64(words + DK) + first * ldk + 4 * kv_head * head_dim, load_i64(words + DV) + first * ldv + 4 * kv_head * value_dim
        _turn_over(k, ldk // 4, n, padded, head_dim, keys)
        _turn_over(v, ldv // 4, n, padded, value_dim, values)
        for head in range(kv_head * group, (kv_head + 1) * group):
            for m0 in range(0, n, QUERIES):
                rows, low = min(QUERIES, n - m0), 0
                if window > 0:
                    low = max(0, m0 - window + 1) // _PAGE * _PAGE
                seen = m0 + rows - low
                columns = (seen + 31) // 32 * 32
                q, dq = load_i64(words + Q) + (first + m0) * ldq + 4 * head * head_dim, load_i64(words + DQ) + (first + m0) * ldq + 4 * head * head_dim
                z, dz = load_i64(words + Z) + (first + m0) * ldz + 4 * head * value_dim, load_i64(words + DZ) + (first + m0) * ldz + 4 * head * value_dim
                _clear(p, rows, ld, columns)
                _clear(ds, rows, ld, columns)
                call_multiply(multiply, q, ldq, 4, keys + 4 * low, ld, p, ld, rows, columns, head_dim)
                call_multiply(multiply, dz, ldz, 4, values + 4 * low, ld, ds, ld, rows, columns, value_dim)
                for i in range(rows):
                    skip = max(0, m0 + i - window + 1 - low) if window > 0 else 0
                    _softmax_back(p + i * ld, ds + i * ld, kept, columns, m0 + i + 1 - low, skip, scale, cap, sinks + 4 * head if sinks != 0 else 0,
                                  z + i * ldz, dz + i * ldz, value_dim)
                call_multiply(multiply, ds, ld, 4, k + low * ldk, ldk, dq, ldq, rows, head_dim, seen)
                call_multiply(multiply, p, 4, ld, dz, ldz, dv + low * ldv, ldv, seen, value_dim, rows)
                call_multiply(multiply, ds, 4, ld, q, ldq, dk + low * ldk, ldk, seen, head_dim, rows)
        at = next_tile(team, 0, 1)
    return 0
