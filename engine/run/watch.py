"""Who watches the steps that this thread takes of a model: hooks, which engine/look makes of users' functions.

    with watched(scheduler, watch): ...      every step that this thread takes of that model within the block asks watch.observers(feeds)

Only the thread (and, in asyncio, the task) that entered the block is watched: others' steps are not, nor those that a server's engine thread takes for it.
"""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .runtime import Feed

Callback = Callable[[Any], None]


class Watch(Protocol):
    """Something that wants to see steps."""

    def observers(self, feeds: list[Feed]) -> Mapping[str, Callback]:
        """What shall be called with which site's rows in a step of these feeds (Runtime.step)."""


_watches: ContextVar[tuple[tuple[int, int, Watch], ...]] = ContextVar("watches", default=())


@contextlib.contextmanager
def watched(owner: object, watch: Watch) -> Iterator[None]:
    """Within the block, this thread's steps of `owner` (a scheduler) are watched, also by this one; blocks that were entered before see a site first."""
    token = _watches.set((*_watches.get(), (id(owner), threading.get_ident(), watch)))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a generator that was left to be closed elsewhere: that context doesn't know of the block
            _watches.reset(token)


def watching(owner: object) -> list[Watch]:
    """Who watches what this thread does with `owner` now."""
    entries = _watches.get()
    return [watch for who, thread, watch in entries if who == id(owner) and thread == threading.get_ident()] if entries else []


def merged(observers: Sequence[Mapping[str, Callback]]) -> dict[str, Callback]:
    """One callback a site, that calls all in order: the later see what the earlier wrote."""
    found: dict[str, list[Callback]] = {}
    for one in observers:
        for name, callback in one.items():
            found.setdefault(name, []).append(callback)

    def together(callbacks: list[Callback]) -> Callback:
        def call(rows: Any) -> None:
            for callback in callbacks:
                callback(rows)
        return call
    return {name: callbacks[0] if len(callbacks) == 1 else together(callbacks) for name, callbacks in found.items()}
