"""What all ops share: a stage's and a step's words, how work is divided between the threads, matmuls by pieces, the end of a stage.

    forward.py:  for each stage:  op(tid, n_threads, team, step, stage) -> 1: aborted, all threads return; else 0

An op is run by all threads of the team at once (SPMD). It divides its work (tiles of output rows and attention's pieces into a share for each thread, tokens
by a work counter) and ends its own barrier; no float is ever summed across threads. Only the residual stream and the norms of few tokens are every thread's own
business: all compute the same (OWN).

Stages, steps and matrices are blocks of int64 words: numbers, float32 bits, addresses of NumPy arrays that layout.py keeps alive. Constants are byte offsets.
"""
from __future__ import annotations

from ....kernels.activations import GROUP
from ....kernels.atomics import atomic_exchange, atomic_load, call_pointer8, compare_and_swap
from ....kernels.clock import CLOCK_BYTES, now
from ....kernels.elementwise import add_rows, jit
from ....kernels.matmul import TILES_A_GROUP, call_kernel
from ....kernels.simd import load_f32x16, load_i64, store_f32x16, store_i64
from ....kernels.team import GENERATION, barrier, next_of_share
from . import low_rank
from .matrix import BIAS, COLUMNS, FLOAT_INPUT, KERNEL, LOW_RANK, TILES, WEIGHTS
from .matrix import MATRIX_BYTES as MATRIX_BYTES

ENTRY = "int64(int64, int64, int64, int64, int64)"
"""Signature of an op."""

LEAST = 2
"""Tiles of the smallest piece of work."""
MANY_TOKENS = 32
"""From so many on, weights are used from a cache many times, and small pieces of work keep their results in one, too."""

# -- a stage: its header; the op's own words follow
OP, SIZE, NUMBER, SLOT = range(0, 32, 8)
"""SIZE: bytes to the next stage. NUMBER: its place in the program. SLOT: where a profile counts its time."""
HEADER = 32

# -- a step
(
    N_TOKENS, FIRST, LAST, TAIL, END, JOIN, OWN, N_WANTED, WANTED, LOGITS, LD_LOGITS, HIDDEN, NOT_FINITE, PROFILE, X, LD_X, NORMED, RECORDS, OWN_ROWS,
    OWN_BYTES, SCRATCH, SCRATCH_BYTES, ADAPTERS,
) = range(0, 8 * 23, 8)
"""Stages [FIRST, LAST) run, then [TAIL, END). JOIN: the stage that would add what the last of them left (join.py). WANTED: int64 [N_WANTED], tokens whose
LOGITS are wanted, float32 [N_WANTED, LD_LOGITS]; HIDDEN: their normed rows instead. X: the residual stream, float32 [tokens, LD_X]; NORMED: what the last
norm made of it, RECORDS: the records made of that. OWN: whether every thread has these three for itself, in its OWN_BYTES at OWN_ROWS. SCRATCH_BYTES: for
each thread. ADAPTERS: address of those that rows of this step have (low_rank.py), or 0."""
STEP_WORDS = 23

# -- a profile, if PROFILE holds its address: a clock, the last barrier that was noted, its time, then each slot's time so far. What follows a run's last
# barrier (the output matrix) is the caller's to add
NOTED, NOTED_AT = CLOCK_BYTES, CLOCK_BYTES + 8
SLOTS = CLOCK_BYTES + 16

FAULTS = 4
"""Most kinds of numbers that are not finite that a stage tells apart."""


@jit
def own_memory(step, tid):
    """A thread's own memory, or 0 if the threads share the residual stream."""
    if load_i64(step + OWN) == 0:
        return 0
    return load_i64(step + OWN_ROWS) + tid * load_i64(step + OWN_BYTES)


@jit
def stream(step, own):
    """The residual stream that this thread works on."""
    return own if own != 0 else load_i64(step + X)


@jit
def normed_rows(step, own):
    """Where its normed rows are."""
    return own + 4 * GROUP * load_i64(step + LD_X) if own != 0 else load_i64(step + NORMED)


@jit
def normed_records(step, own):
    """And the records made of them."""
    return own + 8 * GROUP * load_i64(step + LD_X) if own != 0 else load_i64(step + RECORDS)


