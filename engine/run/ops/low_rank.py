"""Adapters beside an op's matrices: u of the rows that have one, while nobody waits; B u after the matrices' own product, piece by piece (kernels/low_rank.py).

    op:  low = begin(…)      u of all its matrices, for all rows with adapters: few rows' by parts of 256 columns, a share for each thread; many rows' by groups
                             of tokens. Then this thread announces how many pieces it has done
         piece(…, low)       `fetch` of what it will read of B; base, bias; then `add`: every adapter of a row, in the order of the step's runs. The first
                             one waits until all pieces of u are done: mostly they are, and no barrier is needed. If not, this thread does the parts that
                             others have not begun: one that comes late (its CPU was another process's) is not waited for
                             a lone row with one adapter: from then on `beside`, base and B u tile by tile in one kernel

A *run* is some rows of a step in a row that have one adapter: first row, last row + 1, where the adapter stands in the matrices' tables, its
factor, and where its rows of u are. The runs of a row with several adapters stand one after the other. Rows without one are in no run, and keep their bits.
"""
from __future__ import annotations

from ....kernels.atomics import call_pointer4, call_pointer7, call_pointer8, call_pointer11
from ....kernels.compile_cache import compiled
from ....kernels.deferred import jit
from ....kernels.low_rank import AHEAD, APART, BLOCK, PART, TOKENS, widen
from ....kernels.matmul import call_kernel
from ....kernels.simd import load_f32, load_f32x16, load_i64, prefetch, prefetch_l2, splat_f32, stack_vectors, store_f32, store_f32x16, store_i64
from ....kernels.team import announce, are_there, next_of_share, next_tile, wait_for_pieces
from .matrix import BIAS, COLUMNS, KERNEL, LOW_RANK, WEIGHTS

# -- a pair: addresses of its kernels, of A and of B; blocks of 32 columns, tiles of 16 ranks, rank, scale (float32), bytes of a number; address of the base's
# kernel for one token with this pair (matmul.beside_kernel), or 0
DOWN, UP, A, B, BLOCKS, TILES, RANK, SCALE, SIZE, KERNEL_BESIDE = range(0, 80, 8)
PAIR_WORDS = 10

# -- a run
FIRST, LAST, SLOT, FACTOR, AT, LD = range(0, 48, 8)
"""SLOT: byte of the adapter in a matrix's table of addresses of pairs (0 there: it has none for this matrix). FACTOR: float32. AT: of its first row in u, in
floats, LD floats to the next."""
RUN_WORDS = 6

# -- a step's adapters; the step's word has 0 instead of their address where no row has one
N_RUNS, RUNS, TOTAL, PARTED, SHARED, OWN, OWN_BYTES, BEGIN, FETCH, ADD, BESIDE = range(0, 88, 8)
"""PARTED: whether few rows have one. u is float32 [matrices of an op, TOTAL], at SHARED; PARTED: it is each thread's own, after its words, and at SHARED are
the parts' sums, float32 [parts, MOST, TOTAL]. OWN: address of the first thread's words, OWN_BYTES to the next one's. Then the functions below."""
WORDS = 11

# -- a thread's own words, which `begin` returns the address of; its u follows
(
    PIECES, TABLE, N, STRIDE, TEAM, THREADS, WANTED, N_WANTED, LONE, FACTORS, NUMBER, RECORDS, FLOATS, LD_X, N_ROWS, FLOAT_AT,
) = range(0, 128, 8)
"""PIECES: how many this op's u is made in; SETTLED: they are known to be there. TABLE: where the first of N matrices has the address of its table, STRIDE bytes
to the next. LONE: whether the op has one row, with one adapter. FACTORS: float32, its two factors' product. NUMBER: of the thread. The rest: `begin`'s own."""
OWN_WORDS = 16
SETTLED = -1
PARTS = 2
"""Which of a thread's shares of a stage's work (team_state.py) has its parts: `matmul` and `take` have the others."""

_WIDENED = TOKENS * APART // 16
"""Vectors of the columns of a part."""
MOST = 4
"""Matrices of an op."""
FETCHED = 32 << 10
"""Most bytes of B that are fetched ahead, into a second-level cache."""
FETCHED_FOR = 32
"""So many tokens share what is read of B often enough."""


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
def _rows(own, run):
    """-> [first, last) rows of a run: of those that the output matrix reads, if they are listed."""
    first, last, wanted = load_i64(run + FIRST), load_i64(run + LAST), load_i64(own + WANTED)
    if wanted != 0:
        n_wanted = load_i64(own + N_WANTED)
        return _before(wanted, n_wanted, first), _before(wanted, n_wanted, last)
    return first, last


