"""Weights out of their tiles as float32 rows, for the products of the backward pass: a *panel* is some rows × 32 columns, row after row.

    tiles (16 rows × a block of columns, lane = row)  ──►  float32 [rows, 32 columns]

A weight is what the forward pass multiplies with, rounded once or twice on its way to one float32:

    w = d × float(code − zero)                      formats with a scale only; with an integer scale for each 16 columns: d × float(sc × (code − zero))
    w = fma(float(code), d, m)                      with a minimum; Q2_K: fma(float(sc × code), d, (dmin ÷ 32) × float(−32 m))
"""
from __future__ import annotations

from functools import cache

from llvmlite import ir

from ..compile_cache import Compiled, compiled
from ..deferred import intrinsic, jit, types
from ..formats.floats import FloatPacking
from ..formats.registry import packing
from ..matmul import ROWS, Packing
from ..simd import (
    I64,
    F32x16,
    I32x16,
    and_i32,
    bits_of,
    fma,
    from_bits,
    load_f32,
    load_u8x16_as_f32,
    load_u32,
    load_vector,
    shl_i32,
    splat_f32,
    splat_i32,
    stack_vectors,
    store_f32x16,
    store_u32,
    store_vector,
    to_f32,
)

COLUMNS = 32
ROW_BYTES = 4 * COLUMNS
_UNPACK = "void(int64, int64, int64, int64, int64, int64)"


@intrinsic
def turn_over(typingctx, source, target):
    """Row i of 16 × 16 float32 at `source`, rows 64 bytes apart, becomes column i of those at `target`, rows ROW_BYTES apart."""
    def codegen(context, builder, sig, args):
        rows = [load_vector(builder, builder.add(args[0], ir.Constant(I64, 64 * i)), F32x16.llvm) for i in range(16)]
        for h in (8, 4, 2, 1):
            first = ir.Constant(I32x16.llvm, [16 + lane - h if lane & h else lane for lane in range(16)])
            second = ir.Constant(I32x16.llvm, [16 + lane if lane & h else lane + h for lane in range(16)])
            for i in range(16):
                if not i & h:
                    a, b = rows[i], rows[i + h]
                    rows[i], rows[i + h] = builder.shuffle_vector(a, b, first), builder.shuffle_vector(a, b, second)
        for i in range(16):
            store_vector(builder, builder.add(args[1], ir.Constant(I64, ROW_BYTES * i)), rows[i])
        return context.get_dummy_value()
    return types.void(source, target), codegen


@intrinsic
def turn_tile(typingctx, source, ld_source, target, ld_target):
    """The same for 8 × 8, strides in bytes."""
    def codegen(context, builder, sig, args):
        half, at, rows = ir.VectorType(F32x16.llvm.element, 8), args[0], []
        for _ in range(8):
            rows.append(load_vector(builder, at, half))
            at = builder.add(at, args[1])
        for h, orders in (1, ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])), (2, ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])), (
                4, ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])):
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), 8), order) for order in orders]
            for i in range(8):
                if not i & h:
                    a, b = rows[i], rows[i + h]
                    rows[i], rows[i + h] = builder.shuffle_vector(a, b, masks[0]), builder.shuffle_vector(a, b, masks[1])
        at = args[2]
        for i in (0, 2, 1, 3, 4, 6, 5, 7):  # bits 0 and 1 of a place have changed sides on the way
            store_vector(builder, at, rows[i])
            at = builder.add(at, args[3])
        return context.get_dummy_value()
    return types.void(source, ld_source, target, ld_target), codegen


