"""Backwards through attention: gradients of turned queries, kept keys and values from those of the results.

    for the heads h of the group, in order:  for 32 queries, in order:
        l[m, p] = (chain over d of q[m, d] × k[p, d]) × scale, soft-capped          P[m, p] = exp(l − max l) × (1 ÷ Σ), 0 where m does not see p
        dP[m, p] = chain over d of dz[m, d] × v[p, d];   D[m] = Σ_d dz × z          dS[m, p] = (P × (dP − D)) [× (1 − (l ÷ cap)²)] × scale
        dQ[m, d] = chain over p of dS[m, p] × k[p, d]                               p from the first position of the page that the 32 queries' windows begin in
        dV[p, d] goes on over m with P[m, p] × dz[m, d];  dK[p, d] with dS[m, p] × q[m, d]

So a key's and a value's gradients are one chain: the group's heads in order, in each the later queries in order. Keys and values are those that were kept, in
float16 if that is how.

    TURN    keys, values of some positions ──► panels of 32 positions [head_dim, 32], of 32 columns of the keys [n, 32]
    ROWS    32 queries: l, dP, from them P and dS (rows of n numbers in a slot of the room), dQ
    CHAINS  some positions: dK and dV go on over a stage's queries

attention_tasks.py says which thread does what of it: it divides elements and asks for an order of their chains, so that nothing of it shows.
"""
from __future__ import annotations

import numpy as np

from ..atomics import atomic_add, atomic_load
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
from ..team_state import changed, wait_while
from ..vecmath import soft_cap, vexp
from . import attention_tasks as t
from .attention_tasks import PAGE, QUERIES, STAGE
from .chains import COLUMNS, PACKED, C, M, block, call_multiply
from .packed import lay_out_rows, multiply_panel
from .unpack import turn_tile

WIDE = 32
"""Columns of a panel."""
_BYTES = 4 * WIDE
_DEPTH = 128
"""Rows of a panel that packed.py goes through at once."""
_NOTHING = np.float32(-1e30)
_APART = 16
"""Floats more from a row of positions to the next: of powers of two a first-level cache would have all rows in few sets."""

(
    MULTIPLY, Q, K, V, Z, DZ, DQ, DK, DV, LD_Q, LD_K, LD_V, LD_Z, HEADS, N_KV, HEAD_DIM, VALUE_DIM, SCALE, SOFT_CAP, WINDOW, SINKS, TASKS, CLAIMS, N_CLAIMS,
    COUNTERS, SCRATCH, SCRATCH_BYTES, OWN, OWN_BYTES, LANES, LANE_BYTES,
) = range(0, 8 * 31, 8)
"""Addresses of float32 rows, LD_* floats apart; DQ, DK, DV: like Q, K, V, zeros before. SCALE, SOFT_CAP (0: none): float32. WINDOW: 0: all. SINKS: float32
[HEADS], or 0. TASKS, CLAIMS: of attention_tasks.py; COUNTERS: zeros. SCRATCH: for each thread; OWN: a unit's room for each thread that has one alone; LANES:
for each lane."""
WORDS = 31


