"""A clock for compiled code: the system's monotonic clock, called by an address that stands in memory, as the thread team calls the system.

(LLVM's cycle counter touches no memory, so LLVM moves it across the work that it should time; and on Arm reading it traps.)

A clock is a block of int64 words, made by `new_clock`: function, its two arguments, nanoseconds of the first result word, two words for the result.
"""
from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import numpy as np

from .atomics import call_pointer2
from .deferred import jit
from .simd import load_i64

FUNCTION, ARGUMENT_0, ARGUMENT_1, UNIT, RESULT = range(0, 40, 8)
CLOCK_BYTES = 48


@jit
def now(clock):
    """Time in units of 1 / `ticks_per_second()`, int64, from the clock at this address. Not for two threads at once."""
    call_pointer2(load_i64(clock + FUNCTION), load_i64(clock + ARGUMENT_0), load_i64(clock + ARGUMENT_1))
    return load_i64(clock + RESULT) * load_i64(clock + UNIT) + load_i64(clock + RESULT + 8)


def new_clock(words: np.ndarray) -> Any:
    """Set up a clock in int64 [CLOCK_BYTES / 8] words, which must stay where they are. -> a function () -> int that reads it from Python."""
    result = words.ctypes.data + RESULT
    library: Any
    if os.name == "nt":
        library = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
        function, arguments, unit = library.QueryPerformanceCounter, (result, 0), 1
    else:
        library = ctypes.CDLL(None)
        function, arguments, unit = library.clock_gettime, (time.CLOCK_MONOTONIC, result), 10**9
    words[:] = ctypes.cast(function, ctypes.c_void_p).value, *arguments, unit, 0, 0
    function.argtypes = [ctypes.c_int64, ctypes.c_int64]

    def read() -> int:
        function(*arguments)
        return int(words[RESULT // 8]) * unit + int(words[RESULT // 8 + 1])
    return read


def ticks_per_second() -> int:
    """How often the clock ticks."""
    if os.name != "nt":
        return 10**9
    frequency = ctypes.c_int64()
    ctypes.WinDLL("kernel32").QueryPerformanceFrequency(ctypes.byref(frequency))  # type: ignore[attr-defined]
    return frequency.value
