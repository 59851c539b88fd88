"""Gradients of a matrix's input with factors rounded to bfloat16 (weights.py), by the dot product of pairs: two rows of the matrix at once (bfloat16.py).

    for up to 512 tokens:  for 256 rows:  round their dY, [token, pair of rows]
                             for each 32 columns of the thread's share:  unpack 64 rows, round them, [pair, column], until all are there  ──►  multiply

A pair's first row is in the upper halves, which the instruction takes first: each chain is weights.py's. An odd number of rows has a zero after the last.
"""
from __future__ import annotations

from ..bfloat16 import dot_bf16, load_bf16_pairs, pairs_bf16
from ..compile_cache import compiled
from ..deferred import jit
from ..matmul import ROWS
from ..simd import (
    load_f32x16,
    load_i64,
    splat_f32,
    stack_vectors,
    store_f32x16,
)
from .chains import block
from .unpack import COLUMNS, ROW_BYTES
from .weights import DX, DY, DY_COLUMNS, LD_DX, LD_DY, MATRIX_COLUMNS, MATRIX_ROWS, N_TOKENS, ROOM, SCRATCH, TOKENS, UNPACK, WEIGHTS, call_unpack, settle

PANEL_ROWS, UNPACKED = 256, 64
"""Rows of a panel of pairs (16 KB), and those that are unpacked at once."""
_LD = 4 * (PANEL_ROWS // 2 + 16)


_eight, _two, _one = (block(m, COLUMNS // 16, multiply_add=dot_bf16) for m in (8, 2, 1))


@jit
def _round_pairs(dy, ldy, rows, n, readable, apart):
    """dY of n rows of the matrix, of which `readable` can be read, a multiple of 16."""
    edge = stack_vectors(2)
    for i in range(rows):
        at, to = dy + i * ldy, apart + i * _LD
        for j in range(0, n, 32):
            here = at + 4 * j
            if j + 32 > readable:
                store_f32x16(edge, load_f32x16(here))
                store_f32x16(edge + 64, splat_f32(0.0))
                here = edge
            store_f32x16(to + 2 * j, load_bf16_pairs(here))


@jit
def _pair_rows(rows, n, panel):
    """n rows of an unpacked panel as pairs; an odd one's is zero, whatever dY has there."""
    if n & 1:
        for c in range(0, ROW_BYTES, 64):
            store_f32x16(rows + n * ROW_BYTES + c, splat_f32(0.0))
    for _ in range((n + 1) // 2):
        for c in range(0, ROW_BYTES, 64):
            store_f32x16(panel + c, pairs_bf16(load_f32x16(rows + c), load_f32x16(rows + ROW_BYTES + c)))
        rows += 2 * ROW_BYTES
        panel += ROW_BYTES


@compiled("int64(int64, int64, int64, int64)")
def through_weight_pairs(tid, n_threads, team, words):
    """weights.py's words, but for its product."""
    unpack, w = load_i64(words + UNPACK), load_i64(words + WEIGHTS)
    columns, rows, tokens = load_i64(words + MATRIX_COLUMNS), load_i64(words + MATRIX_ROWS), load_i64(words + N_TOKENS)
    ldy, ldx, readable = load_i64(words + LD_DY), load_i64(words + LD_DX), load_i64(words + DY_COLUMNS)
    panel = load_i64(words + ROOM) + tid * SCRATCH
    panel += -panel & 63
    unpacked = panel + PANEL_ROWS // 2 * ROW_BYTES
    apart = unpacked + UNPACKED * ROW_BYTES
    blocks = (columns + COLUMNS - 1) // COLUMNS
    first, last = tid * blocks // n_threads, (tid + 1) * blocks // n_threads
    if first == last:
        return 0
    for m in range(0, tokens, TOKENS):
        here, dx = min(TOKENS, tokens - m), load_i64(words + DX) + m * ldx
        for r in range(0, rows, PANEL_ROWS):
            n = min(PANEL_ROWS, rows - r)
            _round_pairs(load_i64(words + DY) + m * ldy + 4 * r, ldy, here, n, readable - r, apart)
            for column in range(first, last):
                for k in range(0, n, UNPACKED):
                    some, row = min(UNPACKED, n - k), r + k
                    call_unpack(unpack, w, columns, row // ROWS, (row + some + ROWS - 1) // ROWS, column * COLUMNS, unpacked)
                    _pair_rows(unpacked, some, panel + k // 2 * ROW_BYTES)
                out, a, i = dx + ROW_BYTES * column, apart, 0
                if r == 0:
                    settle(out, ldx, here)
                while i < here:
                    if i + 8 <= here:
                        _eight(a, _LD, 4, panel, ROW_BYTES, out, ldx, (n + 1) // 2)
                        done = 8
                    elif i + 2 <= here:
                        _two(a, _LD, 4, panel, ROW_BYTES, out, ldx, (n + 1) // 2)
                        done = 2
                    else:
                        _one(a, _LD, 4, panel, ROW_BYTES, out, ldx, (n + 1) // 2)
                        done = 1
                    a += done * _LD
                    out += done * ldx
                    i += done
    return 0
