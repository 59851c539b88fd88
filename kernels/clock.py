"""A clock that compiled code can read in a few cycles: the CPU's counter of constant rate, in ticks of unknown length (see `tick_seconds`)."""
from __future__ import annotations

import time
from functools import cache

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .compile_cache import jit
from .simd import I64, call
from .target import IS_X86, MACHINE

HAS_TICKS = IS_X86 or MACHINE in ("aarch64", "arm64")


@intrinsic
def ticks(typingctx):
    """The counter now, int64; 0 for ever on CPUs where none is known. x86: rdtsc; Armv8: CNTVCT_EL0 (the cycle counter proper traps there)."""
    def codegen(context, builder, sig, args):
        if IS_X86:
            return call(builder, "llvm.readcyclecounter", I64, [])
        if HAS_TICKS:
            return builder.asm(ir.FunctionType(I64, []), "mrs $0, CNTVCT_EL0", "=r", [], True)
        return ir.Constant(I64, 0)
    return types.int64(), codegen


@jit()
def read_ticks():
    """ticks(), for Python."""
    return ticks()


@cache
def tick_seconds(sample: float = 0.05) -> float:
    """Seconds of one tick, measured once per process over `sample` seconds; 0.0 where there is no counter."""
    if not HAS_TICKS:
        return 0.0
    read_ticks()
    start, ticks0 = time.perf_counter(), read_ticks()
    while time.perf_counter() - start < sample:
        time.sleep(0.002)
    ticks1, end = read_ticks(), time.perf_counter()
    return (end - start) / max(1, ticks1 - ticks0)
