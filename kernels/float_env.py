"""The default float environment for Python code, whatever the caller's thread has: between a model's file and a token every number is rounded alike.

    with default_floats():          @in_default_floats
        …                           def generate(…): …

Rounding to nearest even, subnormal numbers kept, no traps (the CPU's control register, atomics.py). Compiled steps need nothing from it (team.py); it
stands at the entry points, for what NumPy and Python compute: RoPE table, embeddings, sampler, log-probabilities, encoders. It holds for the calling
thread, and for threads that are started meanwhile. Costs about 1 µs.
"""
from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _exchange_function() -> Any:
    """For Python; it keeps the GIL, letting go of which would take longer than the rest."""
    from .float_exchange import exchange  # here: whoever only reads a vocabulary needs no compiler
    return ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(exchange.address)


class default_floats:
    """A context manager; may be nested. Not around a `yield`: the generator's user would go on under it."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before: int = _exchange_function()(-1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _exchange_function()(self._before)


def in_default_floats(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which always computes under the default float environment."""
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        exchange = _exchange_function()
        before = exchange(-1)
        try:  # as default_floats does, in half the time
            return function(*args, **kwargs)
        finally:
            exchange(before)
    return wrapper
