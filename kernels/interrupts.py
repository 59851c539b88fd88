"""Ctrl-C, SIGTERM and other signals while a function is compiled.

LLVM calls back into Python when machine code is ready, and there Python first notices a signal of the seconds before. But what a ctypes callback (or a weak
reference's) raises is printed and lost, with it the machine code, and Numba then fails for want of it. And what is raised elsewhere in a compiler
leaves LLVM's objects half made. So signals wait for the function that is being compiled: a second, three for the forward pass.
"""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def raised_at_the_end() -> Iterator[None]:
    """A signal with a handler in Python that comes within the block is handled when it ends, whatever else ended it."""
    if threading.current_thread() is not threading.main_thread():  # handlers run, and are set, in the main thread only
        yield
        return
    late: list[int] = []

    def wait(number: int, frame: Any) -> None:
        late.append(number)
    before: dict[int, Callable[[int, Any], Any]] = {}
    number: int
    try:
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):  # not those that Python lets be: SIG_DFL and SIG_IGN are numbers
                before[number] = handler
                signal.signal(number, wait)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(late):
            before[number](number, None)
