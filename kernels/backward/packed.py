"""The product of chains.py for CPUs with 16 registers of 8 floats (AVX2): blocks of 6 rows × 16 columns, whose operands are laid out side by side before.

    for 64 rows of w (k):  for 48 rows of a:  copy them as [k, 6], 6 after 6
                             for as many columns of w as a panel of 16 KB holds:  copy them as [k, 16], 16 after 16
                               for 6 rows:  for 16 columns:  12 registers of chains, 2 of w, 2 of a's elements, each read by its broadcast

The copies make every address of the inner loop a constant beside two pointers, and keep what lies far apart (in few sets of a cache, on many pages) out of it.
Where w has no more than 16 columns a is read once, where it is. Copies have the same numbers and each chain the same order: nothing of this shows in a result.
"""
from __future__ import annotations

from llvmlite import ir

from ..compile_cache import compiled
from ..deferred import intrinsic, jit, types
from ..simd import (
    F32,
    I64,
    fma,
    get_f32,
    load_f32,
    load_f32x16,
    load_vector,
    prefetch,
    put_f32,
    splat_f32,
    splat_load_f32,
    stack_vectors,
    store_f32,
    store_f32x16,
    store_vector,
)

M, COLUMNS = 6, 16
"""Rows and columns whose chains the registers hold."""
PANEL, DEPTH, GROUP = 256, 64, 8
"""Vectors of w that are laid out together; rows of w that go through together if they have more than one; blocks of rows whose a is laid out together."""
STEP, WIDE = 4 * M, 128
"""Bytes of a packed k, and of a row of a panel of unpack.py."""
_UNROLL = 4
_STRIPS = GROUP * DEPTH * STEP // 64 + 1
_F32x8 = ir.VectorType(F32, 8)


@intrinsic
def _turn_8(typingctx, rows, ld, packed):
    """packed[k, i] = rows[i, k], k < 8: `ld` bytes from a row to the next; 8 bytes after the last k are overwritten."""
    def codegen(context, builder, sig, args):
        def two(a, b, order):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), 8), order))
        at, lines = args[0], []
        for _ in range(M):
            lines.append(load_vector(builder, at, _F32x8))
            at = builder.add(at, args[1])
        low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]  # unpcklps, unpckhps: within halves
        pairs = [[two(lines[i], lines[i + 1], order) for order in (low, high)] for i in (0, 2, 4)]
        first, second = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
        for k in range(8):
            h, order = k >> 1 & 1, second if k & 1 else first
            four, last = two(pairs[0][h], pairs[1][h], order), two(pairs[2][h], pairs[2][h], order)
            whole = two(four, last, [4, 5, 6, 7, 12, 13, 14, 15] if k & 4 else [0, 1, 2, 3, 8, 9, 10, 11])
            store_vector(builder, builder.add(args[2], ir.Constant(I64, STEP * k)), whole)
        return context.get_dummy_value()
    return types.void(rows, ld, packed), codegen


@intrinsic
def _copy_6(typingctx, source, target):
    def codegen(context, builder, sig, args):
        for at, lanes in (0, 4), (16, 2):
            there = ir.Constant(I64, at)
            store_vector(builder, builder.add(args[1], there), load_vector(builder, builder.add(args[0], there), ir.VectorType(F32, lanes)))
        return context.get_dummy_value()
    return types.void(source, target), codegen


@jit
def pack_rows(a, a_i, n, packed):
    """packed[k, i] = a[i, k], k < n, a's rows a_i bytes apart."""
    for k in range(0, n - 7, 8):
        _turn_8(a + 4 * k, a_i, packed + STEP * k)
    for k in range(n & -8, n):
        for i in range(M):
            store_f32(packed + STEP * k + 4 * i, load_f32(a + i * a_i + 4 * k))


@jit
def _pack(a, a_i, a_k, n, packed):
    if a_k == 4:
        pack_rows(a, a_i, n, packed)
    elif a_i == 4:
        for k in range(n):
            _copy_6(a + k * a_k, packed + STEP * k)
    else:
        for k in range(n):
            for i in range(M):
                store_f32(packed + STEP * k + 4 * i, load_f32(a + i * a_i + k * a_k))


