"""The byte dot product: acc[lane] += the sum of 4 products u8 * i8, for 16 lanes, exactly, on every target.

Integer sums are exact in any order, so each target may use its own instructions:

| target | weights <= 127 (`dot`) | any byte (`dot_any`) |
|---|---|---|
| avx512vnni, avxvnni | vpdpbusd | vpdpbusd |
| avx512, avx2 | vpmaddubsw + vpmaddwd (4 * 127 * 127 can't saturate a pair) | even and odd bytes as int16, vpmaddwd twice: vpmaddubsw would saturate |
| neon | sdot | sdot on weights - 128, plus 128 times the sum of s (again sdot) |
| generic | even and odd bytes as int16, pmaddwd twice | the same |

avx2 adds up vpmaddubsw's int16 sums of several vectors before they widen them, where codes are small enough (`dot_later`, `settled`, `together`): 8 vectors
of 4-bit codes, 4 of 5-bit, 2 of 6-bit ones, so that 32 columns take one to four vpmaddwd for 8. Bytes stored as code + 128 it takes by signs (`dot_signed`),
which leaves their zero point out.
"""
from __future__ import annotations

from llvmlite import ir

from .deferred import intrinsic
from .simd import I8, I16, I32, I8x64, I32x16, call, constant, join, lanes_of
from .target import IS_X86, LLVM_VERSION, TARGET

LATER = TARGET == "avx2"
"""Whether int16 sums wait; else `dot_later` is `dot`."""


