"""The KV cache: pages of 64 positions (all layers of one page together), claimed as sequences grow, against a budget known at the start.

    Sequence ── begin: what is known already, and a promise ──► reserve, step by step ──► PagePool (page_pool.py)

How keys and values lie in a page is the KV type's matter (kernels/kv_float.py, kv_q8_0.py). A sequence is a list of pages and the int64 table of their
addresses that the forward pass reads. Whole pages may be shared: each counts its sequences, and whoever is about to write into a page that is shared, or
known to the prefix cache, writes into a copy. Stale contents never reach a result, because scores past a query's position are selected away and
values past it are skipped, or weighted by an integer zero.
"""
from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable

import numpy as np

from ...kernels import kv_float, kv_q8_0
from ...kernels.attention import KVType
from ...kernels.elementwise import PAGE
from ..architectures.config import ModelConfig
from ..errors import OptionError, OutOfMemoryError
from .page_pool import Page, PagePool
from .prefix_cache import Entry

__all__ = ["KV_TYPES", "PAGE", "Page", "PagePool", "Sequence", "kv_type", "page_bytes", "pages_of"]

KV_TYPES = {kv.name: kv for kv in (kv_float.F16, kv_q8_0.Q8_0, kv_float.F32)}
"""What keys and values may be kept as."""
_NEVER = sys.maxsize
_WORTH_COPYING = 8  # tokens of a partly equal page: fewer are sooner computed


def kv_type(config: ModelConfig, name: str | None = None) -> KVType:
    """By name; by default float16, or float32 for files that are float32 throughout. OptionError."""
    name = name or ("f32" if config.float32_kv else "f16")
    if name not in KV_TYPES:
        raise OptionError(f"unknown type of keys and values {name!r}: choose from {', '.join(KV_TYPES)}")
    return KV_TYPES[name]


def page_bytes(config: ModelConfig, kv: KVType) -> int:
    """Bytes of a page, all layers."""
    return sum(kv.layer_bytes(a.kv_heads, a.head_dim, a.value_dim) for a in config.attentions() if a.kv_layer == a.layer)


