"""The forward pass: one compiled function that reads like the transformer it is, run by all threads of the team at once (SPMD).

A *step* takes a ragged batch of M tokens, each with its position and its sequence's KV pages. Every stage is divided between the threads by a work
counter (tokens, tiles of output rows, or attention blocks), and a barrier ends it; no float is ever summed across threads. The pass runs any range
of layers, so that Python may look at, or change, the residual stream between two ranges.

Arguments are blocks of int64 words (numbers, and addresses of NumPy arrays that runtime.py keeps alive); the constants below are byte offsets.
"""
from __future__ import annotations

from ..kernels.activations import INFINITY_BITS, quantize_row
from ..kernels.atomics import atomic_exchange, atomic_load, compare_and_swap
from ..kernels.attention import attend_block
from ..kernels.clock import CLOCK_BYTES, now
from ..kernels.compile_cache import compiled
from ..kernels.elementwise import PAGE, add_rows, append_kv, jit, rms_norm, rope, silu_mul
from ..kernels.matmul import TILES_A_GROUP, call_kernel
from ..kernels.simd import load_f32, load_i64, store_i64
from ..kernels.team import GENERATION, barrier, next_tile

# -- a matrix: 8 words
KERNEL, WEIGHTS, COLUMNS, TILES, FLOAT_INPUT = range(0, 40, 8)
MATRIX_BYTES = 64

# -- a layer: 2 gains, "some matrix of this input wants int8 records" flags, then 7 matrices
ATTN_NORM, FFN_NORM, QUANTIZE_QKV, QUANTIZE_ATT, QUANTIZE_FFN, QUANTIZE_DOWN = range(0, 48, 8)
WQ, WK, WV, WO, W_GATE, W_UP, W_DOWN = range(64, 64 + 7 * MATRIX_BYTES, MATRIX_BYTES)
LAYER_BYTES = 64 + 7 * MATRIX_BYTES

# -- the model: shapes, then the buffers of a step. All float32 rows are padded with zeros to a multiple of 32 columns (`LD_*`).
(
    N_HEADS, N_KV_HEADS, HEAD_DIM, V_DIM, ROPE_DIM, DIM, LD_DIM, LD_ATT, LD_KV, LD_FFN, EPS, SCALE, LAYERS, OUTPUT_NORM, OUTPUT, QUANTIZE_OUTPUT,
    ROPE_TABLE, KV_ITEM, LAYER_KV_BYTES, SCRATCH, SCRATCH_BYTES,
    X, NORMED, RECORDS, Q, K, V, ATT, ADDEND, GATE, UP,
) = range(0, 8 * 31, 8)
MODEL_WORDS = 31

# -- a step
(
    MODEL, N_TOKENS, FIRST_LAYER, LAST_LAYER, POSITIONS, PAGE_TABLES, N_BLOCKS, BLOCKS, WANTED, N_WANTED, LOGITS, LD_LOGITS, NOT_FINITE, PROFILE,
) = range(0, 8 * 14, 8)
STEP_WORDS = 14

# -- a profile, if PROFILE holds its address: a clock, the last barrier that was noted, its time, each stage's time so far. What follows a run's last
# barrier (the output matrix) is the caller's to add.
PROFILE_STAGES = ("attention norm", "q k v", "rope, kv", "attention", "quantize", "attention output", "ffn norm", "gate up", "silu mul", "down", "last add",
                  "output norm", "output")
(
    NOTED, LAST, P_ATTENTION_NORM, P_QKV, P_KV, P_ATTENTION, P_QUANTIZE, P_ATTENTION_OUTPUT, P_FFN_NORM, P_GATE_UP, P_SILU_MUL, P_DOWN, P_LAST_ADD,
    P_OUTPUT_NORM, P_OUTPUT,
) = range(CLOCK_BYTES, CLOCK_BYTES + 8 * 15, 8)

STAGES = ("attention norm", "attention output", "ffn norm", "ffn activation", "output norm", "keys and values")


