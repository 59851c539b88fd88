"""Which other x86 targets the tests compile everything for: one for every width of registers, or all that this CPU can run.

Compiling every op anew is most of such a test's time. What differs between the targets of one width is the dot products, and test_targets.py compares a
kernel with each loop body on all of them; whole models, and what is every format's own, take one of each (LLAMINA_ALL_TARGETS=1: all).
"""
from __future__ import annotations

import os

import pytest
from llamina.kernels import target
from llamina.kernels.formats.table import RUNNABLE

ALL = bool(os.environ.get("LLAMINA_ALL_TARGETS"))
TAKEN = sorted(target.EMULATION) if ALL else ["avx2", "generic"]
FEW = ("BF16", "F16", "F32", "MXFP4", "Q2_K", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Formats that have every loop body, dot product and lookup between them (test_targets.py)."""


def formats() -> list[str]:
    """Whose kernels are compiled whole in this process: all, but for another target FEW's; of the others that has the loop body for one token alone, which
    holds all that is their own (kernel_digests.py)."""
    return sorted(RUNNABLE if ALL or not os.environ.get("LLAMINA_TEST_TARGET") else FEW)


def needs(name: str) -> None:
    """Skips the test if this CPU can't run code for the target, or runs it anyway."""
    if name not in target.emulatable(target.FEATURES):
        pytest.skip(f"this CPU ({target.TARGET}) cannot run code for another target {name}")
