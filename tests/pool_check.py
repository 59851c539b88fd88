"""What must be true of a page pool after every operation, and a way to look after every operation of every pool (conftest.py switches it on for all tests).

    watch_pools(monkeypatch)   after each operation: claimed = owned + shared + free + cached, promises are covered, nothing is counted twice
    check_sequences(pool, …)   between operations: pages, marks and promises are exactly what these sequences hold
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from llamina.engine.run.kv_cache import Sequence, pages_of
from llamina.engine.run.kv_groups import STATES
from llamina.engine.run.page_pool import PagePool, State


def check_pool(pool: PagePool) -> None:
    """The pool's own numbers agree with its pages."""
    with pool.lock:
        count = pool.census()
        assert count.owned + count.shared + count.free + count.cached == pool.claimed <= pool.max_pages, (count, pool.claimed, pool.max_pages)
        free = [unit.ctypes.data for unit in [*pool._free, *pool._free_states]]
        used = [unit.ctypes.data for page in pool.pages for unit in page.units]
        slot = pool.layout.slot
        assert len(set(free)) == len(free) and len(pool._free) + slot * len(pool._free_states) == count.free
        assert len(set(used)) == len(used) and not set(free) & set(used), "free units"
        assert all(p.users > 0 or p.entry is not None for p in pool.pages), "a page that nobody holds or knows is not free"
        idle = list(pool.prefix.idle.values())
        assert sum(p.weight for p in idle) == count.cached == pool.prefix.idle_pages, "idle units"
        assert all(p.users == 0 and p.entry is not None for p in idle), "idle pages"
        assert all(p.entry is None or p in (p.entry.page, p.entry.window, p.entry.state) for p in pool.pages), "a page and its entry"
        states = [p for p in pool.pages if isinstance(p, State)]
        assert all(p.weight == slot and p.rewinders == p.users for p in states), "a state may be left by all who hold it"
        assert all(0 <= p.rewinders <= p.users for p in pool.pages), "more sequences may go back over a page than hold it"
        assert pool._reserved == sum(max(0, min(p.rewinders, p.users - 1)) * p.weight for p in pool.pages), "reserved pages"
        assert pool._promised >= 0 and pool._left() >= 0, (pool._promised, pool._left())


def check_sequences(pool: PagePool, sequences: Iterable[Sequence]) -> None:
    """`sequences` are all there are, and no thread is at work: nothing is held by nobody."""
    check_pool(pool)
    with pool.lock:
        users: Counter[int] = Counter()
        rewinders: Counter[int] = Counter()
        promised = 0
        for s in sequences:
            promised += s._spare
            assert len(s._pages) >= pages_of(s.length)
            layout = pool.layout
            if layout.windowed:
                assert s._first + len(s._windows) == len(s._pages) and s._first <= layout.first(s.length), "windowed pages that may be seen are missing"
                assert not s._slides or len(s._windows) <= layout.most, "more windowed pages than were planned"
            for at, page in enumerate(s._pages):
                window = s._window_at(at)
                units = page.units + (window.units if window else [])
                assert s.table[:len(units), at].tolist() == [unit.ctypes.data for unit in units]
                users[id(page)] += 1
                rewinders[id(page)] += at >= s._floor
                if window:
                    users[id(window)] += 1
                    rewinders[id(window)] += at >= s._floor or at < s._behind
            if s.states:
                held = [p for p in (s.states.now, s.states.before, s.states.target) if p]
                assert len(held) <= STATES and s.states.at <= s.length and bool(s.states.now) == bool(s.states.at)
                for state in (*held, *(p for _, p in s.states._taken)):
                    users[id(state)] += 1
                    rewinders[id(state)] += 1
            if s._promised_length and s._floor == 0:
                beyond = layout.whole * max(0, len(s._pages) - pages_of(s._promised_length))  # what is given back on the way to where those are wanted
                assert s._spare + beyond >= s._wanting(s._promised_length), "a promise is not covered"
        for page in pool.pages:
            assert page.users == users[id(page)] and page.rewinders == rewinders[id(page)], "a page is held by nobody"
        assert pool._promised == promised, "promised to nobody"


def check_whole(pool: PagePool) -> None:
    """Everything was closed: no page is held, none promised; all that the budget allows can be had."""
    check_pool(pool)
    count = pool.census()
    assert count.owned == count.shared == 0 and pool._promised == pool._reserved == 0 and pool.free_pages == pool.max_pages, (count, pool._promised)
    assert not pool.awaited


def watch_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each operation of a pool or sequence ends with `check_pool`."""
    def watched(method: Any, pool_of: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with pool_of(self).lock:  # no other thread's operation between this one and the look
                try:
                    return method(self, *args, **kwargs)
                finally:
                    check_pool(pool_of(self))
        return call

    for name in ("_admit", "match", "fork", "reserve", "append", "ready"):  # truncate, close, unpromise: the garbage collector calls them, they take no lock
        monkeypatch.setattr(Sequence, name, watched(getattr(Sequence, name), lambda s: s._pool))
    monkeypatch.setattr(PagePool, "clear_prefix_cache", watched(PagePool.clear_prefix_cache, lambda pool: pool))
