"""Whether the system would give so much memory, asked before libraries run that can't bear a no.

LLVM ends the process ("LLVM ERROR: out of memory"), the C library does when a thread's variables find no place, and Numba leaves locks held and objects half
made. Under `ulimit -v` or without overcommitment it can be known beforehand: a mapping of that size is asked for, and given back untouched.
"""
from __future__ import annotations

import mmap
import os

NUMBA = 160 << 20
"""Bytes of address space for importing Numba and a first function: about 90 MiB measured, and an arena of the allocator."""
COMPILE = 96 << 20
"""To compile a function; for the largest 50 MiB were measured."""
THREAD = 12 << 20
"""A thread's stack, and what libraries keep for each."""


def need_room(size: int) -> None:
    """MemoryError if `size` bytes can't be had now. About 10 µs."""
    if os.name != "posix":
        return  # there a mapping counts at once as used, and no limit of a process's own is usual
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"the system gives no {size >> 20} MiB") from error
