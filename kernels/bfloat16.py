"""bfloat16: widened, activations rounded to it, and the dot product of pairs that some CPUs have for it (AVX512-BF16).

`vdpbf16ps` multiplies pairs as two fma would, the upper halves' first: acc = fma(w1, x1, acc), acc = fma(w0, x0, acc), each rounded once to nearest even
(Intel's manual, VDPBF16PS; tests and `llamina selftest` compare it with fma on the CPU at hand). It takes numbers below 2**-126 for zero, which fma does
not: so no number below TINY comes near either. What is left are multiples of TINY / 128, products and their sums multiples of TINY**2 / 2**14 = 2**-124.
"""
from __future__ import annotations

import numpy as np
from llvmlite import ir

from .compile_cache import compiled
from .deferred import intrinsic
from .simd import I16, F32x16, I32x16, and_i32, call, constant, fma, from_bits, lanes_of, load_f32x16, load_i32x16, load_vector, shl_i32, store_f32x16

TINY = 2.0**-55
"""Weights of BF16 matrices and their activations count as zero below it."""
TINY_BITS = 127 - 55 << 7
"""TINY as bfloat16."""
TINY_SUM = 2.0**-100
"""What a chain of products goes on from counts as zero below it: what is left are multiples of 2**-123."""


class _BFloat(ir.Type):
    """LLVM's type, which llvmlite doesn't know."""

    def _to_string(self) -> str:
        return "bfloat"


_BF32 = ir.VectorType(_BFloat(), 32)


def _without_tiny(builder, x, tiny=TINY):
    magnitude = call(builder, "llvm.fabs.v16f32", F32x16.llvm, [x])
    return builder.select(builder.fcmp_ordered("<", magnitude, constant(F32x16.llvm, tiny)), constant(F32x16.llvm, 0.0), x)


@intrinsic
def load_bf16x16(typingctx, address):
    """16 bfloat16 at an address as f32x16: the upper half of a float."""
    def codegen(context, builder, sig, args):
        wide = builder.shl(builder.zext(load_vector(builder, args[0], ir.VectorType(I16, 16)), I32x16.llvm), constant(I32x16.llvm, 16))
        return builder.bitcast(wide, F32x16.llvm)
    return F32x16(address), codegen


@intrinsic
def round_bf16(typingctx, x):
    """f32x16 to the nearest bfloat16, ties to even, as f32x16; zero below TINY, NaN as it is."""
    def codegen(context, builder, sig, args):
        c, i = (lambda n: constant(I32x16.llvm, n)), I32x16.llvm
        x = _without_tiny(builder, args[0])
        bits = builder.bitcast(x, i)
        odd = builder.and_(builder.lshr(bits, c(16)), c(1))
        rounded = builder.and_(builder.add(builder.add(bits, c(0x7FFF)), odd), c(-0x10000))
        return builder.select(builder.fcmp_unordered("uno", x, x), x, builder.bitcast(rounded, F32x16.llvm))
    return F32x16(x), codegen


@intrinsic
def settled_sum(typingctx, x):
    """f32x16 with zero below TINY_SUM."""
    def codegen(context, builder, sig, args):
        return _without_tiny(builder, args[0], TINY_SUM)
    return F32x16(x), codegen


@intrinsic
def pairs_bf16(typingctx, upper, lower):
    """Two f32x16, rounded like `round_bf16`'s: lane i has upper's in its upper half, and lower's. Needs HAS_BF16_DOT."""
    def codegen(context, builder, sig, args):
        high, low = (_without_tiny(builder, x) for x in args)
        both = call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _BF32, [high, low])
        halves = builder.bitcast(both, ir.VectorType(I16, 32))
        order = ir.Constant(ir.VectorType(ir.IntType(32), 32), [i // 2 + 16 * (i % 2) for i in range(32)])
        return builder.bitcast(builder.shuffle_vector(halves, halves, order), F32x16.llvm)
    return F32x16(upper, lower), codegen


@intrinsic
def load_bf16_pairs(typingctx, address):
    """32 float32 at an address, rounded like `round_bf16`'s: lane i has columns 2i, in its upper half, and 2i + 1. Needs HAS_BF16_DOT."""
    def codegen(context, builder, sig, args):
        both = load_vector(builder, args[0], ir.VectorType(ir.FloatType(), 32))
        first, second = (_without_tiny(builder, lanes_of(builder, both, k, 16)) for k in (0, 16))
        pairs = builder.bitcast(call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _BF32, [second, first]), I32x16.llvm)
        swapped = call(builder, "llvm.fshl.v16i32", I32x16.llvm, [pairs, pairs, constant(I32x16.llvm, 16)])
        return builder.bitcast(swapped, F32x16.llvm)
    return F32x16(address), codegen


@intrinsic
def dot_bf16(typingctx, w, x, acc):
    """Pairs of bfloat16, as bits: fma(w's lower half, x's, fma(w's upper half, x's, acc)). Needs HAS_BF16_DOT."""
    def codegen(context, builder, sig, args):
        w, x = (builder.bitcast(a, _BF32) for a in args[:2])
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", F32x16.llvm, [args[2], w, x])
    return F32x16(w, x, acc), codegen


@compiled("void(int64, int64, int64, int64, int64)")
def _dot_both_ways(w, x, acc, out, n):
    """n vectors of 16 pairs: by the dot product, then by two fma, into float32 [n, 2, 16]."""
    for i in range(n):
        pairs, others, start = load_i32x16(w + 64 * i), load_i32x16(x + 64 * i), load_f32x16(acc + 64 * i)
        upper = fma(from_bits(and_i32(pairs, -65536)), from_bits(and_i32(others, -65536)), start)
        store_f32x16(out + 128 * i, dot_bf16(from_bits(pairs), from_bits(others), start))
        store_f32x16(out + 128 * i + 64, fma(from_bits(shl_i32(pairs, 16)), from_bits(shl_i32(others, 16)), upper))


def dot_differences(n: int = 4096, seed: int = 0) -> int:
    """How many of 16 n random dot products of pairs are not what two fma make of them: 0. Needs HAS_BF16_DOT."""
    rng = np.random.default_rng(seed)

    def random_bits(sign_and_mantissa: int, shift: int, spread: int) -> np.ndarray:
        exponent = rng.integers(127 - spread, 127 + spread, (n, 16), np.uint32)
        return rng.integers(0, 1 << 32, (n, 16), np.uint32) & np.uint32(sign_and_mantissa) | exponent << np.uint32(shift)
    spread = int(rng.integers(2, 55))
    w, x = (random_bits(0x807F, 7, spread) | random_bits(0x807F, 7, spread) << np.uint32(16) for _ in "wx")
    acc, out = random_bits(0x807FFFFF, 23, min(2 * spread, 100)), np.zeros((n, 2, 16), np.uint32)
    acc[::5] = 0
    w[::7] &= np.uint32(0x8000FFFF)  # zeros of both signs
    _dot_both_ways.ctypes(w.ctypes.data, x.ctypes.data, acc.ctypes.data, out.ctypes.data, n)
    return int((out[:, 0] != out[:, 1]).sum())
