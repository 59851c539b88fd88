"""Which experts each token is sent to; then the tokens are grouped by expert, and what an expert reads is gathered.

    router's logits ─► choose (kernels/route.py) ─► lists of slots ─► rows and records of the slots, expert by expert

Of few tokens one thread chooses for all: that is sooner done than another barrier. A lone token needs no gathering: its experts read its own row and records.
The open form has the same three parts as stages of their own: linear, choose, gather.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.activations import GROUP, RECORD, quantize_row
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import jit
from ....kernels.norms import scale_row
from ....kernels.route import COUNT, FIRST, FIRST_GROUP, GATINGS, by_expert, choose, group_by_expert, move_records, slot_of
from ....kernels.simd import load_f32, load_i64, store_f32
from ....kernels.team import barrier, next_tile
from .common import (
    ENTRY,
    HEADER,
    LD_X,
    MATRIX_BYTES,
    N_TOKENS,
    SCRATCH,
    SCRATCH_BYTES,
    copy,
    end,
    matmul,
    normed_records,
    normed_rows,
    own_memory,
    spoiled,
)

ROUTER = HEADER
(LOGITS, LD_LOGITS, KIND, N_EXPERTS, N_USED, BIAS, GROUPS, GROUPS_USED, NORMALISE, SCALE, INDICES, WEIGHTS, LD_USED, LISTS, SLOT_ROWS, SLOT_RECORDS, WEIGH,
 EXPERT_SCALES) = range(HEADER + MATRIX_BYTES, HEADER + MATRIX_BYTES + 8 * 18, 8)
"""LOGITS: address of float32 [tokens, LD_LOGITS]. KIND: a number of kernels/route.py. BIAS: address of what is added for choosing, or 0. SCALE: float32.
INDICES, WEIGHTS: of float32 [tokens, LD_USED]. LISTS: of the lists. SLOT_ROWS, SLOT_RECORDS: of what the experts read, float32 [slots, LD_X] and records, or 0
where they read no such. WEIGH: whether rows are multiplied by their weights first. EXPERT_SCALES: address of
what the weight of each expert is multiplied by, or 0."""
WORDS = MATRIX_BYTES // 8 + 18


@jit
def _choose(stage, m, scratch):
    """-> finite"""
    k, ld, scales = load_i64(stage + N_USED), load_i64(stage + LD_USED), load_i64(stage + EXPERT_SCALES)
    good = choose(load_i64(stage + KIND), load_i64(stage + LOGITS) + 4 * m * load_i64(stage + LD_LOGITS), load_i64(stage + N_EXPERTS), k,
                  load_i64(stage + BIAS), load_i64(stage + GROUPS), load_i64(stage + GROUPS_USED), load_i64(stage + NORMALISE) != 0, load_f32(stage + SCALE),
                  scratch, load_i64(stage + INDICES) + 4 * m * ld, load_i64(stage + WEIGHTS) + 4 * m * ld)
    if scales != 0:
        for at in range(4 * m * ld, 4 * (m * ld + k), 4):
            weight = load_i64(stage + WEIGHTS) + at
            store_f32(weight, load_f32(weight) * load_f32(scales + 4 * np.int64(load_f32(load_i64(stage + INDICES) + at))))
    return good


@jit
def _group(stage, n_tokens):
    return group_by_expert(load_i64(stage + INDICES), load_i64(stage + LD_USED), n_tokens, load_i64(stage + N_USED), load_i64(stage + N_EXPERTS),
                           load_i64(stage + LISTS))


@jit
def _gather(tid, team, step, stage, n_tokens, records, rows, scratch):
    """records, rows: of the tokens, as the last norm made them."""
    ld, k, n_experts, lists = load_i64(step + LD_X), load_i64(stage + N_USED), load_i64(stage + N_EXPERTS), load_i64(stage + LISTS)
    slot_rows, slot_records, weigh = load_i64(stage + SLOT_ROWS), load_i64(stage + SLOT_RECORDS), load_i64(stage + WEIGH) != 0
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        for rank in range(k):
            e = np.int64(load_f32(load_i64(stage + INDICES) + 4 * (m * load_i64(stage + LD_USED) + rank)))
            slot = load_i64(slot_of(lists, n_experts, n_tokens * k, m * k + rank))
            row, n = slot - load_i64(by_expert(lists, n_experts, FIRST, e)), load_i64(by_expert(lists, n_experts, COUNT, e))
            target = slot_records + load_i64(by_expert(lists, n_experts, FIRST_GROUP, e)) * (ld // 32) * RECORD
            if weigh:
                copy(rows + 4 * m * ld, scratch, ld)
                scale_row(scratch, load_f32(load_i64(stage + WEIGHTS) + 4 * (m * load_i64(stage + LD_USED) + rank)), ld)
                if slot_records != 0:
                    quantize_row(scratch, ld, row, n, target)
                if slot_rows != 0:
                    copy(scratch, slot_rows + 4 * slot * ld, ld)
                continue
            if slot_records != 0:
                move_records(records, m, n_tokens, target, row, n, ld)
            if slot_rows != 0:
                copy(rows + 4 * m * ld, slot_rows + 4 * slot * ld, ld)
        m = next_tile(team, 0, 1)


@jit
def gathers(stage, n_tokens):
    """Whether the experts read gathered rows, not a lone token's own."""
    return n_tokens > 1 or load_i64(stage + WEIGH) != 0