def block(rows, a_step=0, k_step=0, w_step=0):
    """`rows` × 16 columns of chains go on for n steps; strides in bytes, 0: as they are given."""
    a_constant, k_constant, w_constant = a_step != 0, k_step != 0, w_step != 0

    @jit
    def block(a, a_i, a_k, w, ldw, out, ldo, n):
        if a_constant:
            a_i = a_step
        if k_constant:
            a_k = k_step
        if w_constant:
            ldw = w_step
        acc = stack_vectors(rows)
        for m in range(rows):
            put_f32(acc, m, load_f32x16(out + m * ldo))
        for _ in range(n // _UNROLL):
            for u in range(_UNROLL):
                v = load_f32x16(w + u * ldw)
                for m in range(rows):
                    put_f32(acc, m, fma(v, splat_load_f32(a + m * a_i + u * a_k), get_f32(acc, m)))
            a += _UNROLL * a_k
            w += _UNROLL * ldw
        for _ in range(n % _UNROLL):
            v = load_f32x16(w)
            for m in range(rows):
                put_f32(acc, m, fma(v, splat_load_f32(a + m * a_i), get_f32(acc, m)))
            a += a_k
            w += ldw
        for m in range(rows):
            store_f32x16(out + m * ldo, get_f32(acc, m))
    return block


_packed, _rows, _columns = block(M, 4, STEP, 64), block(M, 0, 4, 64), block(M, 4, 0, 64)
_any, _four, _two, _one = block(M, 0, 0, 64), block(4, 0, 0, 64), block(2, 0, 0, 64), block(1, 0, 0, 64)


@jit
def move(source, ld_source, to, ld_to, rows, columns):
    for i in range(rows):
        for n in range(columns):
            store_f32(to + i * ld_to + 4 * n, load_f32(source + i * ld_source + 4 * n))


@jit
def several(left):
    """How many of the rows that are left go together."""
    return M if left >= M and left != 8 else 4 if left >= 4 else 2 if left >= 2 else 1


_wide, _wide_four, _wide_two, _wide_one = block(M, 4, STEP, WIDE), block(4, 0, 4, WIDE), block(2, 0, 4, WIDE), block(1, 0, 4, WIDE)


@jit
def lay_out_rows(a, a_i, rows, n, packed):
    """Blocks of M rows as `multiply_panel` reads them, one after the other -> how many rows those are; the others stay where they are."""
    i = 0
    while i < rows and several(rows - i) == M:
        pack_rows(a + i * a_i, a_i, n, packed)
        packed += STEP * n
        i += M
    return i


@jit
def multiply_panel(packed, a, a_i, panel, out, ldo, rows, n):
    """out[i, c] goes on, c < 32, over n rows of a panel of unpack.py; packed: from `lay_out_rows`, which did not take the last rows, that stand at a."""
    i = 0
    while i < rows:
        here, ai, to = several(rows - i), a + i * a_i, out + i * ldo
        if here == M:
            for m in range(M, 2 * M):  # what the next block begins with: rows far apart, which no hardware foresees
                prefetch(to + m * ldo)
                prefetch(to + m * ldo + 64)
        for c in range(0, WIDE, 64):
            if here == M:
                _wide(packed, 4, STEP, panel + c, WIDE, to + c, ldo, n)
            elif here == 4:
                _wide_four(ai, a_i, 4, panel + c, WIDE, to + c, ldo, n)
            elif here == 2:
                _wide_two(ai, a_i, 4, panel + c, WIDE, to + c, ldo, n)
            else:
                _wide_one(ai, a_i, 4, panel + c, WIDE, to + c, ldo, n)
        packed += STEP * n
        i += here


@compiled("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def multiply_packed(a, a_i, a_k, w, ldw, out, ldo, rows, columns, depth):
    """Strides in bytes. Rows of w are read up to a whole number of COLUMNS."""
    panel, strips, edge = stack_vectors(PANEL), stack_vectors(_STRIPS), stack_vectors(M)
    for i in range(M):
        put_f32(edge, i, splat_f32(0.0))
    narrow = columns <= COLUMNS
    most = PANEL if narrow else DEPTH
    for k in range(0, depth, most):
        steps = min(most, depth - k)
        together, ak, strip = PANEL // steps * COLUMNS, a + k * a_k, STEP * steps
        i0 = 0
        while i0 < rows:
            i1 = rows
            if not narrow and rows - i0 > M * GROUP + 2:
                i1 = i0 + M * GROUP
            if not narrow:
                i, to = i0, strips
                while i < i1 and several(i1 - i) == M:
                    _pack(ak + i * a_i, a_i, a_k, steps, to)
                    i += M
                    to += strip
            for n in range(0, columns, together):
                width = min(together, columns - n)
                if i0 == 0 or columns > together:
                    to = panel
                    for b in range(0, width, COLUMNS):
                        wk = w + k * ldw + 4 * (n + b)
                        for _ in range(steps):
                            store_f32x16(to, load_f32x16(wk))
                            prefetch(wk + 4 * together)  # the next columns': far apart, which no hardware foresees
                            to += 64
                            wk += ldw
                i, packed = i0, strips
                while i < i1:
                    here, ai, weights = several(i1 - i), ak + i * a_i, panel
                    for b in range(0, width, COLUMNS):
                        goal, ld, left = out + i * ldo + 4 * (n + b), ldo, width - b
                        if left < COLUMNS:
                            move(goal, ldo, edge, 64, here, left)
                            goal, ld = edge, 64
                        if here == M:
                            if not narrow:
                                _packed(packed, 4, STEP, weights, 64, goal, ld, steps)
                            elif a_k == 4:
                                _rows(ai, a_i, 4, weights, 64, goal, ld, steps)
                            elif a_i == 4:
                                _columns(ai, 4, a_k, weights, 64, goal, ld, steps)
                            else:
                                _any(ai, a_i, a_k, weights, 64, goal, ld, steps)
                        elif here == 4:
                            _four(ai, a_i, a_k, weights, 64, goal, ld, steps)
                        elif here == 2:
                            _two(ai, a_i, a_k, weights, 64, goal, ld, steps)
                        else:
                            _one(ai, a_i, a_k, weights, 64, goal, ld, steps)
                        if left < COLUMNS:
                            move(edge, 64, out + i * ldo + 4 * (n + b), ldo, here, left)
                        weights += 64 * steps
                    i += here
                    packed += strip
            i0 = i1
