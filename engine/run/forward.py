"""The forward pass: one compiled function that reads like the transformer it is, run by all threads of the team at once (SPMD).

A *step* takes a ragged batch of M tokens, each with its position and its sequence's KV pages. Every stage is divided between the threads (tiles of output
rows and attention's pieces into a share for each, tokens by a work counter), and a barrier ends it; no float is ever summed across threads. Only the residual
stream and the norms of few tokens are every thread's own business: all compute the same. The pass runs any range of layers, so that Python may look at, or
change, the residual stream between two ranges.

Arguments are blocks of int64 words (numbers, and addresses of NumPy arrays that runtime.py keeps alive); the constants below are byte offsets.
"""
from __future__ import annotations

import numpy as np

from ...kernels.activations import GROUP, INFINITY_BITS, quantize_part, quantize_row
from ...kernels.atomics import atomic_exchange, atomic_load, call_pointer5, compare_and_swap
from ...kernels.attention import ATT, GEOMETRY_WORDS, ITEM_WORDS, LD_ATT, LD_KV, N_KV_HEADS, RECORDS, K, Q, V
from ...kernels.clock import CLOCK_BYTES, now
from ...kernels.compile_cache import compiled
from ...kernels.elementwise import add_rows, jit, rms_norm, silu_mul
from ...kernels.matmul import TILES_A_GROUP, call_kernel
from ...kernels.simd import load_f32, load_f32x16, load_i64, store_f32x16, store_i64
from ...kernels.team import GENERATION, barrier, next_of_share, next_tile

# -- a matrix: 8 words
KERNEL, WEIGHTS, COLUMNS, TILES, FLOAT_INPUT = range(0, 40, 8)
MATRIX_BYTES = 64
LEAST = 2
"""Tiles of the smallest piece of work."""
MANY_TOKENS = 32
"""From so many on, weights are used from a cache many times, and small pieces of work keep their results in one, too."""
COMPACT = 4
"""Blocks of 32 columns of a piece of gate and up with MANY_TOKENS: both pieces of 512 tokens then stay in a second-level cache until they are quantised."""

# -- a layer: 2 gains, "some matrix of this input wants int8 records" flags, then 7 matrices
ATTN_NORM, FFN_NORM, QUANTIZE_QKV, QUANTIZE_ATT, QUANTIZE_FFN, QUANTIZE_DOWN = range(0, 48, 8)
WQ, WK, WV, WO, W_GATE, W_UP, W_DOWN = range(64, 64 + 7 * MATRIX_BYTES, MATRIX_BYTES)
LAYER_BYTES = 64 + 7 * MATRIX_BYTES

# -- the model: attention's words (kernels/attention.py), shapes, a step's buffers. Float32 rows are padded with zeros to a multiple of 32 columns (`LD_*`).
(
    DIM, LD_DIM, LD_FFN, EPS, LAYERS, OUTPUT_NORM, OUTPUT, QUANTIZE_OUTPUT, ATTEND, APPEND, LAYER_KV_BYTES, SCRATCH, SCRATCH_BYTES, KV_TILES, X, NORMED, ADDEND,
    GATE, UP, DOWN_RECORDS, OWN, OWN_BYTES,
) = range(8 * GEOMETRY_WORDS, 8 * (GEOMETRY_WORDS + 22), 8)
"""KV_TILES: tiles of a KV head's rows, if that is a whole number and not more than a piece of work should have; else 0. OWN: OWN_BYTES for each thread, its
residual stream, normed rows and records of up to GROUP tokens."""
MODEL_WORDS = GEOMETRY_WORDS + 22

# -- a step
(
    MODEL, N_TOKENS, FIRST_LAYER, LAST_LAYER, N_ITEMS, ITEMS, WANTED, N_WANTED, LOGITS, LD_LOGITS, NOT_FINITE, PROFILE, KEEP,
) = range(0, 8 * 13, 8)
"""KEEP: whether every token's floats must be kept: 0 no, 1 yes, since a float matrix reads them, OBSERVED since somebody will look at X, NORMED and GATE."""
OBSERVED = 2
STEP_WORDS = 13