def _vnni(builder, acc, u, s, lanes):
    """vpdpbusd on vectors of `lanes` int32. LLVM >= 22 types its operands as bytes, older LLVM as int32."""
    parts = []
    for k in range(0, 16, lanes):
        operand = ir.VectorType(I8, 4 * lanes) if LLVM_VERSION >= 22 else ir.VectorType(I32, lanes)
        piece = [builder.bitcast(lanes_of(builder, x, 4 * k, 4 * lanes), operand) for x in (u, s)]
        parts.append(call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", ir.VectorType(I32, lanes), [lanes_of(builder, acc, k, lanes), *piece]))
    return join(builder, parts)


def _pairs(builder, acc, even, odd, width):
    """acc + sums of int16 pairs: pmaddwd on pieces of `width` int16, of two i16x32 (a, b) pairs."""
    name = {8: "llvm.x86.sse2.pmadd.wd", 16: "llvm.x86.avx2.pmadd.wd", 32: "llvm.x86.avx512.pmaddw.d.512"}[width]
    for a, b in (even, odd):
        parts = [call(builder, name, ir.VectorType(I32, width // 2), [lanes_of(builder, x, k, width) for x in (a, b)]) for k in range(0, 32, width)]
        acc = builder.add(acc, join(builder, parts))
    return acc


def _any_by_int16(builder, acc, u, s, width):
    h = ir.VectorType(I16, 32)
    u, s = builder.bitcast(u, h), builder.bitcast(s, h)
    eight = constant(h, 8)
    even = builder.and_(u, constant(h, 0xFF)), builder.ashr(builder.shl(s, eight), eight)
    odd = builder.lshr(u, eight), builder.ashr(s, eight)
    return _pairs(builder, acc, even, odd, width)


def _maddubs(builder, acc, u, s, width):
    """vpmaddubsw (int16 sums of two products), then vpmaddwd by ones; `width` bytes at a time."""
    name, wide = {32: ("llvm.x86.avx2.pmadd.ub.sw", 16), 64: ("llvm.x86.avx512.pmaddubs.w.512", 32)}[width]
    h = ir.VectorType(I16, width // 2)
    add = {16: "llvm.x86.avx2.pmadd.wd", 32: "llvm.x86.avx512.pmaddw.d.512"}[wide]
    parts = []
    for k in range(0, 64, width):
        sums = call(builder, name, h, [lanes_of(builder, x, k, width) for x in (u, s)])
        parts.append(call(builder, add, ir.VectorType(I32, width // 4), [sums, constant(h, 1)]))
    return builder.add(acc, join(builder, parts))


def _later(builder, acc, u, s):
    """As _maddubs, but acc holds int16 sums, two in a lane of 32 bits."""
    h = ir.VectorType(I16, 16)
    parts = [call(builder, "llvm.x86.avx2.pmadd.ub.sw", h, [lanes_of(builder, x, k, 32) for x in (u, s)]) for k in (0, 32)]
    return builder.bitcast(builder.add(builder.bitcast(acc, ir.VectorType(I16, 32)), join(builder, parts)), I32x16.llvm)


def _by_signs(builder, acc, u, s):
    """acc + (u - 128) . s: vpmaddubsw takes the weights' magnitudes, and s with their signs; two products of 128 * 127 fit int16."""
    weights = builder.xor(u, constant(I8x64.llvm, -128))
    magnitudes = builder.select(builder.icmp_signed("<", weights, constant(I8x64.llvm, 0)), builder.neg(weights), weights)
    h, b = ir.VectorType(I16, 16), ir.VectorType(I8, 32)
    turned = join(builder, [call(builder, "llvm.x86.avx2.psign.b", b, [lanes_of(builder, x, k, 32) for x in (s, weights)]) for k in (0, 32)])
    sums = [call(builder, "llvm.x86.avx2.pmadd.ub.sw", h, [lanes_of(builder, x, k, 32) for x in (magnitudes, turned)]) for k in (0, 32)]
    return builder.add(acc, join(builder, [call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), [x, constant(h, 1)]) for x in sums]))


def _neon(builder, acc, u, s):
    parts = []
    for k in range(0, 64, 16):
        operands = [lanes_of(builder, x, k, 16) for x in (u, s)]
        parts.append(call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.VectorType(I32, 4), [lanes_of(builder, acc, k // 4, 4), *operands]))
    return join(builder, parts)


def _plain(builder, acc, u, s):
    """No such instruction known: sign- and zero-extended products, left to LLVM."""
    wide = ir.VectorType(I32, 64)
    products = builder.mul(builder.zext(u, wide), builder.sext(s, wide))
    for k in range(4):
        mask = ir.Constant(ir.VectorType(I32, 16), list(range(k, 64, 4)))
        acc = builder.add(acc, builder.shuffle_vector(products, ir.Constant(wide, ir.Undefined), mask))
    return acc


def build_dot(builder, acc, u, s, target: str, any_byte: bool, x86: bool = IS_X86):
    """LLVM code of acc + u . s for a target; u: <64 x i8> unsigned, s: <64 x i8> signed, acc: <16 x i32>."""
    if target == "avx512vnni":
        return _vnni(builder, acc, u, s, 16)
    if target == "avxvnni":
        return _vnni(builder, acc, u, s, 8)
    if target in ("avx512", "avx2"):
        wide = target == "avx512"
        return _any_by_int16(builder, acc, u, s, 32 if wide else 16) if any_byte else _maddubs(builder, acc, u, s, 64 if wide else 32)
    if target == "neon":
        if not any_byte:
            return _neon(builder, acc, u, s)
        b64 = I8x64.llvm
        low = _neon(builder, acc, builder.xor(u, constant(b64, -128)), s)
        return builder.add(low, builder.shl(_neon(builder, constant(I32x16.llvm, 0), constant(b64, 1), s), constant(I32x16.llvm, 7)))
    return _any_by_int16(builder, acc, u, s, 8) if x86 else _plain(builder, acc, u, s)


def _intrinsic(any_byte):
    @intrinsic
    def dot(typingctx, acc, u, s):
        def codegen(context, builder, sig, args):
            return build_dot(builder, args[0], args[1], builder.bitcast(args[2], I8x64.llvm), TARGET, any_byte)
        return I32x16(acc, u, s), codegen
    return dot


dot = _intrinsic(any_byte=False)
"""dot(acc i32x16, u i8x64 of unsigned bytes <= 127, s i32x16 holding 4 signed bytes a lane) -> i32x16"""
dot_any = _intrinsic(any_byte=True)
"""The same for unsigned bytes of any value."""


def together(codes: int) -> int:
    """How often `dot_later` may go on with codes below `codes` before `settled`: so many sums of two products with -127..127 fit int16."""
    return 32767 // (2 * 127 * (codes - 1)) if LATER else 8


@intrinsic
def dot_later(typingctx, acc, u, s):
    """As `dot`, for acc that began as zeros and is `settled` after at most `together` calls."""
    def codegen(context, builder, sig, args):
        s8 = builder.bitcast(args[2], I8x64.llvm)
        return _later(builder, args[0], args[1], s8) if LATER else build_dot(builder, args[0], args[1], s8, TARGET, False)
    return I32x16(acc, u, s), codegen


@intrinsic
def dot_signed(typingctx, acc, u, s):
    """acc + (u - 128) . s for bytes u of any value; where LATER alone."""
    def codegen(context, builder, sig, args):
        return _by_signs(builder, args[0], args[1], builder.bitcast(args[2], I8x64.llvm))
    return I32x16(acc, u, s), codegen


@intrinsic
def settled(typingctx, acc):
    """The int32 sums of what dot_later made."""
    def codegen(context, builder, sig, args):
        if not LATER:
            return args[0]
        h = ir.VectorType(I16, 16)
        sums = builder.bitcast(args[0], ir.VectorType(I16, 32))
        pieces = [lanes_of(builder, sums, k, 16) for k in (0, 16)]
        return join(builder, [call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), [x, constant(h, 1)]) for x in pieces])
    return I32x16(acc), codegen
