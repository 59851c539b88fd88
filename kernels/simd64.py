"""Vectors of 8 float64 or int64 on every target, beside simd.py's of 32-bit lanes: what the sampler computes with (sampling.py).

A comparison gives an i64x8 mask: -1 where it holds, else 0. Masks combine by | and &.
"""
from __future__ import annotations

import operator

from llvmlite import ir

from .deferred import NumbaType, intrinsic, types, when_numba_comes
from .simd import F32, F64, I64, Vector, bitcast, constant, loader, reducer, register_vectors, splatter, storer

F64x8, I64x8 = Vector("f64x8", F64, 8), Vector("i64x8", I64, 8)

_OPERATORS = (
    (F64x8, ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"))),
    (I64x8, ((operator.add, "add"), (operator.sub, "sub"), (operator.or_, "or_"), (operator.and_, "and_"))),
)
when_numba_comes(lambda: register_vectors(_OPERATORS))

load_f64x8 = loader("load_f64x8", F64x8.llvm, F64x8)
load_f32x8_as_f64 = loader("load_f32x8_as_f64", ir.VectorType(F32, 8), F64x8, lambda b, v: b.fpext(v, F64x8.llvm))
load_f64 = loader("load_f64", F64, NumbaType("float64"))
store_f64x8 = storer("store_f64x8", F64x8, F64x8.llvm)
store_i64x8 = storer("store_i64x8", I64x8, I64x8.llvm)
store_f64 = storer("store_f64", NumbaType("float64"), F64)
bits_of_f64x8 = bitcast("bits_of_f64x8", F64x8, I64x8)
f64x8_from_bits = bitcast("f64x8_from_bits", I64x8, F64x8)
sum_i64 = reducer("sum_i64", I64x8, NumbaType("int64"), lambda b, x, y: b.add(x, y))
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


def _comparison(name, predicate):
    @intrinsic
    def compare(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return builder.sext(builder.fcmp_ordered(predicate, args[0], args[1]), I64x8.llvm)
        return I64x8(a, b), codegen
    compare.__name__ = name
    return compare


equal = _comparison("equal", "==")
at_most = _comparison("at_most", "<=")
