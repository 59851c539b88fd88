"""All KV pages of one model: who holds which, how many are promised, and where the next one comes from.

    take ──► a free page ─► new memory, up to the budget ─► the prefix cache's least recently used page

Every page claimed is in exactly one of four states: owned (one sequence holds it), shared (several do), cached (none does, the prefix cache knows it), or free.
What keeps promises is one inequality, true after every operation:

    promised + reserved <= free_pages that nobody holds (free, cached, or not yet claimed)

promised: pages that sequences were told they will get. reserved: what sharing may yet cost. A sequence that may go back and grow again (a context shift, a
banned text) and then finds its page held by others needs another one: a page of k users, r of which may go back, stands for min(r, k - 1) pages more.
"""
from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ...kernels import forks
from ...kernels.elementwise import PAGE
from ..errors import OutOfMemoryError
from .prefix_cache import Entry, PrefixCache

_POLL = 0.005  # seconds between two looks of who waits: pages may come back from the garbage collector, which can't notify
_COLLECT = 0.5  # seconds of waiting after which the garbage collector is asked


class Page:
    """64 positions of all layers. data: uint8 [page_bytes], 64-byte aligned; users: sequences that hold it; rewinders: those of them that may go back before
    its end and grow again; entry: its place in the prefix cache."""

    __slots__ = ("data", "users", "rewinders", "entry")

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.users, self.rewinders = data, 0, 0
        self.entry: Entry | None = None

    @property
    def extra(self) -> int:
        """Pages that its users may need beside it."""
        return max(0, min(self.rewinders, self.users - 1))


class Census(NamedTuple):
    """How many of the pages claimed are in each state."""

    owned: int
    shared: int
    free: int
    cached: int


class _Returned(NamedTuple):
    """What a sequence hands back: `pages` (kept: it still holds them), of which it might have gone back over those from index `rewound` on."""

    pages: list[Page]
    kept: bool
    rewound: int
    promised: int
    parent: Entry | None
    ids: tuple[int, ...]


