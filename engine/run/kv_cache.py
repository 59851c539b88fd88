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
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ...kernels import kv_float, kv_q8_0
from ...kernels.attention import KVType
from ...kernels.elementwise import PAGE
from ..architectures.config import ModelConfig
from ..errors import OptionError, OutOfMemoryError
from .held_pages import NEVER as _NEVER
from .known_text import KnownText, state_of
from .kv_groups import SLACK, pages_of
from .page_pool import Page, PagePool, State
from .state_slots import States

if TYPE_CHECKING:
    from .adapters import Use

__all__ = ["KV_TYPES", "PAGE", "Page", "PagePool", "Sequence", "kv_type", "pages_of"]

KV_TYPES = {kv.name: kv for kv in (kv_float.F16, kv_q8_0.Q8_0, kv_float.F32)}
"""What keys and values may be kept as."""


def kv_type(config: ModelConfig, name: str | None = None) -> KVType:
    """By name; by default float16, or float32 for files that are float32 throughout, and for encoders, which keep one layer's at a time. OptionError."""
    name = name or ("f32" if config.float32_kv or not config.causal else "f16")
    if name not in KV_TYPES:
        raise OptionError(f"unknown type of keys and values {name!r}: choose from {', '.join(KV_TYPES)}")
    return KV_TYPES[name]


