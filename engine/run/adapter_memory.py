"""Memory of adapters: a part of the model's memory plan, asked for before any of it is claimed.

    load(…, adapters=)  ──► plan(adapters=bytes)      they are in the plan from the beginning: the KV cache gets so much less
    add_adapter, later  ──► Reserve.take(bytes)       of a model with a limit (memory=): units that the KV cache has not promised to anybody become theirs
                            Reserve.give(bytes)       an adapter is gone: the next one may have its memory
"""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from .. import units
from ..errors import OutOfMemoryError, quoted
from .weights import available_memory

if TYPE_CHECKING:
    from .memory import MemoryPlan
    from .page_pool import PagePool


class Planned(Protocol):
    """A runtime."""

    plan: MemoryPlan


class Reserve:
    """What is planned for adapters. limited: whether the model has a limit of memory."""

    def __init__(self, model: Planned, pool: PagePool, limited: bool):
        self._model, self._pool, self._limited = model, pool, limited
        self._left = model.plan.adapters

    def take(self, size: int, name: str) -> None:
        """Bytes for an adapter. OutOfMemoryError: they are not there, and nothing changed."""
        plan, missing = self._model.plan, size - self._left
        if missing > 0 and not self._limited:
            free = available_memory()
            if free is not None and missing > free:
                raise OutOfMemoryError(f"adapter {quoted(name)} takes {units.size(size)}, and {units.size(free)} are free: close other programs or models")
            self._model.plan = replace(plan, weights=plan.weights + missing, adapters=plan.adapters + missing)
            self._left += missing
        elif missing > 0:
            one, least = plan.page_bytes, plan.layout.units(plan.context)
            pages = -(-missing // one)
            left = self._pool.give_up(pages, least)
            if left < pages:
                raise OutOfMemoryError(f"adapter {quoted(name)} takes {units.size(size)}, and {units.size(left * one + self._left)} are left of the memory "
                                       f"allowed, beside weights, a context of {plan.context} positions and answers under way: allow more memory, or a "
                                       "smaller context")
            self._model.plan = replace(plan, weights=plan.weights + pages * one, adapters=plan.adapters + pages * one, kv=plan.kv - pages * one,
                                       pages=plan.pages - pages)
            self._left += pages * one
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size
