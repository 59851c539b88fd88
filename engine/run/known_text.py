"""What a sequence takes over of the prefix cache: the pages of a text that was computed before, and the state of the recurrent layers after it.

    the ids that follow ──► walk (prefix_cache.py) ──► whole pages, shared; the beginning of one more, copied; a snapshot, shared

Models with windows take a text over up to where all windowed pages that are seen are there; models with recurrent layers up to a snapshot.
"""
from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable

from ...kernels.elementwise import PAGE
from .held_pages import HeldPages
from .kv_groups import pages_of
from .page_pool import PagePool, State
from .prefix_cache import Entry
from .state_slots import States

_WORTH_COPYING = 8  # tokens of a partly equal page: fewer are sooner computed


def state_of(found: list[Entry], partial: Entry | None) -> State | None:
    """The snapshot that ends what was found in the prefix cache."""
    last = partial or (found[-1] if found else None)
    return last.state if last is not None and isinstance(last.state, State) else None


class KnownText(HeldPages, ABC):
    """A sequence's pages, tokens and states as the prefix cache knows them."""

    def __init__(self, pool: PagePool, most: int, cached: bool, salt: bytes) -> None:
        super().__init__(pool, most)
        self._era, self._salt = pool.era if cached else None, salt
        self.length = 0
        self.ids: list[int] = []
        self.reused = 0
        """Tokens that `match` took over."""
        self._chain: list[Entry] = []  # the entries of its whole pages
        self._matched: tuple[int, int] | None = None  # (length, the prefix cache's version) of the last look into it
        self.states = States(pool) if pool.layout.slot else None
        """Of models with recurrent layers (state_slots.py)."""
        self._parted = 0  # where the last text that was looked for parted from one that is known

    @property
    def _cached(self) -> bool:
        """Whether the prefix cache is told of it: not if it is private, nor once others' numbers came into what it is computed with."""
        return self._era == self._pool.era

    @property
    def _root(self) -> Entry:
        return self._pool.prefix.root_of(self._salt)

    @property
    def at_page_start(self) -> bool:
        """Whether the next position begins a page."""
        return self.length % PAGE == 0

    def shares_with(self, other: KnownText) -> bool:
        """Whether both tell the prefix cache of all their text, and under one salt."""
        return self._cached and other._cached and self._root is other._root and all(len(s._chain) >= s.length // PAGE for s in (self, other))

    def match(self, ids: Iterable[int]) -> int:
        """Take over what the prefix cache knows of the text that goes on with `ids` -> how many tokens that is. Only at a page's start and if all before is
        known to the prefix cache, too; else, and if the sequence is private, nothing."""
        pool, before = self._pool, self.length
        if not self._may_match():
            return 0
        following = list(ids)
        with pool.lock:
            pool.collect()
            found, partial, n = self._known(following)
            if found or partial:
                self._drop_unwritten()
                low = self._low(found)
                if not found or low <= len(self._pages) or self._may_slide(low):
                    self._take_over(following, found, partial, n)
                pool.back()
        return self.length - before

    def _may_match(self) -> bool:
        return (self._cached and self.at_page_start and len(self._chain) >= self.length // PAGE
                and self._matched != (self.length, self._pool.prefix.version))

    def _known(self, ids: list[int]) -> tuple[list[Entry], Entry | None, int]:
        """What the prefix cache knows: the entries of whole pages, one that shares the beginning of the next, and how many tokens of it, if enough."""
        if not ids or not self._may_match():
            return [], None, 0
        self._matched = self.length, self._pool.prefix.version
        found, partial, n = self._pool.prefix.walk(ids, self._chain[-1] if self._chain else self._root)
        if self._layout.windowed:
            walked = len(found)
            while found and not self._whole(found):
                found.pop()  # a shorter text
            full = bool(self._windows) and len(self._windows) + len(found) >= self._layout.most
            if len(found) < walked or full or partial is not None and partial.window is None:
                partial = None
        if self.states:
            if partial is not None and partial.state is not None and n == len(partial.ids):
                return found, partial, n
            partial, self._parted = None, self.length + len(found) * PAGE  # where others went on otherwise: others yet may begin alike
            while found and found[-1].state is None:
                found.pop()
        return (found, partial, n) if partial is not None and partial.page is not None and n >= _WORTH_COPYING else (found, None, 0)

    def _whole(self, found: list[Entry]) -> bool:
        """Whether all windowed pages that are seen after these entries are there; after its own, only as many as it may hold."""
        low, base = self._low(found), self.length // PAGE
        if self._windows and (low > base or len(self._windows) + len(found) > self._layout.most):
            return False
        return all(entry.window is not None for entry in found[max(0, low - base):])

    def _take_over(self, ids: list[int], found: list[Entry], partial: Entry | None, n: int) -> None:
        """Hold the pages found, and a copy of the last one, as far as memory goes: always, if they are promised."""
        pool, layout, before, taken = self._pool, self._layout, self.length, 0
        low, base = self._low(found), len(self._pages)
        seen = found[max(0, low - base):]
        state, end = state_of(found, partial), before + PAGE * len(found) + (n if partial else 0)
        if (layout.windowed or self.states) and self._costs(found, seen, state) > self._spare + pool.free_pages:
            return  # of fewer pages it might not see the windowed parts, or have no state
        if state is not None and self.states:
            pool.hold(state, True)  # first: nothing may evict it
            self._spend(0 if self.states.held else state.weight)
        for at, entry in enumerate(found, base):
            page, window = entry.page, entry.window if at >= low else None
            weight = layout.whole + (layout.windowed if window else 0)
            if page is None or self._spare < weight and not layout.windowed and pool.cost(page, at >= self._floor) > pool.free_pages:
                partial = None
                break
            self._spend(weight)
            self._hold(page, window)
            self._chain.append(entry)
            taken += PAGE
        if partial is not None and partial.page is not None and max(self._spare, pool.free_pages) >= layout.rows:
            sources = [page for page in (partial.page, partial.window) if page]
            if copies := pool.page_to_copy_to(*sources):
                self._spend(layout.rows)
                for copy, source in zip(copies, sources):
                    copy.copy(source)
                self._hold(copies[0], copies[1] if len(copies) > 1 else None)
                taken += n
        self.ids += ids[:taken]
        self.length = len(self.ids)
        self.reused += self.length - before
        if state is not None and self.states:
            if self.length == end:
                self.states.adopt(state, end)
            else:
                pool.release(state, True)

    def _drop_unwritten(self) -> None:
        """Give back what was reserved and not written; under the lock."""
        first = pages_of(self.length)
        unwritten, windows = self._pages[first:], self._windows[max(0, first - self._first):]
        del self._pages[first:], self._windows[len(self._windows) - len(windows):]
        for at, page in enumerate(unwritten, first):
            self._pool.release(page, at >= self._floor)
        for at, page in enumerate(windows, first):
            self._pool.release(page, self._marked(at))
        if self._promised_length:
            self._renew()

    @abstractmethod
    def _may_slide(self, first: int) -> bool:
        """Whether what was promised holds if windowed pages before the page `first` are not there."""

    @abstractmethod
    def _renew(self) -> None:
        """After going back, under the lock: what was promised holds again. Who promises has this (Sequence)."""

    def place(self, ids: Iterable[int]) -> tuple[int, tuple[int, ...]] | None:
        """Which page a sequence that goes on with `ids` is filling or about to begin: equal for those that compute the same one. None if the text doesn't
        fill it, or the sequence is private."""
        i = self.length // PAGE
        if not self._cached or len(self._chain) < i or self.states:  # there is no state at every page's end, for others to go on from
            return None
        page = (*self.ids[i * PAGE:], *itertools.islice(ids, (i + 1) * PAGE - self.length))
        return (id(self._chain[i - 1] if i else self._root), page) if len(page) == PAGE else None

    def _low(self, found: list[Entry]) -> int:
        """The first page whose windowed part is seen after these were taken over."""
        return self._layout.first(self.length + len(found) * PAGE) if self._layout.windowed else 0

    def _costs(self, found: list[Entry], seen: list[Entry], state: State | None) -> int:
        """Free units that holding the pages of entries `found` costs, the windowed ones of `seen`, the last of them, and a state."""
        pool, at, end = self._pool, len(self._pages), len(self._pages) + len(found)
        costs = sum(pool.cost(entry.page, i >= self._floor) for i, entry in enumerate(found, at) if entry.page is not None)
        costs += pool.cost(state, True) if state is not None else 0
        return costs + sum(pool.cost(entry.window, self._marked(i)) for i, entry in enumerate(seen, end - len(seen)) if entry.window is not None)
