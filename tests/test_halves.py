"""Rows as a KV cache of halves keeps them."""
from __future__ import annotations

import numpy as np
from llamina.kernels.backward.halves import to_halves


def test_every_half_and_what_lies_between_two() -> None:
    """NumPy's rounding: of every finite half, the middle to the next, and the floats beside both; up to where a half is infinite; the rest stays."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = ((halves[:-1].astype(np.float64) + halves[1:]) / 2).astype(np.float32)
    x = np.concatenate([halves, middles])
    x = np.concatenate([x, np.nextafter(x, np.float32(-1)), np.nextafter(x, np.float32(1e9))])
    x = np.concatenate([x, -x, np.full(32, 7, np.float32)])
    n = (len(x) - 16) // 16 * 16
    expected = np.concatenate([x[:n].astype(np.float16).astype(np.float32), x[n:]])
    to_halves.ctypes(x.ctypes.data, n)
    assert (x.view(np.uint32) == expected.view(np.uint32)).all() and (x[n:] == 7).all()
