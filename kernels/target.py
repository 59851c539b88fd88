"""Which CPU the kernels are compiled for: decided once, at import, from what Numba itself compiles for.

`NUMBA_CPU_NAME` / `NUMBA_CPU_FEATURES` therefore let one x86 machine compile, run and test all its x86 targets (see `EMULATION`).
"""
from __future__ import annotations

import platform

from llvmlite import binding as llvm

from .compile_cache import numba_facts

TARGETS = ("avx512vnni", "avx512", "avxvnni", "avx2", "neon", "generic")

EMULATION: dict[str, dict[str, str]] = {
    "avx512": {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx2,+fma,+f16c,+popcnt"},
    "avxvnni": {"NUMBA_CPU_NAME": "alderlake", "NUMBA_CPU_FEATURES": "+avxvnni,+gfni,+avx2,+fma,+f16c,+popcnt"},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+popcnt"},
    "generic": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"},
}
"""Environment that makes Numba compile for a lesser x86 target; for a process of its own, set before Numba is imported."""


def cpu_features() -> frozenset[str]:
    """Features that Numba compiles for: {'avx2', 'fma', ...}; NUMBA_CPU_FEATURES wins over the host's."""
    return frozenset(f[1:] for f in numba_facts()["features"].split(",") if f.startswith("+"))


def choose_target(machine: str, features: frozenset[str]) -> str:
    """The best of TARGETS for an architecture (`platform.machine()`) with these LLVM feature names."""
    if machine.lower() in ("aarch64", "arm64"):
        return "neon" if "dotprod" in features else "generic"
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= features:
        return "avx512vnni" if "avx512vnni" in features else "avx512"
    if {"avx2", "fma", "f16c"} <= features:
        return "avxvnni" if "avxvnni" in features else "avx2"
    return "generic"


MACHINE = platform.machine().lower()
FEATURES = cpu_features()
TARGET = choose_target(MACHINE, FEATURES)
IS_X86 = MACHINE in ("x86_64", "amd64", "i386", "i686", "x86")
HAS_HALF = TARGET in ("avx512vnni", "avx512", "avxvnni", "avx2", "neon")
"""Hardware conversion between half and single precision (F16C, or Armv8); elsewhere LLVM would call a runtime function that isn't there."""
LLVM_VERSION: int = llvm.llvm_version_info[0]
HAS_BF16_DOT = TARGET == "avx512vnni" and "avx512bf16" in FEATURES and LLVM_VERSION >= 20
"""The dot product of bfloat16 pairs (bfloat16.py); older LLVM types its operands otherwise."""


def emulatable(features: frozenset[str]) -> list[str]:
    """Names of the lesser x86 targets that a CPU with these features can run (keys of EMULATION), best first."""
    if not IS_X86:
        return []
    return [t for t in EMULATION if all(f in features for f in _needs(t)) and t != TARGET]


def _needs(target: str) -> list[str]:
    return [f[1:] for f in EMULATION[target]["NUMBA_CPU_FEATURES"].split(",")]
