"""The KV cache: pages of 64 positions (all layers of one page together), claimed as sequences grow, against a budget known at the start.

    Sequence ── begin: what is known already, and a promise ──► reserve, step by step ──► PagePool (page_pool.py)

How keys and values lie in a page is the KV type's matter (kernels/kv_float.py, kv_q8_0.py). A sequence is a list of pages and the int64 table of their
addresses that the forward pass reads. Whole pages may be shared: each counts its sequences, and whoever is about to write into a page that is shared, or
known to the prefix cache, writes into a copy. Stale contents never reach a result, because scores past a query's position are selected away and
values past it are skipped, or weighted by an integer zero.

Windowed layers (kv_groups.py) have pages of their own beside those of the others. A sequence that `slides` gives back those that no query can see any more,
when the next step begins; the prefix cache may keep them. Going back to where they would be needed is going back to the beginning: what follows is
computed again.
"""
from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable

import numpy as np

from ...kernels import kv_float, kv_q8_0
from ...kernels.attention import KVType
from ...kernels.elementwise import PAGE
from ..architectures.config import ModelConfig
from ..errors import OptionError, OutOfMemoryError
from .held_pages import NEVER as _NEVER
from .held_pages import HeldPages
from .kv_groups import SLACK, pages_of
from .page_pool import Page, PagePool
from .prefix_cache import Entry

__all__ = ["KV_TYPES", "PAGE", "Page", "PagePool", "Sequence", "kv_type", "pages_of"]

KV_TYPES = {kv.name: kv for kv in (kv_float.F16, kv_q8_0.Q8_0, kv_float.F32)}
"""What keys and values may be kept as."""
_WORTH_COPYING = 8  # tokens of a partly equal page: fewer are sooner computed


def kv_type(config: ModelConfig, name: str | None = None) -> KVType:
    """By name; by default float16, or float32 for files that are float32 throughout. OptionError."""
    name = name or ("f32" if config.float32_kv else "f16")
    if name not in KV_TYPES:
        raise OptionError(f"unknown type of keys and values {name!r}: choose from {', '.join(KV_TYPES)}")
    return KV_TYPES[name]