@compiled(ENTRY)
def route(tid, n_threads, team, step, stage):
    """Logits, choice, lists, gathered rows. Faults: the logits."""
    n_tokens, own, ld = load_i64(step + N_TOKENS), own_memory(step, tid), load_i64(step + LD_X)
    records, rows, scratch = normed_records(step, own), normed_rows(step, own), load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES)
    matmul(stage + ROUTER, tid, n_threads, team, 0, records, rows, ld, load_i64(stage + LOGITS), load_i64(stage + LD_LOGITS), n_tokens, step, 0, 0)
    if barrier(team, n_threads):
        return 1
    good = True
    if n_tokens <= GROUP:
        if tid == 0:
            for m in range(n_tokens):
                good &= _choose(stage, m, scratch)
            good &= _group(stage, n_tokens)
    else:
        m = next_tile(team, 0, 1)
        while m < n_tokens:
            good &= _choose(stage, m, scratch)
            m = next_tile(team, 0, 1)
        if barrier(team, n_threads):
            return 1
        if tid == 0:
            good &= _group(stage, n_tokens)
    if not good:
        spoiled(step, stage, 0)
    if gathers(stage, n_tokens):
        if barrier(team, n_threads):
            return 1
        _gather(tid, team, step, stage, n_tokens, records, rows, scratch)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def choose_experts(tid, n_threads, team, step, stage):
    """The choice alone, of logits that are there. Faults: the logits."""
    n_tokens, scratch, good = load_i64(step + N_TOKENS), load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES), True
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        good &= _choose(stage, m, scratch)
        m = next_tile(team, 0, 1)
    if not good:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def gather(tid, n_threads, team, step, stage):
    """Lists and gathered rows, of indices that are there and that somebody may have changed. Faults: an index that is no expert's."""
    n_tokens, own, good = load_i64(step + N_TOKENS), own_memory(step, tid), True
    if tid == 0:
        good = _group(stage, n_tokens)
    if not good:
        spoiled(step, stage, 0)
    if gathers(stage, n_tokens):
        if barrier(team, n_threads):
            return 1
        _gather(tid, team, step, stage, n_tokens, normed_records(step, own), normed_rows(step, own),
                load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES))
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "experts" (the block)."""
    b = stage.args["experts"]
    words[ROUTER // 8:(ROUTER + MATRIX_BYTES) // 8] = layout.matrix(b.router)
    for word, value in (
        (LOGITS, layout.address("router")), (LD_LOGITS, layout.columns("router")), (KIND, GATINGS[b.gating]), (N_EXPERTS, b.experts), (N_USED, b.used),
        (BIAS, layout.vector(b.selection_bias)), (GROUPS, b.groups), (GROUPS_USED, b.groups_used), (NORMALISE, b.normalise),
        (INDICES, layout.address("expert_indices")), (WEIGHTS, layout.address("expert_weights")), (LD_USED, layout.columns("expert_weights")),
        (LISTS, layout.address("expert_lists")), (WEIGH, b.weigh_input), (EXPERT_SCALES, layout.vector(b.expert_scales)),
    ):
        words[word // 8] = value
    records = [layout.wants_records(m) for m in b.readers()]
    words[SLOT_RECORDS // 8] = layout.address("expert_records") if any(records) else 0
    words[SLOT_ROWS // 8] = layout.address("expert_rows") if not all(records) else 0
    words.view(np.float32)[SCALE // 4] = b.scale
