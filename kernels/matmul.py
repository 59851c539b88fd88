"""The matmul: out[m, row] = sum over columns of weight[row, column] * activation[m, column]; one loop body for all block formats.

A matrix is *retiled* at load (retile.py): a tile is 16 rows x one block of the file's format, lane = row, so that one 64-byte load feeds one integer dot
for 16 rows and nothing is ever summed across lanes. Per 32 columns b, in order, and per output (one lane, one token):

    acc = fma(float(dot_b), d_w[b] * d_x[b], acc)           dot_b: exact int32, zero point folded in
    acc = fma(m_w[b], d_x[b] * sum_x[b], acc)               formats with a minimum: m_w = its value (K-quants: -dmin * m)

Formats with a scale per 16 columns (Q6_K, ...) sum scale * dot of both halves exactly in int32 first (at most 2 * 128 * 16 * 32 * 127 < 2**24), and
Q2_K's minimums likewise: acc = fma(float(m_0 * -32 sum_0 + m_1 * -32 sum_1), dmin / 32 * d_x, acc).
Float formats run one fma chain over the columns: matmul_float.py.

How many tokens share an unpacked tile (M = 1, 2, 4, 8; very many: matmul_many.py) never enters an output's chain of operations, hence the same bits for
any batch.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .activations import BLOCK, DS, GROUP, RECORD, ZERO32, D, record_size
from .deferred import intrinsic, jit, types
from .dots import FEW_REGISTERS, byte_dot, dots, lacks_zero
from .matmul_many import ENOUGH, many_tokens, pays, zero_point
from .simd import (
    I64,
    fma,
    get_f32,
    get_i8,
    get_i32,
    load_f32,
    load_f32x16,
    pointer,
    prefetch,
    prefetch_l2,
    put_f32,
    put_i32,
    sar_i32,
    shl_i32,
    splat_f32,
    splat_i32,
    splat_load_f32,
    splat_load_i32,
    stack_vectors,
    store_f32x16,
    to_f32,
)
from .target import TARGET

ROWS = 16
"""Rows of a tile: the lanes of a vector."""
AHEAD = 8192
"""Software prefetch distance in bytes: at M = 8 memory and arithmetic then overlap (prototype: 51 -> 26 ms a step). Into the first-level cache for one token or
two; for more, whose records share that cache, into the second (8 tokens: + 2 % with Q4_0, + 20 % with Q8_0)."""
TILES_A_GROUP = 8
"""Tiles that one group of 8 tokens visits before the next group: the group's records stay in L1/L2, the tiles in L2."""


class Packing(NamedTuple):
    """How one block format lies in memory and in a tile. `place`, `unpack`, `scale`, `minimum` are compiled functions on addresses."""

    name: str
    columns: int
    """Columns of one file block (32 or 256; 1 for floats)."""
    block_bytes: int
    tile_bytes: int
    decode: Callable[[np.ndarray], np.ndarray]
    """NumPy reference: uint8 [n, block_bytes] -> float32 [n, columns]."""
    place: Any
    """(src, dst, lane) -> bool: copy one file block into lane `lane` of a tile; False where a scale is NaN or infinite."""
    unpack: Any
    """(tile, b, u): codes of the tile's b-th 32 columns as 8 vectors of unsigned bytes; vector i, lane r: columns 4i..4i+3 of row r."""
    scale: Any
    """(tile, b) -> f32x16; with halves: the block scale alone."""
    minimum: Any = None
    """(tile, b) -> f32x16 added per unit of activation (with half_minimums: per unit of -32 * minimum), or None."""
    half_scales: Any = None
    """(tile, b, half) -> i32x16: integer scale of 16 columns, or None."""
    half_minimums: Any = None
    """(tile, b, half) -> i32x16: integer minimum of 16 columns, or None."""
    zero: int = 0
    """Zero point of the codes: 0 or a power of two; 128 says that codes may pass 127."""
    codes: int = 128
    """What `unpack` makes is below this, unless the zero point is 128."""