@jit
def _pair(own, run, i):
    """Of an op's matrix number i, or 0."""
    table = load_i64(load_i64(own + TABLE) + i * load_i64(own + STRIDE))
    return load_i64(table + load_i64(run + SLOT)) if table != 0 else 0


@jit
def _blocks(own, run):
    """Blocks of 32 columns that an op's matrices read, if the run's adapter has a pair for one, else 0."""
    for i in range(load_i64(own + N)):
        pair = _pair(own, run, i)
        if pair != 0:
            return load_i64(pair + BLOCKS)
    return 0


@jit
def _part(own, run, x, part, end, blocks, m, tokens, records, floats, ldx, n_rows, float_at, to, ld, apart, more):
    """The part's sums for rows [m, m + tokens) and all matrices, float32 [tokens, ld] each, `apart` floats apart. end: the block that this thread goes on to.
    more: they are added to what is there."""
    n = min(PART // BLOCK, blocks - PART // BLOCK * part)
    s = stack_vectors(TOKENS)
    for of_floats in range(2):
        is_wide = False
        for i in range(load_i64(own + N)):
            pair = _pair(own, run, i)
            if pair == 0 or (load_i64(float_at + i * load_i64(own + STRIDE)) != 0) != (of_floats != 0):
                continue
            if not is_wide:
                for token in range(tokens):
                    widen(records, floats if of_floats else 0, ldx, m + token, n_rows, blocks, PART // BLOCK * part, n, x + 4 * APART * token)
                is_wide = True
            for tile in range(load_i64(pair + TILES)):
                block_bytes, u = 16 * BLOCK * load_i64(pair + SIZE), to + 4 * (i * apart + 16 * tile)
                a = load_i64(pair + A) + tile * blocks * block_bytes
                here, stop = a + PART // BLOCK * part * block_bytes, a + end * block_bytes - 128
                if not more:
                    call_pointer7(load_i64(pair + DOWN), here, BLOCK * n, stop, x, u, ld, tokens)
                    continue
                call_pointer7(load_i64(pair + DOWN), here, BLOCK * n, stop, x, s, 16, tokens)
                for token in range(tokens):
                    so_far = load_f32x16(u + 4 * token * ld) if part > 0 else splat_f32(0.0)
                    store_f32x16(u + 4 * token * ld, so_far + load_f32x16(s + 64 * token))


@jit
def _fetch(own, run, first, end, blocks):
    """Blocks [first, end) of A begin to come, of all matrices: what `down` does not fetch ahead of itself."""
    for i in range(load_i64(own + N)):
        pair = _pair(own, run, i)
        if pair != 0:
            block_bytes = 16 * BLOCK * load_i64(pair + SIZE)
            for tile in range(load_i64(pair + TILES)):
                a = load_i64(pair + A) + (tile * blocks + first) * block_bytes
                for line in range(0, min((end - first) * block_bytes, AHEAD), 64):
                    prefetch(a + line)


@jit
def _units(own, run):
    """-> (its blocks, groups of tokens), of which each part of columns is one unit."""
    first, last = _rows(own, run)
    return _blocks(own, run), (last - first + TOKENS - 1) // TOKENS


@jit
def _by_parts(adapters, own, tid, turn0, turn1, x, records, floats, ldx, n_rows, float_at):
    """What is left of the shares of threads tid + turn0 ... tid + turn1 - 1 of the parts of all runs. -> (units in all, units done)"""
    n_runs, runs, total, units, done = load_i64(adapters + N_RUNS), load_i64(adapters + RUNS), load_i64(adapters + TOTAL), 0, 0
    for r in range(n_runs):
        blocks, groups = _units(own, runs + 8 * RUN_WORDS * r)
        units += (blocks * BLOCK + PART - 1) // PART * groups
    n_threads, shared, team = load_i64(own + THREADS), load_i64(adapters + SHARED), load_i64(own + TEAM)
    for turn in range(turn0, turn1):
        owner = (tid + turn) % n_threads
        start, end = owner * units // n_threads, (owner + 1) * units // n_threads
        if start == end:
            continue
        unit, at = start + next_of_share(team, PARTS, owner), 0
        for r in range(n_runs):
            run = runs + 8 * RUN_WORDS * r
            blocks, groups = _units(own, run)
            n = (blocks * BLOCK + PART - 1) // PART * groups
            high = min(end - at, n)
            if unit - at < high:
                last_block = min((high - 1) // groups * (PART // BLOCK) + PART // BLOCK, blocks)
                _fetch(own, run, (unit - at) // groups * (PART // BLOCK), last_block, blocks)
            while unit - at < high:
                part, m, last = (unit - at) // groups, (unit - at) % groups * TOKENS, _rows(own, run)[1] - _rows(own, run)[0]
                to = shared + 4 * (part * MOST * total + load_i64(run + AT) + m * load_i64(run + LD))
                _part(own, run, x, part, last_block, blocks, _rows(own, run)[0] + m, min(TOKENS, last - m), records, floats, ldx, n_rows, float_at, to,
                      load_i64(run + LD), total, False)
                done += 1
                unit = start + next_of_share(team, PARTS, owner)
            at += n
    return units, done


@jit
def _by_groups(adapters, own, x, records, floats, ldx, n_rows, float_at):
    """Groups of tokens of all runs, whoever comes first. -> (groups in all, groups done)"""
    team, at, done = load_i64(own + TEAM), 0, 0
    mine = next_tile(team, 0, 1)
    for r in range(load_i64(adapters + N_RUNS)):
        run = load_i64(adapters + RUNS) + 8 * RUN_WORDS * r
        first, last = _rows(own, run)
        blocks = _blocks(own, run)
        if blocks == 0:
            continue
        for m in range(first, last, TOKENS):
            if at == mine:
                to = load_i64(adapters + SHARED) + 4 * (load_i64(run + AT) + (m - first) * load_i64(run + LD))
                for part in range((blocks * BLOCK + PART - 1) // PART):
                    _part(own, run, x, part, blocks, blocks, m, min(TOKENS, last - m), records, floats, ldx, n_rows, float_at, to, load_i64(run + LD),
                          load_i64(adapters + TOTAL), True)
                mine = next_tile(team, 0, 1)
                done += 1
            at += 1
    return at, done


@compiled(f"int64({', '.join(['int64'] * 8)})")
def low_rank_begin(adapters, own, tid, records, floats, ldx, n_rows, float_at):
    """This thread's share of u. float_at: where the first matrix has its FLOAT_INPUT."""
    x = stack_vectors(_WIDENED)
    if load_i64(adapters + PARTED) != 0:
        store_i64(own + NUMBER, tid)
        store_i64(own + RECORDS, records)
        store_i64(own + FLOATS, floats)
        store_i64(own + LD_X, ldx)
        store_i64(own + N_ROWS, n_rows)
        store_i64(own + FLOAT_AT, float_at)
        pieces, done = _by_parts(adapters, own, tid, 0, 1, x, records, floats, ldx, n_rows, float_at)
    else:
        pieces, done = _by_groups(adapters, own, x, records, floats, ldx, n_rows, float_at)
    store_i64(own + PIECES, pieces)
    announce(load_i64(own + TEAM), done)
    return 0


@jit
def begin(adapters, tid, n_threads, team, table_at, n, stride, records, floats, ldx, n_rows, float_at, wanted, n_wanted):
    """This thread's share of u of an op's n matrices, whose words lie `stride` bytes apart, the first one's table (LOW_RANK) at table_at and its FLOAT_INPUT at
    float_at. wanted: address of the rows that the output matrix reads, which are counted then, or 0. Once a stage. -> address of the thread's words."""
    own = load_i64(adapters + OWN) + tid * load_i64(adapters + OWN_BYTES)
    store_i64(own + TABLE, table_at)
    store_i64(own + N, n)
    store_i64(own + STRIDE, stride)
    store_i64(own + TEAM, team)
    store_i64(own + THREADS, n_threads)
    store_i64(own + WANTED, wanted)
    store_i64(own + N_WANTED, n_wanted)
    store_i64(own + LONE, n_rows == 1 and load_i64(adapters + N_RUNS) == 1 and _rows(own, load_i64(adapters + RUNS)) == (0, 1))
    call_pointer8(load_i64(adapters + BEGIN), adapters, own, tid, records, floats, ldx, n_rows, float_at)
    return own


@jit
def fetch(adapters, table, tile0, tile1, n_tokens):
    """What tiles [tile0, tile1) will read of B starts to come, while the base is computed, or other tiles' sums are added."""
    if n_tokens < FETCHED_FOR and table != 0 and tile0 < tile1:
        call_pointer4(load_i64(adapters + FETCH), adapters, table, tile0, tile1)


@compiled("int64(int64, int64, int64, int64)")
def low_rank_fetch(adapters, table, tile0, tile1):
    """See `fetch`."""
    for r in range(load_i64(adapters + N_RUNS)):
        pair = load_i64(table + load_i64(load_i64(adapters + RUNS) + 8 * RUN_WORDS * r + SLOT))
        if pair != 0:
            tile_bytes = load_i64(pair + RANK) * load_i64(pair + SIZE) << 4
            start = load_i64(pair + B) + tile0 * tile_bytes
            for line in range(0, min((tile1 - tile0) * tile_bytes, FETCHED), 64):
                prefetch_l2(start + line)
    return 0


@jit
def _settle(adapters, own):
    """All pieces are there; of parts, each thread makes u for itself."""
    team, pieces = load_i64(own + TEAM), load_i64(own + PIECES)
    if load_i64(adapters + PARTED) != 0 and not are_there(team, pieces):
        _, done = _by_parts(adapters, own, load_i64(own + NUMBER), 1, load_i64(own + THREADS), stack_vectors(_WIDENED), load_i64(own + RECORDS),
                            load_i64(own + FLOATS), load_i64(own + LD_X), load_i64(own + N_ROWS), load_i64(own + FLOAT_AT))
        announce(team, done)
    wait_for_pieces(team, pieces)
    store_i64(own + PIECES, SETTLED)
    if load_i64(adapters + PARTED) == 0:
        return
    total = load_i64(adapters + TOTAL)
    for r in range(load_i64(adapters + N_RUNS)):
        run = load_i64(adapters + RUNS) + 8 * RUN_WORDS * r
        first, last = _rows(own, run)
        for i in range(load_i64(own + N)):
            pair = _pair(own, run, i)
            if pair == 0:
                continue
            parts, start = (load_i64(pair + BLOCKS) * BLOCK + PART - 1) // PART, load_i64(run + AT)
            for m in range(last - first):
                for tile in range(load_i64(pair + TILES)):
                    at, u = start + m * load_i64(run + LD) + 16 * tile, splat_f32(0.0)
                    s = load_i64(adapters + SHARED) + 4 * (i * total + at)
                    for part in range(parts):
                        u = u + load_f32x16(s + 4 * part * MOST * total)
                    store_f32x16(own + 8 * OWN_WORDS + 4 * (i * total + at), u)


@compiled(f"int64({', '.join(['int64'] * 8)})")
def low_rank_add(adapters, own, table, tile0, tile1, index, out, ldo):
    """Tiles [tile0, tile1) of the rows at `out` grow by their adapters' products. table: of the op's matrix number `index`."""
    if load_i64(own + PIECES) != SETTLED:
        _settle(adapters, own)
    if table == 0:
        return 0
    u = (own + 8 * OWN_WORDS if load_i64(adapters + PARTED) else load_i64(adapters + SHARED)) + 4 * index * load_i64(adapters + TOTAL)
    for r in range(load_i64(adapters + N_RUNS)):
        run = load_i64(adapters + RUNS) + 8 * RUN_WORDS * r
        pair = load_i64(table + load_i64(run + SLOT))
        first, last = _rows(own, run)
        if pair != 0 and first < last:
            call_pointer11(load_i64(pair + UP), load_i64(pair + B), load_i64(pair + RANK), tile0, tile1, u + 4 * load_i64(run + AT), load_i64(run + LD),
                           out + 4 * first * ldo, ldo, last - first, pair + SCALE, run + FACTOR)
    return 0


@compiled(f"int64({', '.join(['int64'] * 8)})")
def low_rank_beside(adapters, own, matrix, index, tile0, tile1, x, out):
    """Tiles [tile0, tile1) of a lone row with one adapter, whose product is added tile by tile, or which has none here. -> the first tile that is still to be
    done: the format has no such kernel, or what others do of u may not be there yet."""
    run, table = load_i64(adapters + RUNS), load_i64(matrix + LOW_RANK)
    pair = load_i64(table + load_i64(run + SLOT)) if table != 0 else 0
    if pair == 0 and load_i64(matrix + BIAS) == 0:
        columns = load_i64(matrix + COLUMNS)
        call_kernel(load_i64(matrix + KERNEL), load_i64(matrix + WEIGHTS), columns, tile0, tile1, x, columns, out, 0, 1)
        return tile1
    if pair == 0 or load_i64(pair + KERNEL_BESIDE) == 0 or load_i64(own + PIECES) != SETTLED:
        return tile0
    u = (own + 8 * OWN_WORDS if load_i64(adapters + PARTED) else load_i64(adapters + SHARED)) + 4 * (index * load_i64(adapters + TOTAL) + load_i64(run + AT))
    store_f32(own + FACTORS, load_f32(pair + SCALE) * load_f32(run + FACTOR))
    call_pointer11(load_i64(pair + KERNEL_BESIDE), load_i64(matrix + WEIGHTS), load_i64(matrix + COLUMNS), tile0, tile1, x, load_i64(matrix + BIAS), out,
                   load_i64(pair + B), load_i64(pair + RANK), u, own + FACTORS)
    return tile1