def pages_of(length: int) -> int:
    """Pages that `length` positions take."""
    return -(-length // PAGE)


class Sequence:
    """One sequence's place in the KV cache: `length` positions hold keys and values, of the tokens `ids`. Made by Runtime.new_sequence().

    cached: whole pages are told to the prefix cache as they fill, the last one when the sequence ends. Dropped, it gives its pages back as by `close`.
    salt: only sequences of the same one share pages: what one client's text has computed is not to be found out by another's waiting time.
    """

    def __init__(self, pool: PagePool, context: int, cached: bool = False, salt: bytes = b""):
        self._pool, self.context, self._cached, self._salt = pool, context, cached, salt
        self.length = 0
        self.ids: list[int] = []
        self.reused = 0
        """Tokens that `match` took over."""
        self._pages: list[Page] = []
        self._chain: list[Entry] = []  # the entries of its whole pages
        self._spare = 0  # pages promised to it
        self._promised_length = 0
        self._floor = _NEVER  # the first of its pages that it may go back over and grow again: such ones are marked in the pool
        self.tentative = False
        """While true, what is appended may yet be taken back, and is not told to the prefix cache."""
        self._matched: tuple[int, int] | None = None  # (length, the prefix cache's version) of the last look into it
        self.table = np.zeros(pages_of(context), np.int64)
        """Addresses of the pages, int64 [pages of a full context]."""
        self.table_address = self.table.ctypes.data

    @property
    def _root(self) -> Entry:
        return self._pool.prefix.root_of(self._salt)

    @property
    def kv_bytes(self) -> int:
        """Memory of its pages, shared ones counted in full."""
        return len(self._pages) * self._pool.page_bytes

    @property
    def at_page_start(self) -> bool:
        """Whether the next position begins a page."""
        return self.length % PAGE == 0

    # -- beginning ------------------------------------------------------------------------------------------------------------------------

    def begin(self, ids: Iterable[int], length: int, back_to: int | None = 0, wait: float = 0.0) -> None:
        """`match` and `promise` in one: what is taken over need not be promised. wait: seconds for which memory that others hold may be waited for.
        OutOfMemoryError: then nothing has changed."""
        following = list(ids)
        self._pool.in_turn(wait, lambda: self._admit(following, length, back_to))

    def _admit(self, following: list[int], length: int, back_to: int | None) -> None:
        pool = self._pool
        with pool.lock:
            pool.collect()
            found, partial, n = self._known(following)
            if found or partial:
                self._drop_unwritten()
            floor, before = _NEVER if back_to is None else back_to // PAGE, self._floor
            self._mark(floor)
            more = self._wanting(min(length, self.context)) - self._spare
            if found:
                more = max(more - len(found), -self._spare)
            costs = sum(pool.cost(entry.page, at >= floor) for at, entry in enumerate(found, len(self._pages)) if entry.page is not None)
            left = pool.free_pages
            if more + costs > left or left < 0:
                self._mark(before)
                raise pool.refusal(max(1, more + costs))
            self._promised_length = min(length, self.context)
            self._spare += more + len(found)
            pool._promised += more + len(found)
            self._take_over(following, found, partial, n)
            if not pool.back():
                self.unpromise()
                raise pool.refusal(max(1, more + costs))

    def promise(self, length: int, back_to: int | None = 0) -> None:
        """Make sure that growing to `length` positions (at most the context) can't fail for want of pages, whatever others do, also after going back to any
        position from `back_to` on (None: of what goes back while others share it, the promise is void). length 0: no longer. OutOfMemoryError: then an earlier
        promise stands."""
        if length <= 0:
            self.unpromise()
        else:
            self.begin((), length, back_to)

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
        return (found, partial, n) if partial is not None and partial.page is not None and n >= _WORTH_COPYING else (found, None, 0)

    def _take_over(self, ids: list[int], found: list[Entry], partial: Entry | None, n: int) -> None:
        """Hold the pages found, and a copy of the last one, as far as memory goes: always, if they are promised."""
        pool, before, taken = self._pool, self.length, 0
        for entry in found:
            page = entry.page
            if page is None or not self._spare and pool.cost(page, len(self._pages) >= self._floor) > pool.free_pages:
                partial = None
                break
            if self._spare:
                self._spare -= 1
                pool._promised -= 1
            self._hold(page)
            self._chain.append(entry)
            taken += PAGE
        if partial is not None and partial.page is not None and (self._spare or pool.free_pages > 0):
            source = partial.page
            if copy := pool.page_to_copy_to(source):
                if self._spare:
                    self._spare -= 1
                    pool._promised -= 1
                copy.data[:] = source.data
                self._hold(copy)
                taken += n
        self.ids += ids[:taken]
        self.length = len(self.ids)
        self.reused += self.length - before

    def _drop_unwritten(self) -> None:
        """Give back what was reserved and not written; under the lock."""
        first = pages_of(self.length)
        unwritten = self._pages[first:]
        del self._pages[first:]
        for at, page in enumerate(unwritten, first):
            self._pool.release(page, at >= self._floor)
        if self._promised_length:
            self._renew()

    def place(self, ids: Iterable[int]) -> tuple[int, tuple[int, ...]] | None:
        """Which page a sequence that goes on with `ids` is filling or about to begin: equal for those that compute the same one. None if the text doesn't
        fill it, or the sequence is private."""
        i = self.length // PAGE
        if not self._cached or len(self._chain) < i:
            return None
        page = (*self.ids[i * PAGE:], *itertools.islice(ids, (i + 1) * PAGE - self.length))
        return (id(self._chain[i - 1] if i else self._root), page) if len(page) == PAGE else None

    def fork(self, length: int | None = None) -> Sequence:
        """Another sequence with the same first `length` positions (default: all). Whole pages are shared, the last one is copied. OutOfMemoryError."""
        length = self.length if length is None else length
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot fork a sequence of {self.length} positions at {length}")
        other, pool = Sequence(self._pool, self.context, self._cached, self._salt), self._pool
        with pool.lock:
            pool.collect()
            whole = self._pages[:length // PAGE]
            if sum(pool.cost(page, False) for page in whole) + bool(length % PAGE) > max(0, pool.free_pages):
                raise OutOfMemoryError(f"the KV cache has no free page of its {pool.max_pages} for a fork; wait for other answers or close them")
            for page in whole:
                other._hold(page)
            if length % PAGE:
                tail = pool.take()
                tail.data[:] = self._pages[length // PAGE].data
                other._hold(tail)
            other._chain = self._chain[:length // PAGE]
            other.ids, other.length = self.ids[:length], length
            pool.back()
        return other

    # -- growing --------------------------------------------------------------------------------------------------------------------------

    def _mark(self, floor: int) -> None:
        """From now on it may go back over its pages from `floor` on."""
        pool, old = self._pool, self._floor
        pool.mark(self._pages[floor:old], 1)
        pool.mark(self._pages[old:floor], -1)
        self._floor = floor

    def _wanting(self, length: int) -> int:
        """Pages to take on the way to `length` positions; that of a shared page it may go back over is reserved with that page."""
        at = self.length // PAGE
        shared = length > self.length and self.length % PAGE and self._pages[at].users > 1 and at < self._floor
        return max(0, pages_of(length) - len(self._pages)) + bool(shared)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; all or nothing (OutOfMemoryError)."""
        pool = self._pool
        with pool.lock:
            pool.collect()
            needed = self._wanting(length)
            if needed > self._spare + (free := max(0, pool.free_pages)):
                raise OutOfMemoryError(f"the KV cache has {free + self._spare} free pages of {PAGE} positions, this step needs {needed}; "
                                       "close other sequences or allow it more memory")
            if self.length % PAGE and length > self.length:
                self._make_writable(self.length // PAGE)
            while len(self._pages) < pages_of(length):
                self._hold(self._take())

    def _make_writable(self, at: int) -> None:
        """Replace a page that others can see by a copy."""
        pool, page, rewinds = self._pool, self._pages[at], at >= self._floor
        if page.users == 1 and page.entry is None:
            return
        if page.users == 1 and pool.free_pages < 1:  # nobody but the prefix cache knows it, and there is no page to spare
            assert page.entry is not None
            pool._free += pool.prefix.drop(page.entry)
            return
        if page.users > 1 and rewinds:
            pool.release(page, rewinds)  # with it, what was reserved for this moment; others keep it as it is
            copy = pool.take()
        else:
            copy = self._take() if page.users > 1 else pool.take()
            pool.release(page, rewinds)
        copy.data[:] = page.data
        pool.hold(copy, rewinds)
        self._pages[at], self.table[at] = copy, copy.data.ctypes.data

    def _take(self) -> Page:
        """A page, out of the promised ones first."""
        page = self._pool.take(promised=self._spare > 0)
        self._spare -= self._spare > 0
        return page

    def _hold(self, page: Page) -> None:
        at = len(self._pages)
        self._pool.hold(page, at >= self._floor)
        self.table[at] = page.data.ctypes.data
        self._pages.append(page)

    def append(self, ids: Iterable[int]) -> None:
        """The keys and values of `ids` were written after the present ones."""
        self.ids.extend(map(int, ids))
        self.length = len(self.ids)
        if self._cached and not self.tentative and len(self._chain) < self.length // PAGE:
            with self._pool.lock:
                while (i := len(self._chain)) < self.length // PAGE:
                    parent = self._chain[-1] if self._chain else self._root
                    self._chain.append(self._pool.prefix.add(parent, self.ids[i * PAGE:(i + 1) * PAGE], self._pages[i]))

    def whole_pages(self) -> list[np.ndarray]:
        """The contents of the pages that are full, uint8 [page_bytes] each; valid until the sequence changes."""
        return [page.data for page in self._pages[:self.length // PAGE]]

    def reserved_pages(self) -> list[np.ndarray]:
        """The contents of the pages that were reserved and not yet appended to, of an empty sequence: to be written from outside."""
        assert not self.length
        return [page.data for page in self._pages]

    # -- going back -----------------------------------------------------------------------------------------------------------------------

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on, whichever they are; their pages go back to the pool."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a sequence of {self.length} positions to {length}")
        if self._promised_length:
            with self._pool.lock:  # or somebody else might take the pages before they are promised again
                self._drop(length)
                self._pool.collect()
                self._renew()
        else:
            self._drop(length)

    def _drop(self, length: int) -> None:
        keep, used = pages_of(length), pages_of(self.length)
        parent = None
        if self._cached and self.length % PAGE and keep < used and len(self._chain) == used - 1:  # the text's end goes; it may be wanted again
            parent = self._chain[used - 2] if used > 1 else self._root
        tail = tuple(self.ids[self.length // PAGE * PAGE:])
        dropped, unwritten = self._pages[keep:used], self._pages[max(keep, used):]
        del self._pages[keep:], self.ids[length:], self._chain[length // PAGE:]
        self.length = length
        if unwritten:
            self._pool.give(unwritten, rewound=max(0, self._floor - max(keep, used)))
        if dropped:
            self._pool.give(dropped, rewound=max(0, self._floor - keep), parent=parent, ids=tail)

    def _renew(self) -> None:
        """After going back, under the lock: the promise holds again. Of pages before `_floor` that others hold, too, it is void."""
        more = self._wanting(self._promised_length) - self._spare
        more = min(more, max(0, self._pool.free_pages))
        self._spare += more
        self._pool._promised += more

    def close(self) -> None:
        """Give all pages back, and what was promised; the sequence is empty afterwards and may be used again."""
        self._promised_length = 0  # nothing to renew: no lock, the garbage collector may be calling
        self.truncate(0)
        self.unpromise()

    def unpromise(self) -> None:
        """Give back what was promised and not taken."""
        self._promised_length = 0
        if self._floor < len(self._pages):
            self._pool.give(self._pages[self._floor:], kept=True, promised=self._spare)
        elif self._spare:
            self._pool.give([], promised=self._spare)
        self._floor, self._spare = _NEVER, 0

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, TypeError):  # not whole: its constructor was refused memory; or Python is going down
            self.close()
