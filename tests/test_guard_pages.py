"""Encoders and retilers at the edge of a page that may not be touched: neither reads before or past its input, nor past its output.

A touch kills the process, so all of it happens in a child, which says which format it is at.
"""
from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import ctypes, mmap, sys
import numpy as np
from llamina.kernels.formats import encoders, registry
from llamina.kernels.formats.table import FORMATS, RUNNABLE

libc, keep = ctypes.CDLL(None, use_errno=True), []

def guarded(n, end):
    # n bytes that end (or begin) where a forbidden page begins (or ends)
    page = mmap.PAGESIZE
    pages = -(-n // page)
    block = mmap.mmap(-1, (pages + 2) * page)
    base = np.frombuffer(block, np.uint8)
    for at in 0, pages + 1:
        if libc.mprotect(ctypes.c_void_p(base.ctypes.data + at * page), page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    keep.append((block, base))
    start = page + (pages * page - n if end else 0)
    return base[start:start + n]

x, ones = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32), np.ones(256, np.float32)
importance = np.random.default_rng(1).random(512, np.float32)
for end in True, False:
    for name in encoders.ENCODERS:
        print("encode", name, flush=True)
        row = FORMATS[name].row_bytes(512)
        source, out = guarded(x.nbytes, end), guarded(3 * row, end)
        source[:] = x.view(np.uint8).ravel()
        weights, one = guarded(2048, end), guarded(1024, end)
        weights[:], one[:] = importance.view(np.uint8), ones.view(np.uint8)
        for w in 0, weights.ctypes.data:
            encoders.encoder(name).ctypes(source.ctypes.data, 3, 512, w, one.ctypes.data, out.ctypes.data, row)
        want = encoders.encode(name, x, importance)
        assert np.array_equal(out.reshape(3, row), want), name
    for name in RUNNABLE:
        print("retile", name, flush=True)
        blocks = 512 // FORMATS[name].columns
        row = FORMATS[name].row_bytes(512)
        source, tiles = guarded(3 * row, end), guarded(registry.tiled_bytes(name, 3, 512) // 64 * 64, end)
        if tiles.ctypes.data % 64 and not end:
            continue
        registry.retiler(name).ctypes(source.ctypes.data, row, 3, blocks, 0, 1, tiles.ctypes.data)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="mprotect")
def test_nothing_is_touched_beyond_the_edges() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300)
    assert child.stdout.endswith("done\n"), child.stdout[-40:] + child.stderr[-2000:]