class Sequence(KnownText):
    """One sequence's place in the KV cache: `length` positions hold keys and values, of the tokens `ids`. Made by Runtime.new_sequence().

    cached: whole pages are told to the prefix cache as they fill, the last one when the sequence ends. Dropped, it gives its pages back as by `close`.
    salt: only sequences of the same one share pages: what one client's text has computed is not to be found out by another's waiting time.
    slides (default: as cached): it gives windowed pages back when no query sees them any more; then it may be shorter than asked for after `truncate`.
    """

    def __init__(self, pool: PagePool, context: int, cached: bool = False, salt: bytes = b"", slides: bool | None = None,
                 adapters: Use = ()):
        super().__init__(pool, pages_of(context), cached, salt)
        self.context = context
        self._slides = (cached if slides is None else slides) and self._layout.windowed > 0
        self.adapters = adapters
        """What its tokens are computed with (adapters.py)."""
        self._stepped = 0  # tokens that `step_back` counted back over
        self.tentative = False
        """While true, what is appended may yet be taken back, and is not told to the prefix cache."""

    @property
    def kv_bytes(self) -> int:
        """Memory of its pages and states, shared ones counted in full."""
        return super().kv_bytes + (self.states.held * self._layout.slot * self._pool.page_bytes if self.states else 0)

    @property
    def lag(self) -> int:
        """How many of its last tokens the recurrent layers must see again: the next step begins with them."""
        return self.length - self.states.at if self.states else 0

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
            low, base = self._low(found), len(self._pages)
            if self._slides:
                behind, first = self._layout.first(length - SLACK), low if found and low > base else self._first
                if back_to is not None and (behind or first > self._layout.first(back_to)):
                    floor = 0  # going back may mean to begin anew
            before = self._floor, self._behind
            self._mark(floor, behind)
            seen = found[max(0, low - base):]
            more = self._wanting(length, len(found), len(seen), low) - self._spare
            taken = self._layout.whole * len(found) + self._layout.windowed * len(seen)
            state = state_of(found, partial)
            if state is not None and self.states and not self.states.held:  # one of those that it wants
                more, taken = more - self._layout.slot, taken + self._layout.slot
            costs = self._costs(found, seen, state)
            left = pool.free_pages
            if more + costs > left or left < 0:
                self._mark(*before)
                raise pool.refusal(max(1, more + costs))
            self._promised_length = length
            self._spare += more + taken
            pool._promised += more + taken
            if self.states and following:
                self.states.mark(self.length, self.length + len(following), self._parted)
            self._take_over(following, found, partial, n)
            if self.states:
                self._renew()
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

    def fork(self, length: int | None = None) -> Sequence:
        """Another sequence with the same first `length` positions (default: all). Whole pages are shared, the last one is copied. OutOfMemoryError."""
        length = self.length if length is None else length
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot fork a sequence of {self.length} positions at {length}")
        low = self._layout.first(length) if self._slides else 0
        if low < self._first:
            raise ValueError(f"cannot fork a sequence at {length}: it has given back windowed pages that are seen there")
        other, pool = Sequence(self._pool, self.context, self._cached, self._salt, self._slides, self.adapters), self._pool
        with pool.lock:
            pool.collect()
            whole = self._pages[:length // PAGE]
            windows = {at: page for at, page in enumerate(self._windows, self._first) if at >= low}
            costs = sum(pool.cost(page, False) for page in whole) + sum(pool.cost(page, False) for at, page in windows.items() if at < len(whole))
            state, at = self.states.best(length, self._chain) if self.states else (None, 0)
            costs += pool.cost(state, True) if state is not None else 0
            if costs + bool(length % PAGE) * self._layout.rows > max(0, pool.free_pages):
                raise OutOfMemoryError(f"the KV cache has no free page of its {pool.max_pages} for a fork; wait for other answers or close them")
            if state is not None and other.states:
                pool.hold(state, True)
                other.states.adopt(state, at)
            for i, page in enumerate(whole):
                other._hold(page, windows.get(i))
            if length % PAGE:
                i = len(whole)
                tails = [pool.take(weight=page.weight) for page in (self._pages[i], *([windows[i]] if windows else []))]
                for tail, source in zip(tails, (self._pages[i], windows.get(i))):
                    if source is not None:
                        tail.copy(source)
                other._hold(tails[0], tails[1] if len(tails) > 1 else None)
            other._chain = self._chain[:length // PAGE]
            other.ids, other.length = self.ids[:length], length
            pool.back()
        return other

    def keep_private(self) -> None:
        """From now on nothing of it goes to the prefix cache or comes from there: what follows may not be what its ids say."""
        self._era = None

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
        return units + (self.states.wanting if self.states else 0)

    def _shared(self, length: int) -> int:
        """Units of pages that it is about to write into while others hold them, unless that is reserved with them."""
        written = self.length + self._stepped
        at = written // PAGE
        if length <= written or not written % PAGE:
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
            written = self.length + self._stepped  # what is replayed is written once more with the same bits, wherever it is shared
            if written % PAGE and length > written:
                self._make_writable(written // PAGE)
            while (at := len(self._pages)) < end:
                page = self._take(layout.whole)
                self._hold(page, self._take(layout.windowed) if layout.windowed and at >= windows_from else None)

    def ready(self, to: int) -> States:
        """A place for the recurrent layers' state after `to` positions, which the step is about to make. OutOfMemoryError."""
        assert self.states is not None
        with self._pool.lock:
            self._pool.collect()
            told = self._cached and not self.tentative and len(self._chain) >= self.length // PAGE
            self.states.prepare(to, self._take_state, told)
        return self.states

    def _take_state(self) -> State:
        """Room for a state, out of the promised units first."""
        if promised := self._spare >= self._layout.slot:
            self._spare -= self._layout.slot
        else:
            self._spend(self._spare)
        return self._pool.take_state(promised)

    def _may_slide(self, first: int) -> bool:
        """Under the lock: whether what was promised holds if windowed pages before the page `first` are not there. Past what was promised, going back as far as
        was said may mean to begin anew, for which pages that others hold, too, are reserved here if there is memory."""
        if not self._promised_length or not 0 < self._floor < _NEVER or first <= self._layout.first(self._floor * PAGE):
            return True
        before = self._floor, self._behind
        self._mark(0, self._behind)
        if self._pool.free_pages >= 0:
            return True
        self._mark(*before)
        return False

    def _leave(self, first: int) -> None:
        """Give back the windowed pages before the page `first`; under the lock. OutOfMemoryError: what was promised would not hold."""
        if not self._may_slide(first):
            raise OutOfMemoryError(f"the KV cache has no pages of {PAGE} positions left for going back as far as was said once this text is longer than was "
                                   "promised; close other sequences or allow it more memory")
        n = first - self._first
        for at, page in enumerate(self._windows[:n], self._first):
            self._pool.release(page, self._marked(at))
        self.table[self._layout.whole:, self._first:first] = 0
        del self._windows[:n]
        self._first = first
        if self._promised_length:
            self._renew()

    def append(self, ids: Iterable[int]) -> None:
        """Commit a step: the keys and values of `ids` were written after the present ones, and the state after them."""
        self.ids.extend(map(int, ids))
        self._stepped = max(0, self._stepped + self.length - len(self.ids))
        self.length = len(self.ids)
        if self._cached and not self.tentative and len(self._chain) < self.length // PAGE:
            with self._pool.lock:
                while (i := len(self._chain)) < self.length // PAGE:
                    parent = self._chain[-1] if self._chain else self._root
                    self._chain.append(self._pool.prefix.add(parent, self.ids[i * PAGE:(i + 1) * PAGE], self._pages[i],
                                                              self._window_at(i)))
        if self.states and self.states.target:
            with self._pool.lock:
                self.states.commit(self.length, self._chain)

    def scanned(self) -> None:
        """The recurrent layers' state caught up without a step."""
        if self.states:
            with self._pool.lock:
                self.states.commit(self.length, self._chain)

    def step_back(self) -> list[int]:
        """Count back to where the recurrent layers' state is -> the ids between, which are to be replayed. Their pages stay."""
        tail = self.ids[self.length - self.lag:]
        del self.ids[self.length - self.lag:]
        self.length, self._stepped = len(self.ids), len(tail)
        return tail

    def step_forward(self, ids: Iterable[int]) -> None:
        """Undo `step_back`: these were not replayed, and their keys and values are still there."""
        self.ids.extend(ids)
        self.length, self._stepped = len(self.ids), 0

    def saved(self) -> tuple[int, int, list[np.ndarray]]:
        """(how many pages are full, the first whose windowed part is there, their units in order, uint8 [page_bytes] each): all from which one could go on; of
        a model with recurrent layers the pages up to where their state is, and that, uint8 [state_bytes]. They are valid until the sequence changes."""
        n = self.length // PAGE
        if self.states:
            n = pages_of(self.states.at)
            return n, 0, [*self.units(n), *(self.states.now.units if self.states.now else [])]
        if self._layout.windowed and self._first > self._layout.first(n * PAGE):
            return 0, 0, []
        return n, min(n, self._first), self.units(n)

    # -- going back -----------------------------------------------------------------------------------------------------------------------

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on, whichever they are; their pages go back to the pool, and the recurrent layers' state goes back to one that
        is kept, from which the next step replays the tokens between. A sequence that slides forgets everything if it has given
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
        whole = self._cached and not self.length % PAGE and len(self._chain) == used > 0
        last = self._chain[-1] if whole and self.states else None
        ended = self.states is not None and self.states.at == self.length
        gone = self.states.rollback(length, self._chain) if self.states and (length < self.length or not length) else ()
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
            mine, gone = (gone, ()) if ended and parent is not None else ((), gone)
            self._pool.give(dropped, rewound=max(0, self._floor - keep), parent=parent, ids=tail, window=end, states=mine)
        if gone:
            self._pool.give([], end=last if ended else None, states=gone)
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
