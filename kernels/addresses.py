"""Addresses of arrays, for compiled code: what a step asks for often."""
from __future__ import annotations

import ctypes

import numpy as np


def address(array: np.ndarray) -> int:
    """Of a fresh, writable array's data, 0 if it is empty: `array.ctypes.data` in a quarter of the time."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array)) if array.size else 0  # type: ignore[arg-type]