def scratch_bytes(longest: int) -> int:
    """Of each thread, for sequences of at most so many tokens."""
    return _line(4 * (-(-longest // WIDE) * WIDE + (QUERIES * _DEPTH if PACKED else 0)))


def unit_bytes(n: int, head_dim: int, value_dim: int, slots: int) -> int:
    """Of a unit's room, for sequences of at most so many tokens."""
    n = -(-n // WIDE) * WIDE
    return _line(4 * n * (head_dim + value_dim + -(-head_dim // WIDE) * WIDE) + slots * _slot_bytes(n))


def _slot_bytes(n: int) -> int:
    return 4 * 2 * STAGE * (n + _APART)


def room_bytes(longest: int, head_dim: int, value_dim: int, window: int, threads: int) -> int:
    """Of all threads, at most."""
    whole, lane = (unit_bytes(longest, head_dim, value_dim, slots) for slots in (1, 0))
    slots = t.most_slots(longest, window, threads) * _slot_bytes(-(-longest // WIDE) * WIDE)
    return threads * (scratch_bytes(longest) + whole) + t.most_lanes(longest, window, threads) * lane + slots


def _line(size: int) -> int:
    return -(-size // 64) * 64


@jit
def _turn_over(rows, ld, p0, p1, columns, out):
    """out[p // 32, c, p % 32] = rows[p, c] for positions [p0, p1), zeros up to a whole panel: float32 [panels, columns, 32]."""
    even = columns & -8
    for first in range(p0, p1, WIDE):
        here, source, panel = min(WIDE, p1 - first), rows + first * ld, out + 4 * first * columns
        eights = here & -8
        for p in range(0, eights, 8):
            for c in range(0, even, 8):
                turn_tile(source + p * ld + 4 * c, ld, panel + c * _BYTES + 4 * p, _BYTES)
        for p in range(here):
            for c in range(even if p < eights else 0, columns):
                store_f32(panel + c * _BYTES + 4 * p, load_f32(source + p * ld + 4 * c))
        for c in range(columns):
            for p in range(here, WIDE):
                store_f32(panel + c * _BYTES + 4 * p, 0.0)


@jit
def _lay_out(rows, ld, n, p0, p1, columns, out):
    """out[c // 32, p, c % 32] = rows[p, c] for positions [p0, p1) of n."""
    for c in range(0, columns, WIDE):
        for p in range(p0, p1):
            for h in range(0, _BYTES, 64):
                store_f32x16(out + (c // WIDE * n + p) * _BYTES + h, load_f32x16(rows + p * ld + 4 * c + h))


@jit
def _clear(out, ld, rows, columns):
    for i in range(rows):
        for n in range(0, 4 * columns, 64):
            store_f32x16(out + i * ld + n, splat_f32(0.0))


_fresh, _fresh_one = (block(m, C, "", fresh=True) for m in (M, 1))


@jit
def _by_panels(a, a_i, rows, depth, panels, n, out, ldo, strips):
    """out[i, p] = chain over d < depth of a[i, d] × panels[p // 32, d, p % 32], from 0, for p < n, a multiple of 32."""
    if PACKED:
        _clear(out, ldo, rows, n)
        for d in range(0, depth, _DEPTH):
            here = min(_DEPTH, depth - d)
            lay_out_rows(a + 4 * d, a_i, rows, here, strips)
            for p in range(0, n, WIDE):
                multiply_panel(strips, a + 4 * d, a_i, panels + 4 * p * depth + d * _BYTES, out + 4 * p, ldo, rows, here)
    else:
        for p in range(0, n, COLUMNS):
            panel, i = panels + 4 * (p & -WIDE) * depth + 4 * (p & WIDE - 1), 0
            while i + M <= rows:
                _fresh(a + i * a_i, a_i, 4, panel, _BYTES, out + i * ldo + 4 * p, ldo, depth)
                i += M
            while i < rows:
                _fresh_one(a + i * a_i, a_i, 4, panel, _BYTES, out + i * ldo + 4 * p, ldo, depth)
                i += 1


@jit
def _on_by_panels(multiply, a, a_i, rows, depth, panels, panel_bytes, n, out, ldo, strips):
    """out[i, c] goes on over p < depth of a[i, p] × panels[c // 32, p, c % 32], c < n; panel_bytes from one to the next."""
    if PACKED:
        for p in range(0, depth, _DEPTH):
            here = min(_DEPTH, depth - p)
            lay_out_rows(a + 4 * p, a_i, rows, here, strips)
            for c in range(0, n - WIDE + 1, WIDE):
                multiply_panel(strips, a + 4 * p, a_i, panels + c // WIDE * panel_bytes + p * _BYTES, out + 4 * c, ldo, rows, here)
    for c in range(n & -WIDE if PACKED else 0, n, WIDE):
        call_multiply(multiply, a, a_i, 4, panels + c // WIDE * panel_bytes, _BYTES, out + 4 * c, ldo, rows, min(WIDE, n - c), depth)


@jit
def _select(v, valid, skip, fill):
    return drop_first(keep_first(v, valid, fill), skip, fill)


@jit
def _logits(x, by, cap):
    x = x * by
    if cap != np.float32(0.0):
        x = soft_cap(x, cap)
    return x


@jit
def _exponentials(s, kept, top):
    e = vexp(load_f32x16(s) - top)
    store_f32x16(kept, e)
    return e


@jit
def _ds(x, p, dp, mean, by, cap):
    g = p * (dp - mean)
    if cap != np.float32(0.0):
        r = x / splat_f32(cap)
        g = g * fma(r, splat_f32(0.0) - r, splat_f32(1.0))
    return g * by


@jit
def _softmax_back(s, ds, kept, columns, valid, skip, scale, cap, sink, z, dz, value_dim):
    """Products at s become P, those at ds, of dz and the values, become dS: one query's rows, of which it sees [skip, valid). kept: room for
    another, which may be s where there is no cap."""
    by, highest, sums, zero = splat_f32(scale), splat_f32(_NOTHING), splat_f32(0.0), np.float32(0.0)
    whole, whole_end = (skip + 15) & -16, valid & -16
    first, end = skip & -16, (valid + 15) & -16
    tail = max(whole, whole_end)
    for edge in range(2):  # vectors of which it sees a part: in the first and the last place, or one
        for i in range(first if edge == 0 else tail, min(whole, end) if edge == 0 else end, 16):
            x = _select(_logits(load_f32x16(s + 4 * i), by, cap), valid - i, skip - i, _NOTHING)
            store_f32x16(s + 4 * i, x)
            highest = vmax(x, highest)
    for i in range(whole, whole_end, 16):
        x = _logits(load_f32x16(s + 4 * i), by, cap)
        store_f32x16(s + 4 * i, x)
        highest = vmax(x, highest)
    m = vmax_across(highest)
    if sink != 0:
        m = max(m, load_f32(sink))
    top = splat_f32(m)
    for i in range(first, min(whole, end), 16):
        sums = sums + _select(_exponentials(s + 4 * i, kept + 4 * i, top), valid - i, skip - i, zero)
    for i in range(whole, whole_end, 16):
        sums = sums + _exponentials(s + 4 * i, kept + 4 * i, top)
    for i in range(tail, end, 16):
        sums = sums + _select(_exponentials(s + 4 * i, kept + 4 * i, top), valid - i, skip - i, zero)
    total = vsum(sums)
    if sink != 0:
        total += vmax_across(vexp(splat_f32(load_f32(sink)) - top))
    share, both = splat_f32(np.float32(1.0) / total), splat_f32(0.0)
    for d in range(0, value_dim, 16):
        both = fma(keep_first(load_f32x16(z + 4 * d), value_dim - d, zero), keep_first(load_f32x16(dz + 4 * d), value_dim - d, zero), both)
    mean = splat_f32(vsum(both))
    for i in range(whole, whole_end, 16):
        x = load_f32x16(s + 4 * i)
        p = load_f32x16(kept + 4 * i) * share
        store_f32x16(s + 4 * i, p)
        store_f32x16(ds + 4 * i, _ds(x, p, load_f32x16(ds + 4 * i), mean, by, cap))
    for edge in range(2):
        for i in range(first if edge == 0 else tail, min(whole, end) if edge == 0 else end, 16):
            x = load_f32x16(s + 4 * i)
            p = _select(load_f32x16(kept + 4 * i) * share, valid - i, skip - i, zero)
            store_f32x16(s + 4 * i, p)
            store_f32x16(ds + 4 * i, _select(_ds(x, p, load_f32x16(ds + 4 * i), mean, by, cap), valid - i, skip - i, zero))
    for edge in range(2):
        for i in range(0 if edge == 0 else end, first if edge == 0 else columns, 16):
            store_f32x16(s + 4 * i, splat_f32(0.0))
            store_f32x16(ds + 4 * i, splat_f32(0.0))


@jit
def _lowest(query, window):
    """attention_tasks.lowest."""
    return max(0, query - window + 1) // PAGE * PAGE if window > 0 else 0


@jit
def _rows(words, task, keys, values, by_columns, p, ds, ld, scratch):
    """ROWS."""
    head_dim, value_dim, window = load_i64(words + HEAD_DIM), load_i64(words + VALUE_DIM), load_i64(words + WINDOW)
    ldq, ldz, head, n = 4 * load_i64(words + LD_Q), 4 * load_i64(words + LD_Z), load_i64(task + t.HEAD), load_i64(task + t.N)
    m0, m1, first, sinks = load_i64(task + t.FROM), load_i64(task + t.TO), load_i64(task + t.FIRST), load_i64(words + SINKS)
    rows, low = m1 - m0, _lowest(m0, window)
    columns, kept, cap = (m1 - low + 31) // 32 * 32, scratch + (4 * QUERIES * _DEPTH if PACKED else 0), load_f32(words + SOFT_CAP)
    q, z = (first + m0) * ldq + 4 * head * head_dim, (first + m0) * ldz + 4 * head * value_dim
    dq, dz = load_i64(words + DQ) + q, load_i64(words + DZ) + z
    q += load_i64(words + Q)
    z += load_i64(words + Z)
    at = (m0 - load_i64(task + t.START)) * ld + 4 * low
    _by_panels(q, ldq, rows, head_dim, keys + 4 * low * head_dim, columns, p + at, ld, scratch)
    _by_panels(dz, ldz, rows, value_dim, values + 4 * low * value_dim, columns, ds + at, ld, scratch)
    for i in range(rows):
        skip = max(0, m0 + i - window + 1 - low) if window > 0 else 0
        row = p + at + i * ld
        _softmax_back(row, ds + at + i * ld, kept if cap != np.float32(0.0) else row, columns, m0 + i + 1 - low, skip, load_f32(words + SCALE), cap,
                      sinks + 4 * head if sinks != 0 else 0, z + i * ldz, dz + i * ldz, value_dim)
    _on_by_panels(load_i64(words + MULTIPLY), ds + at, ld, rows, m1 - low, by_columns + _BYTES * low, _BYTES * n, head_dim, dq, ldq, scratch)


@jit
def _chains(words, task, p, ds, ld):
    """CHAINS: where the same queries of the stage see (by pages of their windows' beginnings), positions go together."""
    multiply, head_dim, value_dim, window = load_i64(words + MULTIPLY), load_i64(words + HEAD_DIM), load_i64(words + VALUE_DIM), load_i64(words + WINDOW)
    ldq, ldk, ldv, ldz = 4 * load_i64(words + LD_Q), 4 * load_i64(words + LD_K), 4 * load_i64(words + LD_V), 4 * load_i64(words + LD_Z)
    first, head, kv_head, start = load_i64(task + t.FIRST), load_i64(task + t.HEAD), load_i64(task + t.KV_HEAD), load_i64(task + t.START)
    q, dz = load_i64(words + Q) + first * ldq + 4 * head * head_dim, load_i64(words + DZ) + first * ldz + 4 * head * value_dim
    dk, dv = load_i64(words + DK) + first * ldk + 4 * kv_head * head_dim, load_i64(words + DV) + first * ldv + 4 * kv_head * value_dim
    at, end = load_i64(task + t.FROM), load_i64(task + t.TO)
    while at < end:
        a, b, here = max(start, at), load_i64(task + t.STOP), min(end, start if at < start else at + QUERIES)
        if window > 0:
            page = (at // PAGE + 1) * PAGE
            last = (page + window - 1 + QUERIES - 1) // QUERIES * QUERIES
            if last < b:
                here, b = min(here, page), last
        if a < b:
            there = (a - start) * ld + 4 * at
            call_multiply(multiply, p + there, 4, ld, dz + a * ldz, ldz, dv + at * ldv, ldv, here - at, value_dim, b - a)
            call_multiply(multiply, ds + there, 4, ld, q + a * ldq, ldq, dk + at * ldk, ldk, here - at, head_dim, b - a)
        at = here


@jit
def _wait(team, counters, counter, least):
    if counter >= 0:
        word = counters + 8 * counter
        now = atomic_load(word)
        while now < least:
            now = wait_while(team, word, now)


@compiled("int64(int64, int64, int64, int64)")
def attention_back(tid, n_threads, team, words):
    counters, n_claims, head_dim, value_dim = load_i64(words + COUNTERS), load_i64(words + N_CLAIMS), load_i64(words + HEAD_DIM), load_i64(words + VALUE_DIM)
    scratch, ldk, ldv = load_i64(words + SCRATCH) + tid * load_i64(words + SCRATCH_BYTES), 4 * load_i64(words + LD_K), 4 * load_i64(words + LD_V)
    at = next_tile(team, 0, 1)
    while at < n_claims:
        claim = load_i64(words + CLAIMS) + 16 * at
        for i in range(load_i64(claim), load_i64(claim) + load_i64(claim + 8)):
            task = load_i64(words + TASKS) + 8 * t.TASK_WORDS * i
            kind, n, lane = load_i64(task + t.KIND), load_i64(task + t.N), load_i64(task + t.LANE)
            _wait(team, counters, load_i64(task + t.NEEDS), load_i64(task + t.NEEDED))
            _wait(team, counters, load_i64(task + t.NEEDS_TOO), load_i64(task + t.NEEDED_TOO))
            padded = (n + 31) // 32 * 32
            ld = 4 * (padded + _APART)
            keys = load_i64(words + LANES) + lane * load_i64(words + LANE_BYTES) if lane >= 0 else load_i64(words + OWN) + tid * load_i64(words + OWN_BYTES)
            values = keys + 4 * padded * head_dim
            by_columns = values + 4 * padded * value_dim
            p = by_columns + 4 * padded * ((head_dim + 31) // 32 * 32) + load_i64(task + t.SLOT) * 2 * STAGE * ld
            if kind == t.TURN:
                first, kv_head, p0, p1 = load_i64(task + t.FIRST), load_i64(task + t.KV_HEAD), load_i64(task + t.FROM), load_i64(task + t.TO)
                k, v = load_i64(words + K) + first * ldk + 4 * kv_head * head_dim, load_i64(words + V) + first * ldv + 4 * kv_head * value_dim
                _turn_over(k, ldk, p0, p1, head_dim, keys)
                _turn_over(v, ldv, p0, p1, value_dim, values)
                _lay_out(k, ldk, n, p0, p1, head_dim, by_columns)
            elif kind == t.ROWS:
                _rows(words, task, keys, values, by_columns, p, p + STAGE * ld, ld, scratch)
            else:
                _chains(words, task, p, p + STAGE * ld, ld)
            counter = load_i64(task + t.COUNTS)
            if counter >= 0:
                atomic_add(counters + 8 * counter, 1)
                changed(team, counters + 8 * counter)
        at = next_tile(team, 0, 1)
    return 0