class PagePool:
    """All pages of one model. `max_pages` is the budget; memory is claimed as it is promised or taken, and stays claimed until the pool is dropped.

    Pages come back through a queue, because a sequence may be dropped by the garbage collector at any moment, in any thread, in the middle of a method here.
    """

    def __init__(self, page_bytes: int, max_pages: int, seed: bytes = b""):
        self.page_bytes = page_bytes
        self.max_pages = max_pages
        self.pages: list[Page] = []
        """All that were ever claimed."""
        self.prefix = PrefixCache(seed)
        self.lock = threading.RLock()
        self._promised = self._reserved = 0
        self._free: list[Page] = []
        self._returned: deque[_Returned] = deque()
        self._waiting: deque[object] = deque()  # who waits for memory, first come first
        forks.watch(self, 1)

    @property
    def claimed(self) -> int:
        """Pages that memory was claimed for."""
        return len(self.pages)

    @property
    def free_pages(self) -> int:
        """Pages that can still be handed out, the prefix cache's idle ones among them, and are neither promised nor reserved; never below 0."""
        with self.lock:
            self.collect()
            return self._left()

    def _left(self) -> int:
        return self.max_pages - self.claimed + len(self._free) + self.prefix.idle_pages - self._promised - self._reserved

    def census(self) -> Census:
        """Counts of pages by state; they add up to `claimed`."""
        with self.lock:
            self.collect()
            return Census(sum(p.users == 1 for p in self.pages), sum(p.users > 1 for p in self.pages),
                          sum(not p.users and p.entry is None for p in self.pages), sum(not p.users and p.entry is not None for p in self.pages))

    # -- who holds what; under the lock ---------------------------------------------------------------------------------------------------

    def hold(self, page: Page, rewinds: bool) -> None:
        """One more sequence holds the page; rewinds: it may go back before the page's end and grow again."""
        before = page.extra
        page.users += 1
        page.rewinders += rewinds
        self._reserved += page.extra - before
        if page.entry is not None:
            self.prefix.used(page.entry)

    def cost(self, page: Page, rewinds: bool) -> int:
        """How many free pages one more sequence that holds this (used or cached) page costs: 0 or 1."""
        if not page.users:
            return 1
        return min(page.rewinders + rewinds, page.users) - page.extra

    def release(self, page: Page, rewinds: bool) -> None:
        """One sequence fewer holds the page."""
        before = page.extra
        page.users -= 1
        page.rewinders -= rewinds
        self._reserved += page.extra - before
        if not page.users:
            if page.entry is None:
                self._free.append(page)
            else:
                self.prefix.unused(page.entry)

    def mark(self, pages: Iterable[Page], rewinds: int) -> int:
        """One of the sequences that hold them may (1) or may no longer (-1) go back over these pages -> how many free pages that costs."""
        before = self._reserved
        for page in pages:
            extra = page.extra
            page.rewinders += rewinds
            self._reserved += page.extra - extra
        return self._reserved - before

    # -- pages and promises ---------------------------------------------------------------------------------------------------------------

    def take(self, promised: bool = False) -> Page:
        """A page that nobody holds. promised: it is one of those promised. OutOfMemoryError when the budget is used up."""
        with self.lock:
            self.collect()
            if not promised and self._left() < 1:
                raise self._full()
            if page := self._next(spare=not promised):
                if promised:
                    self._promised -= 1
                return page
            raise self._full()

    def _full(self) -> OutOfMemoryError:
        return OutOfMemoryError(f"the KV cache is full: all {self.max_pages} pages of {PAGE} positions are in use or promised; close other sequences or allow "
                                "it more memory")

    def _next(self, spare: bool) -> Page | None:
        """The next page, None if there is none. spare: memory that stands behind promises stays there, if more can be claimed."""
        scarce = spare and len(self._free) + self.prefix.idle_pages - self._promised - self._reserved < 1
        if (not self._free or scarce) and not self._claim() and scarce:
            return None
        if not self._free:
            self._free += self.prefix.evict()
        return self._free.pop() if self._free else None

    def page_to_copy_to(self, source: Page) -> Page | None:
        """A page that nobody holds and that is not `source`; None if there is none."""
        self.hold(source, False)
        try:
            return self._next(spare=False)
        finally:
            self.release(source, False)

    def _claim(self) -> bool:
        """Claim memory for a page, if the budget and the system allow."""
        if self.claimed >= self.max_pages:
            return False
        try:
            raw = np.empty(self.page_bytes + 64, np.uint8)
        except MemoryError:  # then what there is must do
            self.max_pages = self.claimed
            return False
        offset = -raw.ctypes.data % 64
        page = Page(raw[offset:offset + self.page_bytes])
        self.pages.append(page)
        self._free.append(page)
        return True

    def promise(self, pages: int) -> None:
        """Keep pages for somebody (fewer for a negative number). OutOfMemoryError."""
        with self.lock:
            self.collect()
            if pages > 0 and pages > self._left():
                raise self.refusal(pages)
            self._promised += pages
            if not self.back():
                self._promised -= pages
                raise self.refusal(pages)

    def refusal(self, pages: int) -> OutOfMemoryError:
        """The error of who wants more pages than there are."""
        return OutOfMemoryError(
            f"the KV cache has {max(0, self._left())} of {self.max_pages} pages of {PAGE} positions left, {pages} are needed; wait for other answers "
            "or close them, ask for fewer tokens, or allow more memory")

    def back(self) -> bool:
        """Claim the memory behind all promises, so that the system can't refuse it later. False: it refuses now."""
        while len(self._free) + self.prefix.idle_pages < self._promised + self._reserved:
            if not self._claim():
                return False
        return True

    # -- what comes back ------------------------------------------------------------------------------------------------------------------

    def give(self, pages: Iterable[Page], *, rewound: int = 0, kept: bool = False, promised: int = 0, parent: Entry | None = None,
             ids: tuple[int, ...] = ()) -> None:
        """Hand pages back, first to last, and what was promised. rewound: the index from which on the sequence might have gone back over them; kept: only that
        comes to an end. parent: the entry after which the last page holds `ids`, a text's end."""
        self._returned.append(_Returned(list(pages), kept, rewound, promised, parent, ids))

    def collect(self) -> None:
        """Take in what was handed back; under the lock."""
        while self._returned:
            pages, kept, rewound, promised, parent, ids = self._returned.popleft()
            self._promised -= promised
            if kept:
                self.mark(pages[rewound:], -1)
                continue
            if parent is not None and pages[-1].entry is None:
                self.prefix.add(parent, ids, pages[-1])
            for i in reversed(range(len(pages))):  # the last page is the first to be evicted
                self.release(pages[i], i >= rewound)

    def clear_prefix_cache(self) -> None:
        """Forget all kept beginnings."""
        with self.lock:
            self.collect()
            self._free += self.prefix.clear()

    # -- who waits ------------------------------------------------------------------------------------------------------------------------

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for memory."""
        return bool(self._waiting)

    def in_turn(self, seconds: float, begin: Callable[[], None]) -> None:
        """Do `begin` when there is memory for it, those who wait first come first. OutOfMemoryError: not within so many seconds."""
        if seconds <= 0:
            return begin()
        place, end, looked = object(), time.monotonic() + seconds, time.monotonic()
        self._waiting.append(place)
        try:
            while True:
                try:
                    if not self._waiting or self._waiting[0] is place:
                        return begin()
                except OutOfMemoryError:
                    if time.monotonic() >= end:
                        raise
                if time.monotonic() >= end:
                    return begin()
                if time.monotonic() > looked + _COLLECT:  # answers that were dropped in a circle of references hold memory, too
                    gc.collect()
                    looked = time.monotonic()
                time.sleep(_POLL)
        finally:
            with contextlib.suppress(ValueError):  # a forked child forgets who waited
                self._waiting.remove(place)

    def fork_locks(self) -> list[Any]:
        """For forks.py."""
        return [self.lock]

    def after_fork_in_child(self) -> None:
        """Who waited were threads that are not there."""
        self._waiting.clear()
