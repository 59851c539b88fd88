"""What a row of logits says, without a copy of it: how sure it is, the most likely tokens, and where one token stands.

    float32 [rows, n_vocab]  ──►  per row: maximum m, sum of e, sum of e * (x - m) with e = exp(x - m), the target's x and rank; the k largest
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.compile_cache import compiled
from ....kernels.elementwise import jit
from ....kernels.simd import fma, keep_first, load_f32, load_f32x16, load_i64, splat_f32, store_f32, store_i64, vmax, vmax_across, vmin, vsum
from ....kernels.team import next_tile
from ....kernels.vecmath import vexp
from .common import ENTRY, HEADER, end

(ROWS, LD, N_ROWS, N_VOCAB, TARGETS, K, NUMBERS, RANKS, TOP_IDS, TOP_VALUES) = range(HEADER, HEADER + 8 * 10, 8)
"""ROWS: address of float32 [N_ROWS, LD]. TARGETS: of int64 [N_ROWS]. NUMBERS: of float32 [N_ROWS, 4]: m, sum e, sum e (x - m), the target's x. RANKS: of int64
[N_ROWS], from 1. TOP_IDS: of int64 [N_ROWS, K], TOP_VALUES: of float32, K at least 1."""
WORDS = 10
_LOWEST = np.float32(-np.inf)


@jit
def _insert(ids, values, k, id, x):
    """x is larger than the last of the k largest so far; of equal ones the first stays before."""
    i = k - 1
    while i > 0 and load_f32(values + 4 * (i - 1)) < x:
        store_f32(values + 4 * i, load_f32(values + 4 * (i - 1)))
        store_i64(ids + 8 * i, load_i64(ids + 8 * (i - 1)))
        i -= 1
    store_f32(values + 4 * i, x)
    store_i64(ids + 8 * i, id)


@jit
def _largest(row, n, ids, values, k):
    for i in range(k):
        store_f32(values + 4 * i, _LOWEST)
        store_i64(ids + 8 * i, -1)
    at, least = 0, _LOWEST
    while at < n:
        many = min(64, n - at)
        if many == 64:
            a, b = vmax(load_f32x16(row + 4 * at), load_f32x16(row + 4 * at + 64)), vmax(load_f32x16(row + 4 * at + 128), load_f32x16(row + 4 * at + 192))
            if vmax_across(vmax(a, b)) <= least:
                at += 64
                continue
        for i in range(at, at + many):
            x = load_f32(row + 4 * i)
            if x > least:
                _insert(ids, values, k, i, x)
                least = load_f32(values + 4 * (k - 1))
        at += many


@jit
def _sums(row, n, m):
    """-> sum of exp(x - m), sum of exp(x - m) * (x - m)"""
    total, weighted, whole = splat_f32(0.0), splat_f32(0.0), n // 16 * 16
    for at in range(0, whole, 16):
        x = load_f32x16(row + 4 * at) - splat_f32(m)
        e = vexp(x)
        total = total + e
        weighted = fma(e, x, weighted)
    if whole < n:
        x = keep_first(load_f32x16(row + 4 * whole) - splat_f32(m), n - whole, np.float32(0.0))
        e = keep_first(vexp(x), n - whole, np.float32(0.0))
        total = total + e
        weighted = fma(e, x, weighted)
    return vsum(total), vsum(weighted)


@jit
def _positive(x):
    """1 in lanes that are above zero, else 0: the factors lift the smallest number above 1."""
    return vmin(vmax(x * splat_f32(1e30) * splat_f32(1e30), splat_f32(0.0)), splat_f32(1.0))


@jit
def _rank(row, n, target):
    """1 + how many are larger, or as large and before it."""
    x, before, start, whole = load_f32(row + 4 * target), 0, target // 16 * 16, n // 16 * 16
    t, smaller, larger = splat_f32(x), splat_f32(0.0), splat_f32(0.0)
    for i in range(0, start, 16):
        smaller = smaller + _positive(t - load_f32x16(row + 4 * i))
    for i in range(start + 16, whole, 16):
        larger = larger + _positive(load_f32x16(row + 4 * i) - t)
    for i in range(start, target):
        before += 1 if load_f32(row + 4 * i) >= x else 0
    for i in range(target + 1, min(n, start + 16)):
        before += 1 if load_f32(row + 4 * i) > x else 0
    for i in range(max(whole, start + 16), n):
        before += 1 if load_f32(row + 4 * i) > x else 0
    return 1 + before + start - np.int64(vsum(smaller)) + np.int64(vsum(larger))


@compiled(ENTRY)
def summary(tid, n_threads, team, step, stage):
    """A piece of work is a row."""
    rows, ld, n_rows, n, k = (load_i64(stage + ROWS), load_i64(stage + LD), load_i64(stage + N_ROWS), load_i64(stage + N_VOCAB), load_i64(stage + K))
    r = next_tile(team, 0, 1)
    while r < n_rows:
        row, numbers, values, target = rows + 4 * r * ld, load_i64(stage + NUMBERS) + 16 * r, load_i64(stage + TOP_VALUES) + 4 * k * r, \
            load_i64(load_i64(stage + TARGETS) + 8 * r)
        _largest(row, n, load_i64(stage + TOP_IDS) + 8 * k * r, values, k)
        m = load_f32(values)
        total, weighted = _sums(row, n, m)
        store_f32(numbers, m)
        store_f32(numbers + 4, total)
        store_f32(numbers + 8, weighted)
        store_f32(numbers + 12, load_f32(row + 4 * target))
        store_i64(load_i64(stage + RANKS) + 8 * r, _rank(row, n, target))
        r = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "rows" (float32 [n, LD]), "n_vocab", "targets" (int64 [n]), "numbers", "ranks", "top_ids", "top_values"."""
    a = stage.args
    words[ROWS // 8], words[LD // 8], words[N_ROWS // 8], words[N_VOCAB // 8] = a["rows"].ctypes.data, a["rows"].strides[0] // 4, len(a["rows"]), a["n_vocab"]
    words[TARGETS // 8], words[NUMBERS // 8], words[RANKS // 8] = a["targets"].ctypes.data, a["numbers"].ctypes.data, a["ranks"].ctypes.data
    words[TOP_IDS // 8], words[TOP_VALUES // 8], words[K // 8] = a["top_ids"].ctypes.data, a["top_values"].ctypes.data, a["top_ids"].shape[1]
