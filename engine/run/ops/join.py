"""The residual stream: what sublayers made joins it, and the next sublayer's norm is taken. Norm and records are one op; few tokens cost no barrier (OWN).

    x += factor * post_norm(addend)  [twice, if two ran side by side];  x *= scale  [where a layer has one];  normed = norm(x);  records = quantise(normed)

A range of layers begins with a stream that nothing waits to join (the first stage of a run adds nothing) and ends with `close`, which adds what is left.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.activations import GROUP, quantize_row
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import add_rows, jit, rms_norm
from ....kernels.norms import add_scaled, layer_norm, scale_row
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

(GAIN, BIAS, LAYER_NORM, EPS, DIM, MAKE_RECORDS, KEEP, ADDEND, POST_GAIN, POST_BIAS, FACTOR, ADDEND_2, POST_GAIN_2, POST_BIAS_2, FACTOR_2,
 REPLACES, STREAM_SCALE) = range(HEADER, HEADER + 8 * 17, 8)
"""GAIN, BIAS: addresses of the norm's, or 0 (no GAIN: x itself goes on). LAYER_NORM: whether these norms are LayerNorm, not RMSNorm. MAKE_RECORDS, KEEP:
whether some matrix reads records, or rows, of the result: rows that nobody reads share a place in the first-level cache. ADDEND: address of
float32 [tokens, LD_X], or 0; POST_GAIN, POST_BIAS: of its own norm, or 0; FACTOR: float32. The same for ADDEND_2.
REPLACES: whether the normed row becomes the residual one, too. STREAM_SCALE: address of the float32 that the stream is multiplied by when all has joined it,
or 0."""
WORDS = 17
_NEXT = ADDEND_2 - ADDEND


@jit
def _norm(stage, x, gain, bias, ld, out):
    """-> not finite"""
    if load_i64(stage + LAYER_NORM) != 0:
        return layer_norm(x, gain, bias, load_i64(stage + DIM), ld, load_f32(stage + EPS), out)
    return rms_norm(x, gain, load_i64(stage + DIM), ld, load_f32(stage + EPS), out)


@jit
def _add(stage, at, x, m, room, ld):
    """Row m of one sublayer's output joins. at: how far its words are from the first's; room: a row that may be written. -> not finite"""
    words, bad = stage + at, False
    addend, gain, factor = load_i64(words + ADDEND), load_i64(words + POST_GAIN), load_f32(words + FACTOR)
    if addend == 0:
        return False
    addend += 4 * m * ld
    if gain != 0:
        bad = _norm(stage, addend, gain, load_i64(words + POST_BIAS), ld, room)
        addend = room
    if factor == np.float32(1.0):
        add_rows(x, addend, ld)
    else:
        add_scaled(x, addend, factor, ld)
    return bad


@jit
def add_pending(stage, x, m, room, ld):
    """Row m of whatever a stage's words name joins the residual row at x. -> not finite"""
    bad = _add(stage, 0, x, m, room, ld)
    bad |= _add(stage, _NEXT, x, m, room, ld)
    scale = load_i64(stage + STREAM_SCALE)
    if scale != 0:
        scale_row(x, load_f32(scale), ld)
    return bad


@jit
def norm_row(stage, x, ld, normed, row, n_rows, records):
    """Norm of the residual row at x into the row at `normed` and, unless `records` is 0, its records as row `row` of n_rows. -> not finite"""
    gain, bad = load_i64(stage + GAIN), False
    if gain != 0:
        bad = _norm(stage, x, gain, load_i64(stage + BIAS), ld, normed)
    else:
        copy(x, normed, ld)
    if load_i64(stage + REPLACES) != 0:
        copy(normed, x, ld)
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
    """args: "add" (Addends), "norm" (Norm or None), "dim", "records", "rows", "replaces"."""
    args, floats = stage.args, words.view(np.float32)
    norm, addends = args.get("norm"), args.get("add", ())
    for addend, at in zip(addends, (0, _NEXT)):
        words[(ADDEND + at) // 8], floats[(FACTOR + at) // 4] = layout.address(addend.buffer), addend.factor
        words[(POST_GAIN + at) // 8], words[(POST_BIAS + at) // 8] = layout.gain(addend.norm), layout.bias(addend.norm)
    scales = [a.stream_scale for a in addends if a.stream_scale]
    words[STREAM_SCALE // 8] = layout.vector(scales[-1] if scales else "")
    norms = [n for n in (norm, *(a.norm for a in addends)) if n]
    assert len(addends) <= 2 and len({(n.kind, n.eps) for n in norms}) <= 1, "norms of one stage are of one kind"
    words[GAIN // 8], words[BIAS // 8], words[DIM // 8] = layout.gain(norm), layout.bias(norm), args["dim"]
    words[MAKE_RECORDS // 8], words[KEEP // 8], words[REPLACES // 8] = args.get("records", 0), args.get("rows", 1), args.get("replaces", False)
    if norms:
        words[LAYER_NORM // 8], floats[EPS // 4] = norms[0].kind == "layer", norms[0].eps
