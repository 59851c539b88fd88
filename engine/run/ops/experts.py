"""The experts' matrices: gate and up with the activation, down, and the sum of a token's experts. Few tokens read only the experts that they chose.

    slots' rows or records ─► gate * up ─► records (or rows) of the slots ─► down ─► float32 [slots, dim] ─► each token's sum in the order of rank

A piece of work is some tiles of one expert, for all tokens that chose it; the kernels are those of whole matrices. With the open form gate and up leave their
rows by token and rank in a site's buffer, from which `expert_take` gathers them.
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ....kernels.activations import INFINITY_BITS, RECORD, quantize_part, quantize_row
from ....kernels.compile_cache import Compiled, compiled
from ....kernels.elementwise import add_rows, jit
from ....kernels.gates import ROWS
from ....kernels.matmul import TILES_A_GROUP, call_kernel
from ....kernels.route import ACTIVE, COUNT, FIRST, FIRST_GROUP, LIST_N_ACTIVE, by_expert, origin_of, slot_of
from ....kernels.simd import fma, load_f32, load_f32x16, load_i64, splat_f32, store_f32x16, vsum
from ....kernels.team import next_tile
from ....kernels.vecmath import vexp
from .common import BIAS as MATRIX_BIAS
from .common import (
    COLUMNS,
    ENTRY,
    FLOAT_INPUT,
    HEADER,
    KERNEL,
    LD_X,
    LEAST,
    MANY_TOKENS,
    MATRIX_BYTES,
    N_TOKENS,
    SCRATCH,
    SCRATCH_BYTES,
    TILES,
    copy,
    end,
    normed_records,
    normed_rows,
    own_memory,
    spoiled,
    take,
)

COMPACT = 4
"""Blocks of 32 columns of a piece of gate and up: what a thread has of them for up to 512 tokens stays in its second-level cache."""
PIECE = 32 * COMPACT
EXPERT_MATRIX = MATRIX_BYTES + 8
"""Bytes of a matrix of experts: a matrix's words, then the address of int64 [experts], where each one's weights are. Its bias is [experts, 16 * TILES]."""
_AT = MATRIX_BYTES

(LISTS, N_EXPERTS, N_USED) = range(HEADER, HEADER + 24, 8)
_OWN = HEADER + 24

(E_GATE, E_UP) = (_OWN, _OWN + EXPERT_MATRIX)
(IN_ROWS, IN_RECORDS, WEIGH, OUT, LD, TO_RECORDS, BY_RANK) = range(_OWN + 2 * EXPERT_MATRIX, _OWN + 2 * EXPERT_MATRIX + 8 * 7, 8)
"""Of `expert_gated`. IN_ROWS, IN_RECORDS: of the slots (route.py); WEIGH: also of a lone token. OUT: records if TO_RECORDS, else float32 [slots, LD], or
[tokens, N_USED * LD] if BY_RANK. Without a gate, `up` stands in E_GATE."""
GATED_WORDS = (_OWN + 2 * EXPERT_MATRIX + 8 * 7 - HEADER) // 8

E_DOWN = _OWN
(D_ROWS, D_RECORDS, D_LD, D_OUT, D_LD_OUT) = range(_OWN + EXPERT_MATRIX, _OWN + EXPERT_MATRIX + 8 * 5, 8)
DOWN_WORDS = (_OWN + EXPERT_MATRIX + 8 * 5 - HEADER) // 8

(T_SOURCE, T_LD, T_ROWS, T_RECORDS) = range(_OWN, _OWN + 32, 8)
TAKE_WORDS = (_OWN + 32 - HEADER) // 8

(S_ROWS, S_WEIGHTS, S_LD_USED, S_WEIGHED, S_OUT, S_SHARED, S_GATE) = range(_OWN, _OWN + 56, 8)
"""S_WEIGHTS: float32 [tokens, S_LD_USED]; S_WEIGHED: whether they count already. S_SHARED: address of the shared expert's rows, or 0; S_GATE: of the vector
that says how much of them, or 0."""
SUM_WORDS = (_OWN + 56 - HEADER) // 8


@jit
def _expert_piece(matrix, expert, tile0, tile1, x, ldx, out, ldo, n):
    """Tiles [tile0, tile1) of one expert's matrix for n rows; out: address of column 16 * tile0 of the first."""
    call_kernel(load_i64(matrix + KERNEL), load_i64(load_i64(matrix + _AT) + 8 * expert), load_i64(matrix + COLUMNS), tile0, tile1, x, ldx, out - 64 * tile0,
                ldo, n)
    bias = load_i64(matrix + MATRIX_BIAS)
    if bias != 0:
        bias += 64 * (load_i64(matrix + TILES) * expert + tile0)
        for m in range(n):
            add_rows(out + 4 * m * ldo, bias, 16 * (tile1 - tile0))


