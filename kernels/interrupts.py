"""Ctrl-C while a function is compiled.

LLVM calls back into Python when machine code is ready, and there Python first notices a Ctrl-C of the seconds before. But what a ctypes callback (or a weak
reference's) raises is printed and lost, with it the machine code, and Numba then fails for want of it. And what is raised elsewhere in a compiler
leaves LLVM's objects half made. So Ctrl-C waits for the function that is being compiled: a second, three for the forward pass.
"""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def raised_at_the_end() -> Iterator[None]:
    """A Ctrl-C that comes within the block is handled when it ends, whatever else ended it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):  # handlers run, and are set, in the main thread only
        yield
        return
    late: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: late.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if late:
            before(late[0], None)
