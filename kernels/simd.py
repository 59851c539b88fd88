"""SIMD values inside Numba: LLVM vectors as first-class nopython values.

Kernels written with these read as plain Python loops and compile to the CPU's widest instructions. A vector is 16 lanes of f32/i32, or 64 bytes, on
*every* target (LLVM splits it into two YMM on AVX2, four XMM on SSE2, four Q on NEON). Because this virtual width is fixed, every target performs the
same float operations in the same order, which is half of the exactness promise (docs/exactness.md).

Memory is addressed by int64 addresses: kernels check no bounds, their callers do.
Lanes of 64 bits live in simd64.py, half precision in half.py, the byte dot product in dot.py, exp/sin/cos in vecmath.py.
"""
from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir

from .deferred import NumbaType, cgutils, intrinsic, numba_ready, types, when_numba_comes

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()


class Vector(NumbaType):
    """A SIMD value, `lanes` elements of an LLVM element type; `.numba`: its Numba type, made by `_register_vectors`."""

    numba: Any = None

    def __init__(self, name: str, element, lanes: int):
        super().__init__(name)
        self.llvm = ir.VectorType(element, lanes)

    def __call__(self, *args):
        if self.numba is None:
            numba_ready()
        return self.numba(*(a.numba if isinstance(a, NumbaType) else a for a in args))


F32x16, I32x16, I8x64 = Vector("f32x16", F32, 16), Vector("i32x16", I32, 16), Vector("i8x64", I8, 64)


# -- building blocks for code generators ------------------------------------------------------------------------------------------------------

def pointer(builder, address, llvm_type):
    return builder.inttoptr(address, llvm_type.as_pointer())


def constant(vector, value):
    """The same scalar in every lane (or a list of lanes)."""
    return ir.Constant(vector, list(value) if isinstance(value, (list, tuple, range)) else [value] * vector.count)


