"""The prefix cache: KV pages of beginnings that were computed before, found again by their tokens.

    walk(ids) -> the entries of whole pages that `ids` begins with, and the entry whose page shares most of what follows

Entries form a tree: an entry is a page of 64 tokens (fewer where a sequence ended) after its parent's. It is found by a hash chain,
key = blake2b(parent's key, tokens), whose root is seeded with model, arithmetic version and KV type; a hit counts only if the parent is the very entry found
before and all tokens are equal, so a collision costs time and never a wrong number. Pages that no sequence uses are kept until the pool wants memory,
and then go least recently used first, a page always before those that come before it in the text.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.elementwise import PAGE

if TYPE_CHECKING:
    from .kv_cache import Page


MOST_EMPTY = 64
"""Salts that are remembered though nothing of theirs is kept: a sequence may be about to use one."""


class Entry:
    """One page's tokens after its parent's. `page` is None for the root and for an entry that was dropped."""

    __slots__ = ("key", "parent", "ids", "page", "children")

    def __init__(self, key: bytes, parent: Entry | None, ids: tuple[int, ...], page: Page | None) -> None:
        self.key, self.parent, self.ids, self.page = key, parent, ids, page
        self.children: dict[bytes, Entry] = {}


class PrefixCache:
    """Entries by key, and which of their pages are idle. Not locked: the pool's lock guards it."""

    def __init__(self, seed: bytes) -> None:
        self.root = Entry(blake2b(seed, digest_size=16).digest(), None, (), None)
        self._roots = {b"": self.root}  # salt -> where its texts begin
        self.version = 0
        """Grows with every page it is told of."""
        self._idle: OrderedDict[int, Entry] = OrderedDict()  # by identity, least recently used first

    def root_of(self, salt: bytes) -> Entry:
        """Where texts of one salt begin: they share no page with those of another."""
        if salt not in self._roots:
            for other in [s for s, root in self._roots.items() if s and not root.children][:-MOST_EMPTY or None]:
                del self._roots[other]
            self._roots[salt] = Entry(blake2b(self.root.key + salt, digest_size=16).digest(), None, (), None)
        return self._roots[salt]

    @property
    def idle_pages(self) -> int:
        """Pages kept for nobody in particular: memory that can be had."""
        return len(self._idle)

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
        shared = {child: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(child.ids, rest))) for child in at.children.values()}
        best = max(shared, key=lambda child: shared[child], default=None)
        return found, best, shared[best] if best else 0

    def add(self, parent: Entry, ids: Sequence[int], page: Page) -> Entry:
        """Tell of a page that holds `ids` (up to 64) after parent's -> its entry; an older equal one stays, with its own page."""
        part = tuple(ids)
        key = _key(parent, part)
        dead = parent.page is None and parent.parent is not None
        known = parent.children.get(key)
        if known is not None and known.ids == part:
            return known
        entry = Entry(key, parent, part, None)
        if not dead and known is None and page.entry is None:
            entry.page, page.entry = page, entry
            self.version += 1
            parent.children[key] = entry
        return entry

    def used(self, entry: Entry) -> None:
        """A sequence uses the entry's page now."""
        self._idle.pop(id(entry), None)

    def unused(self, entry: Entry) -> None:
        """No sequence uses the entry's page any more."""
        self._idle[id(entry)] = entry

    def evict(self) -> list[Page]:
        """Drop the idle entry that was used least recently -> its page, and idle ones after it; nothing if all are in use."""
        return self.drop(next(iter(self._idle.values()))) if self._idle else []

    def drop(self, entry: Entry) -> list[Page]:
        """Forget an entry and all that come after it -> those of their pages that nobody uses."""
        if entry.parent is not None:
            entry.parent.children.pop(entry.key, None)
        free = []
        for dropped in list(_subtree(entry)):
            page, dropped.page = dropped.page, None
            if page is not None:
                page.entry = None
                if self._idle.pop(id(dropped), None) is not None:
                    free.append(page)
            dropped.children.clear()
        return free

    def clear(self) -> list[Page]:
        """Forget everything -> the pages that nobody uses."""
        return [page for root in list(self._roots.values()) for child in list(root.children.values()) for page in self.drop(child)]


def _key(parent: Entry, ids: Sequence[int]) -> bytes:
    return blake2b(parent.key + np.asarray(ids, "<i4").tobytes(), digest_size=16).digest()


def _subtree(entry: Entry) -> Iterator[Entry]:
    stack = [entry]
    while stack:
        stack.extend((at := stack.pop()).children.values())
        yield at
