"""Gradients of a matrix's input: dX[m, c] goes on as a fma chain over the matrix's rows r = 0, 1, … of dY[m, r] × W[r, c].

    for up to 512 tokens:  for 128 rows:  copy their dY apart (a first-level cache would have them all in few sets)
                                            for each 32 columns of the thread's share:  unpack a panel of 16 KB  ──►  multiply (chains.py)

The threads divide the columns, so every tile is unpacked once for 512 tokens, and there is never a second copy of the weights.
"""
from __future__ import annotations

from llvmlite import ir

from ..compile_cache import compiled
from ..deferred import intrinsic, types
from ..matmul import ROWS
from ..simd import I64, load_f32x16, load_i64, pointer, store_f32x16
from .chains import PACKED, call_multiply
from .packed import lay_out_rows, multiply_panel
from .unpack import COLUMNS, ROW_BYTES

TOKENS, PANEL_ROWS = 512, 128
"""Of what is worked on at once: dY of both fits a second-level cache, the panel a half of a first-level one (another machine may share it)."""
_APART = 16
_LD = 4 * (PANEL_ROWS + _APART)
SCRATCH = PANEL_ROWS * ROW_BYTES + TOKENS * _LD + 64
"""Bytes of each thread."""

MULTIPLY, UNPACK, WEIGHTS, MATRIX_COLUMNS, MATRIX_ROWS, DY, LD_DY, DX, LD_DX, N_TOKENS, ROOM, DY_COLUMNS = range(0, 96, 8)
"""DY: address of float32 [tokens], rows LD_DY bytes apart, of which DY_COLUMNS may be read. DX: what goes on, of MATRIX_COLUMNS rounded up to 32, LD_DX bytes
apart. ROOM: of all threads."""
WORDS = 12


@intrinsic
def _call_unpack(typingctx, function, w, columns, tile0, tile1, first, panel):
    def codegen(context, builder, sig, args):
        values = [context.cast(builder, x, t, types.int64) for x, t in zip(args[1:], sig.args[1:])]
        builder.call(pointer(builder, args[0], ir.FunctionType(ir.VoidType(), [I64] * len(values))), values)
        return context.get_dummy_value()
    return types.void(function, w, columns, tile0, tile1, first, panel), codegen


@compiled("int64(int64, int64, int64, int64)")
def _through_weights(tid, n_threads, team, words):
    multiply, unpack, w = load_i64(words + MULTIPLY), load_i64(words + UNPACK), load_i64(words + WEIGHTS)
    columns, rows, tokens = load_i64(words + MATRIX_COLUMNS), load_i64(words + MATRIX_ROWS), load_i64(words + N_TOKENS)
    ldy, ldx, readable = load_i64(words + LD_DY), load_i64(words + LD_DX), load_i64(words + DY_COLUMNS)
    panel = load_i64(words + ROOM) + tid * SCRATCH
    panel += -panel & 63
    apart = panel + PANEL_ROWS * ROW_BYTES
    blocks = (columns + COLUMNS - 1) // COLUMNS
    first, last = tid * blocks // n_threads, (tid + 1) * blocks // n_threads
    for m in range(0, tokens, TOKENS):
        here, dx = min(TOKENS, tokens - m), load_i64(words + DX) + m * ldx
        for r in range(0, rows, PANEL_ROWS):
            n = min(PANEL_ROWS, rows - r)
            dy = load_i64(words + DY) + m * ldy + 4 * r
            for i in range(here):
                for j in range(0, 4 * min((n + 15) // 16 * 16, readable - r), 64):
                    store_f32x16(apart + i * _LD + j, load_f32x16(dy + i * ldy + j))
            for block in range(first, last):
                _call_unpack(unpack, w, columns, r // ROWS, (r + n + ROWS - 1) // ROWS, block * COLUMNS, panel)
                call_multiply(multiply, apart, _LD, 4, panel, ROW_BYTES, dx + ROW_BYTES * block, ldx, here, COLUMNS, n)
    return 0


@compiled("int64(int64, int64, int64, int64)")
def _through_weights_packed(tid, n_threads, team, words):
    """The same where packed.py multiplies: what is copied apart of dY has its order."""
    unpack, w = load_i64(words + UNPACK), load_i64(words + WEIGHTS)
    columns, rows, tokens = load_i64(words + MATRIX_COLUMNS), load_i64(words + MATRIX_ROWS), load_i64(words + N_TOKENS)
    ldy, ldx = load_i64(words + LD_DY), load_i64(words + LD_DX)
    panel = load_i64(words + ROOM) + tid * SCRATCH
    panel += -panel & 63
    apart = panel + PANEL_ROWS * ROW_BYTES
    blocks = (columns + COLUMNS - 1) // COLUMNS
    first, last = tid * blocks // n_threads, (tid + 1) * blocks // n_threads
    for m in range(0, tokens, TOKENS):
        here, dx = min(TOKENS, tokens - m), load_i64(words + DX) + m * ldx
        for r in range(0, rows, PANEL_ROWS):
            n = min(PANEL_ROWS, rows - r)
            dy = load_i64(words + DY) + m * ldy + 4 * r
            if first < last:
                lay_out_rows(dy, ldy, here, n, apart)
            for block in range(first, last):
                _call_unpack(unpack, w, columns, r // ROWS, (r + n + ROWS - 1) // ROWS, block * COLUMNS, panel)
                multiply_panel(apart, dy, ldy, panel, dx + ROW_BYTES * block, ldx, here, n)
    return 0


through_weights = _through_weights_packed if PACKED else _through_weights
