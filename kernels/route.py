"""Which experts a token is sent to, and with what weights; and the lists by which tokens are grouped by expert. docs/exactness.md has the sequence.

    logits [E] ─► probabilities ─► scores (+ bias, groups) ─► the best k, ties to the lower id ─► weights ─► norm, scale        `choose`, a token
    indices [M, k] ─► for each expert the tokens that chose it, in order: slots                                                `group_by_expert`, all tokens

A *slot* is one (token, rank); those of an expert stand together. What the lists hold is told by `Lists` below.
"""
from __future__ import annotations

import numpy as np

from .activations import BLOCK, DS, GROUP, RECORD, ZERO8, ZERO32, ZERO128, D, group_width, record_size
from .deferred import jit
from .simd import (
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    load_u32,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
    store_u32,
    vmax,
    vmax_across,
    vsum,
)
from .vecmath import vexp

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = range(3)
GATINGS = {"softmax": SOFTMAX, "sigmoid": SIGMOID, "softmax_of_chosen": SOFTMAX_OF_CHOSEN}
"""Names as pages write them."""
LEAST_SUM = 2.0**-14
"""What the sum of weights is at least taken for when they are normed: llama.cpp's, the smallest normal float16."""
_LOWEST = np.float32(-np.inf)

# -- the lists: int64 words. N_ACTIVE, then for each expert ... (E of each), then for each slot (M * k of each)
LIST_N_ACTIVE = 0
(ACTIVE, COUNT, FIRST, FIRST_GROUP) = range(4)
"""ACTIVE: the i-th expert that some token chose; by expert: how many tokens did, its first slot, its first group of 8 records."""
LIST_HEADER = 1


def list_words(experts: int, slots: int) -> int:
    """int64 words of the lists of so many experts and (token, rank)s."""
    return LIST_HEADER + 4 * experts + 2 * slots


@jit
def by_expert(lists, n_experts, which, i):
    """Address of word i of one of the lists by expert."""
    return lists + 8 * (LIST_HEADER + which * n_experts + i)


@jit
def origin_of(lists, n_experts, slot):
    """Address of slot's token * k + rank."""
    return lists + 8 * (LIST_HEADER + 4 * n_experts + slot)


@jit
def slot_of(lists, n_experts, n_slots, origin):
    """Address of the slot of token * k + rank."""
    return lists + 8 * (LIST_HEADER + 4 * n_experts + n_slots + origin)


# -- choosing -----------------------------------------------------------------------------------------------------------------------------

@jit
def softmax_row(x, n):
    """Softmax of n numbers in place; rows have room for a multiple of 16. -> finite"""
    m, wrong = splat_f32(_LOWEST), splat_f32(0.0)
    for i in range(0, n, 16):
        v = load_f32x16(x + 4 * i)
        wrong = wrong + keep_first(v - v, n - i, np.float32(0.0))
        m = vmax(m, keep_first(v, n - i, _LOWEST))
    if vsum(wrong) != np.float32(0.0):  # NaN: of infinity, too
        return False
    largest, sums = splat_f32(vmax_across(m)), splat_f32(0.0)
    for i in range(0, n, 16):
        e = keep_first(vexp(load_f32x16(x + 4 * i) - largest), n - i, np.float32(0.0))
        store_f32x16(x + 4 * i, e)
        sums = sums + e
    total = splat_f32(vsum(sums))
    for i in range(0, n, 16):
        store_f32x16(x + 4 * i, load_f32x16(x + 4 * i) / total)
    return True


@jit
def sigmoid_row(x, n):
    """1 / (1 + exp(0 - x)) of n numbers in place. -> finite"""
    wrong = splat_f32(0.0)
    for i in range(0, n, 16):
        v = load_f32x16(x + 4 * i)
        wrong = wrong + keep_first(v - v, n - i, np.float32(0.0))
        store_f32x16(x + 4 * i, keep_first(splat_f32(1.0) / (splat_f32(1.0) + vexp(splat_f32(0.0) - v)), n - i, np.float32(0.0)))
    return vsum(wrong) == np.float32(0.0)


@jit
def _finite_row(x, n):
    wrong = splat_f32(0.0)
    for i in range(0, n, 16):
        v = load_f32x16(x + 4 * i)
        wrong = wrong + keep_first(v - v, n - i, np.float32(0.0))
    return vsum(wrong) == np.float32(0.0)


@jit
def take_best(scores, n):
    """Index of the largest of n numbers, the first of equals, which becomes -infinity."""
    best, at = load_f32(scores), 0
    for i in range(1, n):
        s = load_f32(scores + 4 * i)
        if s > best:
            best, at = s, i
    store_f32(scores + 4 * at, _LOWEST)
    return at


@jit
def _keep_groups(scores, n, groups, groups_used, room):
    """Scores of experts outside the `groups_used` best groups become -infinity; room: float32 [groups]."""
    size = n // groups
    for g in range(groups):
        first, second = _LOWEST, _LOWEST
        for i in range(g * size, (g + 1) * size):
            s = load_f32(scores + 4 * i)
            if s > first:
                first, second = s, first
            elif s > second:
                second = s
        store_f32(room + 4 * g, first + second if size > 1 else first)
    for _ in range(groups_used):
        take_best(room, groups)
    for g in range(groups):
        if load_f32(room + 4 * g) != _LOWEST:
            for i in range(g * size, (g + 1) * size):
                store_f32(scores + 4 * i, _LOWEST)