def splat(builder, scalar, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def lanes_of(builder, value, first, count):
    """Lanes [first, first + count) as a shorter vector."""
    mask = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def join(builder, parts):
    """Vectors of equal type, one after the other (their number a power of two)."""
    while len(parts) > 1:
        mask = ir.Constant(ir.VectorType(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


def call(builder, name, result, args):
    """Call an LLVM intrinsic by name."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def load_vector(builder, address, vector):
    value = builder.load(pointer(builder, address, vector))
    value.align = 1
    return value


def store_vector(builder, address, value):
    builder.store(value, pointer(builder, address, value.type)).align = 1


# -- loads and stores -------------------------------------------------------------------------------------------------------------------------

def loader(name, llvm_type, numba_type, then=None, doc=""):
    @intrinsic
    def load(typingctx, address):
        def codegen(context, builder, sig, args):
            value = load_vector(builder, args[0], llvm_type)
            return then(builder, value) if then else value
        return numba_type(address), codegen
    load.__name__ = name
    load.__doc__ = doc
    return load


def storer(name, numba_type, llvm_type):
    @intrinsic
    def store(typingctx, address, value):
        def codegen(context, builder, sig, args):
            value = args[1]
            if not isinstance(numba_type, Vector):
                source = sig.args[1]
                value = context.cast(builder, value, source, numba_type.numba)
            store_vector(builder, args[0], value)
            return context.get_dummy_value()
        return types.void(address, value), codegen
    store.__name__ = name
    return store


@intrinsic
def stream_f32x16(typingctx, address, v):
    """Store past the caches, for what is read much later: 64-byte aligned. Who tells others that it is there calls `fence` before."""
    def codegen(context, builder, sig, args):
        store = builder.store(args[1], pointer(builder, args[0], F32x16.llvm))
        store.align = 64
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()
    return types.void(address, v), codegen


_B16 = ir.VectorType(I8, 16)
load_f32x16 = loader("load_f32x16", F32x16.llvm, F32x16)
load_i32x16 = loader("load_i32x16", I32x16.llvm, I32x16)
load_i8x64 = loader("load_i8x64", I8x64.llvm, I8x64)
load_u8x16_as_f32 = loader("load_u8x16_as_f32", _B16, F32x16, lambda b, v: b.uitofp(b.zext(v, I32x16.llvm), F32x16.llvm))
load_i8x16_as_i32 = loader("load_i8x16_as_i32", _B16, I32x16, lambda b, v: b.sext(v, I32x16.llvm))
splat_load_f32 = loader("splat_load_f32", F32, F32x16, lambda b, v: splat(b, v, F32x16.llvm))
splat_load_i32 = loader("splat_load_i32", I32, I32x16, lambda b, v: splat(b, v, I32x16.llvm))
"""Four bytes (or one int32) at an address, repeated in all 16 lanes; folds into vpdpbusd's {1to16} operand."""
load_f32 = loader("load_f32", F32, NumbaType("float32"))
load_i32 = loader("load_i32", I32, NumbaType("int32"))
load_u32 = loader("load_u32", I32, NumbaType("uint32"))
load_u16 = loader("load_u16", I16, NumbaType("uint16"))
load_u8 = loader("load_u8", I8, NumbaType("uint8"))
load_i64 = loader("load_i64", I64, NumbaType("int64"))
store_f32x16 = storer("store_f32x16", F32x16, F32x16.llvm)
store_i8x64 = storer("store_i8x64", I8x64, I8x64.llvm)
store_i32x16 = storer("store_i32x16", I32x16, I32x16.llvm)
store_f32 = storer("store_f32", NumbaType("float32"), F32)
store_i32 = storer("store_i32", NumbaType("int32"), I32)
store_u32 = storer("store_u32", NumbaType("uint32"), I32)
store_u16 = storer("store_u16", NumbaType("uint16"), I16)
store_u8 = storer("store_u8", NumbaType("uint8"), I8)
store_i64 = storer("store_i64", NumbaType("int64"), I64)


def splatter(name, number, vector):
    @intrinsic
    def splat_number(typingctx, x):
        """A scalar, cast to the lanes' type, in all lanes."""
        def codegen(context, builder, sig, args):
            return splat(builder, context.cast(builder, args[0], sig.args[0], number.numba), vector.llvm)
        return vector(x), codegen
    splat_number.__name__ = name
    return splat_number


splat_f32 = splatter("splat_f32", NumbaType("float32"), F32x16)
splat_i32 = splatter("splat_i32", NumbaType("int32"), I32x16)


def _prefetch(locality):
    @intrinsic
    def prefetch(typingctx, address):
        """Ask for the cache line at an address (which need not be mapped)."""
        def codegen(context, builder, sig, args):
            p8 = I8.as_pointer()
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [p8, I32, I32, I32]), "llvm.prefetch.p0")
            builder.call(function, [builder.inttoptr(args[0], p8), *(ir.Constant(I32, n) for n in (0, locality, 1))])
            return context.get_dummy_value()
        return types.void(address), codegen
    return prefetch


prefetch, prefetch_l2 = _prefetch(3), _prefetch(2)
"""Into the first-level cache, or only into the second."""


# -- arithmetic: + - * / on f32x16, + * on i32x16, | & on i8x64, by the ordinary operators ----------------------------------------------------

_OPERATORS = (
    (F32x16, ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"))),
    (I32x16, ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul"))),
    (I8x64, ((operator.or_, "or_"), (operator.and_, "and_"), (operator.xor, "xor"))),
)
"""Vector -> (Python operator, method of the IR builder)."""


def register_vectors(operators):
    """Make vectors and their operators known to Numba; called when it comes."""
    from numba.core.imputils import lower_builtin
    from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
    from numba.extending import models, register_model

    class VectorType(types.Type):
        def __init__(self, vector):
            self.llvm = vector.llvm
            super().__init__(vector.name)

    @register_model(VectorType)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager, fe_type):
            super().__init__(manager, fe_type, fe_type.llvm)

    def register(op, vector, method):
        @infer_global(op)
        class Typing(ConcreteTemplate):
            cases = [signature(vector, vector, vector)]

        @lower_builtin(op, vector, vector)
        def lower(context, builder, sig, args):
            return getattr(builder, method)(*args)

    for vector, methods in operators:
        vector.numba = VectorType(vector)
        for op, method in methods:
            register(op, vector.numba, method)


when_numba_comes(lambda: register_vectors(_OPERATORS))


@intrinsic
def fma(typingctx, a, b, c):
    """a*b + c with one rounding, on every target (explicit, so that no compiler may choose otherwise)."""
    def codegen(context, builder, sig, args):
        return call(builder, "llvm.fma.v16f32", F32x16.llvm, args)
    return F32x16(a, b, c), codegen


@intrinsic
def fma64(typingctx, a, b, c):
    """float64 a*b + c with one rounding."""
    def codegen(context, builder, sig, args):
        return call(builder, "llvm.fma.f64", F64, [context.cast(builder, x, t, types.float64) for x, t in zip(args, sig.args)])
    return types.float64(a, b, c), codegen


def _compare_select(name, predicate):
    @intrinsic
    def pick(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return builder.select(builder.fcmp_ordered(predicate, args[0], args[1]), args[0], args[1])
        return F32x16(a, b), codegen
    pick.__name__ = name
    return pick


vmax = _compare_select("vmax", ">")
"""Lane-wise a > b ? a : b (b where either is NaN): one vmaxps, the same on every target."""
vmin = _compare_select("vmin", "<")


@intrinsic
def vmax_i32(typingctx, a, b):
    def codegen(context, builder, sig, args):
        return builder.select(builder.icmp_signed(">", args[0], args[1]), args[0], args[1])
    return I32x16(a, b), codegen


@intrinsic
def to_f32(typingctx, v):
    """int32 lanes to float32 (rounded to nearest even; exact below 2**24)."""
    def codegen(context, builder, sig, args):
        return builder.sitofp(args[0], F32x16.llvm)
    return F32x16(v), codegen


def bitcast(name, source, result):
    @intrinsic
    def cast(typingctx, v):
        def codegen(context, builder, sig, args):
            return builder.bitcast(args[0], result.llvm if isinstance(result, Vector) else context.get_value_type(result.numba))
        return result(source.numba), codegen
    cast.__name__ = name
    return cast


bits_of = bitcast("bits_of", F32x16, I32x16)
from_bits = bitcast("from_bits", I32x16, F32x16)
f32_bits = bitcast("f32_bits", NumbaType("float32"), NumbaType("int32"))
f64_bits = bitcast("f64_bits", NumbaType("float64"), NumbaType("int64"))
f64_from_bits = bitcast("f64_from_bits", NumbaType("int64"), NumbaType("float64"))


def _shift(name, vector, method):
    @intrinsic
    def shift(typingctx, v, n):
        if not isinstance(n, types.IntegerLiteral):
            return None

        def codegen(context, builder, sig, args):
            return getattr(builder, method)(args[0], constant(vector.llvm, n.literal_value))
        return vector(v, n), codegen
    shift.__name__ = name
    return shift


shl_i32, sar_i32 = _shift("shl_i32", I32x16, "shl"), _shift("sar_i32", I32x16, "ashr")
shl_u8, shr_u8 = _shift("shl_u8", I8x64, "shl"), _shift("shr_u8", I8x64, "lshr")
"""Shifts by a literal number of bits."""


@intrinsic
def and_u8(typingctx, v, mask):
    """Every byte & a literal mask."""
    if not isinstance(mask, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        return builder.and_(args[0], constant(I8x64.llvm, mask.literal_value))
    return I8x64(v, mask), codegen


@intrinsic
def and_i32(typingctx, v, mask):
    """Every int32 lane & a literal mask."""
    if not isinstance(mask, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        return builder.and_(args[0], constant(I32x16.llvm, mask.literal_value))
    return I32x16(v, mask), codegen


# -- across lanes: one fixed tree, 16 -> 8 -> 4 -> 2 -> 1, lower half (op) upper half ---------------------------------------------------------

def reducer(name, vector, scalar, combine):
    @intrinsic
    def reduce(typingctx, v):
        def codegen(context, builder, sig, args):
            x = args[0]
            while x.type.count > 1:
                half = x.type.count // 2
                x = combine(builder, lanes_of(builder, x, 0, half), lanes_of(builder, x, half, half))
            return builder.extract_element(x, ir.Constant(I32, 0))
        return scalar(v), codegen
    reduce.__name__ = name
    return reduce


vsum = reducer("vsum", F32x16, NumbaType("float32"), lambda b, x, y: b.fadd(x, y))
vmax_across = reducer("vmax_across", F32x16, NumbaType("float32"), lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
vsum_i32 = reducer("vsum_i32", I32x16, NumbaType("int32"), lambda b, x, y: b.add(x, y))
vmax_across_i32 = reducer("vmax_across_i32", I32x16, NumbaType("int32"), lambda b, x, y: b.select(b.icmp_signed(">", x, y), x, y))


@intrinsic
def keep_first(typingctx, v, n, fill):
    """Lanes >= n replaced by fill (selected away, never multiplied)."""
    def codegen(context, builder, sig, args):
        index = constant(I32x16.llvm, range(16))
        count = splat(builder, context.cast(builder, args[1], sig.args[1], types.int32), I32x16.llvm)
        other = splat(builder, context.cast(builder, args[2], sig.args[2], types.float32), F32x16.llvm)
        return builder.select(builder.icmp_signed("<", index, count), args[0], other)
    return F32x16(v, n, fill), codegen


@intrinsic
def drop_first(typingctx, v, n, fill):
    """Lanes < n replaced by fill (selected away, never multiplied)."""
    def codegen(context, builder, sig, args):
        index = constant(I32x16.llvm, range(16))
        count = splat(builder, context.cast(builder, args[1], sig.args[1], types.int32), I32x16.llvm)
        other = splat(builder, context.cast(builder, args[2], sig.args[2], types.float32), F32x16.llvm)
        return builder.select(builder.icmp_signed("<", index, count), other, args[0])
    return F32x16(v, n, fill), codegen


def _permute(name, order, doc):
    @intrinsic
    def permute(typingctx, v):
        def codegen(context, builder, sig, args):
            return builder.shuffle_vector(args[0], ir.Constant(F32x16.llvm, ir.Undefined), ir.Constant(I32x16.llvm, order))
        return F32x16(v), codegen
    permute.__name__, permute.__doc__ = name, doc
    return permute


swap_pairs = _permute("swap_pairs", [i ^ 1 for i in range(16)], "Lanes 2i and 2i + 1 exchanged.")
even_twice = _permute("even_twice", [i & ~1 for i in range(16)], "Lane 2i in lanes 2i and 2i + 1.")
odd_twice = _permute("odd_twice", [i | 1 for i in range(16)], "Lane 2i + 1 in lanes 2i and 2i + 1.")


@intrinsic
def negate_even(typingctx, v):
    """The sign of lanes 0, 2, 4, ... changed."""
    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], I32x16.llvm)
        return builder.bitcast(builder.xor(bits, ir.Constant(I32x16.llvm, [0 if i & 1 else -0x80000000 for i in range(16)])), F32x16.llvm)
    return F32x16(v), codegen


@intrinsic
def store_i8x16(typingctx, address, v):
    """Low byte of each int32 lane: 16 bytes."""
    def codegen(context, builder, sig, args):
        store_vector(builder, args[0], builder.trunc(args[1], _B16))
        return context.get_dummy_value()
    return types.void(address, v), codegen


# -- small arrays of vectors on the stack, which LLVM promotes to registers -------------------------------------------------------------------

@intrinsic
def stack_vectors(typingctx, n):
    """Address of n 64-byte vectors on the stack; n is a compile-time constant."""
    if not isinstance(n, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        with builder.goto_entry_block():
            slot = builder.alloca(ir.ArrayType(F32x16.llvm, n.literal_value))
            slot.align = 64
        return builder.ptrtoint(slot, I64)
    return types.int64(n), codegen


def _accessors(vector):
    @intrinsic
    def get(typingctx, vectors, i):
        def codegen(context, builder, sig, args):
            index = context.cast(builder, args[1], sig.args[1], types.int64)
            value = builder.load(builder.gep(pointer(builder, args[0], vector.llvm), [index]))
            value.align = 64
            return value
        return vector(vectors, i), codegen

    @intrinsic
    def put(typingctx, vectors, i, value):
        def codegen(context, builder, sig, args):
            index = context.cast(builder, args[1], sig.args[1], types.int64)
            builder.store(args[2], builder.gep(pointer(builder, args[0], vector.llvm), [index])).align = 64
            return context.get_dummy_value()
        return types.void(vectors, i, value), codegen
    return get, put


get_f32, put_f32 = _accessors(F32x16)
get_i8, put_i8 = _accessors(I8x64)
get_i32, put_i32 = _accessors(I32x16)
