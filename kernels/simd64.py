"""Vectors of 8 float64 or int64 on every target, beside simd.py's of 32-bit lanes: what the sampler computes with (sampling.py).

A comparison gives an i64x8 mask: -1 where it holds, else 0. Masks combine by | and &.
"""
from __future__ import annotations

import operator

from llvmlite import ir

from .deferred import NumbaType, intrinsic, types, when_numba_comes
from .simd import F32, F64, I8, I32, I64, Vector, bitcast, call, constant, loader, pointer, reducer, register_vectors, splatter, store_vector, storer
from .target import TARGET

F64x8, I64x8 = Vector("f64x8", F64, 8), Vector("i64x8", I64, 8)

_OPERATORS = (
    (F64x8, ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"))),
    (I64x8, ((operator.add, "add"), (operator.sub, "sub"), (operator.or_, "or_"), (operator.and_, "and_"))),
)
when_numba_comes(lambda: register_vectors(_OPERATORS))

load_f64x8 = loader("load_f64x8", F64x8.llvm, F64x8)
load_i64x8 = loader("load_i64x8", I64x8.llvm, I64x8)
load_f32x8_as_f64 = loader("load_f32x8_as_f64", ir.VectorType(F32, 8), F64x8, lambda b, v: b.fpext(v, F64x8.llvm))
load_f64 = loader("load_f64", F64, NumbaType("float64"))
store_f64x8 = storer("store_f64x8", F64x8, F64x8.llvm)
store_i64x8 = storer("store_i64x8", I64x8, I64x8.llvm)
store_f64 = storer("store_f64", NumbaType("float64"), F64)
bits_of_f64x8 = bitcast("bits_of_f64x8", F64x8, I64x8)
f64x8_from_bits = bitcast("f64x8_from_bits", I64x8, F64x8)
sum_i64 = reducer("sum_i64", I64x8, NumbaType("int64"), lambda b, x, y: b.add(x, y))
sum_f64 = reducer("sum_f64", F64x8, NumbaType("float64"), lambda b, x, y: b.fadd(x, y))
or_i64 = reducer("or_i64", I64x8, NumbaType("int64"), lambda b, x, y: b.or_(x, y))
splat_f64 = splatter("splat_f64", NumbaType("float64"), F64x8)
splat_i64 = splatter("splat_i64", NumbaType("int64"), I64x8)


@intrinsic
def shl_i64(typingctx, v, n):
    """Lanes shifted left by a literal number of bits."""
    if not isinstance(n, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        return builder.shl(args[0], constant(I64x8.llvm, n.literal_value))
    return I64x8(v, n), codegen


@intrinsic
def where_less(typingctx, a, b, x, y):
    """Lane-wise a < b ? x : y, of f64x8."""
    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])
    return F64x8(a, b, x, y), codegen


def _comparison(name, method, predicate):
    @intrinsic
    def compare(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return builder.sext(getattr(builder, method)(predicate, args[0], args[1]), I64x8.llvm)
        return I64x8(a, b), codegen
    compare.__name__ = name
    return compare


equal, at_most, less = (_comparison(name, "fcmp_ordered", sign) for name, sign in (("equal", "=="), ("at_most", "<="), ("less", "<")))
equal_i64, at_most_i64 = (_comparison(name, "icmp_signed", sign) for name, sign in (("equal_i64", "=="), ("at_most_i64", "<=")))
"""Masks of f64x8, and of i64x8."""


@intrinsic
def i64_from(typingctx, first):
    """first, first + 1, …, first + 7."""
    def codegen(context, builder, sig, args):
        start = context.cast(builder, args[0], sig.args[0], types.int64)
        lanes = ir.Constant(I64x8.llvm, ir.Undefined)
        for i in range(8):
            lanes = builder.insert_element(lanes, start, ir.Constant(I32, i))
        return builder.add(lanes, ir.Constant(I64x8.llvm, list(range(8))))
    return I64x8(first), codegen


def _packed(builder, v, mask):
    """The lanes where the mask (<8 x i1>) holds moved to the front; what follows them is undefined."""
    return call(builder, "llvm.x86.avx512.mask.compress.v8f64", F64x8.llvm, [v, ir.Constant(F64x8.llvm, ir.Undefined), mask])


def _packer(name, vector, element, convert):
    @intrinsic
    def store_packed(typingctx, address, v, mask):
        def codegen(context, builder, sig, args):
            address, v, mask = args
            chosen = builder.icmp_signed("!=", mask, constant(I64x8.llvm, 0))
            if TARGET in ("avx512vnni", "avx512"):
                packed = builder.bitcast(_packed(builder, builder.bitcast(v, F64x8.llvm), chosen), vector.llvm)
                store_vector(builder, address, convert(builder, packed, ir.VectorType(element, 8)))
                return builder.zext(call(builder, "llvm.ctpop.i8", I8, [builder.bitcast(chosen, I8)]), I64)
            count, size = ir.Constant(I64, 0), ir.Constant(I64, element_bytes)
            lanes = convert(builder, v, ir.VectorType(element, 8))
            for i in range(8):  # one after the other and without a branch: those not chosen are overwritten
                lane = ir.Constant(I32, i)
                builder.store(builder.extract_element(lanes, lane), pointer(builder, builder.add(address, builder.mul(count, size)), element)).align = 1
                count = builder.add(count, builder.zext(builder.extract_element(chosen, lane), I64))
            return count
        return types.int64(address, v, mask), codegen
    element_bytes = {F32: 4}.get(element, 8)
    store_packed.__name__ = name
    return store_packed


store_packed_f64 = _packer("store_packed_f64", F64x8, F64, lambda b, v, t: v)
store_packed_i64 = _packer("store_packed_i64", I64x8, I64, lambda b, v, t: v)
store_packed_f64_as_f32 = _packer("store_packed_f64_as_f32", F64x8, F32, lambda b, v, t: b.fptrunc(v, t))
"""(address, v, mask) -> how many lanes the mask chooses; these are stored one after the other. All 8 places are written to, so there must be room."""
