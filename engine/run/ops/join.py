"""The residual stream: what sublayers made joins it, and the next sublayer's norm is taken. Norm and records are one op; few tokens cost no barrier (OWN).

    x += post_norm(addend) * factor  [twice, if two sublayers ran side by side];  normed = norm(x);  records = quantise(normed)

A range of layers begins with a stream that nothing waits to join (the first stage of a run adds nothing) and ends with `close`, which adds what is left.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.activations import GROUP, quantize_row
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import add_rows, jit, rms_norm
from ....kernels.simd import load_f32, load_i64
from ....kernels.team import next_tile
from .common import (
    ENTRY,
    FIRST,
    HEADER,
    JOIN,
    LAST,
    LD_X,
    N_TOKENS,
    N_WANTED,
    WANTED,
    X,
    copy,
    end,
    end_alone,
    normed_records,
    normed_rows,
    own_memory,
    spoiled,
    stream,
)

(ADDEND, POST_GAIN, ADDEND_2, POST_GAIN_2, GAIN, DIM, EPS, MAKE_RECORDS, KEEP) = range(HEADER, HEADER + 8 * 9, 8)
"""ADDEND, ADDEND_2: addresses of float32 [tokens, LD_X], or 0; the POST_GAINs: of their norms' gains, or 0. GAIN: the norm's, or 0: x itself goes on. MAKE_RECORDS,
KEEP: whether some matrix reads records, or rows, of the result: rows that nobody reads share a place in the first-level cache."""
WORDS = 9


@jit
def _add(stage, x, addend, gain, room, ld):
    """One row of a sublayer's output joins. room: a row that may be written. -> not finite"""
    bad = False
    if gain != 0:
        bad = rms_norm(addend, gain, load_i64(stage + DIM), ld, load_f32(stage + EPS), room)
        addend = room
    add_rows(x, addend, ld)
    return bad


@jit
def add_pending(stage, x, m, room, ld):
    """Row m of whatever a stage's words name joins the residual row at x. -> not finite"""
    bad = False
    if load_i64(stage + ADDEND) != 0:
        bad = _add(stage, x, load_i64(stage + ADDEND) + 4 * m * ld, load_i64(stage + POST_GAIN), room, ld)
    if load_i64(stage + ADDEND_2) != 0:
        bad |= _add(stage, x, load_i64(stage + ADDEND_2) + 4 * m * ld, load_i64(stage + POST_GAIN_2), room, ld)
    return bad


@jit
def norm_row(stage, x, ld, normed, row, n_rows, records):
    """Norm of the residual row at x into the row at `normed` and, unless `records` is 0, its records as row `row` of n_rows. -> not finite"""
    gain, bad = load_i64(stage + GAIN), False
    if gain != 0:
        bad = rms_norm(x, gain, load_i64(stage + DIM), ld, load_f32(stage + EPS), normed)
    else:
        copy(x, normed, ld)
    if records != 0:
        quantize_row(normed, ld, row, n_rows, records)
    return bad


@jit
def _rows(stage, x, m0, m1, n_tokens, ld, pending, normed, ld_normed, records):
    """Rows [m0, m1). ld_normed: floats to the next normed row, or 0. -> not finite"""
    bad = False
    for m in range(m0, m1):
        target = normed + 4 * (m - m0) * ld_normed
        if pending:
            bad |= add_pending(stage, x + 4 * m * ld, m, target, ld)
        bad |= norm_row(stage, x + 4 * m * ld, ld, target, m, n_tokens, records)
    return bad


@compiled(ENTRY)
def join(tid, n_threads, team, step, stage):
    """All tokens' rows: a work counter hands some at a time, unless they are every thread's own."""
    n_tokens, ld, own = load_i64(step + N_TOKENS), load_i64(step + LD_X), own_memory(step, tid)
    x, normed, bad = stream(step, own), normed_rows(step, own), False
    records = normed_records(step, own) if load_i64(stage + MAKE_RECORDS) else 0
    pending = stage != load_i64(step + FIRST)
    if own != 0:
        if _rows(stage, x, 0, n_tokens, n_tokens, ld, pending, normed, ld, records):
            spoiled(step, stage, 0)
        return end_alone(tid, step, stage)
    ld_normed = ld if load_i64(stage + KEEP) else 0
    rows = max(1, min(GROUP, n_tokens // n_threads))  # of a piece of work: threads that write into the same records slow each other down
    m0 = next_tile(team, 0, rows)
    while m0 < n_tokens:
        bad |= _rows(stage, x, m0, min(m0 + rows, n_tokens), n_tokens, ld, pending, normed + 4 * m0 * ld, ld_normed, records)
        m0 = next_tile(team, 0, rows)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def close(tid, n_threads, team, step, stage):
    """A run's end: what its last stage left joins the residual stream, which is handed back to X unless logits are all that is wanted."""
    n_tokens, ld, own, ending = load_i64(step + N_TOKENS), load_i64(step + LD_X), own_memory(step, tid), load_i64(step + JOIN)
    ran, x, bad = load_i64(step + LAST) > load_i64(step + FIRST), stream(step, own), False
    if own != 0:
        if ran:
            for m in range(n_tokens):
                bad |= add_pending(ending, x + 4 * m * ld, m, normed_rows(step, own), ld)
        if load_i64(step + N_WANTED) == 0 and tid == 0:
            copy(x, load_i64(step + X), n_tokens * ld)
        if bad:
            spoiled(step, stage, 0)
        return 0
    if not ran:
        return 0
    m = next_tile(team, 0, 1)
    while m < n_tokens:
        bad |= add_pending(ending, x + 4 * m * ld, m, normed_rows(step, own) + 4 * m * ld, ld)
        m = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def wanted_norm(tid, n_threads, team, step, stage):
    """The final norm, of the tokens whose logits are wanted: row i of NORMED and RECORDS is theirs."""
    n_wanted, wanted, ld, own = load_i64(step + N_WANTED), load_i64(step + WANTED), load_i64(step + LD_X), own_memory(step, tid)
    x, normed, bad = stream(step, own), normed_rows(step, own), False
    records = normed_records(step, own) if load_i64(stage + MAKE_RECORDS) else 0
    if own != 0:
        for i in range(n_wanted):
            bad |= norm_row(stage, x + 4 * ld * load_i64(wanted + 8 * i), ld, normed + 4 * i * ld, i, n_wanted, records)
        if bad:
            spoiled(step, stage, 0)
        return end_alone(tid, step, stage)
    if n_wanted == 0:
        return 0
    i = next_tile(team, 0, 1)
    while i < n_wanted:
        bad |= norm_row(stage, x + 4 * ld * load_i64(wanted + 8 * i), ld, normed + 4 * i * ld, i, n_wanted, records)
        i = next_tile(team, 0, 1)
    if bad:
        spoiled(step, stage, 0)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "add" (Addends), "norm" (Norm or None), "dim", "records", "rows"."""
    args = stage.args
    for addend, to, gain in zip(args.get("add", ()), (ADDEND, ADDEND_2), (POST_GAIN, POST_GAIN_2)):
        words[to // 8], words[gain // 8] = layout.address(addend.buffer), layout.gain(addend.norm)
    norm = args.get("norm")
    eps = norm.eps if norm else next((a.norm.eps for a in args.get("add", ()) if a.norm), 0.0)
    words[GAIN // 8], words[DIM // 8], words[MAKE_RECORDS // 8], words[KEEP // 8] = layout.gain(norm), args["dim"], args.get("records", 0), args.get("rows", 1)
    words.view(np.float32)[EPS // 4] = eps
