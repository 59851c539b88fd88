"""Ctrl-C while LLVM works.

LLVM calls back into Python when a function's machine code is ready, and that is where Python first notices a Ctrl-C of the seconds before. But what a ctypes
callback raises is printed and lost, with it the machine code, and Numba then fails for want of it.
"""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_CALLBACKS = "_raw_object_cache_"
"""What llvmlite's callback functions begin with (llvmlite/binding/executionengine.py)."""


@contextlib.contextmanager
def raised_after_callbacks() -> Iterator[None]:
    """A Ctrl-C that meets one of LLVM's callbacks is handled at the end of the block; any other at once."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):  # handlers run, and are set, in the main thread only
        yield
        return
    late: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        caller = frame
        while caller is not None:
            if caller.f_code.co_name.startswith(_CALLBACKS):
                late.append(number)
                return
            caller = caller.f_back
        before(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if late:
        before(late[0], None)
