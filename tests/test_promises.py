"""Promises of KV memory, whatever is shared, forked, cut, taken over or forgotten: a plain model of what each sequence must hold, driven by hypothesis."""
from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from llamina.engine.errors import OutOfMemoryError
from llamina.engine.run.kv_cache import PAGE, Sequence, pages_of
from llamina.engine.run.page_pool import PagePool
from pool_check import check_sequences, check_whole

CONTEXT, PAGES = 3 * PAGE, 5
BASES = [[7 + (i * k) % 90 for i in range(CONTEXT)] for k in (1, 3)]
BASE = st.sampled_from([BASES[0], BASES[0], BASES[0], BASES[1]])
LENGTHS = st.sampled_from([0, PAGE, CONTEXT, 2 * PAGE, PAGE - 9, PAGE + 1, CONTEXT - 1])
BACK_TO = st.sampled_from([0, 0, None, PAGE, PAGE - 9, PAGE + 1])
OFTEN = st.sampled_from([True, True, True, False])


class Live:
    """A sequence and what it must hold; within `promised` positions it must be able to grow, after going back no further than `back_to`."""

    def __init__(self, sequence: Sequence, text: list[int]) -> None:
        self.sequence, self.text = sequence, text
        self.promised, self.back_to = 0, 0


class Promises(RuleBasedStateMachine):
    """Five pages, contexts of three."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGE, PAGES)
        self.live: list[Live] = []

    def one(self, at: int) -> Live:
        return self.live[at % len(self.live)]

    @rule(base=BASE, n=LENGTHS, length=LENGTHS, back_to=BACK_TO, cached=OFTEN)
    def begin(self, base: list[int], n: int, length: int, back_to: int | None, cached: bool) -> None:
        sequence, text = Sequence(self.pool, CONTEXT, cached), base[:n]
        free = self.pool.free_pages
        try:
            sequence.begin(text, max(n, length), back_to)
        except OutOfMemoryError:
            assert pages_of(max(n, length)) > free, "a promise was refused that there was memory for without sharing anything"
            assert sequence.length == 0 and self.pool.free_pages == free
            return
        one = Live(sequence, text[:sequence.length])
        one.promised, one.back_to = max(n, length), CONTEXT if back_to is None else back_to
        self.live.append(one)

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), n=LENGTHS, same=OFTEN)
    def write(self, at: int, n: int, same: bool) -> None:
        """What a step does."""
        one = self.one(at)
        s, start = one.sequence, len(one.text)
        base = next((b for b in BASES if b[:start] == one.text), BASES[0])
        ids = (base[start:start + n] if same else [int(i) % 97 + 100 for i in range(n)])[:CONTEXT - start]
        if not ids:
            return
        try:
            s.reserve(start + len(ids))
        except OutOfMemoryError:
            assert start + len(ids) > one.promised, "a promise was broken"
            return
        for i, id in enumerate(ids, start):
            page = s._pages[i // PAGE]
            assert page.users == 1 and (page.entry is None or start <= i // PAGE * PAGE), "written into a page that others can see"
            page.data[i % PAGE] = id
        s.append(ids)
        one.text += ids

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), n=LENGTHS)
    def cut(self, at: int, n: int) -> None:
        one = self.one(at)
        n = min(n, len(one.text))
        if n < one.back_to and n < len(one.text):
            one.promised = 0  # further back than was said: void
        one.sequence.truncate(n)
        del one.text[n:]

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99))
    def match(self, at: int) -> None:
        one = self.one(at)
        for base in BASES:
            if base[:len(one.text)] == one.text:
                one.sequence.match(base[len(one.text):])
                one.text[:] = one.sequence.ids
                assert one.text == base[:len(one.text)]

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), n=LENGTHS)
    def fork(self, at: int, n: int) -> None:
        one = self.one(at)
        n = min(n, len(one.text))
        with contextlib.suppress(OutOfMemoryError):
            self.live.append(Live(one.sequence.fork(n), one.text[:n]))

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), length=LENGTHS, back_to=BACK_TO)
    def promise(self, at: int, length: int, back_to: int | None) -> None:
        one = self.one(at)
        try:
            one.sequence.promise(length, back_to)
        except OutOfMemoryError:
            return
        one.promised, one.back_to = length, CONTEXT if back_to is None else back_to

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), how=st.sampled_from(["close", "drop", "unpromise"]))
    def end(self, at: int, how: str) -> None:
        one = self.one(at)
        if how == "drop":
            self.live.remove(one)
        elif how == "close":
            one.sequence.close()
            one.text.clear()
            one.promised = 0
        else:
            one.sequence.unpromise()
            one.promised = 0

    @rule()
    def clear(self) -> None:
        self.pool.clear_prefix_cache()

    @invariant()
    def all_is_where_it_should_be(self) -> None:
        check_sequences(self.pool, [one.sequence for one in self.live])
        for one in self.live:
            assert one.sequence.ids == one.text
            for i, page in enumerate(one.sequence._pages[:pages_of(len(one.text))]):
                part = one.text[i * PAGE:(i + 1) * PAGE]
                assert page.data[:len(part)].tolist() == part

    @invariant()
    def the_worst_that_may_come_is_covered(self) -> None:
        """All grow to what was promised, having gone back over what others hold as far as they may: counted from what was said, not from the pool's marks."""
        rewinders: Counter[int] = Counter()
        for one in self.live:
            if one.promised:
                rewinders.update(id(page) for page in one.sequence._pages[one.back_to // PAGE:])
        grow = sum(max(0, pages_of(one.promised) - len(one.sequence._pages)) for one in self.live)
        beside = sum(max(0, min(rewinders[id(page)], page.users - 1)) for page in self.pool.pages)
        held = sum(page.users > 0 for page in self.pool.pages)
        assert grow + beside <= PAGES - held

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99))
    def take_at_its_word(self, at: int) -> None:
        """Go back as far as it was said, and grow as far as was promised."""
        one = self.one(at)
        if one.promised:
            self.cut(at, min(one.back_to, len(one.text)))
            self.write(at, max(0, one.promised - len(one.text)), False)

    def teardown(self) -> None:
        self.live.clear()
        self.pool.clear_prefix_cache()
        check_whole(self.pool)


TestPromises: Any = Promises.TestCase
TestPromises.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