@jit
def _first_tile(take, tiles, n_threads):
    """Where the `take`-th piece of a matrix begins: n_threads pieces of half the tiles together, then of half the rest, and so on.

    Long pieces at first, because a thread streams best through memory that lies in one piece; short ones at the end, so that slow cores take fewer.
    """
    first, rest, least = 0, tiles, max(1, min(TILES_A_GROUP, tiles // n_threads))
    for _ in range(take // n_threads):
        piece = max(least, (rest + 2 * n_threads - 1) // (2 * n_threads))
        first += piece * n_threads
        rest = max(0, rest - piece * n_threads)
    piece = max(least, (rest + 2 * n_threads - 1) // (2 * n_threads))
    return min(tiles, first + piece * (take % n_threads))


@jit
def _matmul(matrix, n_threads, team, slot, model, floats, ld_floats, out, ldo, n_tokens):
    """Take pieces of one matrix until none is left. Input: float rows at `floats`, or the model's RECORDS made from them."""
    tiles = load_i64(matrix + TILES)
    x = floats if load_i64(matrix + FLOAT_INPUT) else load_i64(model + RECORDS)
    while True:
        take = next_tile(team, slot, 1)
        tile = _first_tile(take, tiles, n_threads)
        if tile == tiles:
            return
        call_kernel(load_i64(matrix + KERNEL), load_i64(matrix + WEIGHTS), load_i64(matrix + COLUMNS), tile, _first_tile(take + 1, tiles, n_threads),
                    x, ld_floats, out, ldo, n_tokens)


@jit
def _end(n_threads, team, step, stage):
    """A stage's end: the barrier; then, if a profile is wanted, the first thread to leave it notes the time since the one before. -> aborted"""
    stop = barrier(team, n_threads)
    profile = load_i64(step + PROFILE)
    if profile != 0:
        generation = atomic_load(team + GENERATION)  # can't change before this thread reaches the next barrier
        if n_threads == 1 or atomic_exchange(profile + NOTED, generation) != generation:
            time = now(profile)
            store_i64(profile + stage, load_i64(profile + stage) + time - load_i64(profile + LAST))
            store_i64(profile + LAST, time)
    return stop


@jit
def _norm(model, x, gain, m, row, quantize):
    """RMSNorm of the residual row m into NORMED's (and the records') row. -> not finite"""
    ld = load_i64(model + LD_DIM)
    out = load_i64(model + NORMED) + 4 * row * ld
    bad = rms_norm(x + 4 * m * ld, gain, load_i64(model + DIM), ld, load_f32(model + EPS), out)
    if quantize:
        quantize_row(out, ld, row, load_i64(model + RECORDS))
    return bad


@compiled("int64(int64, int64, int64, int64)")
def forward(tid, n_threads, team, step):
    """Layers [FIRST_LAYER, LAST_LAYER) on the residual stream X [M, LD_DIM], then, if tokens are WANTED, the final norm and their LOGITS.

    Returns 0 (a barrier's abort is told by the team), and leaves 1 + 8 * layer + stage in NOT_FINITE if NaN or infinity came up (the first to see it).
    """
    model, n_tokens = load_i64(step + MODEL), load_i64(step + N_TOKENS)
    n_heads, n_kv, head_dim = load_i64(model + N_HEADS), load_i64(model + N_KV_HEADS), load_i64(model + HEAD_DIM)
    v_dim, rope_dim, item, group = load_i64(model + V_DIM), load_i64(model + ROPE_DIM), load_i64(model + KV_ITEM), n_heads // n_kv
    ld, ld_att, ld_kv, ld_ffn = load_i64(model + LD_DIM), load_i64(model + LD_ATT), load_i64(model + LD_KV), load_i64(model + LD_FFN)
    x, normed, records, addend = load_i64(model + X), load_i64(model + NORMED), load_i64(model + RECORDS), load_i64(model + ADDEND)
    q, k, v, att = load_i64(model + Q), load_i64(model + K), load_i64(model + V), load_i64(model + ATT)
    gate, up = load_i64(model + GATE), load_i64(model + UP)
    positions, page_tables = load_i64(step + POSITIONS), load_i64(step + PAGE_TABLES)
    rope_table, scale = load_i64(model + ROPE_TABLE), load_f32(model + SCALE)
    scratch = load_i64(model + SCRATCH) + tid * load_i64(model + SCRATCH_BYTES)
    first_layer, last_layer = load_i64(step + FIRST_LAYER), load_i64(step + LAST_LAYER)

    for layer in range(first_layer, last_layer):
        here = load_i64(model + LAYERS) + layer * LAYER_BYTES
        kv_offset, code = layer * load_i64(model + LAYER_KV_BYTES), 1 + 8 * layer

        # the last layer's ffn output joins the residual stream; norm
        m = next_tile(team, 0, 1)
        while m < n_tokens:
            if layer > first_layer:
                add_rows(x + 4 * m * ld, addend + 4 * m * ld, ld)
            if _norm(model, x, load_i64(here + ATTN_NORM), m, m, load_i64(here + QUANTIZE_QKV)):
                compare_and_swap(step + NOT_FINITE, 0, code)
            m = next_tile(team, 0, 1)
        if _end(n_threads, team, step, P_ATTENTION_NORM):
            return 0

        _matmul(here + WQ, n_threads, team, 0, model, normed, ld, q, ld_att, n_tokens)
        _matmul(here + WK, n_threads, team, 1, model, normed, ld, k, ld_kv, n_tokens)
        _matmul(here + WV, n_threads, team, 2, model, normed, ld, v, ld_kv, n_tokens)
        if _end(n_threads, team, step, P_QKV):
            return 0

        # positions, then into the KV cache
        m = next_tile(team, 0, 1)
        while m < n_tokens:
            position = load_i64(positions + 8 * m)
            angles = rope_table + 4 * position * rope_dim
            rope(q + 4 * m * ld_att, n_heads, head_dim, rope_dim, angles)
            rope(k + 4 * m * ld_kv, n_kv, head_dim, rope_dim, angles)
            page = load_i64(load_i64(page_tables + 8 * m) + 8 * (position // PAGE))
            if append_kv(k + 4 * m * ld_kv, v + 4 * m * ld_kv, n_kv, head_dim, v_dim, position % PAGE, page + kv_offset, item):
                compare_and_swap(step + NOT_FINITE, 0, code + 5)
            m = next_tile(team, 0, 1)
        if _end(n_threads, team, step, P_KV):
            return 0

        work = next_tile(team, 0, 1)
        while work < load_i64(step + N_BLOCKS) * n_kv:
            block = load_i64(step + BLOCKS) + 16 * (work // n_kv)
            m0, m1 = load_i64(block), load_i64(block + 8)
            attend_block(q, ld_att, m0, m1, load_i64(positions + 8 * m0), load_i64(page_tables + 8 * m0), kv_offset, n_kv, work % n_kv, group,
                         head_dim, v_dim, item, scale, att, ld_att, scratch)
            work = next_tile(team, 0, 1)
        if _end(n_threads, team, step, P_ATTENTION):
            return 0

        if load_i64(here + QUANTIZE_ATT):
            m = next_tile(team, 0, 1)
            while m < n_tokens:
                if quantize_row(att + 4 * m * ld_att, ld_att, m, records) >= INFINITY_BITS:
                    compare_and_swap(step + NOT_FINITE, 0, code + 1)
                m = next_tile(team, 0, 1)
            if _end(n_threads, team, step, P_QUANTIZE):
                return 0
        _matmul(here + WO, n_threads, team, 0, model, att, ld_att, addend, ld, n_tokens)
        if _end(n_threads, team, step, P_ATTENTION_OUTPUT):
            return 0

        m = next_tile(team, 0, 1)
        while m < n_tokens:
            add_rows(x + 4 * m * ld, addend + 4 * m * ld, ld)
            if _norm(model, x, load_i64(here + FFN_NORM), m, m, load_i64(here + QUANTIZE_FFN)):
                compare_and_swap(step + NOT_FINITE, 0, code + 2)
            m = next_tile(team, 0, 1)
        if _end(n_threads, team, step, P_FFN_NORM):
            return 0

        _matmul(here + W_GATE, n_threads, team, 0, model, normed, ld, gate, ld_ffn, n_tokens)
        _matmul(here + W_UP, n_threads, team, 1, model, normed, ld, up, ld_ffn, n_tokens)
        if _end(n_threads, team, step, P_GATE_UP):
            return 0

        m = next_tile(team, 0, 1)
        while m < n_tokens:
            silu_mul(gate + 4 * m * ld_ffn, up + 4 * m * ld_ffn, ld_ffn)
            if load_i64(here + QUANTIZE_DOWN) and quantize_row(gate + 4 * m * ld_ffn, ld_ffn, m, records) >= INFINITY_BITS:
                compare_and_swap(step + NOT_FINITE, 0, code + 3)
            m = next_tile(team, 0, 1)
        if _end(n_threads, team, step, P_SILU_MUL):
            return 0

        _matmul(here + W_DOWN, n_threads, team, 0, model, gate, ld_ffn, addend, ld, n_tokens)
        if _end(n_threads, team, step, P_DOWN):
            return 0

    if last_layer > first_layer:
        m = next_tile(team, 0, 1)
        while m < n_tokens:
            add_rows(x + 4 * m * ld, addend + 4 * m * ld, ld)
            m = next_tile(team, 0, 1)
        if _end(n_threads, team, step, P_LAST_ADD):
            return 0

    n_wanted, wanted = load_i64(step + N_WANTED), load_i64(step + WANTED)
    if n_wanted > 0:
        i = next_tile(team, 0, 1)
        while i < n_wanted:
            m = load_i64(wanted + 8 * i)
            if _norm(model, x, load_i64(model + OUTPUT_NORM), m, i, load_i64(model + QUANTIZE_OUTPUT)):
                compare_and_swap(step + NOT_FINITE, 0, 1 + 8 * last_layer + 4)
            i = next_tile(team, 0, 1)
        if _end(n_threads, team, step, P_OUTPUT_NORM):
            return 0
        output = load_i64(model + OUTPUT)
        _matmul(output, n_threads, team, 0, model, normed, ld, load_i64(step + LOGITS), load_i64(step + LD_LOGITS), n_wanted)
    return 0
