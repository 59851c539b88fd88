"""The forward pass: an interpreter of stages, run by all threads of the team at once (SPMD).

    a run:  stages [FIRST, LAST) of the program, whole layers or one open stage  ──►  [TAIL, END): the stream is closed; final norm and logits

A stage is the address of a compiled op and a block of words (ops/common.py); an op ends its own barriers. A step takes a ragged batch of M tokens, each with
its position and its sequence's KV pages, through one or more runs: between two of them Python may look at, or change, what the stages left in their buffers.
"""
from __future__ import annotations

from ...kernels.atomics import call_pointer5
from ...kernels.compile_cache import compiled
from ...kernels.simd import load_i64
from .ops.common import END, FIRST, LAST, LD_X, N_TOKENS, OP, SIZE, TAIL, X, copy, own_memory


@compiled("int64(int64, int64, int64, int64)")
def forward(tid, n_threads, team, step):
    """Returns 0: a barrier's abort is told by the team, NaN and infinity by NOT_FINITE."""
    own = own_memory(step, tid)
    if own != 0:  # every thread adds and norms all of the few rows for itself: that's sooner done than waiting, and fetching from another's cache
        copy(load_i64(step + X), own, load_i64(step + N_TOKENS) * load_i64(step + LD_X))
    for part in range(2):
        stage, last = load_i64(step + TAIL if part else step + FIRST), load_i64(step + END if part else step + LAST)
        while stage < last:
            if call_pointer5(load_i64(stage + OP), tid, n_threads, team, step, stage) != 0:
                return 0
            stage += load_i64(stage + SIZE)
    return 0