@jit
def choose(kind, x, n, k, bias, groups, groups_used, normalise, scale, scores, indices, weights):
    """A token's k experts of n. x: float32 [n rounded up to 16], the logits, which become probabilities (but for SOFTMAX_OF_CHOSEN). bias: address of
    float32 [n], or 0. scores: room for float32 [n + groups]. indices, weights: float32 [k rounded up to 16], by rank. -> finite"""
    if kind == SOFTMAX:
        finite = softmax_row(x, n)
    elif kind == SIGMOID:
        finite = sigmoid_row(x, n)
    else:
        finite = _finite_row(x, n)
    for i in range(n):
        s = load_f32(x + 4 * i)
        if bias != 0:
            s = s + load_f32(bias + 4 * i)
        store_f32(scores + 4 * i, s)
    if groups > 1:
        _keep_groups(scores, n, groups, groups_used, scores + 4 * n)
    for rank in range(k):
        at = take_best(scores, n)
        store_f32(indices + 4 * rank, np.float32(at))
        store_f32(weights + 4 * rank, load_f32(x + 4 * at))
    if kind == SOFTMAX_OF_CHOSEN:
        softmax_row(weights, k)
    if normalise:
        total = load_f32(weights)
        for rank in range(1, k):
            total = total + load_f32(weights + 4 * rank)
        total = max(total, np.float32(LEAST_SUM))
        for rank in range(k):
            store_f32(weights + 4 * rank, load_f32(weights + 4 * rank) / total)
    if scale != np.float32(1.0):
        for rank in range(k):
            store_f32(weights + 4 * rank, load_f32(weights + 4 * rank) * scale)
    return finite


# -- grouping -----------------------------------------------------------------------------------------------------------------------------

@jit
def group_by_expert(indices, ld, n_tokens, k, n_experts, lists):
    """Fill the lists from float32 indices [n_tokens, ld]. What is no expert's number counts as 0. -> whether all were"""
    good, n_slots = True, n_tokens * k
    for e in range(n_experts):
        store_i64(by_expert(lists, n_experts, COUNT, e), 0)
    for m in range(n_tokens):
        for rank in range(k):
            x, e = load_f32(indices + 4 * (m * ld + rank)), 0
            if x >= np.float32(0.0) and x < np.float32(n_experts):
                e = np.int64(x)  # type: ignore[assignment]
            else:
                good = False
                store_f32(indices + 4 * (m * ld + rank), np.float32(0.0))
            count = by_expert(lists, n_experts, COUNT, e)
            store_i64(count, load_i64(count) + 1)
    active = first = group = 0
    for e in range(n_experts):
        count = load_i64(by_expert(lists, n_experts, COUNT, e))
        store_i64(by_expert(lists, n_experts, FIRST, e), first)
        store_i64(by_expert(lists, n_experts, FIRST_GROUP, e), group)
        if count > 0:
            store_i64(by_expert(lists, n_experts, ACTIVE, active), e)
            active += 1
        first += count
        group += (count + GROUP - 1) // GROUP
        store_i64(by_expert(lists, n_experts, COUNT, e), 0)
    store_i64(lists + 8 * LIST_N_ACTIVE, active)
    for m in range(n_tokens):
        for rank in range(k):
            e = np.int64(load_f32(indices + 4 * (m * ld + rank)))  # type: ignore[assignment]
            count = by_expert(lists, n_experts, COUNT, e)
            slot = load_i64(by_expert(lists, n_experts, FIRST, e)) + load_i64(count)
            store_i64(count, load_i64(count) + 1)
            store_i64(origin_of(lists, n_experts, slot), m * k + rank)
            store_i64(slot_of(lists, n_experts, n_slots, m * k + rank), slot)
    return good


_record_size = jit(record_size)


@jit
def move_records(source, m, n_tokens, target, row, n_rows, columns):
    """Row m of n_tokens rows' records, copied to be row `row` of n_rows rows' (activations.py): what a quantisation of the same row would give."""
    w0, w1 = group_width(m, n_tokens), group_width(row, n_rows)
    size0, size1, lane0, lane1 = _record_size(w0), _record_size(w1), m % GROUP, row % GROUP
    r0 = source + (m // GROUP) * (columns // BLOCK) * RECORD
    r1 = target + (row // GROUP) * (columns // BLOCK) * RECORD
    for _ in range(columns // BLOCK):
        for i in range(0, BLOCK, 8):
            store_i64(r1 + BLOCK * lane1 + i, load_i64(r0 + BLOCK * lane0 + i))
        a, b = r0 + 4 * lane0, r1 + 4 * lane1
        for field in (D, DS, ZERO8, ZERO128, ZERO32, ZERO32 + 4):
            store_u32(b + w1 * field, load_u32(a + w0 * field))
        r0 += size0
        r1 += size1
