"""Half precision to and from float32 (bfloat16: bfloat16.py).

Where the CPU has the conversion (HAS_HALF) LLVM's fpext/fptrunc are used; elsewhere integer and float operations that give the same bits for all 65,536
halves (tests check every one), because LLVM would call a runtime function that isn't there. Both round to nearest even.
"""
from __future__ import annotations

from llvmlite import ir

from .deferred import intrinsic, types
from .simd import F32, I16, I32, F32x16, I32x16, constant, load_vector, store_vector
from .target import HAS_HALF

_H16 = ir.VectorType(I16, 16)
_HALF16 = ir.VectorType(ir.HalfType(), 16)


def _widen(builder, h, vector_i32, vector_f32):
    """f16 bits (as integers of any lane count) -> f32. A half's exponent and mantissa, shifted into a float's place, are 2**-112 of its value."""
    c = (lambda v: constant(vector_i32, v)) if isinstance(vector_i32, ir.VectorType) else (lambda v: ir.Constant(vector_i32, v))
    x = builder.zext(h, vector_i32)
    sign = builder.shl(builder.and_(x, c(0x8000)), c(16))
    magnitude = builder.shl(builder.and_(x, c(0x7FFF)), c(13))
    scale = constant(vector_f32, 2.0**112) if isinstance(vector_f32, ir.VectorType) else ir.Constant(vector_f32, 2.0**112)
    finite = builder.bitcast(builder.fmul(builder.bitcast(magnitude, vector_f32), scale), vector_i32)
    special = builder.or_(magnitude, c(0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, c(0x7C00 << 13))
    return builder.bitcast(builder.or_(builder.select(is_special, special, finite), sign), vector_f32)


def _narrow(builder, f):
    """f32x16 -> f16 bits, to nearest even: subnormals by adding 0.5 (its last place is half's smallest step), normals by integer rounding."""
    i, v = I32x16.llvm, F32x16.llvm
    c = lambda value: constant(i, value)  # noqa: E731
    bits = builder.bitcast(f, i)
    sign = builder.lshr(builder.and_(bits, c(-0x80000000)), c(16))
    x = builder.and_(bits, c(0x7FFFFFFF))
    tiny = builder.sub(builder.bitcast(builder.fadd(builder.bitcast(x, v), constant(v, 0.5)), i), c(0x3F000000))
    odd = builder.and_(builder.lshr(x, c(13)), c(1))
    normal = builder.lshr(builder.add(builder.add(x, c(0xFFF - (112 << 23))), odd), c(13))
    special = builder.select(builder.icmp_signed(">", x, c(0x7F800000)), c(0x7E00), c(0x7C00))
    result = builder.select(builder.icmp_signed("<", x, c(0x38800000)), tiny, normal)
    result = builder.select(builder.icmp_signed(">=", x, c(0x47800000)), special, result)
    return builder.trunc(builder.or_(result, sign), _H16)


@intrinsic
def load_f16x16(typingctx, address):
    """16 halves at an address as f32x16."""
    def codegen(context, builder, sig, args):
        h = load_vector(builder, args[0], _H16)
        if HAS_HALF:
            return builder.fpext(builder.bitcast(h, _HALF16), F32x16.llvm)
        return _widen(builder, h, I32x16.llvm, F32x16.llvm)
    return F32x16(address), codegen


@intrinsic
def load_f16(typingctx, address):
    """One half at an address as float32."""
    def codegen(context, builder, sig, args):
        return _widen(builder, load_vector(builder, args[0], I16), I32, F32)
    return types.float32(address), codegen


@intrinsic
def store_f16x16(typingctx, address, v):
    """f32x16 rounded to nearest even, 32 bytes."""
    def codegen(context, builder, sig, args):
        h = builder.bitcast(builder.fptrunc(args[1], _HALF16), _H16) if HAS_HALF else _narrow(builder, args[1])
        store_vector(builder, args[0], h)
        return context.get_dummy_value()
    return types.void(address, v), codegen
