"""The prefix cache: KV pages of beginnings that were computed before, found again by their tokens.

    walk(ids) -> the entries of whole pages that `ids` begins with, and the entry whose page shares most of what follows

Entries form a tree: an entry is a page of 64 tokens (fewer where a sequence ended) after its parent's. It is found by a hash chain,
key = blake2b(parent's key, tokens), whose root is seeded with model, arithmetic version and KV type; a hit counts only if the parent is the very entry found
before and all tokens are equal, so a collision costs time and never a wrong number. Pages that no sequence uses are kept until the pool wants memory,
and then go least recently used first, a page always before those that come before it in the text. An entry's windowed page may go alone; then the text can
still be taken over where the windowed pages before are there (kv_cache.py). Texts of models with recurrent layers are taken over up to an entry with a state.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.elementwise import PAGE

if TYPE_CHECKING:
    from .kv_cache import Page


MOST_EMPTY = 64
"""Salts that are remembered though nothing of theirs is kept: a sequence may be about to use one."""


class Entry:
    """One page's tokens after its parent's. `page` is None for the root and for an entry that was dropped; `window`: of the windowed layers, or None;
    `state`: a snapshot of the recurrent layers after the last of its tokens, or None."""

    __slots__ = ("key", "parent", "ids", "page", "window", "state", "children")

    def __init__(self, key: bytes, parent: Entry | None, ids: tuple[int, ...], page: Page | None) -> None:
        self.key, self.parent, self.ids, self.page = key, parent, ids, page
        self.window: Page | None = None
        self.state: Page | None = None
        self.children: dict[bytes, Entry] = {}


class PrefixCache:
    """Entries by key, and which of their pages are idle. Not locked: the pool's lock guards it."""

    def __init__(self, seed: bytes) -> None:
        self.root = Entry(blake2b(seed, digest_size=16).digest(), None, (), None)
        self._roots = {b"": self.root}  # salt -> where its texts begin
        self.version = 0
        """Grows with every page it is told of."""
        self.idle: OrderedDict[int, Page] = OrderedDict()
        """Pages kept for nobody in particular, by identity, least recently used first."""
        self.idle_pages = 0
        """Their units: memory that can be had."""

    def root_of(self, salt: bytes) -> Entry:
        """Where texts of one salt begin: they share no page with those of another."""
        if salt not in self._roots:
            for other in [s for s, root in self._roots.items() if s and not root.children][:-MOST_EMPTY or None]:
                del self._roots[other]
            self._roots[salt] = Entry(blake2b(self.root.key + salt, digest_size=16).digest(), None, (), None)
        return self._roots[salt]

    def walk(self, ids: Sequence[int], after: Entry | None = None) -> tuple[list[Entry], Entry | None, int]:
        """-> (entries of the whole pages that ids begin with, an entry after them, how many more ids that one shares). after: where to start from."""
        found: list[Entry] = []
        at = after or self.root
        while len(ids) >= (len(found) + 1) * PAGE:
            part = tuple(ids[len(found) * PAGE:(len(found) + 1) * PAGE])
            entry = at.children.get(_key(at, part))
            if entry is None or entry.ids != part:
                break
            found.append(entry)
            at = entry
        rest = ids[len(found) * PAGE:(len(found) + 1) * PAGE]
        alike = [child for child in at.children.values() if child.ids[0] == rest[0]] if rest else []  # of thousands of texts, most begin with another token
        best = max(alike, key=lambda child: _common(child.ids, rest), default=None)
        return found, best, _common(best.ids, rest) if best else 0

    def add(self, parent: Entry, ids: Sequence[int], page: Page, window: Page | None = None) -> Entry:
        """Tell of a page that holds `ids` (up to 64) after parent's -> its entry; an older equal one stays, with its own page, and gets a windowed page if it
        has lost its own."""
        part = tuple(ids)
        key = _key(parent, part)
        dead = parent.page is None and parent.parent is not None
        known = parent.children.get(key)
        if known is not None and known.ids == part:
            if window is not None and window.entry is None and known.window is None and known.page is not None:
                known.window, window.entry = window, known
                self.version += 1
            return known
        entry = Entry(key, parent, part, None)
        if not dead and known is None and page.entry is None:
            entry.page, page.entry = page, entry
            if window is not None and window.entry is None:
                entry.window, window.entry = window, entry
            self.version += 1
            parent.children[key] = entry
        return entry

    def used(self, page: Page) -> None:
        """A sequence uses an entry's page now."""
        if self.idle.pop(id(page), None) is not None:
            self.idle_pages -= page.weight

    def unused(self, page: Page) -> None:
        """No sequence uses an entry's page any more."""
        self.idle[id(page)] = page
        self.idle_pages += page.weight

    def evict(self) -> list[Page]:
        """Forget the idle page that was used least recently -> it, and idle ones after it; of a windowed page or a state it alone. Nothing if all are
        in use."""
        page = next(iter(self.idle.values()), None)
        if page is None:
            return []
        entry = page.entry
        assert entry is not None
        if entry.page is page:
            return self.drop(entry)
        if entry.window is page:
            self.forget_window(entry)
        else:
            entry.state, page.entry = None, None
        self.used(page)
        return [page]

    @staticmethod
    def snapshot(entry: Entry, state: Page) -> bool:
        """A state is kept with an entry, if it is the first -> whether it is."""
        if entry.page is None or entry.state is not None or state.entry is not None:
            return False
        entry.state, state.entry = state, entry
        return True

    @staticmethod
    def forget_window(entry: Entry) -> None:
        """The entry's windowed page is its holders' alone."""
        if entry.window is not None:
            entry.window.entry, entry.window = None, None

    def drop(self, entry: Entry) -> list[Page]:
        """Forget an entry and all that come after it -> those of their pages that nobody uses."""
        if entry.parent is not None:
            entry.parent.children.pop(entry.key, None)
        free = []
        for dropped in list(_subtree(entry)):
            pages, dropped.page, dropped.window, dropped.state = (dropped.page, dropped.window, dropped.state), None, None, None
            for page in pages:
                if page is not None:
                    page.entry = None
                    if id(page) in self.idle:
                        self.used(page)
                        free.append(page)
            dropped.children.clear()
        return free

    def clear(self) -> list[Page]:
        """Forget everything -> the pages that nobody uses."""
        return [page for root in list(self._roots.values()) for child in list(root.children.values()) for page in self.drop(child)]


def _key(parent: Entry, ids: Sequence[int]) -> bytes:
    return blake2b(parent.key + np.asarray(ids, "<i4").tobytes(), digest_size=16).digest()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _subtree(entry: Entry) -> Iterator[Entry]:
    stack = [entry]
    while stack:
        stack.extend((at := stack.pop()).children.values())
        yield at
