"""Rows as a KV cache of halves keeps them, and zeros."""
from __future__ import annotations

import numpy as np
import pytest
from llamina.kernels.backward.halves import ready
from llamina.kernels.team import Team


@pytest.mark.parametrize("threads", [1, 2])
def test_every_half_and_what_lies_between_two(threads: int) -> None:
    """NumPy's rounding: of every finite half, the middle to the next, and the floats beside both; up to where a half is infinite; the rest stays. Beside rows
    of zeros."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = ((halves[:-1].astype(np.float64) + halves[1:]) / 2).astype(np.float32)
    x = np.concatenate([halves, middles])
    x = np.concatenate([x, np.nextafter(x, np.float32(-1)), np.nextafter(x, np.float32(1e9))])
    x = np.concatenate([x, -x, np.full(32, 7, np.float32)])
    n = (len(x) - 16) // 16 * 16
    expected = np.concatenate([x[:n].astype(np.float16).astype(np.float32), x[n:]])
    zeros = np.full(70_016, 7, np.float32)
    words = np.array([3, zeros.ctypes.data, 70_000, 1, x.ctypes.data, n, 0, zeros.ctypes.data + 4 * 70_000, 0, 1], np.int64)
    with Team(threads) as team:
        team.run(ready.address, words.ctypes.data)
    assert not zeros[:70_000].any() and (zeros[70_000:] == 7).all()
    assert (x.view(np.uint32) == expected.view(np.uint32)).all() and (x[n:] == 7).all()