@jit
def take(team, slot, tid, n_threads, turn, n, least, most):
    """Take a piece of a work list of n: of the share of thread tid + turn -> (turn, first, last + 1); turn == n_threads: nothing is left.

    A thread's share is one piece of memory, through which it streams best, and the same one in every step, so that small models stay in its cache; who
    has done his own helps the others. Half of a share is taken at first, then half of the rest, and so on, least <= piece <= most: so slow cores take
    fewer and nobody waits long for the last piece.
    """
    while turn < n_threads:
        owner = (tid + turn) % n_threads
        first, last = owner * n // n_threads, (owner + 1) * n // n_threads
        taken = next_of_share(team, slot, owner)
        if least == most:
            first += taken * least
        else:
            for _ in range(taken):
                first += max(least, min(most, (last - first + 1) // 2))
        if first < last:
            return turn, first, min(last, first + max(least, min(most, (last - first + 1) // 2)))
        turn += 1
    return turn, 0, 0


@jit
def low_rank_of(step, tid, n_threads, team, matrix, n, stride, records, floats, ld_floats, n_tokens):
    """What `piece` needs of adapters, for n matrices whose words lie `stride` bytes apart: to be called before the first piece. -> 0: no row of this step has
    one; else an address."""
    adapters = load_i64(step + ADAPTERS)
    if adapters == 0:
        return 0
    return low_rank.begin(adapters, tid, n_threads, team, matrix + LOW_RANK, n, stride, records, floats, ld_floats, n_tokens, matrix + FLOAT_INPUT, 0, 0)


@jit
def piece(matrix, tile0, tile1, records, floats, ld_floats, out, ldo, n_tokens, step, low, index):
    """Tiles [tile0, tile1) of one matrix. Input: float rows at `floats`, or the records made from them. low: of `low_rank_of`, of whose matrices this is
    number `index`."""
    x = floats if load_i64(matrix + FLOAT_INPUT) else records
    tile1, bias, t0 = min(tile1, load_i64(matrix + TILES)), load_i64(matrix + BIAS), tile0
    size, adapters = max(1, tile1 - tile0), load_i64(step + ADAPTERS)
    if low != 0:  # what adapters are added to is still in a cache, and what was fetched of B, too
        size = TILES_A_GROUP if n_tokens >= MANY_TOKENS else 2 * TILES_A_GROUP
    while t0 < tile1:
        if low != 0:
            if load_i64(low + low_rank.LONE) != 0:
                t0 = call_pointer8(load_i64(adapters + low_rank.BESIDE), adapters, low, matrix, index, t0, tile1, x, out)
                if t0 == tile1:
                    return
                size = TILES_A_GROUP
            if t0 == tile0:
                low_rank.fetch(adapters, load_i64(matrix + LOW_RANK), t0, min(t0 + size, tile1), n_tokens)
        t1 = min(t0 + size, tile1)
        call_kernel(load_i64(matrix + KERNEL), load_i64(matrix + WEIGHTS), load_i64(matrix + COLUMNS), t0, t1, x, ld_floats, out, ldo, n_tokens)
        if bias != 0:
            for m in range(n_tokens):
                add_rows(out + 4 * (m * ldo + 16 * t0), bias + 64 * t0, 16 * (t1 - t0))
        if low != 0:
            if load_i64(low + low_rank.LONE) == 0:
                low_rank.fetch(adapters, load_i64(matrix + LOW_RANK), t1, min(t1 + size, tile1), n_tokens)
            call_pointer8(load_i64(adapters + low_rank.ADD), adapters, low, load_i64(matrix + LOW_RANK), t0, t1, index, out, ldo)
        t0 = t1


@jit
def matmul(matrix, tid, n_threads, team, slot, records, floats, ld_floats, out, ldo, n_tokens, step, low, index):
    """Take pieces of one matrix until none is left."""
    tiles, turn = load_i64(matrix + TILES), 0
    while True:
        turn, tile0, tile1 = take(team, slot, tid, n_threads, turn, tiles, LEAST, tiles)
        if turn == n_threads:
            return
        piece(matrix, tile0, tile1, records, floats, ld_floats, out, ldo, n_tokens, step, low, index)


@jit
def copy(source, target, n):
    """n floats, a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store_f32x16(target + i, load_f32x16(source + i))


@jit
def spoiled(step, stage, fault):
    """NaN or infinity came up: 1 + FAULTS * (number of the stage) + (which of its faults) is left in NOT_FINITE by the first to see it."""
    compare_and_swap(step + NOT_FINITE, 0, 1 + FAULTS * load_i64(stage + NUMBER) + fault)


@jit
def note(profile, slot):
    """The time since the last note counts for this slot."""
    time = now(profile)
    store_i64(profile + slot, load_i64(profile + slot) + time - load_i64(profile + NOTED_AT))
    store_i64(profile + NOTED_AT, time)


@jit
def end(n_threads, team, step, stage):
    """A stage's end: the barrier; then, if a profile is wanted, the first thread to leave it notes the time since the one before. -> aborted"""
    stop = barrier(team, n_threads)
    profile = load_i64(step + PROFILE)
    if profile != 0:
        generation = atomic_load(team + GENERATION)  # can't change before this thread reaches the next barrier
        if n_threads == 1 or atomic_exchange(profile + NOTED, generation) != generation:
            note(profile, load_i64(stage + SLOT))
    return 1 if stop else 0


@jit
def end_alone(tid, step, stage):
    """The end of a stage that every thread did for itself: no barrier. -> not aborted"""
    profile = load_i64(step + PROFILE)
    if profile != 0 and tid == 0:
        note(profile, load_i64(stage + SLOT))
    return 0
