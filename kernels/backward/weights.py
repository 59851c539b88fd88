"""Gradients of a matrix's input: dX[m, c] goes on as a fma chain over the matrix's rows r = 0, 1, … of dY[m, r] × W[r, c].

*Rounded*: both factors are rounded to bfloat16 before, those below 2**-55 are zero, and so is a dX below 2**-100 that a matrix goes on from; the chain is
float32 as ever. Then the dot product of pairs (weight_pairs.py), where the CPU has one, gives the same bits in half the time.

    for up to 512 tokens:  for 128 rows:  copy their dY apart (a first-level cache would have them all in few sets)
                                            for each 32 columns of the thread's share:  unpack a panel of 16 KB  ──►  multiply (chains.py)

The threads divide the columns, so every tile is unpacked once for 512 tokens, and there is never a second copy of the weights.
"""
from __future__ import annotations

from llvmlite import ir

from ..bfloat16 import round_bf16, settled_sum
from ..compile_cache import Compiled, compiled
from ..deferred import intrinsic, jit, types
from ..matmul import ROWS
from ..simd import I64, load_f32x16, load_i64, pointer, stack_vectors, store_f32x16
from .chains import PACKED, call_multiply
from .packed import STEP, M, lay_out_rows, multiply_panel, pack_rows, several
from .unpack import COLUMNS, ROW_BYTES

TOKENS, PANEL_ROWS = 512, 128
"""Of what is worked on at once: dY of both fits a second-level cache, the panel a half of a first-level one (another machine may share it)."""
_APART = 16
_LD = 4 * (PANEL_ROWS + _APART)
SCRATCH = 3 * PANEL_ROWS * ROW_BYTES // 2 + TOKENS * _LD + 64
"""Bytes of each thread: a panel (and a half, of which weight_pairs.py makes one), dY, and what the address may be off."""

_FEW = 8 * PANEL_ROWS // 16
"""Vectors of the rows that `lay_out_rows` may leave."""

MULTIPLY, UNPACK, WEIGHTS, MATRIX_COLUMNS, MATRIX_ROWS, DY, LD_DY, DX, LD_DX, N_TOKENS, ROOM, DY_COLUMNS = range(0, 96, 8)
"""DY: address of float32 [tokens], rows LD_DY bytes apart, of which DY_COLUMNS may be read. DX: what goes on, of MATRIX_COLUMNS rounded up to 32, LD_DX bytes
apart. ROOM: of all threads."""
WORDS = 12


@intrinsic
def call_unpack(typingctx, function, w, columns, tile0, tile1, first, panel):
    def codegen(context, builder, sig, args):
        values = [context.cast(builder, x, t, types.int64) for x, t in zip(args[1:], sig.args[1:])]
        builder.call(pointer(builder, args[0], ir.FunctionType(ir.VoidType(), [I64] * len(values))), values)
        return context.get_dummy_value()
    return types.void(function, w, columns, tile0, tile1, first, panel), codegen


@jit
def settle(dx, ldx, rows):
    """What rows of 32 columns go on from, for rounded factors."""
    for i in range(rows):
        for c in range(0, ROW_BYTES, 64):
            store_f32x16(dx + i * ldx + c, settled_sum(load_f32x16(dx + i * ldx + c)))


@jit
def _round_panel(panel, n):
    for at in range(panel, panel + n * ROW_BYTES, 64):
        store_f32x16(at, round_bf16(load_f32x16(at)))


@jit
def _copy_rows(dy, ldy, rows, columns, out, ldo, rounded):
    for i in range(rows):
        for j in range(0, 4 * columns, 64):
            v = load_f32x16(dy + i * ldy + j)
            store_f32x16(out + i * ldo + j, round_bf16(v) if rounded else v)


@jit
def _lay_out_rounded(dy, ldy, rows, columns, n, packed, few):
    """What `lay_out_rows` takes, rounded -> the address from which row i of the others would stand 4 * PANEL_ROWS * i bytes apart; few: room for them."""
    i = 0
    while i < rows and several(rows - i) == M:
        _copy_rows(dy + i * ldy, ldy, M, columns, few, 4 * PANEL_ROWS, True)
        pack_rows(few, 4 * PANEL_ROWS, n, packed)
        packed += STEP * n
        i += M
    _copy_rows(dy + i * ldy, ldy, rows - i, columns, few, 4 * PANEL_ROWS, True)
    return few - 4 * PANEL_ROWS * i


def through(rounded: bool, packed: bool = PACKED) -> Compiled:
    """packed: packed.py multiplies, and what is copied apart of dY has its order."""
    def through_weights(tid, n_threads, team, words):
        multiply, unpack, w = load_i64(words + MULTIPLY), load_i64(words + UNPACK), load_i64(words + WEIGHTS)
        columns, rows, tokens = load_i64(words + MATRIX_COLUMNS), load_i64(words + MATRIX_ROWS), load_i64(words + N_TOKENS)
        ldy, ldx, readable = load_i64(words + LD_DY), load_i64(words + LD_DX), load_i64(words + DY_COLUMNS)
        panel = load_i64(words + ROOM) + tid * SCRATCH
        panel += -panel & 63
        apart, few = panel + PANEL_ROWS * ROW_BYTES, stack_vectors(_FEW)
        blocks = (columns + COLUMNS - 1) // COLUMNS
        first, last = tid * blocks // n_threads, (tid + 1) * blocks // n_threads
        if first == last:
            return 0
        for m in range(0, tokens, TOKENS):
            here, dx = min(TOKENS, tokens - m), load_i64(words + DX) + m * ldx
            for r in range(0, rows, PANEL_ROWS):
                n = min(PANEL_ROWS, rows - r)
                dy, ldn, whole = load_i64(words + DY) + m * ldy + 4 * r, ldy, min((n + 15) // 16 * 16, readable - r)
                if not packed:
                    _copy_rows(dy, ldy, here, whole, apart, _LD, rounded)
                elif rounded:
                    dy, ldn = _lay_out_rounded(dy, ldy, here, whole, n, apart, few), 4 * PANEL_ROWS
                else:
                    lay_out_rows(dy, ldy, here, n, apart)
                for block in range(first, last):
                    call_unpack(unpack, w, columns, r // ROWS, (r + n + ROWS - 1) // ROWS, block * COLUMNS, panel)
                    if rounded:
                        _round_panel(panel, n)
                        if r == 0:
                            settle(dx + ROW_BYTES * block, ldx, here)
                    if packed:
                        multiply_panel(apart, dy, ldn, panel, dx + ROW_BYTES * block, ldx, here, n)
                    else:
                        call_multiply(multiply, apart, _LD, 4, panel, ROW_BYTES, dx + ROW_BYTES * block, ldx, here, COLUMNS, n)
        return 0
    through_weights.__name__ = through_weights.__qualname__ = "through_rounded_weights" if rounded else "through_weights"
    return compiled("int64(int64, int64, int64, int64)")(through_weights)


through_weights, through_rounded_weights = through(False), through(True)