# -- a profile, if PROFILE holds its address: a clock, the last barrier that was noted, its time, each stage's time so far. What follows a run's last
# barrier (the output matrix) is the caller's to add.
PROFILE_STAGES = ("attention norm", "q k v", "attention", "quantize", "attention output", "ffn norm", "gate up", "down", "last add", "output norm", "output")
(
    NOTED, LAST, P_ATTENTION_NORM, P_QKV, P_ATTENTION, P_QUANTIZE, P_ATTENTION_OUTPUT, P_FFN_NORM, P_GATE_UP, P_DOWN, P_LAST_ADD, P_OUTPUT_NORM, P_OUTPUT,
) = map(np.int64, range(CLOCK_BYTES, CLOCK_BYTES + 8 * 13, 8))  # as literals, each would have `_end` compiled anew

STAGES = ("attention norm", "attention output", "ffn norm", "ffn activation", "output norm", "keys and values", "queries")


@jit
def _take(team, slot, tid, n_threads, turn, n, least, most):
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
def _piece(matrix, tile0, tile1, records, floats, ld_floats, out, ldo, n_tokens):
    """Tiles [tile0, tile1) of one matrix. Input: float rows at `floats`, or the records made from them."""
    x = floats if load_i64(matrix + FLOAT_INPUT) else records
    call_kernel(load_i64(matrix + KERNEL), load_i64(matrix + WEIGHTS), load_i64(matrix + COLUMNS), tile0, min(tile1, load_i64(matrix + TILES)),
                x, ld_floats, out, ldo, n_tokens)


@jit
def _matmul(matrix, tid, n_threads, team, slot, records, floats, ld_floats, out, ldo, n_tokens):
    """Take pieces of one matrix until none is left."""
    tiles, turn = load_i64(matrix + TILES), 0
    while True:
        turn, tile0, tile1 = _take(team, slot, tid, n_threads, turn, tiles, LEAST, tiles)
        if turn == n_threads:
            return
        _piece(matrix, tile0, tile1, records, floats, ld_floats, out, ldo, n_tokens)


@jit
def _keys_and_values(layer, tid, n_threads, team, model, records, floats, ld_floats, kv_offset, n_tokens):
    """The K and V matrices: a piece of work is a KV head's rows, which then go into the KV cache. -> not finite"""
    n_kv, ldo, bad = load_i64(model + N_KV_HEADS), load_i64(model + LD_KV), 0
    per_head = load_i64(model + KV_TILES)
    pieces, turn = 2 * n_kv if per_head else 2, 0
    while True:
        turn, take, _ = _take(team, 0, tid, n_threads, turn, pieces, 1, 1)
        if turn == n_threads:
            return bad
        is_value, head0, head1 = take % 2, take // 2, take // 2 + 1
        tile0, tile1 = head0 * per_head, head1 * per_head
        if per_head == 0:
            head1, tile1 = n_kv, load_i64(layer + WK + TILES)
        _piece(layer + WK + MATRIX_BYTES * is_value, tile0, tile1, records, floats, ld_floats,
               load_i64(model + V if is_value else model + K), ldo, n_tokens)
        for head in range(head0, head1):
            bad |= call_pointer5(load_i64(model + APPEND), model, is_value, head, kv_offset, n_tokens)