def _body(f: Packing, M: int):
    """One tile row x the tokens of a group that has room for M; the first `tokens` are there.

    The dots of all tokens are taken by turns where 32 registers hold the sums: the 8 of one token, one after the other, would wait for each other.
    """
    unpack, scale, minimum = f.unpack, f.scale, f.minimum or f.scale
    half_scales, half_minimums = f.half_scales or f.scale, f.half_minimums or f.scale
    has_minimum, halves, has_half_minimums = f.minimum is not None, f.half_scales is not None, f.half_minimums is not None
    has_zero, product = lacks_zero(f), byte_dot(f)
    sub_blocks, tile_bytes = f.columns // BLOCK, f.tile_bytes
    step = tile_bytes // sub_blocks
    lines = -(-step // 64)
    zero_at, up, down = zero_point(f)
    record = record_size(M)
    fetch = prefetch if M <= 2 else prefetch_l2
    turns = M if TARGET == "avx512vnni" else 1
    few = min(M, 4)
    by_fours = FEW_REGISTERS and not halves and (M > 1 or f.codes <= 16)
    some_dots = dots(few, f)

    @jit
    def body(w, tiles, x, tokens, out, ldo):
        acc, sums, u = stack_vectors(M), stack_vectors(M), stack_vectors(8)
        for m in range(M):
            put_f32(acc, m, splat_f32(0.0))
        for _ in range(tiles):
            for b in range(sub_blocks):
                for line in range(lines):
                    fetch(w + AHEAD + step * b + 64 * line)
                unpack(w, b, u)
                d = scale(w, b)
                if has_minimum:
                    least = minimum(w, b)
                if halves:
                    s0, s1 = half_scales(w, b, 0), half_scales(w, b, 1)
                if has_half_minimums:
                    m_0, m_1 = half_minimums(w, b, 0), half_minimums(w, b, 1)
                if by_fours:
                    for m0 in range(0, M, few):
                        some_dots(u, x + BLOCK * m0, sums + 64 * m0, tiles)
                        if has_zero:
                            for m in range(m0, m0 + few):
                                put_i32(sums, m, get_i32(sums, m) + sar_i32(shl_i32(splat_load_i32(x + M * zero_at + 4 * m), up), down))
                elif not halves:
                    for m0 in range(0, M, turns):
                        for m in range(m0, m0 + turns):
                            put_i32(sums, m, splat_i32(0))
                            if has_zero:
                                put_i32(sums, m, sar_i32(shl_i32(splat_load_i32(x + M * zero_at + 4 * m), up), down))
                        for i in range(8):
                            for m in range(m0, m0 + turns):
                                put_i32(sums, m, product(get_i32(sums, m), get_i8(u, i), splat_load_i32(x + BLOCK * m + 4 * i)))
                for m in range(M):
                    if halves:
                        low = high = splat_i32(0)
                        if has_zero:
                            low = sar_i32(shl_i32(splat_load_i32(x + M * ZERO32 + 4 * m), up), down)
                            high = sar_i32(shl_i32(splat_load_i32(x + M * (ZERO32 + 4) + 4 * m), up), down)
                        for i in range(4):
                            low = product(low, get_i8(u, i), splat_load_i32(x + BLOCK * m + 4 * i))
                            high = product(high, get_i8(u, 4 + i), splat_load_i32(x + BLOCK * m + 16 + 4 * i))
                        put_i32(sums, m, low * s0 + high * s1)
                    a = fma(to_f32(get_i32(sums, m)), d * splat_load_f32(x + M * D + 4 * m), get_f32(acc, m))
                    if has_half_minimums:
                        both = m_0 * splat_load_i32(x + M * ZERO32 + 4 * m) + m_1 * splat_load_i32(x + M * (ZERO32 + 4) + 4 * m)
                        a = fma(to_f32(both), least * splat_load_f32(x + M * D + 4 * m), a)
                    elif has_minimum:
                        a = fma(least, splat_load_f32(x + M * DS + 4 * m), a)
                    put_f32(acc, m, a)
                x += record
            w += tile_bytes
        for m in range(M):
            if m < tokens:
                store_f32x16(out + 4 * m * ldo, get_f32(acc, m))
    return body


def block_kernel(f: Packing):
    """The kernel of a block format: (w, columns, tile0, tile1, x, ldx, out, ldo, tokens), all int64; to be compiled by the registry.

    w: address of the retiled matrix; columns: a multiple of the format's block; tiles [tile0, tile1) are computed; x: address of activation records
    (activations.py); ldx: unused; out: address of float32 [tokens, ldo], row r of the matrix in column r.
    """
    one, two, four, eight = (_body(f, M) for M in (1, 2, 4, 8))
    file_columns, tile_bytes = f.columns, f.tile_bytes
    has_many = pays(f)
    many = many_tokens(f) if has_many else eight  # never called

    def kernel(w, columns, tile0, tile1, x, ldx, out, ldo, tokens):
        blocks = columns // file_columns
        row_bytes, group_bytes = blocks * tile_bytes, columns // BLOCK * RECORD
        if has_many and tokens >= ENOUGH:
            groups = tokens // GROUP
            many(w, columns // BLOCK, tile0, tile1, x, out, ldo, groups)
            tokens -= groups * GROUP
            x += groups * group_bytes
            out += 4 * groups * GROUP * ldo
        for t0 in range(tile0, tile1, TILES_A_GROUP):
            t1 = min(t0 + TILES_A_GROUP, tile1)
            for g in range((tokens + GROUP - 1) // GROUP):
                n, xg = min(GROUP, tokens - GROUP * g), x + g * group_bytes
                for t in range(t0, t1):
                    p, o = w + t * row_bytes, out + 4 * (ROWS * t + g * GROUP * ldo)
                    if n > 4:
                        eight(p, blocks, xg, n, o, ldo)
                    elif n > 2:
                        four(p, blocks, xg, n, o, ldo)
                    elif n == 2:
                        two(p, blocks, xg, n, o, ldo)
                    else:
                        one(p, blocks, xg, n, o, ldo)
    return kernel


def beside_kernel(f: Packing, up, number_bytes: int):
    """A lone token's product with an adapter's beside it: (w, columns, tile0, tile1, x, bias, out, b, rank, u, scale), all int64. up: low_rank.py's `tile_up`.

    w to x, and out: as above. bias: address of float32 [16 * tiles], or 0. b: of the packed B, whose numbers have number_bytes; scale: of a float32. Tile by
    tile, so that the few lines of B join the stream of weights, in the order they lie in: read in one go, or fetched ahead, they cost three times their bytes.
    """
    one, file_columns, tile_bytes = _body(f, 1), f.columns, f.tile_bytes

    def kernel(w, columns, tile0, tile1, x, bias, out, b, rank, u, scale):
        blocks, b_bytes, s = columns // file_columns, ROWS * rank * number_bytes, load_f32(scale)
        for t in range(tile0, tile1):
            to = out + 4 * ROWS * t
            one(w + t * blocks * tile_bytes, blocks, x, 1, to, 0)
            if bias != 0:
                store_f32x16(to, load_f32x16(to) + load_f32x16(bias + 4 * ROWS * t))
            up(b + t * b_bytes, rank, u, 0, to, 0, s)
        return 0
    return kernel


@intrinsic
def call_kernel(typingctx, kernel, w, columns, tile0, tile1, x, ldx, out, ldo, tokens):
    """Call a matmul kernel by its address."""
    def codegen(context, builder, sig, args):
        values = [context.cast(builder, a, t, types.int64) for a, t in zip(args[1:], sig.args[1:])]
        function = ir.FunctionType(ir.VoidType(), [I64] * len(values))
        builder.call(pointer(builder, args[0], function), values)
        return context.get_dummy_value()
    return types.void(kernel, w, columns, tile0, tile1, x, ldx, out, ldo, tokens), codegen