def _block_rows(f: Packing):
    """(tile, b, panel): the tile's b-th 32 columns."""
    unpack, scale, minimum = f.unpack, f.scale, f.minimum or f.scale
    half_scales, half_minimums = f.half_scales or f.scale, f.half_minimums or f.scale
    has_minimum, halves, has_half_minimums, zero_point = f.minimum is not None, f.half_scales is not None, f.half_minimums is not None, f.zero

    @jit
    def block_rows(tile, b, panel):
        u, codes, numbers = stack_vectors(8), stack_vectors(8), stack_vectors(5)  # numbers: d, minimums and integer scales of both halves
        unpack(tile, b, u)
        store_f32x16(numbers, scale(tile, b))
        for h in range(2):
            if halves:
                store_f32x16(numbers + 192 + 64 * h, to_f32(half_scales(tile, b, h)))
            if has_half_minimums:
                store_f32x16(numbers + 64 + 64 * h, minimum(tile, b) * to_f32(splat_i32(-32) * half_minimums(tile, b, h)))
            elif has_minimum:
                store_f32x16(numbers + 64 + 64 * h, minimum(tile, b))
        for r in range(ROWS):  # in a loop of its own: what is read next was then written long ago
            for i in range(8):
                store_u32(codes + 32 * r + 4 * i, load_u32(u + 64 * i + 4 * r))
        zero = splat_f32(zero_point)
        for r in range(ROWS):
            d = splat_f32(load_f32(numbers + 4 * r))
            for h in range(2):
                q = load_u8x16_as_f32(codes + 32 * r + 16 * h) - zero
                if halves:
                    q = q * splat_f32(load_f32(numbers + 192 + 64 * h + 4 * r))  # whole numbers: exact
                w = q * d
                if has_minimum:
                    w = fma(q, d, splat_f32(load_f32(numbers + 64 + 64 * h + 4 * r)))
                store_f32x16(panel + ROW_BYTES * r + 64 * h, w)
    return block_rows


def _float_rows(f: FloatPacking):
    """(tile, columns that are there from the first one on, first column, panel)."""
    load, step, pairs = f.steps.load, f.steps.weight_bytes, f.steps.columns == 2

    @jit
    def float_rows(tile, left, first, panel):
        turned = stack_vectors(32)
        for c in range(left, COLUMNS):
            store_f32x16(turned + 64 * c, splat_f32(0.0))
        if pairs:
            for c in range(0, left, 2):
                both = bits_of(load(tile + (first + c) // 2 * step))
                store_f32x16(turned + 64 * c, from_bits(and_i32(both, -65536)))
                store_f32x16(turned + 64 * c + 64, from_bits(shl_i32(both, 16)))
        else:
            for c in range(left):
                store_f32x16(turned + 64 * c, load(tile + (first + c) * step))
        turn_over(turned, panel)
        turn_over(turned + 1024, panel + 64)
    return float_rows


@cache
def unpacker(name: str) -> Compiled:
    """(retiled matrix, its columns, tile0, tile1, first column, panel): rows of tiles [tile0, tile1), columns from the first one (a multiple of 32) on, zero
    past the matrix's, as float32 [16 (tile1 - tile0), 32] at `panel`. For a format of the kernel table."""
    layout = packing(name)
    if isinstance(layout, FloatPacking):
        rows, step_columns, step_bytes = _float_rows(layout), layout.steps.columns, layout.steps.weight_bytes

        def unpack(w, columns, tile0, tile1, first, panel):
            row_bytes, left = (columns + step_columns - 1) // step_columns * step_bytes, min(COLUMNS, columns - first)
            for t in range(tile0, tile1):
                rows(w + t * row_bytes, left, first, panel)
                panel += ROWS * ROW_BYTES
    else:
        rows, sub_blocks, block, tile_bytes = _block_rows(layout), layout.columns // COLUMNS, layout.columns, layout.tile_bytes

        def unpack(w, columns, tile0, tile1, first, panel):
            blocks, b = columns // block, first // COLUMNS
            for t in range(tile0, tile1):
                rows(w + (t * blocks + b // sub_blocks) * tile_bytes, b % sub_blocks, panel)
                panel += ROWS * ROW_BYTES
    unpack.__name__ = unpack.__qualname__ = f"unpack_{name}"
    return compiled(_UNPACK)(unpack)