@jit
def _gate_up(layer, tid, n_threads, team, model, inputs, floats, ld_floats, n_tokens, keep):
    """gate = silu(gate) * up, and the records of `down`: a piece of work is some columns, an even number of tiles. -> not finite

    Of many tokens, a thread keeps only the piece at hand, in its own part of GATE and UP: whole rows of 512 tokens would go through memory.
    """
    gate, up, ld = load_i64(model + GATE), load_i64(model + UP), load_i64(model + LD_FFN)
    records, quantize, worst, pairs = load_i64(model + DOWN_RECORDS), load_i64(layer + QUANTIZE_DOWN), 0, ld // 32
    most, compact = pairs, n_tokens >= MANY_TOKENS and not keep and COMPACT * n_threads <= pairs
    if n_tokens >= MANY_TOKENS:
        most = TILES_A_GROUP
    if compact:
        most, ld = COMPACT, 32 * COMPACT
        gate += 4 * tid * n_tokens * ld
        up += 4 * tid * n_tokens * ld
    turn = 0
    while True:
        turn, pair0, pair1 = _take(team, 0, tid, n_threads, turn, pairs, LEAST, most)
        if turn == n_threads:
            return worst >= INFINITY_BITS
        left = 4 * 32 * pair0 if compact else 0  # of the first column that is kept
        _piece(layer + W_GATE, 2 * pair0, 2 * pair1, inputs, floats, ld_floats, gate - left, ld, n_tokens)
        _piece(layer + W_UP, 2 * pair0, 2 * pair1, inputs, floats, ld_floats, up - left, ld, n_tokens)
        for m in range(n_tokens):
            row, here = 4 * m * ld - left, 4 * 32 * pair0
            silu_mul(gate + row + here, up + row + here, 32 * (pair1 - pair0))
            if quantize:
                worst = max(worst, quantize_part(gate + row, 32 * pair0, 32 * pair1, 32 * pairs, m, n_tokens, records))


@jit
def _note(profile, stage):
    time = now(profile)
    store_i64(profile + stage, load_i64(profile + stage) + time - load_i64(profile + LAST))
    store_i64(profile + LAST, time)


@jit
def _end(n_threads, team, step, stage):
    """A stage's end: the barrier; then, if a profile is wanted, the first thread to leave it notes the time since the one before. -> aborted"""
    stop = barrier(team, n_threads)
    profile = load_i64(step + PROFILE)
    if profile != 0:
        generation = atomic_load(team + GENERATION)  # can't change before this thread reaches the next barrier
        if n_threads == 1 or atomic_exchange(profile + NOTED, generation) != generation:
            _note(profile, stage)
    return stop


@jit
def _norm_end(own, tid, n_threads, team, step, stage):
    """The end of norms: without a barrier if every thread did all of them for itself. -> aborted"""
    if not own:
        return _end(n_threads, team, step, stage)
    profile = load_i64(step + PROFILE)
    if profile != 0 and tid == 0:
        _note(profile, stage)
    return False


@jit
def _norm(model, x, gain, m, normed, row, n_rows, records):
    """RMSNorm of the residual row m into the row at `normed` and, unless `records` is 0, its records as row `row` of n_rows. -> not finite"""
    ld = load_i64(model + LD_DIM)
    bad = rms_norm(x + 4 * m * ld, gain, load_i64(model + DIM), ld, load_f32(model + EPS), normed)
    if records != 0:
        quantize_row(normed, ld, row, n_rows, records)
    return bad


@jit
def _add_and_norm(model, x, addend, gain, m0, m1, n_tokens, normed, ld_normed, records):
    """Rows [m0, m1): the sublayer's output, if `addend` is not 0, joins the residual stream; norm. ld_normed: floats to the next normed row, or 0.

    -> not finite"""
    ld, bad = load_i64(model + LD_DIM), 0
    for m in range(m0, m1):
        if addend != 0:
            add_rows(x + 4 * m * ld, addend + 4 * m * ld, ld)
        bad |= _norm(model, x, gain, m, normed + 4 * (m - m0) * ld_normed, m, n_tokens, records)
    return bad


