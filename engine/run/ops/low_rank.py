"""Adapters beside an op's matrices: u of the rows that have one, before the base's matmul; B u after it, piece by piece (kernels/low_rank.py).

    op:  low = begin(…)            u of all its matrices, for all rows with adapters: by every thread for itself (few rows), or shared, with a barrier
         piece(…, low)             base, bias, then `add`: every adapter of a row, in the order of the step's runs

A *run* is some rows of a step in a row that have one adapter: first row, last row + 1, where the adapter stands in the matrices' tables, its
factor, and where its rows of u are. The runs of a row with several adapters stand one after the other. Rows without one are in no run, and keep their bits.
"""
from __future__ import annotations

from ....kernels.atomics import call_pointer11
from ....kernels.deferred import jit
from ....kernels.low_rank import TOKENS
from ....kernels.simd import load_i64
from ....kernels.team import barrier, next_tile

# -- a pair: addresses of its kernels, of A and of B; blocks of 32 columns, tiles of 16 ranks, rank, scale (float32)
DOWN, UP, A, B, BLOCKS, TILES, RANK, SCALE = range(0, 64, 8)
PAIR_WORDS = 8

# -- a run
FIRST, LAST, SLOT, FACTOR, AT, LD = range(0, 48, 8)
"""SLOT: byte of the adapter in a matrix's table of addresses of pairs (0 there: it has none for this matrix). FACTOR: float32. AT: of its first row in u, in
floats, LD floats to the next."""
RUN_WORDS = 6

# -- a step's adapters; the step's word has 0 instead of their address where no row has one
N_RUNS, RUNS, U, TOTAL, OWN = range(0, 40, 8)
"""U: address of float32 [matrices of an op, TOTAL]; OWN: bytes from a thread's own to the next one's, or 0: all threads share one."""
WORDS = 5
MOST = 4
"""Matrices of an op."""
FEW = 4
"""Rows of a piece of shared work, unless they are many."""


@jit
def _before(wanted, n_wanted, row):
    """How many of the wanted rows, int64 [n_wanted], ascending, lie before this one."""
    low, high = 0, n_wanted
    while low < high:
        middle = (low + high) // 2
        if load_i64(wanted + 8 * middle) < row:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _rows(run, wanted, n_wanted):
    """-> [first, last) rows of a run; wanted: address of the rows that the output matrix reads, which are counted then, or 0."""
    first, last = load_i64(run + FIRST), load_i64(run + LAST)
    if wanted != 0:
        return _before(wanted, n_wanted, first), _before(wanted, n_wanted, last)
    return first, last


@jit
def begin(adapters, tid, n_threads, team, table_at, n, stride, records, floats, ldx, n_rows, float_at, wanted, n_wanted):
    """u of an op's n matrices, whose words lie `stride` bytes apart, the first one's table (LOW_RANK) at table_at and its FLOAT_INPUT at float_at. -> address
    of u, or -1: aborted."""
    own, total = load_i64(adapters + OWN), load_i64(adapters + TOTAL)
    u = load_i64(adapters + U) + tid * own
    at, mine, size = 0, 0, TOKENS if n_rows >= 4 * TOKENS else FEW
    if own == 0:
        mine = next_tile(team, 0, 1)
    for r in range(load_i64(adapters + N_RUNS)):
        run = load_i64(adapters + RUNS) + 8 * RUN_WORDS * r
        first, last = _rows(run, wanted, n_wanted)
        for i in range(n):
            table = load_i64(table_at + i * stride)
            if table == 0 or last <= first:
                continue
            pair = load_i64(table + load_i64(run + SLOT))
            if pair == 0:
                continue
            ld, x = load_i64(run + LD), floats if load_i64(float_at + i * stride) else 0
            for m in range(first, last, size):
                if own != 0 or at == mine:
                    call_pointer11(load_i64(pair + DOWN), load_i64(pair + A), load_i64(pair + BLOCKS), load_i64(pair + TILES), records, x, ldx, m, n_rows,
                                   u + 4 * (i * total + load_i64(run + AT) + (m - first) * ld), ld, min(size, last - m))
                    if own == 0:
                        mine = next_tile(team, 0, 1)
                at += 1
    if own == 0 and barrier(team, n_threads):
        return -1
    return u


@jit
def add(adapters, table, tile0, tile1, u, out, ldo, wanted, n_wanted):
    """Tiles [tile0, tile1) of the rows at `out` grow by their adapters' products. u: of this matrix."""
    if table == 0:
        return
    for r in range(load_i64(adapters + N_RUNS)):
        run = load_i64(adapters + RUNS) + 8 * RUN_WORDS * r
        pair = load_i64(table + load_i64(run + SLOT))
        first, last = _rows(run, wanted, n_wanted)
        if pair != 0 and first < last:
            call_pointer11(load_i64(pair + UP), load_i64(pair + B), load_i64(pair + RANK), tile0, tile1, u + 4 * load_i64(run + AT), load_i64(run + LD),
                           out + 4 * first * ldo, ldo, last - first, pair + SCALE, run + FACTOR)
