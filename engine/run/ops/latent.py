"""Multi-head latent attention (DeepSeek V2): what lies between its projections and attention over the one latent head.

    latents     kv row [c | k]  ─►  K = [k | norm(c)], V = norm(c);    the queries' latent row is normed in place, and its records made
    by_head     each head's part of a row, times its own matrix: queries into the space of the latents, results out of it

A head's matrix is one of a stack, as an expert's is (experts.py). Its rows are gathered in the thread's scratch, some tokens at a time, for float rows and
records alike; the matmul's bits don't depend on how many go together.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.activations import BLOCK, INFINITY_BITS, quantize_row, record_bytes
from ....kernels.compile_cache import compiled
from ....kernels.matmul import call_kernel
from ....kernels.norms import head_norm
from ....kernels.simd import load_f32, load_i64, store_f32
from ....kernels.team import next_tile
from .common import COLUMNS, ENTRY, FLOAT_INPUT, HEADER, KERNEL, MATRIX_BYTES, N_TOKENS, SCRATCH, SCRATCH_BYTES, TILES, end, spoiled

TOKENS = 32
"""Tokens of a piece of work of `by_head`."""

(KV, LD_KV, K, LD_K, V, LD_V, LATENT, TURNED, GAIN, Q, LD_Q, Q_COLUMNS, Q_GAIN, RECORDS, EPS) = range(HEADER, HEADER + 8 * 15, 8)
"""KV: address of float32 [tokens, LD_KV]: LATENT numbers, then TURNED. K, V: of float32 [tokens, LD_K] and [tokens, LD_V]. GAIN: of the latents' norm. Q: of
float32 [tokens, LD_Q], Q_COLUMNS each, or 0; Q_GAIN: of their norm; RECORDS: of their records, or 0."""
WORDS = 15

MATRIX, AT = HEADER, HEADER + MATRIX_BYTES
"""Of `by_head`: a head's matrix, and the address of int64 [HEADS], where each one's weights are."""
(HEADS, IN, LD_IN, IN_STRIDE, OUT, LD_OUT, OUT_STRIDE, OUT_FIRST, KEEP) = range(AT + 8, AT + 8 * 10, 8)
"""IN: address of float32 [tokens, LD_IN], heads IN_STRIDE numbers apart, of which the matrix reads the first COLUMNS; OUT: of float32 [tokens, LD_OUT], heads
OUT_STRIDE apart, whose results begin at OUT_FIRST. KEEP: so many numbers after a head's COLUMNS are copied to the beginning of its part of OUT."""
HEAD_WORDS = (AT + 8 * 10 - HEADER) // 8


