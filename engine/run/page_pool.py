"""All KV pages of one model: who holds which, how many are promised, and where the next one comes from.

    take ──► a free page ─► new memory, up to the budget ─► the prefix cache's least recently used page

Every page claimed is in exactly one of four states: owned (one sequence holds it), shared (several do), cached (none does, the prefix cache knows it), or free.
What keeps promises is one inequality, true after every operation:

    promised + reserved <= free_pages that nobody holds (free, cached, or not yet claimed)

promised: pages that sequences were told they will get. reserved: what sharing may yet cost. A sequence that may go back and grow again (a context shift, a
banned text) and then finds its page held by others needs another one: a page of k users, r of which may go back, stands for min(r, k - 1) pages more. It is the
same for a windowed page that a sequence will leave behind for the next one: while others hold it, leaving it frees nothing.

Memory is counted in *units*, all of one size. Without windows a unit is a page; with them, it is a layer's part of 64 positions (kv_groups.py), and pages
of layers that see all have another number of units than pages of windowed layers.
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
from .kv_groups import KVLayout
from .prefix_cache import Entry, PrefixCache

_POLL = 0.005  # seconds between two looks of who waits: pages may come back from the garbage collector, which can't notify
_COLLECT = 0.5  # seconds of waiting after which the garbage collector is asked


class Page:
    """64 positions of a group's layers. units: uint8 [page_bytes] each, 64-byte aligned; users: sequences that hold it; rewinders: those of them that may go
    back before its end and grow again, or leave it behind for another; entry: its place in the prefix cache."""

    __slots__ = ("units", "users", "rewinders", "entry")

    def __init__(self, units: list[np.ndarray]) -> None:
        self.units, self.users, self.rewinders = units, 0, 0
        self.entry: Entry | None = None

    @property
    def data(self) -> np.ndarray:
        """The first unit: of a model without windows, all of it."""
        return self.units[0]

    @property
    def weight(self) -> int:
        """How many units it is made of."""
        return len(self.units)

    @property
    def extra(self) -> int:
        """Units that its users may need beside it."""
        return max(0, min(self.rewinders, self.users - 1)) * self.weight

    def copy(self, source: Page) -> None:
        """Become equal to another page of the same group."""
        for own, other in zip(self.units, source.units):
            own[:] = other


class State(Page):
    """A state of all recurrent layers, float32 in one piece; it counts for as many units as cover it. Whoever holds it will leave it behind for the next one,
    so all its users are rewinders: sharing it costs what a copy would."""

    __slots__ = ("_weight",)

    def __init__(self, data: np.ndarray, weight: int) -> None:
        super().__init__([data])
        self._weight = weight

    @property
    def weight(self) -> int:
        return self._weight

    @property
    def address(self) -> int:
        return self.units[0].ctypes.data

    @property
    def own(self) -> bool:
        """Whether its only user may write into it."""
        return self.users == 1 and self.entry is None


class Census(NamedTuple):
    """How many of the units claimed are in each state."""

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
    window: Page | None
    end: Entry | None
    states: tuple[State, ...]


class PagePool:
    """All pages of one model. `max_pages` is the budget in units of `page_bytes`; memory is claimed as it is promised or taken, and stays claimed
    until the pool is dropped.

    Pages come back through a queue, because a sequence may be dropped by the garbage collector at any moment, in any thread, in the middle of a method here.
    """

    def __init__(self, page_bytes: int, max_pages: int, seed: bytes = b"", layout: KVLayout | None = None):
        self.layout = layout or KVLayout(page_bytes)
        self.page_bytes = page_bytes
        self.max_pages = max_pages
        self.pages: set[Page] = set()
        """All that are held, or known to the prefix cache."""
        self.claimed = 0
        """Units that memory was claimed for."""
        self.prefix = PrefixCache(seed)
        self.most_idle = max_pages
        """Units of the prefix cache that nobody holds, beyond which the least recently used is taken before memory is claimed."""
        self.era = 0
        """Grows when the texts under way are no longer what their salts say: they are private from then on (KnownText)."""
        self.lock = threading.RLock()
        self._promised = self._reserved = 0
        self._free: list[np.ndarray] = []  # units
        self._free_states: list[np.ndarray] = []  # each counts for layout.slot units
        self._returned: deque[_Returned] = deque()
        self._waiting: deque[object] = deque()  # who waits for memory, first come first
        forks.watch(self, 1)

    @property
    def free_pages(self) -> int:
        """Units that can still be handed out, the prefix cache's idle ones among them, and are neither promised nor reserved; never below 0."""
        with self.lock:
            self.collect()
            return self._left()

    def _left(self) -> int:
        return self.max_pages - self.claimed + self._unheld + self.prefix.idle_pages - self._promised - self._reserved

    @property
    def _unheld(self) -> int:
        """Units that memory was claimed for and that nobody holds or knows."""
        return len(self._free) + self.layout.slot * len(self._free_states)

    def census(self) -> Census:
        """Counts of pages by state; they add up to `claimed`."""
        with self.lock:
            self.collect()
            return Census(sum(p.weight for p in self.pages if p.users == 1), sum(p.weight for p in self.pages if p.users > 1), self._unheld,
                          sum(p.weight for p in self.pages if not p.users))

    # -- who holds what; under the lock ---------------------------------------------------------------------------------------------------

    def hold(self, page: Page, rewinds: bool) -> None:
        """One more sequence holds the page; rewinds: it may go back before the page's end and grow again."""
        before = page.extra
        page.users += 1
        page.rewinders += rewinds
        self._reserved += page.extra - before
        if page.entry is not None:
            self.prefix.used(page)

    def cost(self, page: Page, rewinds: bool) -> int:
        """How many free units one more sequence that holds this (used or cached) page costs: none, or a page's."""
        if not page.users:
            return page.weight
        return min(page.rewinders + rewinds, page.users) * page.weight - page.extra

    def release(self, page: Page, rewinds: bool) -> None:
        """One sequence fewer holds the page."""
        before = page.extra
        page.users -= 1
        page.rewinders -= rewinds
        self._reserved += page.extra - before
        if not page.users:
            if page.entry is None:
                self._recycle([page])
            else:
                self.prefix.unused(page)

    def _recycle(self, pages: Iterable[Page]) -> None:
        """Nobody holds these pages any more, and nobody knows them."""
        for page in pages:
            self.pages.discard(page)
            if isinstance(page, State):
                self._free_states += page.units
            else:
                self._free += page.units

    def mark(self, pages: Iterable[Page], rewinds: int) -> int:
        """One of the sequences that hold them may (1) or may no longer (-1) go back over these pages -> how many free units that costs."""
        before = self._reserved
        for page in pages:
            extra = page.extra
            page.rewinders += rewinds
            self._reserved += page.extra - extra
        return self._reserved - before

    # -- pages and promises ---------------------------------------------------------------------------------------------------------------

    def take(self, promised: bool = False, weight: int = 1) -> Page:
        """A page of so many units that nobody holds. promised: they are of those promised. OutOfMemoryError when the budget is used up."""
        with self.lock:
            self.collect()
            if not promised and self._left() < weight:
                raise self._full()
            if page := self._next(weight, spare=not promised):
                if promised:
                    self._promised -= weight
                return page
            raise self._full()

    def _full(self) -> OutOfMemoryError:
        return OutOfMemoryError(f"the KV cache is full: all {self.max_pages} pages of {PAGE} positions are in use or promised; close other sequences or allow "
                                "it more memory")

    def _next(self, weight: int, spare: bool) -> Page | None:
        """The next page, None if there is none. spare: memory that stands behind promises stays there, if more can be claimed."""
        if not self._stays_behind(weight, spare):
            return None
        while len(self._free) < weight:
            if self._overfull():
                self._recycle(self.prefix.evict())
            elif not self._claim():
                if self._free_states:
                    self._free_states.pop()
                    self.claimed -= self.layout.slot
                elif self.prefix.idle:
                    self._recycle(self.prefix.evict())
                else:
                    return None
        units = self._free[len(self._free) - weight:]
        del self._free[len(self._free) - weight:]
        page = Page(units)
        self.pages.add(page)
        return page

    def _overfull(self) -> bool:
        return bool(self.prefix.idle) and self.prefix.idle_pages > self.most_idle

    def _stays_behind(self, weight: int, spare: bool) -> bool:
        """Claim memory so that, with so many units taken, what stands behind promises is there; spare: False if it can't be."""
        behind = self._promised + self._reserved if spare else 0
        while self._unheld + self.prefix.idle_pages - behind < weight:
            if not self._claim():
                return not spare
        return True

    def take_state(self, promised: bool = False) -> State:
        """Room for a state that nobody holds, as `take`. Pages and states are made of the same memory: of free ones of the other kind, if need be."""
        with self.lock:
            self.collect()
            slot = self.layout.slot
            if not promised and self._left() < slot or not self._stays_behind(slot, not promised):
                raise self._full()
            while not self._free_states:
                if self._overfull():
                    self._recycle(self.prefix.evict())
                elif self.max_pages - self.claimed >= slot:
                    try:
                        raw = np.empty(self.layout.state_bytes + 64, np.uint8)
                    except MemoryError:
                        raise self._full() from None
                    offset = -raw.ctypes.data % 64
                    self._free_states.append(raw[offset:offset + self.layout.state_bytes])
                    self.claimed += slot
                elif self._free:
                    self._free.pop()
                    self.claimed -= 1
                elif self.prefix.idle:
                    self._recycle(self.prefix.evict())
                else:
                    raise self._full()
            state = State(self._free_states.pop(), slot)
            self.pages.add(state)
            if promised:
                self._promised -= slot
            return state

    def drop(self, entry: Entry) -> None:
        """The prefix cache forgets an entry and all after it."""
        self._recycle(self.prefix.drop(entry))

    def page_to_copy_to(self, *sources: Page) -> list[Page] | None:
        """Pages like these, that nobody holds, and that are not these; None if there is no memory for them."""
        found: list[Page] = []
        for source in sources:
            self.hold(source, False)
        try:
            for source in sources:
                page = self._next(source.weight, spare=False)
                if page is None:
                    self._recycle(found)
                    return None
                found.append(page)
            return found
        finally:
            for source in sources:
                self.release(source, False)

    def _claim(self) -> bool:
        """Claim memory for a unit, if the budget and the system allow."""
        if self.claimed >= self.max_pages:
            return False
        try:
            raw = np.empty(self.page_bytes + 64, np.uint8)
        except MemoryError:  # then what there is must do
            self.max_pages = self.claimed
            return False
        offset = -raw.ctypes.data % 64
        self._free.append(raw[offset:offset + self.page_bytes])
        self.claimed += 1
        return True

    def give_up(self, units: int, least: int) -> int:
        """The budget becomes so many units smaller, if at least `least` remain and nobody was promised them -> how many it could give; fewer than asked: none
        were given."""
        with self.lock:
            self.collect()
            left = max(0, min(self._left(), self.max_pages - least))
            if units > left:
                return left
            self.max_pages -= units
            while self.claimed > self.max_pages:
                if self._free:
                    self._free.pop()
                    self.claimed -= 1
                elif self._free_states:
                    self._free_states.pop()
                    self.claimed -= self.layout.slot
                else:
                    self._recycle(self.prefix.evict())
            return units

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
        while self._unheld + self.prefix.idle_pages < self._promised + self._reserved:
            if not self._claim():
                return False
        return True

    # -- what comes back ------------------------------------------------------------------------------------------------------------------

    def give(self, pages: Iterable[Page], *, rewound: int = 0, kept: bool = False, promised: int = 0, parent: Entry | None = None,
             ids: tuple[int, ...] = (), window: Page | None = None, end: Entry | None = None, states: tuple[State, ...] = ()) -> None:
        """Hand pages back, first to last, and what was promised. rewound: the index from which on the sequence might have gone back over them; kept: only that
        comes to an end. parent: the entry after which the last page holds `ids`, a text's end; window: the windowed page beside
        it, which is handed back next. states: handed back, too; the first is kept where the text ends: after `end`, or after `ids`."""
        self._returned.append(_Returned(list(pages), kept, rewound, promised, parent, ids, window, end, states))

    def collect(self) -> None:
        """Take in what was handed back; under the lock."""
        while self._returned:
            pages, kept, rewound, promised, parent, ids, window, end, states = self._returned.popleft()
            self._promised -= promised
            if kept:
                self.mark(pages[rewound:], -1)
                continue
            if parent is not None and pages[-1].entry is None:
                end = self.prefix.add(parent, ids, pages[-1], window)
            if end is not None and states:
                self.prefix.snapshot(end, states[0])
            for state in states:
                self.release(state, True)
            for i in reversed(range(len(pages))):  # the last page is the first to be evicted
                self.release(pages[i], i >= rewound)

    def clear_prefix_cache(self) -> None:
        """Forget all kept beginnings."""
        with self.lock:
            self.collect()
            self._recycle(self.prefix.clear())

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
