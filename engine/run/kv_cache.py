"""The KV cache: pages of 64 positions (all layers of one page together), claimed as sequences grow, against a budget known at the start.

    Sequence ── reserve ──► PagePool.take:  free pages ─► new memory, up to the budget ─► the prefix cache's least recently used page

How keys and values lie in a page is the KV type's matter (kernels/kv_float.py, kv_q8_0.py). A sequence is a list of pages and the int64 table of their
addresses that the forward pass reads. Whole pages may be shared: each counts its sequences, and whoever is about to write into a page that is shared, or
known to the prefix cache, writes into a copy. Stale contents never reach a result, because scores past a query's position are selected away and
values past it are skipped, or weighted by an integer zero.
"""
from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable

import numpy as np

from ...kernels import kv_float, kv_q8_0
from ...kernels.attention import KVType
from ...kernels.elementwise import PAGE
from ..architectures.config import ModelConfig
from ..errors import OptionError, OutOfMemoryError
from .prefix_cache import Entry, PrefixCache

KV_TYPES = {kv.name: kv for kv in (kv_float.F16, kv_q8_0.Q8_0, kv_float.F32)}
"""What keys and values may be kept as."""
_WORTH_COPYING = 8  # tokens of a partly equal page: fewer are sooner computed


def kv_type(config: ModelConfig, name: str | None = None) -> KVType:
    """By name; by default float16, or float32 for files that are float32 throughout. OptionError."""
    name = name or ("f32" if config.float32_kv else "f16")
    if name not in KV_TYPES:
        raise OptionError(f"unknown type of keys and values {name!r}: choose from {', '.join(KV_TYPES)}")
    return KV_TYPES[name]


def page_bytes(config: ModelConfig, kv: KVType) -> int:
    """Bytes of a page, all layers."""
    return config.n_layers * kv.layer_bytes(config.n_kv_heads, config.head_dim, config.head_dim)


