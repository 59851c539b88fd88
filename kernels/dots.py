"""The byte dots of 32 columns for some tokens at once, where 16 registers hold 8 lanes each: 4 tokens' sums, a tile's codes and an activation fit."""
from __future__ import annotations

from typing import TYPE_CHECKING

from .activations import BLOCK
from .deferred import jit
from .dot import LATER, dot, dot_any, dot_later, dot_signed, settled, together
from .simd import get_i8, get_i32, put_i32, splat_i32, splat_load_i32, stack_vectors
from .target import TARGET

if TYPE_CHECKING:
    from .matmul import Packing

FEW_REGISTERS = TARGET in ("avx2", "avxvnni")


def lacks_zero(f: Packing) -> bool:
    """Whether what `dots` and `byte_dot` make lacks the zero point."""
    return f.zero > 0 and not (f.zero == 128 and LATER)


def byte_dot(f: Packing):
    """The dot product of a format's codes."""
    return dot if f.zero != 128 else dot_signed if LATER else dot_any


def dots(M: int, f: Packing):
    """(codes: 8 vectors, address of the first token's activations, sums: int32 vectors of M <= 4 tokens, any number > 0)."""
    product, any_byte, often = byte_dot(f), f.zero == 128, 8 if f.zero == 128 else min(8, together(f.codes))

    @jit
    def some_dots(u, x, sums, positive):
        # LLVM does not know that this is `often`: of many tokens it would unroll the loop, add in a tree and run out of registers
        later, steps = stack_vectors(M), min(often, often * positive) if M > 1 else often
        for i0 in range(0, 8, often):
            for m in range(M):
                put_i32(later, m, splat_i32(0))
            for i in range(i0, i0 + steps):
                w = get_i8(u, i)
                for m in range(M):
                    q = splat_load_i32(x + BLOCK * m + 4 * i)
                    if any_byte:
                        put_i32(later, m, product(get_i32(later, m), w, q))
                    else:
                        put_i32(later, m, dot_later(get_i32(later, m), w, q))
            for m in range(M):
                part = get_i32(later, m) if any_byte else settled(get_i32(later, m))
                put_i32(sums, m, part if i0 == 0 else get_i32(sums, m) + part)
    return some_dots