class Sequence(HeldPages):
    """One sequence's place in the KV cache: `length` positions hold keys and values, of the tokens `ids`. Made by Runtime.new_sequence().

    cached: whole pages are told to the prefix cache as they fill, the last one when the sequence ends. Dropped, it gives its pages back as by `close`.
    salt: only sequences of the same one share pages: what one client's text has computed is not to be found out by another's waiting time.
    slides (default: as cached): it gives windowed pages back when no query sees them any more; then it may be shorter than asked for after `truncate`.
    """

    def __init__(self, pool: PagePool, context: int, cached: bool = False, salt: bytes = b"", slides: bool | None = None):
        super().__init__(pool, pages_of(context))
        self.context, self._cached, self._salt = context, cached, salt
        self._slides = (cached if slides is None else slides) and self._layout.windowed > 0
        self.length = 0
        self.ids: list[int] = []
        self.reused = 0
        """Tokens that `match` took over."""
        self._chain: list[Entry] = []  # the entries of its whole pages
        self.tentative = False
        """While true, what is appended may yet be taken back, and is not told to the prefix cache."""
        self._matched: tuple[int, int] | None = None  # (length, the prefix cache's version) of the last look into it

    @property
    def _root(self) -> Entry:
        return self._pool.prefix.root_of(self._salt)

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
            length = min(length, self.context)
            floor, behind = _NEVER if back_to is None else back_to // PAGE, 0
            if self._slides:
                behind = self._layout.first(length - SLACK)
                floor = 0 if behind and back_to is not None else floor  # going back may mean to begin anew
            before = self._floor, self._behind
            self._mark(floor, behind)
            low, base = self._low(found), len(self._pages)
            seen = found[max(0, low - base):]
            more = self._wanting(length, len(found), len(seen), low) - self._spare
            taken = self._layout.whole * len(found) + self._layout.windowed * len(seen)
            costs = self._costs(found, seen)
            left = pool.free_pages
            if more + costs > left or left < 0:
                self._mark(*before)
                raise pool.refusal(max(1, more + costs))
            self._promised_length = length
            self._spare += more + taken
            pool._promised += more + taken
            self._take_over(following, found, partial, n)
            if not pool.back():
                self.unpromise()
                raise pool.refusal(max(1, more + costs))

    def _low(self, found: list[Entry]) -> int:
        """The first page whose windowed part is seen after these were taken over."""
        return self._layout.first(self.length + len(found) * PAGE) if self._layout.windowed else 0

    def _costs(self, found: list[Entry], seen: list[Entry]) -> int:
        """Free units that holding the pages of entries `found` costs, and the windowed ones of `seen`, the last of them."""
        pool, at, end = self._pool, len(self._pages), len(self._pages) + len(found)
        costs = sum(pool.cost(entry.page, i >= self._floor) for i, entry in enumerate(found, at) if entry.page is not None)
        return costs + sum(pool.cost(entry.window, self._marked(i)) for i, entry in enumerate(seen, end - len(seen)) if entry.window is not None)

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
        if self._layout.windowed:
            walked = len(found)
            while found and not self._whole(found):
                found.pop()  # a shorter text
            if len(found) < walked or partial is not None and partial.window is None:
                partial = None
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
        if layout.windowed and self._costs(found, seen) > self._spare + pool.free_pages:
            return  # of fewer pages it might not see the windowed parts
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
        low = self._layout.first(length) if self._slides else 0
        if low < self._first:
            raise ValueError(f"cannot fork a sequence at {length}: it has given back windowed pages that are seen there")
        other, pool = Sequence(self._pool, self.context, self._cached, self._salt, self._slides), self._pool
        with pool.lock:
            pool.collect()
            whole = self._pages[:length // PAGE]
            windows = {at: page for at, page in enumerate(self._windows, self._first) if at >= low}
            costs = sum(pool.cost(page, False) for page in whole) + sum(pool.cost(page, False) for at, page in windows.items() if at < len(whole))
            if costs + bool(length % PAGE) * self._layout.rows > max(0, pool.free_pages):
                raise OutOfMemoryError(f"the KV cache has no free page of its {pool.max_pages} for a fork; wait for other answers or close them")
            for at, page in enumerate(whole):
                other._hold(page, windows.get(at))
            if length % PAGE:
                at = len(whole)
                tails = [pool.take(weight=page.weight) for page in (self._pages[at], *([windows[at]] if windows else []))]
                for tail, source in zip(tails, (self._pages[at], windows.get(at))):
                    if source is not None:
                        tail.copy(source)
                other._hold(tails[0], tails[1] if len(tails) > 1 else None)
            other._chain = self._chain[:length // PAGE]
            other.ids, other.length = self.ids[:length], length
            pool.back()
        return other

    def keep_private(self) -> None:
        """From now on nothing of it goes to the prefix cache or comes from there: what follows may not be what its ids say."""
        self._cached = False

    # -- growing --------------------------------------------------------------------------------------------------------------------------

    def _wanting(self, length: int, found: int = 0, seen: int = 0, low: int = 0) -> int:
        """Units to take on the way to `length` positions; those of a shared page it may go back over are reserved with that page. found, seen, low: after so
        many pages, and windowed ones of the last of them, the first seen being `low`, were taken over."""
        layout, pages = self._layout, pages_of(length)
        units = layout.whole * max(0, pages - len(self._pages) - found) + self._shared(length)
        if layout.windowed:
            first, held = (low, seen) if found and low > len(self._pages) else (self._first, len(self._windows) + seen)
            most = pages - (first if self._floor == _NEVER else 0)
            units += layout.windowed * max(0, (min(most, layout.most) if self._slides else pages) - held)
        return units

    def _shared(self, length: int) -> int:
        """Units of pages that it is about to write into while others hold them, unless that is reserved with them."""
        at = self.length // PAGE
        if length <= self.length or not self.length % PAGE:
            return 0
        units = self._layout.whole if self._pages[at].users > 1 and at < self._floor else 0
        if self._windows and self._windows[at - self._first].users > 1 and not self._marked(at):
            units += self._layout.windowed
        return units

    def reserve(self, length: int, windows_from: int = 0) -> None:
        """Make room for `length` positions; all or nothing (OutOfMemoryError). windows_from: the first page whose windowed part is wanted, of a sequence that
        is to be written from outside."""
        pool, layout, end = self._pool, self._layout, pages_of(length)
        with pool.lock:
            pool.collect()
            if self._slides and (first := layout.first(self.length - SLACK)) > self._first:
                self._leave(first)
            new = max(0, end - len(self._pages))
            needed = new * layout.whole + max(0, min(new, end - windows_from)) * layout.windowed + self._shared(length)
            if needed and needed > self._spare + (free := max(0, pool.free_pages)):
                raise OutOfMemoryError(f"the KV cache has {free + self._spare} free pages of {PAGE} positions, this step needs {needed}; "
                                       "close other sequences or allow it more memory")
            if self.length % PAGE and length > self.length:
                self._make_writable(self.length // PAGE)
            while (at := len(self._pages)) < end:
                page = self._take(layout.whole)
                self._hold(page, self._take(layout.windowed) if layout.windowed and at >= windows_from else None)

    def _leave(self, first: int) -> None:
        """Give back the windowed pages before the page `first`; under the lock."""
        n = first - self._first
        for at, page in enumerate(self._windows[:n], self._first):
            self._pool.release(page, self._marked(at))
        self.table[self._layout.whole:, self._first:first] = 0
        del self._windows[:n]
        self._first = first
        if self._promised_length:
            self._renew()

    def append(self, ids: Iterable[int]) -> None:
        """The keys and values of `ids` were written after the present ones."""
        self.ids.extend(map(int, ids))
        self.length = len(self.ids)
        if self._cached and not self.tentative and len(self._chain) < self.length // PAGE:
            with self._pool.lock:
                while (i := len(self._chain)) < self.length // PAGE:
                    parent = self._chain[-1] if self._chain else self._root
                    self._chain.append(self._pool.prefix.add(parent, self.ids[i * PAGE:(i + 1) * PAGE], self._pages[i],
                                                              self._window_at(i)))

    def saved(self) -> tuple[int, int, list[np.ndarray]]:
        """(how many pages are full, the first whose windowed part is there, their units in order, uint8 [page_bytes] each): all from which one could go on. The
        units are valid until the sequence changes."""
        n = self.length // PAGE
        if self._layout.windowed and self._first > self._layout.first(n * PAGE):
            return 0, 0, []
        return n, min(n, self._first), self.units(n)

    # -- going back -----------------------------------------------------------------------------------------------------------------------

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on, whichever they are; their pages go back to the pool. A sequence that slides forgets everything if it has given
        back what would be seen from there."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a sequence of {self.length} positions to {length}")
        if self._slides and length < self.length and self._first > self._layout.first(length):
            length, self._matched = 0, None
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
        end = self._window_at(used - 1)
        windows = self._windows[max(0, keep - self._first):]
        marked = [page for at, page in enumerate(windows, max(keep, self._first)) if self._marked(at)]
        unmarked = [page for at, page in enumerate(windows, max(keep, self._first)) if not self._marked(at)]
        del self._windows[max(0, keep - self._first):]
        self._first = min(self._first, keep)
        del self._pages[keep:], self.ids[length:], self._chain[length // PAGE:]
        self.length = length
        if unwritten:
            self._pool.give(unwritten, rewound=max(0, self._floor - max(keep, used)))
        if dropped:
            self._pool.give(dropped, rewound=max(0, self._floor - keep), parent=parent, ids=tail, window=end)
        if marked:
            self._pool.give(marked)
        if unmarked:
            self._pool.give(unmarked, rewound=len(unmarked))

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
        marked = self._pages[self._floor:] + [page for at, page in enumerate(self._windows, self._first) if self._marked(at)]
        if marked:
            self._pool.give(marked, kept=True, promised=self._spare)
        elif self._spare:
            self._pool.give([], promised=self._spare)
        self._floor, self._behind, self._spare = _NEVER, 0, 0

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, TypeError):  # not whole: its constructor was refused memory; or Python is going down
            self.close()
