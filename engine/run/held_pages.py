"""What a sequence of the KV cache holds: its pages, those of the windowed layers beside them, and what it was promised of the pool's memory.

    Sequence (kv_cache.py) ── hold, take, leave, make writable ──► PagePool (page_pool.py)      and the table of addresses that the kernels read

All of it under the pool's lock.
"""
from __future__ import annotations

import sys

import numpy as np

from .page_pool import Page, PagePool

NEVER = sys.maxsize


class HeldPages:
    """Pages of one sequence, of up to `most` times 64 positions."""

    def __init__(self, pool: PagePool, most: int) -> None:
        self._pool, self._layout = pool, pool.layout
        self._pages: list[Page] = []
        self._windows: list[Page] = []  # those of the windowed layers, for the pages from _first on, all that there are
        self._first = 0
        self._spare = 0  # units promised to it
        self._promised_length = 0
        # the first of its pages that it may go back over and grow again, and how many windowed ones it will leave behind: such ones are marked in the pool
        self._floor, self._behind = NEVER, 0
        self.table = np.zeros((self._layout.rows, most), np.int64)
        """Addresses of the pages' units, int64 [rows, pages of a full context]; 0: given back."""
        self.table_address = self.table.ctypes.data

    @property
    def kv_bytes(self) -> int:
        """Memory of its pages, shared ones counted in full."""
        return (len(self._pages) * self._layout.whole + len(self._windows) * self._layout.windowed) * self._pool.page_bytes

    def _spend(self, units: int) -> None:
        """Of what is promised, so much is taken now."""
        units = min(units, self._spare)
        self._spare -= units
        self._pool._promised -= units

    def _marked(self, at: int) -> bool:
        """Whether a windowed page may be left or gone back over."""
        return at < self._behind or at >= self._floor

    def _mark(self, floor: int, behind: int) -> None:
        """From now on it may go back over its pages from `floor` on, and will leave the windowed ones before `behind`."""
        pool, old = self._pool, self._floor
        pool.mark(self._pages[floor:old], 1)
        pool.mark(self._pages[old:floor], -1)
        marked = [self._marked(at) for at in range(self._first, self._first + len(self._windows))]
        self._floor, self._behind = floor, behind
        for at, (page, was) in enumerate(zip(self._windows, marked), self._first):
            if was != self._marked(at):
                pool.mark([page], -1 if was else 1)

    def _make_writable(self, at: int) -> None:
        """Replace pages that others can see by copies."""
        page = self._pages[at]
        if page.users > 1 or page.entry is not None:
            page = self._pages[at] = self._copied(page, at >= self._floor)
            self._put(at, page.units, 0)
        if self._windows:
            window = self._windows[at - self._first]
            if window.users > 1 or window.entry is not None:
                window = self._windows[at - self._first] = self._copied(window, self._marked(at))
                self._put(at, window.units, self._layout.whole)

    def _copied(self, page: Page, rewinds: bool) -> Page:
        pool = self._pool
        if page.users == 1 and pool.free_pages < page.weight:  # nobody but the prefix cache knows it, and there is no page to spare
            assert page.entry is not None
            pool.drop(page.entry)
            return page
        if page.users > 1 and rewinds:
            pool.release(page, rewinds)  # with it, what was reserved for this moment; others keep it as it is
            copy = pool.take(weight=page.weight)
        else:
            copy = self._take(page.weight) if page.users > 1 else pool.take(weight=page.weight)
            pool.release(page, rewinds)
        copy.copy(page)
        pool.hold(copy, rewinds)
        return copy

    def _take(self, weight: int) -> Page:
        """A page, out of the promised units first."""
        if self._spare < weight:
            self._spend(self._spare)
            return self._pool.take(weight=weight)
        self._spare -= weight
        return self._pool.take(promised=True, weight=weight)

    def _hold(self, page: Page, window: Page | None = None) -> None:
        at = len(self._pages)
        self._pool.hold(page, at >= self._floor)
        self._pages.append(page)
        if window is not None:
            self._pool.hold(window, self._marked(at))
            self._windows.append(window)
        elif self._layout.windowed:
            self._first = at + 1
        self._put(at, page.units + window.units if window else page.units, 0)

    def _put(self, at: int, units: list[np.ndarray], row: int) -> None:
        """Tell the kernels where units are, from a row of the table on."""
        self.table[row:row + len(units), at] = [unit.ctypes.data for unit in units]

    def _window_at(self, at: int) -> Page | None:
        return self._windows[at - self._first] if self._first <= at < self._first + len(self._windows) else None

    def units(self, pages: int | None = None) -> list[np.ndarray]:
        """The contents of the first `pages` pages (default: all, also those reserved and not written), page after page, uint8 [page_bytes] each."""
        windows = (self._window_at(at) for at in range(len(self._pages)))
        return [unit for page, window in zip(self._pages[:pages], windows) for unit in page.units + (window.units if window else [])]
