"""The states of one sequence: what recurrent layers remember of its text, of a fixed size, beside the pages of its keys and values.

    prepare ── where the step reads and writes ──► the step ──► commit ──► (now, before)     rollback: to the nearest state kept; the rest is replayed
                                                                    └──► snapshot: kept with an entry of the prefix cache, for others and for going back

A state is never written into once a step has made it: the next step reads it and writes another, so a step that was aborted leaves the sequence as it was. Two
are promised to a sequence: the present one and the one before, which is the next one's room and what guesses go back to. States may be shared, by forks and by
the prefix cache. Where a sequence goes back further than a state that is kept, its state *lags* behind its keys and values: the next step begins with the
tokens between, which gives the same bits. All of it under the pool's lock, but for what `rollback` hands back.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import OutOfMemoryError
from .kv_groups import STATES
from .page_pool import PagePool, State
from .prefix_cache import PAGE, Entry

SPAN = 512
"""Positions between two snapshots of a long prompt, at least; more where a state is larger than the pages of so many."""


class Kept(NamedTuple):
    """Of a step with guesses: the rows from `first` on of the journal (ops/journal.py) are what recurrent layers made of `ids`, from position `start` on, as
    long as the journal is at this `version`."""

    version: int
    start: int
    ids: list[int]
    first: int


class States:
    """now: the state after `at` positions, None: after none. before: the one after `before_at`. target: what the next step writes."""

    def __init__(self, pool: PagePool) -> None:
        self._pool, self.slot = pool, pool.layout.slot
        self.now: State | None = None
        self.before: State | None = None
        self.target: State | None = None
        self.at = self.before_at = 0
        self._taken: list[tuple[int, State]] = []  # snapshots that the step under way makes, and after how many positions
        self._last = False  # whether its end is one
        self.kept: Kept | None = None
        self.keeping: Kept | None = None  # of the step under way
        self.marks: set[int] = set()
        """Positions, at the ends of pages, at which a snapshot is wanted."""

    @property
    def held(self) -> int:
        """Of those that are promised."""
        return sum(state is not None for state in (self.now, self.before, self.target))

    @property
    def wanting(self) -> int:
        """Units that it will take."""
        return max(0, STATES - self.held) * self.slot

    def mark(self, start: int, end: int, *more: int) -> None:
        """A prompt from `start` to `end`: a snapshot at its last page's end, at `more`, and at every span of a long one."""
        units_a_page = max(1, self._pool.layout.rows)
        span = SPAN * max(1, -(-self.slot * PAGE // (SPAN * units_a_page)))
        self.marks = {p for p in (*range(span, end, span), end // PAGE * PAGE, *more) if start < p}

    # -- a step -----------------------------------------------------------------------------------------------------------------------------

    def prepare(self, to: int, take: Callable[[], State], told: bool) -> None:
        """A place for the state after `to` positions, and for snapshots on the way if they can be `told` to the prefix cache and there is memory."""
        pool, self.keeping = self._pool, None
        self._release_taken()
        if self.target is None:
            if self.before is not None and self.before.own:
                self.target = self.before
            elif self.before is not None:
                pool.release(self.before, True)  # with it, what was reserved for this moment; others keep it as it is
                self.target = pool.take_state()
                pool.hold(self.target, True)
            else:
                self.target = take()
                pool.hold(self.target, True)
            self.before = None
        self._last = told and to in self.marks
        with contextlib.suppress(OutOfMemoryError):
            for p in sorted(p for p in self.marks if self.at < p < to) if told else ():
                self._taken.append((p, pool.take_state()))
                pool.hold(self._taken[-1][1], True)

    def writes(self, to: int) -> list[tuple[int, int]]:
        """(after how many positions, address) of the states that the step makes, in order."""
        assert self.target is not None
        return [*((p, state.address) for p, state in self._taken), (to, self.target.address)]

    @property
    def address(self) -> int:
        """Of the present state, 0: none yet."""
        return self.now.address if self.now else 0

    def commit(self, to: int, chain: Sequence[Entry]) -> None:
        """The step was done: the state after `to` positions is there. chain: the prefix cache's entries of the whole pages so far."""
        self.before, self.before_at = self.now, self.at
        self.now, self.at, self.target = self.target, to, None
        self.kept, self.keeping = self.keeping or self.kept, None
        self.snapshot(chain)

    def kept_for(self, ids: list[int], version: int) -> bool:
        """Whether what the state lags behind `ids` was kept."""
        kept, n = self.kept, len(ids) - self.at
        return (kept is not None and kept.version == version and kept.start == self.at and 0 < n <= len(kept.ids)
                and kept.ids[:n] == ids[self.at:])

    def snapshot(self, chain: Sequence[Entry]) -> None:
        """Keep what the step made for the prefix cache."""
        prefix = self._pool.prefix
        for p, state in self._taken:
            if p // PAGE <= len(chain):
                prefix.snapshot(chain[p // PAGE - 1], state)
        self._release_taken()
        if self._last and self.now and self.at % PAGE == 0 and self.at // PAGE <= len(chain):
            prefix.snapshot(chain[self.at // PAGE - 1], self.now)
        self._last = False
        self.marks = {p for p in self.marks if p > self.at}

    def _release_taken(self) -> None:
        for _, state in self._taken:
            self._pool.release(state, True)
        self._taken.clear()

    # -- going back, sharing ------------------------------------------------------------------------------------------------------------------

    def best(self, length: int, chain: Sequence[Entry]) -> tuple[State | None, int]:
        """The latest state after at most `length` positions that is kept, and after how many it is."""
        found: tuple[State | None, int] = (None, 0)
        for state, at in (self.now, self.at), (self.before, self.before_at):
            if state is not None and found[1] < at <= length:
                found = state, at
        for i in range(min(len(chain), length // PAGE) - 1, found[1] // PAGE - 1, -1):
            kept = chain[i].state
            if isinstance(kept, State) and (i + 1) * PAGE > found[1]:
                return kept, (i + 1) * PAGE
        return found

    def rollback(self, length: int, chain: Sequence[Entry]) -> tuple[State, ...]:
        """Back to the best state for `length` -> states to be handed back, the one at the end of the text first. To 0, or one of its own: no lock is taken."""
        if self.kept and length < self.kept.start:
            self.kept = None
        if self.at <= length and length:
            return ()
        state, at = self.best(length, chain)
        gone = [s for s in (self.now, self.before) if s is not None and s is not state]
        if state is not None and state is not self.before:
            with self._pool.lock:
                if state.users or state.entry is not None:  # nobody has evicted it meanwhile
                    for old in gone:
                        self._pool.release(old, True)
                    self._pool.hold(state, True)
                    gone = []
                else:
                    state, at = None, 0
        if length == 0:
            gone += [s for s in (self.target, *(s for _, s in self._taken)) if s is not None]
            self.target = None
            self._taken = []
        self.now, self.at, self.before, self.before_at = state, at, None, 0
        return tuple(gone)

    def adopt(self, state: State, at: int) -> None:
        """Another's state, held already, becomes the present one."""
        for old in (self.now, self.before):
            if old is not None:
                self._pool.release(old, True)
        self.now, self.at, self.before, self.before_at = state, at, None, 0
