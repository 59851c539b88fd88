"""Which other x86 targets the tests compile everything for: one for every width of registers, or all that this CPU can run.

Compiling every op anew is most of such a test's time. What differs between the targets of one width is the dot products, and test_targets.py compares a
kernel with each loop body on all of them; whole models, and every format's kernel, take one of each (LLAMINA_ALL_TARGETS=1: all).
"""
from __future__ import annotations

import os

import pytest
from llamina.kernels import target

ALL = bool(os.environ.get("LLAMINA_ALL_TARGETS"))
TAKEN = sorted(target.EMULATION) if ALL else ["avx2", "generic"]


def needs(name: str) -> None:
    """Skips the test if this CPU can't run code for the target, or runs it anyway."""
    if name not in target.emulatable(target.FEATURES):
        pytest.skip(f"this CPU ({target.TARGET}) cannot run code for another target {name}")
