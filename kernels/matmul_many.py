"""The matmul of block formats for very many tokens: tiles unpacked once for all of them, two tiles at a time.

    for 8 tiles and 256 tokens:  for 8 blocks of 32 columns:  for 2 of the tiles:  unpack into a buffer that stays in L1
                                                              ─►  for each group of 8 tokens: 16 running sums += 8 blocks

Of the tokens' records, which fill megabytes, 8 blocks thus stay in L2 for the 8 tiles. The sums (2 tiles x 8 tokens of a group) wait in a packed buffer between
chunks of columns: rows of the output lie whole powers of two apart and would fight over the same L1 sets. Each output's chain of operations
is the one that matmul.py writes down: over the blocks, in order.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from .activations import BLOCK, DS, GROUP, RECORD, ZERO8, ZERO32, ZERO128, D
from .dot import dot
from .dots import FEW_REGISTERS, dots
from .elementwise import jit
from .simd import (
    fma,
    get_f32,
    get_i32,
    load_f32x16,
    load_i8x64,
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

if TYPE_CHECKING:
    from .matmul import Packing

ENOUGH = 128
"""Tokens from which this is faster."""
CHUNK = 8
"""Blocks of 32 columns that are unpacked at once."""
GROUPS, TILES = 32, 8
"""Groups of 8 tokens, and tiles, whose sums fit the buffer of 128 KB: a chunk of the groups' records is read from the second-level cache by 4 pairs."""
_SCALE, _LEAST, _BLOCK_BYTES = 512, 576, 640  # an unpacked block: 8 vectors of codes, scale, minimum
_VECTORS, _SUMS = 2 * CHUNK * _BLOCK_BYTES // 64, 8 * TILES * GROUPS
_D, _DS = GROUP * D, GROUP * DS


def pays(f: Packing) -> bool:
    """Whether this beats matmul.py's loop body at all: not for bytes, which need no unpacking, nor with two scales a block: 32 sums fill all registers."""
    return f.zero != 128 and f.half_scales is None


def zero_point(f: Packing) -> tuple[int, int, int]:
    """(where a record of width 1 holds a multiple of the sum of its codes, shift left, shift right) that give -zero * sum."""
    at, stored = (ZERO32, 32) if f.half_scales is not None else (ZERO128, 128) if f.zero == 128 else (ZERO8, 8)
    return at, max(0, f.zero.bit_length() - stored.bit_length()), max(0, stored.bit_length() - f.zero.bit_length())


def _add_group(f: Packing):
    """Some unpacked blocks of 2 tiles x one group of 8 tokens."""
    has_minimum, has_zero = f.minimum is not None, f.zero > 0
    at, up, down = zero_point(f)
    zero_at = GROUP * at

    @jit
    def zero(x, m):
        if has_zero:
            return sar_i32(shl_i32(splat_load_i32(x + zero_at + 4 * m), up), down)
        return splat_i32(0)

    @jit
    def add_group(u, blocks, x, acc):
        a, sums = stack_vectors(16), stack_vectors(16)
        for i in range(16):
            put_f32(a, i, load_f32x16(acc + 64 * i))
        for _ in range(blocks):
            for m in range(8):
                put_i32(sums, m, zero(x, m))
                put_i32(sums, 8 + m, zero(x, m))
            for i in range(8):
                w0, w1 = load_i8x64(u + 64 * i), load_i8x64(u + _BLOCK_BYTES + 64 * i)
                for m in range(8):
                    q = splat_load_i32(x + BLOCK * m + 4 * i)
                    put_i32(sums, m, dot(get_i32(sums, m), w0, q))
                    put_i32(sums, 8 + m, dot(get_i32(sums, 8 + m), w1, q))
            for t in range(2):
                p = u + _BLOCK_BYTES * t
                d = load_f32x16(p + _SCALE)
                for m in range(8):
                    s = fma(to_f32(get_i32(sums, 8 * t + m)), d * splat_load_f32(x + _D + 4 * m), get_f32(a, 8 * t + m))
                    if has_minimum:
                        s = fma(load_f32x16(p + _LEAST), splat_load_f32(x + _DS + 4 * m), s)
                    put_f32(a, 8 * t + m, s)
            u += 2 * _BLOCK_BYTES
            x += RECORD
        for i in range(16):
            store_f32x16(acc + 64 * i, get_f32(a, i))
    return add_group


