"""Cross-entropy backwards: a row of logits becomes the gradient of what the output matrix made.

    p = exp(l − m) × (1 ÷ Z),  m = max l,  Z = tree of lane sums of exp(l − m)
    dl = (p − [target]) ÷ divisor;  soft cap c: × fma(l ÷ c, 0 − l ÷ c, 1);  a factor: × factor

The divisor, the loss tokens of the whole optimiser step, enters here and nowhere else.
"""
from __future__ import annotations

import numpy as np

from ..compile_cache import compiled
from ..deferred import jit
from ..simd import fma, keep_first, load_f32, load_f32x16, load_i64, splat_f32, store_f32, store_f32x16, vmax, vmax_across, vsum
from ..vecmath import vexp

LOGITS, TARGETS, N_ROWS, N_VOCAB, LD, DIVISOR, SOFT_CAP, FACTOR, NUMBERS = range(0, 72, 8)
"""LOGITS: float32 [N_ROWS, LD], LD a multiple of 16. TARGETS: int64 [N_ROWS]. DIVISOR (0: no gradient is wanted), SOFT_CAP (0: none), FACTOR: float32.
NUMBERS: of float32 [N_ROWS, 4]: m, Z, the target's logit, whether that is the first of the largest."""
WORDS = 9


@jit
def _is_first(row, target, highest):
    if load_f32(row + 4 * target) != highest:
        return np.float32(0.0)
    for i in range(target):
        if load_f32(row + 4 * i) == highest:
            return np.float32(0.0)
    return np.float32(1.0)


@compiled("int64(int64, int64, int64, int64)")
def cross_entropy_back(tid, n_threads, team, words):
    """What the rows say, and their gradients in place; columns past the vocabulary become zero. The threads divide the rows."""
    rows, vocab, ld = load_i64(words + N_ROWS), load_i64(words + N_VOCAB), 4 * load_i64(words + LD)
    divisor, cap, factor = load_f32(words + DIVISOR), load_f32(words + SOFT_CAP), load_f32(words + FACTOR)
    low, zero = np.float32(-3e38), np.float32(0.0)
    for m in range(tid * rows // n_threads, (tid + 1) * rows // n_threads):
        row = load_i64(words + LOGITS) + m * ld
        target = load_i64(load_i64(words + TARGETS) + 8 * m)
        highest, total = splat_f32(low), splat_f32(0.0)
        for i in range(0, vocab, 16):
            highest = vmax(keep_first(load_f32x16(row + 4 * i), vocab - i, low), highest)
        top = splat_f32(vmax_across(highest))
        for i in range(0, vocab, 16):
            total = total + keep_first(vexp(load_f32x16(row + 4 * i) - top), vocab - i, zero)
        z, by, right, said = vsum(total), splat_f32(divisor), load_f32(row + 4 * target), load_i64(words + NUMBERS) + 16 * m
        store_f32(said, vmax_across(top))
        store_f32(said + 4, z)
        store_f32(said + 8, right)
        store_f32(said + 12, _is_first(row, target, vmax_across(top)))
        if divisor == zero:
            continue
        share = splat_f32(np.float32(1.0) / z)
        for i in range(0, ld // 4, 16):
            x = load_f32x16(row + 4 * i)
            d = keep_first(vexp(x - top) * share, vocab - i, zero) / by
            if cap != zero:
                t = x / splat_f32(cap)
                d = d * fma(t, splat_f32(0.0) - t, splat_f32(1.0))
            store_f32x16(row + 4 * i, d * splat_f32(factor))
        p = vmax_across(vexp(splat_f32(right) - top) * share)
        d = (p - np.float32(1.0)) / divisor
        if cap != zero:
            t = right / cap
            d = d * vmax_across(fma(splat_f32(t), splat_f32(zero - t), splat_f32(1.0)))
        store_f32(row + 4 * target, d * factor)
    return 0