def scratch_bytes(columns: int) -> int:
    """Of a thread, for heads of so many columns."""
    ld = -(-columns // BLOCK) * BLOCK
    return TOKENS * 4 * ld + record_bytes(TOKENS, ld)


@compiled(ENTRY)
def latents(tid, n_threads, team, step, stage):
    """A token a piece of work. Faults: the latents, the queries' latents."""
    n_tokens, n, turned, eps, m = load_i64(step + N_TOKENS), load_i64(stage + LATENT), load_i64(stage + TURNED), load_f32(stage + EPS), next_tile(team, 0, 1)
    while m < n_tokens:
        row, k, v = load_i64(stage + KV) + 4 * m * load_i64(stage + LD_KV), load_i64(stage + K) + 4 * m * load_i64(stage + LD_K), load_i64(stage + V)
        v += 4 * m * load_i64(stage + LD_V)
        for d in range(n):
            store_f32(v + 4 * d, load_f32(row + 4 * d))
        for d in range(turned):
            store_f32(k + 4 * d, load_f32(row + 4 * (n + d)))
        if head_norm(v, load_i64(stage + GAIN), n, eps):
            spoiled(step, stage, 0)
        for d in range(n):
            store_f32(k + 4 * (turned + d), load_f32(v + 4 * d))
        q, ld = load_i64(stage + Q), load_i64(stage + LD_Q)
        if q != 0:
            q += 4 * m * ld
            if head_norm(q, load_i64(stage + Q_GAIN), load_i64(stage + Q_COLUMNS), eps):
                spoiled(step, stage, 1)
            if load_i64(stage + RECORDS) != 0 and quantize_row(q, ld, m, n_tokens, load_i64(stage + RECORDS)) >= INFINITY_BITS:
                spoiled(step, stage, 1)
        m = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def by_head(tid, n_threads, team, step, stage):
    """A piece of work is a head and TOKENS tokens. Faults: the rows."""
    n_tokens, heads, columns, keep = load_i64(step + N_TOKENS), load_i64(stage + HEADS), load_i64(stage + MATRIX + COLUMNS), load_i64(stage + KEEP)
    ld, floats = (columns + BLOCK - 1) // BLOCK * BLOCK, load_i64(stage + MATRIX + FLOAT_INPUT) != 0
    room = load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES)
    records, pieces, at = room + TOKENS * 4 * ld, heads * ((n_tokens + TOKENS - 1) // TOKENS), next_tile(team, 0, 1)
    while at < pieces:
        head, m0 = at % heads, at // heads * TOKENS
        n = min(TOKENS, n_tokens - m0)
        out = load_i64(stage + OUT) + 4 * (m0 * load_i64(stage + LD_OUT) + head * load_i64(stage + OUT_STRIDE))
        for m in range(n):
            row, to = load_i64(stage + IN) + 4 * ((m0 + m) * load_i64(stage + LD_IN) + head * load_i64(stage + IN_STRIDE)), room + 4 * m * ld
            for d in range(ld):
                store_f32(to + 4 * d, load_f32(row + 4 * d) if d < columns else np.float32(0.0))
            for d in range(keep):
                store_f32(out + 4 * (m * load_i64(stage + LD_OUT) + d), load_f32(row + 4 * (columns + d)))
            if not floats and quantize_row(to, ld, m, n, records) >= INFINITY_BITS:
                spoiled(step, stage, 0)
        call_kernel(load_i64(stage + MATRIX + KERNEL), load_i64(load_i64(stage + AT) + 8 * head), columns, 0, load_i64(stage + MATRIX + TILES),
                    room if floats else records, ld, out + 4 * load_i64(stage + OUT_FIRST), load_i64(stage + LD_OUT), n)
        at = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "attention" (Latent), "records" (whether the matrix of queries reads some)."""
    a = stage.args["attention"]
    turned = a.head_dim - a.value_dim
    for word, value in (
        (KV, layout.address("kv_latent")), (LD_KV, layout.columns("kv_latent")), (K, layout.address("k")), (LD_K, -(-a.head_dim // 32) * 32),
        (V, layout.address("v")), (LD_V, -(-a.value_dim // 32) * 32), (LATENT, a.value_dim), (TURNED, turned), (GAIN, layout.gain(a.latent_norm)),
    ):
        words[word // 8] = value
    if a.q_latent:
        words[Q // 8], words[LD_Q // 8], words[Q_COLUMNS // 8] = layout.address("q_latent"), -(-a.q_latent.rows // 32) * 32, a.q_latent.rows
        words[Q_GAIN // 8], words[RECORDS // 8] = layout.gain(a.q_latent_norm), layout.address("records") if stage.args["records"] else 0
    words.view(np.float32)[EPS // 4] = a.latent_norm.eps


def fill_by_head(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "matrix" (a stack of them, one a head), the buffers "rows" and "out" and how many "columns" they have, "strides" (numbers from head to head, of
    both), "first" (of a head's part of the result), "keep"."""
    a, m = stage.args, stage.args["matrix"]
    words[MATRIX // 8:(MATRIX + MATRIX_BYTES) // 8] = layout.matrix(m)
    words[AT // 8] = layout.experts_at(m)
    for word, value in (
        (HEADS, m.experts), (IN, layout.address(a["rows"])), (LD_IN, -(-a["columns"][0] // 32) * 32), (IN_STRIDE, a["strides"][0]),
        (OUT, layout.address(a["out"])), (LD_OUT, -(-a["columns"][1] // 32) * 32), (OUT_STRIDE, a["strides"][1]), (OUT_FIRST, a["first"]), (KEEP, a["keep"]),
    ):
        words[word // 8] = value
