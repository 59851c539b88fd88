"""Kernels don't check bounds: rows and tiles lie against pages that nobody may touch, at either end, for random shapes of every format.

A read or write beyond is a SIGSEGV of the worker, which run.py sees. Retilers only, so far: matmuls and attention are not guarded here.
"""
from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
from llamina.kernels.formats import registry
from llamina.kernels.formats.table import FORMATS
from llamina.kernels.matmul import ROWS

from fuzz.run import generator

PAGE = mmap.PAGESIZE


class Guarded:
    """`size` bytes that end (or begin) at an untouchable page."""

    def __init__(self, size: int, at_end: bool) -> None:
        whole = -(-size // PAGE) * PAGE
        self.map = mmap.mmap(-1, whole + 2 * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for page in base, base + PAGE + whole:
            if protect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = base + PAGE + (whole - size if at_end else 0)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))


class Fuzzer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.seed, self.formats = seed, sorted(name for name in FORMATS if name in registry.PACKINGS)
        self.retile = {name: registry.retiler(name).ctypes for name in self.formats}

    def case(self, n: int) -> str:
        rng = generator(self.seed, n)
        name = self.formats[n % len(self.formats)]
        format = FORMATS[name]
        rows, blocks = rng.choice((1, 2, 15, 16, 17, 31, 33, 100)), rng.choice((1, 2, 3, 5, 8, 9))
        cols = blocks * format.columns
        row_bytes = format.row_bytes(cols)
        at_end = rng.random() < 0.7
        source, tiles = Guarded(rows * row_bytes, at_end), Guarded(registry.tiled_bytes(name, rows, cols), at_end)
        source.bytes[:] = np.frombuffer(rng.randbytes(rows * row_bytes), np.uint8)
        count = -(-rows // ROWS)
        cut = rng.randint(0, count)
        for first, last in (0, cut), (cut, count):  # as two threads would
            self.retile[name](source.address, row_bytes, rows, cols // format.columns, first, last, tiles.address)
        before = source.bytes.copy()
        registry.decode(name, source.bytes.reshape(rows, row_bytes))
        assert (source.bytes == before).all()
        return name
