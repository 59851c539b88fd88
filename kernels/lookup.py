"""Sixteen-entry byte tables: each byte (0..15) of a vector replaced by an entry, by the CPU's byte shuffle, or by comparisons where it has none."""
from __future__ import annotations

from llvmlite import ir

from .deferred import intrinsic
from .simd import I8, I8x64, call, constant, join, lanes_of
from .target import TARGET

_SHUFFLES = {
    "avx512vnni": ("llvm.x86.avx512.pshuf.b.512", 64), "avx512": ("llvm.x86.avx512.pshuf.b.512", 64), "avxvnni": ("llvm.x86.avx2.pshuf.b", 32),
    "avx2": ("llvm.x86.avx2.pshuf.b", 32), "neon": ("llvm.aarch64.neon.tbl1.v16i8", 16),
}


def build_lookup(builder, codes, table: tuple[int, ...], target: str):
    """LLVM code of table[code] for a <64 x i8> of codes 0..15; 16 entries, taken modulo 256."""
    entries = [(t + 128) % 256 - 128 for t in table]
    if target in _SHUFFLES:
        name, width = _SHUFFLES[target]
        vector = ir.VectorType(I8, width)
        parts = [call(builder, name, vector, [ir.Constant(vector, entries * (width // 16)), lanes_of(builder, codes, k, width)]) for k in range(0, 64, width)]
        return join(builder, parts)
    result = constant(I8x64.llvm, entries[0])
    for code in range(1, 16):
        result = builder.select(builder.icmp_unsigned("==", codes, constant(I8x64.llvm, code)), constant(I8x64.llvm, entries[code]), result)
    return result


def lookup(table: tuple[int, ...]):
    """An intrinsic (i8x64 of codes 0..15) -> i8x64 of table entries."""
    @intrinsic
    def look_up(typingctx, codes):
        def codegen(context, builder, sig, args):
            return build_lookup(builder, args[0], table, TARGET)
        return I8x64(codes), codegen
    return look_up