def _add_group_16(f: Packing):
    """As _add_group for 16 registers: a tile and 4 tokens at a time."""
    has_minimum, has_zero, four_dots = f.minimum is not None, f.zero > 0, dots(4, f)
    at, up, down = zero_point(f)
    zero_at = GROUP * at

    @jit
    def four(u, blocks, x, numbers, acc):
        sums = stack_vectors(4)
        for _ in range(blocks):
            four_dots(u, x, sums, blocks)
            for m in range(4):
                q = get_i32(sums, m)
                if has_zero:
                    q = q + sar_i32(shl_i32(splat_load_i32(numbers + zero_at + 4 * m), up), down)
                s = fma(to_f32(q), load_f32x16(u + _SCALE) * splat_load_f32(numbers + _D + 4 * m), load_f32x16(acc + 64 * m))
                if has_minimum:
                    s = fma(load_f32x16(u + _LEAST), splat_load_f32(numbers + _DS + 4 * m), s)
                store_f32x16(acc + 64 * m, s)
            u += 2 * _BLOCK_BYTES
            x += RECORD
            numbers += RECORD

    @jit
    def add_group(u, blocks, x, acc):
        for t in range(2):
            for m in range(0, 8, 4):
                four(u + _BLOCK_BYTES * t, blocks, x + BLOCK * m, x + 4 * m, acc + 64 * (8 * t + m))
    return add_group


def many_tokens(f: Packing):
    """(w, blocks of 32 columns, tile0, tile1, x, out, ldo, groups): whole groups of 8 tokens; addresses as in matmul.block_kernel."""
    add_group = _add_group_16(f) if FEW_REGISTERS else _add_group(f)
    unpack, scale, minimum, has_minimum = f.unpack, f.scale, f.minimum or f.scale, f.minimum is not None
    tile_bytes, sub_blocks = f.tile_bytes, f.columns // BLOCK

    @jit
    def unpack_chunk(w, first, last, u):
        for block in range(first, last):
            tile, b = w + block // sub_blocks * tile_bytes, block % sub_blocks
            unpack(tile, b, u)
            store_f32x16(u + _SCALE, scale(tile, b))
            if has_minimum:
                store_f32x16(u + _LEAST, minimum(tile, b))
            u += 2 * _BLOCK_BYTES

    @jit
    def some_tiles(w, row_bytes, blocks, tiles, x, out, ldo, groups):
        u, acc = stack_vectors(_VECTORS), stack_vectors(_SUMS)
        pairs = (tiles + 1) // 2
        for i in range(16 * groups * pairs):
            store_f32x16(acc + 64 * i, splat_f32(0.0))
        for first in range(0, blocks, CHUNK):
            last = min(first + CHUNK, blocks)
            for pair in range(pairs):
                for t in range(2):
                    unpack_chunk(w + min(2 * pair + t, tiles - 1) * row_bytes, first, last, u + t * _BLOCK_BYTES)
                for g in range(groups):
                    add_group(u, last - first, x + (g * blocks + first) * RECORD, acc + 1024 * (groups * pair + g))
        for m in range(GROUP * groups):
            for t in range(tiles):
                at = acc + 1024 * (groups * (t // 2) + m // GROUP) + 512 * (t % 2) + 64 * (m % GROUP)
                store_f32x16(out + 4 * m * ldo + 64 * t, load_f32x16(at))

    @jit
    def many(w, blocks, tile0, tile1, x, out, ldo, groups):
        row_bytes = blocks // sub_blocks * tile_bytes
        for g in range(0, groups, GROUPS):
            for t in range(tile0, tile1, TILES):
                some_tiles(w + t * row_bytes, row_bytes, blocks, min(TILES, tile1 - t), x + g * blocks * RECORD, out + 64 * t + 4 * GROUP * g * ldo, ldo,
                           min(GROUPS, groups - g))
    return many