@cache
def expert_gated(activation: str) -> Compiled:
    """The op for one activation (kernels/gates.py)."""
    activate = ROWS[activation]

    @jit
    def some_columns(step, stage, expert, pair0, pair1, x_records, x_rows, room):
        """Blocks [pair0, pair1) of 32 columns of one expert, at most COMPACT of them. -> largest |x| as bits"""
        lists, n_experts, ld_x = load_i64(stage + LISTS), load_i64(stage + N_EXPERTS), load_i64(step + LD_X)
        n, first = load_i64(by_expert(lists, n_experts, COUNT, expert)), load_i64(by_expert(lists, n_experts, FIRST, expert))
        group, ld, out, worst = load_i64(by_expert(lists, n_experts, FIRST_GROUP, expert)), load_i64(stage + LD), load_i64(stage + OUT), 0
        gate, up, plain = room, room + 4 * PIECE * n, load_i64(stage + E_UP + KERNEL) == 0
        tile0, tile1 = 2 * pair0, min(2 * pair1, load_i64(stage + E_GATE + TILES))
        for i in range(1 if plain else 2):
            matrix, to = stage + (E_UP if i else E_GATE), up if i else gate
            x = x_rows if load_i64(matrix + FLOAT_INPUT) else x_records
            _expert_piece(matrix, expert, tile0, tile1, x, ld_x, to, PIECE, n)
            if tile1 < 2 * pair1:  # the matrix ends in the middle of a block
                for m in range(n):
                    store_f32x16(to + 4 * (m * PIECE + 16 * (tile1 - tile0)), splat_f32(0.0))
        records, columns = out + group * (ld // 32) * RECORD, 32 * (pair1 - pair0)
        for m in range(n):
            row = gate + 4 * m * PIECE
            activate(row, 0 if plain else up + 4 * m * PIECE, columns)
            if load_i64(stage + TO_RECORDS) != 0:
                worst = max(worst, quantize_part(row - 4 * 32 * pair0, 32 * pair0, 32 * pair1, ld, m, n, records))
            elif load_i64(stage + BY_RANK) != 0:
                copy(row, out + 4 * (load_i64(origin_of(lists, n_experts, first + m)) * ld + 32 * pair0), columns)
            else:
                copy(row, out + 4 * ((first + m) * ld + 32 * pair0), columns)
        return worst

    def expert_gated(tid, n_threads, team, step, stage):
        """Faults: the activation."""
        n_tokens, own, ld_x, worst = load_i64(step + N_TOKENS), own_memory(step, tid), load_i64(step + LD_X), 0
        lists, n_experts, pairs = load_i64(stage + LISTS), load_i64(stage + N_EXPERTS), load_i64(stage + LD) // 32
        room = load_i64(step + SCRATCH) + tid * load_i64(step + SCRATCH_BYTES)
        gathered = n_tokens > 1 or load_i64(stage + WEIGH) != 0
        pieces = load_i64(lists + 8 * LIST_N_ACTIVE) * pairs
        most, turn = TILES_A_GROUP if n_tokens >= MANY_TOKENS else pieces, 0
        while True:
            turn, at, last = take(team, 0, tid, n_threads, turn, pieces, LEAST, most)
            if turn == n_threads:
                break
            while at < last:
                expert = load_i64(by_expert(lists, n_experts, ACTIVE, at // pairs))
                pair0 = at % pairs
                pair1 = min(pairs, min(pair0 + COMPACT, pair0 + last - at))
                records, rows = normed_records(step, own), normed_rows(step, own)
                if gathered:
                    records = load_i64(stage + IN_RECORDS) + load_i64(by_expert(lists, n_experts, FIRST_GROUP, expert)) * (ld_x // 32) * RECORD
                    rows = load_i64(stage + IN_ROWS) + 4 * load_i64(by_expert(lists, n_experts, FIRST, expert)) * ld_x
                worst = max(worst, some_columns(step, stage, expert, pair0, pair1, records, rows, room))
                at += pair1 - pair0
        if worst >= INFINITY_BITS:
            spoiled(step, stage, 0)
        return end(n_threads, team, step, stage)
    expert_gated.__name__ = expert_gated.__qualname__ = f"expert_gated_{activation}"
    return compiled(ENTRY)(expert_gated)


@compiled(ENTRY)
def expert_take(tid, n_threads, team, step, stage):
    """The activation's rows by token and rank, to rows or records of slots. Faults: the activation."""
    lists, n_experts = load_i64(stage + LISTS), load_i64(stage + N_EXPERTS)
    source, ld, rows, records = load_i64(stage + T_SOURCE), load_i64(stage + T_LD), load_i64(stage + T_ROWS), load_i64(stage + T_RECORDS)
    i = next_tile(team, 0, 1)
    while i < load_i64(lists + 8 * LIST_N_ACTIVE):
        expert = load_i64(by_expert(lists, n_experts, ACTIVE, i))
        n, first = load_i64(by_expert(lists, n_experts, COUNT, expert)), load_i64(by_expert(lists, n_experts, FIRST, expert))
        target = records + load_i64(by_expert(lists, n_experts, FIRST_GROUP, expert)) * (ld // 32) * RECORD
        for m in range(n):
            row = source + 4 * load_i64(origin_of(lists, n_experts, first + m)) * ld
            if records == 0:
                copy(row, rows + 4 * (first + m) * ld, ld)
            elif quantize_row(row, ld, m, n, target) >= INFINITY_BITS:
                spoiled(step, stage, 0)
        i = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


@compiled(ENTRY)
def expert_down(tid, n_threads, team, step, stage):
    """Each slot's row of its expert's result."""
    n_tokens, lists, n_experts, matrix = load_i64(step + N_TOKENS), load_i64(stage + LISTS), load_i64(stage + N_EXPERTS), stage + E_DOWN
    tiles, ld, ldo, floats = load_i64(matrix + TILES), load_i64(stage + D_LD), load_i64(stage + D_LD_OUT), load_i64(matrix + FLOAT_INPUT) != 0
    pieces, turn = load_i64(lists + 8 * LIST_N_ACTIVE) * tiles, 0
    most = TILES_A_GROUP if n_tokens >= MANY_TOKENS else pieces
    while True:
        turn, at, last = take(team, 0, tid, n_threads, turn, pieces, LEAST, most)
        if turn == n_threads:
            break
        while at < last:
            expert, tile0 = load_i64(by_expert(lists, n_experts, ACTIVE, at // tiles)), at % tiles
            tile1 = min(tiles, tile0 + last - at)
            n, first = load_i64(by_expert(lists, n_experts, COUNT, expert)), load_i64(by_expert(lists, n_experts, FIRST, expert))
            x = load_i64(stage + D_RECORDS) + load_i64(by_expert(lists, n_experts, FIRST_GROUP, expert)) * (ld // 32) * RECORD
            if floats:
                x = load_i64(stage + D_ROWS) + 4 * first * ld
            _expert_piece(matrix, expert, tile0, tile1, x, ld, load_i64(stage + D_OUT) + 4 * (first * ldo + 16 * tile0), ldo, n)
            at += tile1 - tile0
    return end(n_threads, team, step, stage)


@jit
def _gate_of(x, gate, ld):
    """sigmoid(x . gate)"""
    sums = splat_f32(0.0)
    for i in range(0, 4 * ld, 64):
        sums = fma(load_f32x16(x + i), load_f32x16(gate + i), sums)
    return splat_f32(1.0) / (splat_f32(1.0) + vexp(splat_f32(0.0) - splat_f32(vsum(sums))))


@compiled(ENTRY)
def expert_sum(tid, n_threads, team, step, stage):
    """A piece of work is a token's row, or, of few tokens, a part of one."""
    n_tokens, k, lists, n_experts = load_i64(step + N_TOKENS), load_i64(stage + N_USED), load_i64(stage + LISTS), load_i64(stage + N_EXPERTS)
    ld, rows, own, weighed = load_i64(step + LD_X), load_i64(stage + S_ROWS), own_memory(step, tid), load_i64(stage + S_WEIGHED) != 0
    shared, gate = load_i64(stage + S_SHARED), load_i64(stage + S_GATE)
    parts = min(n_threads, ld // 32) if n_tokens < n_threads else 1
    piece = next_tile(team, 0, 1)
    while piece < n_tokens * parts:
        m, part = piece // parts, piece % parts
        first, last, weights = 128 * (part * (ld // 32) // parts), 128 * ((part + 1) * (ld // 32) // parts), load_i64(stage + S_WEIGHTS)
        weights += 4 * m * load_i64(stage + S_LD_USED)
        out = load_i64(stage + S_OUT) + 4 * m * ld
        for rank in range(k):
            row = rows + 4 * ld * load_i64(slot_of(lists, n_experts, n_tokens * k, m * k + rank))
            w = splat_f32(load_f32(weights + 4 * rank))
            for i in range(first, last, 64):
                y = load_f32x16(row + i)
                if rank == 0:
                    y = y if weighed else w * y
                elif weighed:
                    y = load_f32x16(out + i) + y
                else:
                    y = fma(w, y, load_f32x16(out + i))
                store_f32x16(out + i, y)
        if shared != 0:
            if gate != 0:
                g = _gate_of(normed_rows(step, own) + 4 * m * ld, gate, ld)
                for i in range(first, last, 64):
                    store_f32x16(out + i, fma(g, load_f32x16(shared + 4 * m * ld + i), load_f32x16(out + i)))
            else:
                for i in range(first, last, 64):
                    store_f32x16(out + i, load_f32x16(out + i) + load_f32x16(shared + 4 * m * ld + i))
        piece = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def _lists(words: np.ndarray, block: Any, layout: Any) -> None:
    words[LISTS // 8], words[N_EXPERTS // 8], words[N_USED // 8] = layout.address("expert_lists"), block.experts, block.used


def _matrix(words: np.ndarray, at: int, matrix: Any, layout: Any) -> None:
    words[at // 8:(at + MATRIX_BYTES) // 8] = layout.matrix(matrix)
    words[(at + _AT) // 8] = layout.experts_at(matrix)


def fill_gated(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "experts" (the block), "activation", "records" (whether `down` reads them), "by_rank" (rows for a site)."""
    a, b = stage.args, stage.args["experts"]
    _lists(words, b, layout)
    for at, matrix in zip((E_GATE, E_UP), b.readers()):
        _matrix(words, at, matrix, layout)
    by_rank = a["by_rank"]
    out = "expert_post" if by_rank else "expert_act_records" if a["records"] else "expert_act"
    for word, value in ((IN_ROWS, layout.address("expert_rows")), (IN_RECORDS, layout.address("expert_records")), (WEIGH, b.weigh_input),
                        (OUT, layout.address(out)), (LD, -(-b.width // 32) * 32), (TO_RECORDS, a["records"] and not by_rank), (BY_RANK, by_rank)):
        words[word // 8] = value


def fill_take(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "experts", "records"."""
    b = stage.args["experts"]
    _lists(words, b, layout)
    words[T_SOURCE // 8], words[T_LD // 8], words[T_ROWS // 8] = layout.address("expert_post"), -(-b.width // 32) * 32, layout.address("expert_act")
    words[T_RECORDS // 8] = layout.address("expert_act_records") if stage.args["records"] else 0


def fill_down(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "experts"."""
    b = stage.args["experts"]
    _lists(words, b, layout)
    _matrix(words, E_DOWN, b.down, layout)
    for word, value in ((D_ROWS, layout.address("expert_act")), (D_RECORDS, layout.address("expert_act_records")), (D_LD, -(-b.width // 32) * 32),
                        (D_OUT, layout.address("expert_rows")), (D_LD_OUT, layout.ld)):
        words[word // 8] = value


def fill_sum(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: "experts", "out" (a buffer)."""
    b = stage.args["experts"]
    _lists(words, b, layout)
    for word, value in ((S_ROWS, layout.address("expert_rows")), (S_WEIGHTS, layout.address("expert_weights")), (S_LD_USED, layout.columns("expert_weights")),
                        (S_WEIGHED, b.weigh_input), (S_OUT, layout.address(stage.args["out"])), (S_SHARED, layout.address("shared") if b.shared else 0),
                        (S_GATE, layout.vector(b.shared_gate))):
        words[word // 8] = value