@jit
def _norms(own, team, rows, model, x, addend, gain, n_tokens, normed, ld_normed, records):
    """`_add_and_norm` of all rows if they are this thread's own, else of `rows` at a time until none is left. -> not finite"""
    if own:
        return _add_and_norm(model, x, addend, gain, 0, n_tokens, n_tokens, normed, ld_normed, records)
    ld, bad = load_i64(model + LD_DIM), 0
    m0 = next_tile(team, 0, rows)
    while m0 < n_tokens:
        bad |= _add_and_norm(model, x, addend, gain, m0, min(m0 + rows, n_tokens), n_tokens, normed + 4 * m0 * ld, ld_normed, records)
        m0 = next_tile(team, 0, rows)
    return bad


@jit
def _copy(source, target, n):
    """n floats, a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store_f32x16(target + i, load_f32x16(source + i))


@compiled("int64(int64, int64, int64, int64)")
def forward(tid, n_threads, team, step):
    """Layers [FIRST_LAYER, LAST_LAYER) on the residual stream X [M, LD_DIM], then, if tokens are WANTED, the final norm and their LOGITS.

    Returns 0 (a barrier's abort is told by the team), and leaves 1 + 8 * layer + stage in NOT_FINITE if NaN or infinity came up (the first to see it).
    """
    model, n_tokens = load_i64(step + MODEL), load_i64(step + N_TOKENS)
    n_kv, ld, ld_att, ld_ffn = load_i64(model + N_KV_HEADS), load_i64(model + LD_DIM), load_i64(model + LD_ATT), load_i64(model + LD_FFN)
    x, normed, records, addend = load_i64(model + X), load_i64(model + NORMED), load_i64(model + RECORDS), load_i64(model + ADDEND)
    q, att, gate = load_i64(model + Q), load_i64(model + ATT), load_i64(model + GATE)
    scratch = load_i64(model + SCRATCH) + tid * load_i64(model + SCRATCH_BYTES)
    first_layer, last_layer = load_i64(step + FIRST_LAYER), load_i64(step + LAST_LAYER)
    keep = load_i64(step + KEEP)
    rows = max(1, min(GROUP, n_tokens // n_threads))  # of a piece of work: threads that write into the same records slow each other down
    inputs = records  # what is made of normed rows
    own = n_tokens <= GROUP and keep != OBSERVED
    if own:  # every thread adds and norms all of the few rows for itself: that takes less time than to wait for one another, and to fetch from another's cache
        mine = load_i64(model + OWN) + tid * load_i64(model + OWN_BYTES)
        _copy(x, mine, n_tokens * ld)
        x, normed, inputs = mine, mine + 4 * GROUP * ld, mine + 8 * GROUP * ld
    ld_normed = ld if own or keep else 0

    for layer in range(first_layer, last_layer):
        here = load_i64(model + LAYERS) + layer * LAYER_BYTES
        kv_offset, code = layer * load_i64(model + LAYER_KV_BYTES), 1 + 8 * layer

        # the last layer's ffn output joins the residual stream; norm
        to_add, to_make = addend if layer > first_layer else 0, inputs if load_i64(here + QUANTIZE_QKV) else 0
        if _norms(own, team, rows, model, x, to_add, load_i64(here + ATTN_NORM), n_tokens, normed, ld_normed, to_make):
            compare_and_swap(step + NOT_FINITE, 0, code)
        if _norm_end(own, tid, n_threads, team, step, P_ATTENTION_NORM):
            return 0

        # keys and values into the KV cache at once
        if _keys_and_values(here, tid, n_threads, team, model, inputs, normed, ld, kv_offset, n_tokens):
            compare_and_swap(step + NOT_FINITE, 0, code + 5)
        _matmul(here + WQ, tid, n_threads, team, 1, inputs, normed, ld, q, ld_att, n_tokens)
        if _end(n_threads, team, step, P_QKV):
            return 0

        pieces = load_i64(step + N_ITEMS) * n_kv
        turn, work, _ = _take(team, 0, tid, n_threads, 0, pieces, 1, 1)
        while turn < n_threads:
            item = load_i64(step + ITEMS) + 8 * ITEM_WORDS * (work // n_kv)
            bad = call_pointer5(load_i64(model + ATTEND), model, item, kv_offset, work % n_kv, scratch)
            if bad:
                compare_and_swap(step + NOT_FINITE, 0, code + (6 if bad & 1 else 1))
            turn, work, _ = _take(team, 0, tid, n_threads, turn, pieces, 1, 1)
        if _end(n_threads, team, step, P_ATTENTION):
            return 0

        if load_i64(here + QUANTIZE_ATT):
            m = next_tile(team, 0, 1)
            while m < n_tokens:
                if quantize_row(att + 4 * m * ld_att, ld_att, m, n_tokens, records) >= INFINITY_BITS:
                    compare_and_swap(step + NOT_FINITE, 0, code + 1)
                m = next_tile(team, 0, 1)
            if _end(n_threads, team, step, P_QUANTIZE):
                return 0
        _matmul(here + WO, tid, n_threads, team, 0, records, att, ld_att, addend, ld, n_tokens)
        if _end(n_threads, team, step, P_ATTENTION_OUTPUT):
            return 0

        to_make = inputs if load_i64(here + QUANTIZE_FFN) else 0
        if _norms(own, team, rows, model, x, addend, load_i64(here + FFN_NORM), n_tokens, normed, ld_normed, to_make):
            compare_and_swap(step + NOT_FINITE, 0, code + 2)
        if _norm_end(own, tid, n_threads, team, step, P_FFN_NORM):
            return 0

        if _gate_up(here, tid, n_threads, team, model, inputs, normed, ld, n_tokens, keep):
            compare_and_swap(step + NOT_FINITE, 0, code + 3)
        if _end(n_threads, team, step, P_GATE_UP):
            return 0

        _matmul(here + W_DOWN, tid, n_threads, team, 0, load_i64(model + DOWN_RECORDS), gate, ld_ffn, addend, ld, n_tokens)
        if _end(n_threads, team, step, P_DOWN):
            return 0

    n_wanted, wanted, output = load_i64(step + N_WANTED), load_i64(step + WANTED), load_i64(model + OUTPUT)
    gain, to_make = load_i64(model + OUTPUT_NORM), inputs if load_i64(model + QUANTIZE_OUTPUT) else 0
    if own:
        if last_layer > first_layer:
            add_rows(x, addend, n_tokens * ld)
        for i in range(n_wanted):
            if _norm(model, x, gain, load_i64(wanted + 8 * i), normed + 4 * i * ld, i, n_wanted, to_make):
                compare_and_swap(step + NOT_FINITE, 0, 1 + 8 * last_layer + 4)
        _norm_end(own, tid, n_threads, team, step, P_OUTPUT_NORM)
        if n_wanted == 0 and tid == 0:
            _copy(x, load_i64(model + X), n_tokens * ld)
    else:
        if last_layer > first_layer:
            m = next_tile(team, 0, 1)
            while m < n_tokens:
                add_rows(x + 4 * m * ld, addend + 4 * m * ld, ld)
                m = next_tile(team, 0, 1)
            if _end(n_threads, team, step, P_LAST_ADD):
                return 0
        if n_wanted > 0:
            i = next_tile(team, 0, 1)
            while i < n_wanted:
                if _norm(model, x, gain, load_i64(wanted + 8 * i), normed + 4 * i * ld, i, n_wanted, to_make):
                    compare_and_swap(step + NOT_FINITE, 0, 1 + 8 * last_layer + 4)
                i = next_tile(team, 0, 1)
            if _end(n_threads, team, step, P_OUTPUT_NORM):
                return 0
    if n_wanted > 0:
        _matmul(output, tid, n_threads, team, 0, inputs, normed, ld, load_i64(step + LOGITS), load_i64(step + LD_LOGITS), n_wanted)
    return 0