def pages_of(length: int) -> int:
    """Pages that `length` positions take."""
    return -(-length // PAGE)


class Page:
    """64 positions of all layers. data: uint8 [page_bytes], 64-byte aligned; users: sequences that hold it; entry: its place in the prefix cache."""

    __slots__ = ("data", "users", "entry")

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.users = data, 0
        self.entry: Entry | None = None


class PagePool:
    """All pages of one model. `max_pages` is the budget; memory is claimed page by page, and stays claimed until the pool is dropped.

    Pages come back through a queue, because a sequence may be dropped by the garbage collector at any moment, in any thread, in the middle of a method here.
    """

    def __init__(self, page_bytes: int, max_pages: int, seed: bytes = b""):
        self.page_bytes = page_bytes
        self.max_pages = max_pages
        self.claimed = 0
        self.prefix = PrefixCache(seed)
        self.lock = threading.RLock()
        self._promised = 0
        self._free: list[Page] = []
        self._returned: deque[tuple[list[Page], int, Entry | None, tuple[int, ...]]] = deque()

    @property
    def free_pages(self) -> int:
        """Pages that can still be handed out, the prefix cache's idle ones among them, and are promised to nobody."""
        with self.lock:
            self._collect()
            return self.max_pages - self.claimed + len(self._free) + self.prefix.idle_pages - self._promised

    def take(self) -> Page:
        """A page for one sequence. OutOfMemoryError when the budget is used up."""
        with self.lock:
            self._collect()
            if not self._free and self.claimed < self.max_pages:
                self._claim()
            if not self._free:
                self._free += self.prefix.evict()
            if not self._free:
                raise OutOfMemoryError(
                    f"the KV cache is full: all {self.claimed} pages of {PAGE} positions are in use; close other sequences or allow it more memory")
            page = self._free.pop()
            page.users = 1
            return page

    def _claim(self) -> None:
        try:
            raw = np.empty(self.page_bytes + 64, np.uint8)
        except MemoryError:  # then what there is must do
            self.max_pages = self.claimed
            return
        self.claimed += 1
        offset = -raw.ctypes.data % 64
        self._free.append(Page(raw[offset:offset + self.page_bytes]))

    def share(self, page: Page) -> Page:
        """One more sequence uses the page."""
        page.users += 1
        if page.entry is not None:
            self.prefix.used(page.entry)
        return page

    def promise(self, pages: int) -> None:
        """Keep pages for somebody (fewer for a negative number). OutOfMemoryError."""
        with self.lock:
            if pages > max(0, self.free_pages):
                raise OutOfMemoryError(
                    f"the KV cache has {self.free_pages} of {self.max_pages} pages of {PAGE} positions left, {pages} are needed; wait for other answers "
                    "or close them, ask for fewer tokens, or allow more memory")
            self._promised += pages

    def give(self, pages: Iterable[Page], promised: int = 0, parent: Entry | None = None, ids: tuple[int, ...] = ()) -> None:
        """Hand pages back, first to last, and what was promised. parent: the entry after which the last page holds `ids`, a text's end."""
        self._returned.append((list(pages), promised, parent, ids))

    def _collect(self) -> None:
        while self._returned:
            pages, promised, parent, ids = self._returned.popleft()
            self._promised -= promised
            if parent is not None and pages[-1].entry is None:
                self.prefix.add(parent, ids, pages[-1])
            for page in reversed(pages):  # the last page is the first to be evicted
                page.users -= 1
                if not page.users:
                    if page.entry is None:
                        self._free.append(page)
                    else:
                        self.prefix.unused(page.entry)

    def clear_prefix_cache(self) -> None:
        """Forget all kept beginnings."""
        with self.lock:
            self._collect()
            self._free += self.prefix.clear()


class Sequence:
    """One sequence's place in the KV cache: `length` positions hold keys and values, of the tokens `ids`. Made by Runtime.new_sequence().

    cached: whole pages are told to the prefix cache as they fill, the last one when the sequence ends.
    """

    def __init__(self, pool: PagePool, context: int, cached: bool = False):
        self._pool, self.context, self._cached = pool, context, cached
        self.length = 0
        self.ids: list[int] = []
        self.reused = 0
        """Tokens that `match` took over."""
        self._pages: list[Page] = []
        self._chain: list[Entry] = []  # the entries of its whole pages
        self._spare = 0  # pages promised to it
        self._promised_length = 0
        self.tentative = False
        """While true, what is appended may yet be taken back, and is not told to the prefix cache."""
        self._matched: tuple[int, int] | None = None  # (length, the prefix cache's version) of the last look into it
        self.table = np.zeros(pages_of(context), np.int64)
        """Addresses of the pages, int64 [pages of a full context]."""
        self.table_address = self.table.ctypes.data

    @property
    def kv_bytes(self) -> int:
        """Memory of its pages, shared ones counted in full."""
        return len(self._pages) * self._pool.page_bytes

    @property
    def at_page_start(self) -> bool:
        """Whether the next position begins a page."""
        return self.length % PAGE == 0

    def match(self, ids: Iterable[int]) -> int:
        """Take over what the prefix cache knows of the text that goes on with `ids` -> how many tokens that is. Only at a page's start and if all before is
        known to the prefix cache, too; else, and if the sequence is private, nothing."""
        pool, before = self._pool, self.length
        if not self._cached or not self.at_page_start or len(self._chain) < before // PAGE or self._matched == (before, pool.prefix.version):
            return 0
        following = list(ids)
        with pool.lock:
            pool._collect()
            self._matched = before, pool.prefix.version
            found, partial, n = pool.prefix.walk(following, self._chain[-1] if self._chain else None)
            if not found and n < _WORTH_COPYING:
                return 0
            pool.give(self._pages[before // PAGE:])  # reserved, not written
            del self._pages[before // PAGE:]
            for entry in found:
                assert entry.page is not None
                self._hold(pool.share(entry.page))
            self._chain += found
            self.ids += following[:len(found) * PAGE]
            if partial is not None and partial.page is not None and n >= _WORTH_COPYING:
                source = pool.share(partial.page)  # or `take` might evict it
                if self._spare or pool.free_pages:
                    copy = self._take()
                    copy.data[:] = source.data
                    self._hold(copy)
                    self.ids += following[len(found) * PAGE:len(found) * PAGE + n]
                pool.give([source])
            self.length = len(self.ids)
            if self._promised_length:
                self.promise(self._promised_length)  # what was taken over needs no pages
            if pool.free_pages < 0:  # idle pages that were promised to others
                self.truncate(before)
        self.reused += self.length - before
        return self.length - before

    def begin(self, ids: Iterable[int], length: int) -> None:
        """`match` and `promise` in one: nobody else's promise is broken by what is taken over. OutOfMemoryError."""
        with self._pool.lock:
            self.match(ids)
            self.promise(length)

    def place(self, ids: Iterable[int]) -> tuple[int, tuple[int, ...]] | None:
        """Which page a sequence that goes on with `ids` is filling or about to begin: equal for those that compute the same one. None if the text doesn't
        fill it, or the sequence is private."""
        i = self.length // PAGE
        if not self._cached or len(self._chain) < i:
            return None
        page = (*self.ids[i * PAGE:], *itertools.islice(ids, (i + 1) * PAGE - self.length))
        return (id(self._chain[i - 1] if i else self._pool.prefix.root), page) if len(page) == PAGE else None

    def fork(self, length: int | None = None) -> Sequence:
        """Another sequence with the same first `length` positions (default: all). Whole pages are shared, the last one is copied. OutOfMemoryError."""
        length = self.length if length is None else length
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot fork a sequence of {self.length} positions at {length}")
        other = Sequence(self._pool, self.context, self._cached)
        with self._pool.lock:
            if length % PAGE and self._pool.free_pages < 1:
                raise OutOfMemoryError(f"the KV cache has no free page of its {self._pool.max_pages} for a fork; wait for other answers or close them")
            tail = self._pool.take() if length % PAGE else None
            for page in self._pages[:length // PAGE]:
                other._hold(self._pool.share(page))
            if tail is not None:
                tail.data[:] = self._pages[length // PAGE].data
                other._hold(tail)
            other._chain = self._chain[:length // PAGE]
            other.ids, other.length = self.ids[:length], length
        return other

    def promise(self, length: int) -> None:
        """Make sure that growing to `length` positions (at most the context) can't fail for want of pages, whatever others do; 0: no longer.
        OutOfMemoryError: then an earlier promise stands."""
        with self._pool.lock:
            more = self._wanting(min(length, self.context)) - self._spare
            self._pool.promise(more)
            self._spare += more
            self._promised_length = min(length, self.context)

    def _wanting(self, length: int) -> int:
        """Pages to take on the way to `length` positions."""
        shared = length > self.length and self.length % PAGE and self._pages[self.length // PAGE].users > 1
        return max(0, pages_of(length) - len(self._pages)) + bool(shared)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; all or nothing (OutOfMemoryError)."""
        pool = self._pool
        with pool.lock:
            needed = self._wanting(length)
            if needed > self._spare + (free := pool.free_pages):
                raise OutOfMemoryError(f"the KV cache has {free + self._spare} free pages of {PAGE} positions, this step needs {needed}; "
                                       "close other sequences or allow it more memory")
            if self.length % PAGE and length > self.length:
                self._make_writable(self.length // PAGE)
            while len(self._pages) < pages_of(length):
                self._hold(self._take())

    def _make_writable(self, at: int) -> None:
        """Replace a page that others can see by a copy."""
        pool, page = self._pool, self._pages[at]
        if page.users == 1 and page.entry is None:
            return
        if page.users == 1 and not pool.free_pages:  # nobody but the prefix cache knows it, and there is no page to spare
            assert page.entry is not None
            pool._free += pool.prefix.drop(page.entry)
            return
        copy = self._take() if page.users > 1 else pool.take()
        copy.data[:] = page.data
        self._pages[at], self.table[at] = copy, copy.data.ctypes.data
        pool.give([page])

    def _take(self) -> Page:
        """A page, out of the promised ones first."""
        if self._spare:
            self._spare -= 1
            self._pool._promised -= 1
        return self._pool.take()

    def _hold(self, page: Page) -> None:
        self.table[len(self._pages)] = page.data.ctypes.data
        self._pages.append(page)

    def append(self, ids: Iterable[int]) -> None:
        """The keys and values of `ids` were written after the present ones."""
        self.ids.extend(map(int, ids))
        self.length = len(self.ids)
        if self._cached and not self.tentative and len(self._chain) < self.length // PAGE:
            with self._pool.lock:
                while (i := len(self._chain)) < self.length // PAGE:
                    parent = self._chain[-1] if self._chain else self._pool.prefix.root
                    self._chain.append(self._pool.prefix.add(parent, self.ids[i * PAGE:(i + 1) * PAGE], self._pages[i]))

    def whole_pages(self) -> list[np.ndarray]:
        """The contents of the pages that are full, uint8 [page_bytes] each; valid until the sequence changes."""
        return [page.data for page in self._pages[:self.length // PAGE]]

    def reserved_pages(self) -> list[np.ndarray]:
        """The contents of the pages that were reserved and not yet appended to, of an empty sequence: to be written from outside."""
        assert not self.length
        return [page.data for page in self._pages]

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on, whichever they are; their pages go back to the pool."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a sequence of {self.length} positions to {length}")
        keep, used = pages_of(length), pages_of(self.length)
        parent = None
        if self._cached and self.length % PAGE and keep < used and len(self._chain) == used - 1:  # the text's end goes; it may be wanted again
            parent = self._chain[used - 2] if used > 1 else self._pool.prefix.root
        tail = tuple(self.ids[self.length // PAGE * PAGE:])
        dropped, unwritten = self._pages[keep:used], self._pages[max(keep, used):]
        del self._pages[keep:], self.ids[length:], self._chain[length // PAGE:]
        self.length = length
        if dropped or unwritten:
            # What others hold, too, doesn't come back: of that the promise is void.
            coming = len(unwritten) + sum(page.users == 1 for page in dropped)
            spare = min(self._wanting(self._promised_length), self._spare + coming) if self._promised_length else 0
            self._pool.give(unwritten)
            self._pool.give(dropped, self._spare - spare, parent, tail)
            self._spare = spare

    def close(self) -> None:
        """Give all pages back, and what was promised; the sequence is empty afterwards and may be used again."""
        self.unpromise()
        self.truncate(0)

    def unpromise(self) -> None:
        """Give back what was promised and not taken."""
        self._promised_length = 0
        if self._spare:
            self._pool.give([], self._spare)
            self._spare = 0
