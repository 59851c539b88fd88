"""Attention of a step's tokens over the KV cache, with the records of its result where a piece of work is whole blocks of 32 columns."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.atomics import call_pointer5
from ....kernels.attention import ITEM_WORDS, N_KV_HEADS, attention_kernel
from ....kernels.compile_cache import compiled
from ....kernels.simd import load_i64
from .common import ENTRY, HEADER, SCRATCH, SCRATCH_BYTES, end, spoiled, take

(GEOMETRY, ATTEND, KV_OFFSET, WORK) = range(HEADER, HEADER + 8 * 4, 8)
"""GEOMETRY: address of attention's words. ATTEND: of the kernel (kernels/attention.py). KV_OFFSET: of the layer in a page. WORK: address of what there is to do
in this step for such heads: how many items, and the address of int64 [items, ITEM_WORDS]."""
WORDS = 4


@compiled(ENTRY)
def attend(tid, n_threads, team, step, stage):
    """A piece of work is an item (some tokens of a sequence, all of their positions or a span of them) and a KV head. Faults: queries, results."""
    geometry, work, kernel, kv_offset = load_i64(stage + GEOMETRY), load_i64(stage + WORK), load_i64(stage + ATTEND), load_i64(stage + KV_OFFSET)
    n_kv, items, scratch = load_i64(geometry + N_KV_HEADS), load_i64(work + 8), load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES)
    pieces = load_i64(work) * n_kv
    turn, at, _ = take(team, 0, tid, n_threads, 0, pieces, 1, 1)
    while turn < n_threads:
        bad = call_pointer5(kernel, geometry, items + 8 * ITEM_WORDS * (at // n_kv), kv_offset, at % n_kv, scratch)
        if bad:
            spoiled(step, stage, 0 if bad & 1 else 1)
        turn, at, _ = take(team, 0, tid, n_threads, turn, pieces, 1, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "attention" (the block), "records" (whether it makes them), "turned" (whether queries are rotated already)."""
    a = stage.args["attention"]
    words[GEOMETRY // 8] = layout.geometry_of(a, turned=stage.args.get("turned", False), records=stage.args["records"])
    words[ATTEND // 8], words[KV_OFFSET // 8], words[WORK // 8] = attention_kernel(layout.kv).address, layout.kv_offsets[a.kv_layer], layout.work(a)
