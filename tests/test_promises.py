"""Promises of KV memory, whatever is shared, forked, cut, taken over or forgotten: a plain model of what each sequence must hold, driven by hypothesis."""
from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from llamina.engine.errors import OutOfMemoryError
from llamina.engine.run.kv_cache import PAGE, Sequence, pages_of
from llamina.engine.run.kv_groups import KVLayout
from llamina.engine.run.page_pool import PagePool
from pool_check import check_sequences, check_whole

CONTEXT, PAGES = 3 * PAGE, 5
BASES = [[7 + (i * k) % 90 for i in range(2 * CONTEXT)] for k in (1, 3)]
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

    layout = KVLayout(PAGE)
    scale, pages, step = 1, PAGES, 2 * CONTEXT

    def __init__(self) -> None:
        super().__init__()
        self.context = self.scale * CONTEXT
        self.pool = PagePool(PAGE, self.pages, layout=self.layout)
        self.live: list[Live] = []

    def one(self, at: int) -> Live:
        return self.live[at % len(self.live)]

    @rule(base=BASE, n=LENGTHS, length=LENGTHS, back_to=BACK_TO, cached=OFTEN)
    def begin(self, base: list[int], n: int, length: int, back_to: int | None, cached: bool) -> None:
        n, length, back_to = n * self.scale, length * self.scale, None if back_to is None else back_to * self.scale
        sequence, text = Sequence(self.pool, self.context, cached), base[:n]
        free = self.pool.free_pages
        try:
            sequence.begin(text, max(n, length), back_to)
        except OutOfMemoryError:
            grown = max(n, length)
            units = self.layout.units(grown) if cached else self.layout.rows * pages_of(grown)
            assert units > free, "a promise was refused that there was memory for without sharing anything"
            assert sequence.length == 0 and self.pool.free_pages == free
            return
        one = Live(sequence, text[:sequence.length])
        one.promised, one.back_to = max(n, length), self.context if back_to is None else back_to
        self.live.append(one)

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), n=LENGTHS, same=OFTEN)
    def write(self, at: int, n: int, same: bool) -> None:
        one, left = self.one(at), n * self.scale
        while left > 0:
            if not self.step_of(one, min(left, self.step), same):
                return
            left -= self.step

    def step_of(self, one: Live, n: int, same: bool) -> bool:
        """What a step does -> whether it could be done."""
        s, start = one.sequence, len(one.text)
        base = next((b for b in BASES if b[:start] == one.text), BASES[0])
        ids = (base[start:start + n] if same else [int(i) % 97 + 100 for i in range(n)])[:self.context - start]
        if not ids:
            return False
        try:
            s.reserve(start + len(ids))
        except OutOfMemoryError:
            assert start + len(ids) > one.promised, "a promise was broken"
            return False
        for i, id in enumerate(ids, start):
            for page in filter(None, (s._pages[i // PAGE], s._window_at(i // PAGE))):
                assert page.users == 1 and (page.entry is None or start <= i // PAGE * PAGE), "written into a page that others can see"
                for unit in page.units:
                    unit[i % PAGE] = id
        s.append(ids)
        one.text += ids
        return True

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), n=LENGTHS)
    def cut(self, at: int, n: int) -> None:
        one = self.one(at)
        self.go_back(one, n * self.scale)

    def go_back(self, one: Live, n: int) -> None:
        n = min(n, len(one.text))
        if n < one.back_to and n < len(one.text):
            one.promised = 0  # further back than was said: void
        one.sequence.truncate(n)
        assert one.sequence.length in (n, 0), "neither there nor at the beginning"
        assert one.sequence.length == n or self.layout.windowed, "a sequence that has everything began anew"
        del one.text[one.sequence.length:]

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
        n = min(n * self.scale, len(one.text))
        given_back = (ValueError,) if self.layout.windowed and n < len(one.text) else ()
        with contextlib.suppress(OutOfMemoryError, *given_back):
            self.live.append(Live(one.sequence.fork(n), one.text[:n]))

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99), length=LENGTHS, back_to=BACK_TO)
    def promise(self, at: int, length: int, back_to: int | None) -> None:
        one, length, back_to = self.one(at), length * self.scale, None if back_to is None else back_to * self.scale
        try:
            one.sequence.promise(length, back_to)
        except OutOfMemoryError:
            return
        one.promised, one.back_to = length, self.context if back_to is None else back_to

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
                for unit in [unit for some in (page, one.sequence._window_at(i)) if some for unit in some.units]:
                    assert unit[:len(part)].tolist() == part

    @invariant()
    def the_worst_that_may_come_is_covered(self) -> None:
        """All grow to what was promised, having gone back over what others hold as far as they may: counted from what was said, not from the pool's marks."""
        if self.layout.windowed:
            return  # see all_at_their_word
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
            self.go_back(one, one.back_to)
            while len(one.text) < one.promised and self.step_of(one, min(self.step, one.promised - len(one.text)), False):
                pass

    @precondition(lambda self: self.live)
    @rule(back=st.lists(st.booleans(), min_size=8, max_size=8))
    def all_at_their_word(self, back: list[bool]) -> None:
        """All that may go back do, or don't, and grow in turns as far as was promised: nobody is refused (step_of)."""
        growing = [one for one in self.live if one.promised]
        for one, goes in zip(growing, itertools.cycle(back)):
            if goes:
                self.go_back(one, one.back_to)
        while growing:
            growing = [one for one in growing if len(one.text) < one.promised
                       and self.step_of(one, min(self.step, one.promised - len(one.text)), False)]

    def teardown(self) -> None:
        self.live.clear()
        self.pool.clear_prefix_cache()
        check_whole(self.pool)


class WindowedPromises(Promises):
    """Contexts of six pages, whose windowed layers hold three at most; memory for not quite three contexts."""

    layout = KVLayout(PAGE, whole=1, windowed=2, window=20, step=32)
    scale, pages, step = 2, 30, 32


def test_a_match_past_a_promise() -> None:
    """Taken over up to three times what was promised, it has one windowed page where the beginning took two; others then take all that is free. Going back
    gives back enough to begin anew (hypothesis found this one on a lucky day)."""
    machine = WindowedPromises()
    machine.begin(BASES[0], 0, 0, 0, True)
    machine.promise(0, PAGE, 0)
    machine.write(0, CONTEXT, True)
    machine.cut(0, 0)
    machine.match(0)
    one = machine.live[0]
    assert one.sequence.length == 2 * CONTEXT and one.promised == 2 * PAGE and one.sequence._spare == 0
    for _ in range(4):
        machine.begin(BASES[1], 0, 0, 0, False)
        for _ in range(20):
            machine.step_of(machine.live[-1], 32, False)
            machine.all_is_where_it_should_be()
    assert machine.pool.free_pages < 3
    machine.take_at_its_word(0)
    machine.all_is_where_it_should_be()
    assert len(one.text) == 2 * PAGE
    del one
    machine.teardown()


@pytest.mark.parametrize("later", ["promised", "written", "taken over"])
def test_what_slid_past_where_it_may_go_back_to(later: str) -> None:
    """Going back to 128 means to begin anew where 128's window is gone: because it was when that was promised, or since, by growing past what was promised.
    Pages that others hold, too, must be reserved for it, from the first one on."""
    machine = WindowedPromises()
    machine.begin(BASES[0], 0, 0, None, True)
    machine.write(0, CONTEXT, True)  # what others take over
    if later == "promised":
        machine.begin(BASES[0], 2 * PAGE, 0, None, True)
        machine.promise(1, PAGE + 1, PAGE)
    elif later == "written":
        machine.begin(BASES[0], PAGE, PAGE + 1, PAGE, True)
        for _ in range(8):
            machine.step_of(machine.live[1], 32, True)
    else:
        machine.begin(BASES[0], 0, PAGE + 1, PAGE, True)
        machine.match(1)
    machine.all_is_where_it_should_be()
    assert machine.live[1].sequence.length >= 4 * PAGE and machine.live[1].sequence._first > 2
    for _ in range(4):  # others take what they get
        machine.begin(BASES[1], 0, 0, 0, False)
        for _ in range(20):
            machine.step_of(machine.live[-1], 32, False)
            machine.all_is_where_it_should_be()
    machine.take_at_its_word(1)
    machine.all_is_where_it_should_be()
    assert len(machine.live[1].text) == 2 * (PAGE + 1)
    machine.teardown()


def test_a_part_of_a_page_is_a_page() -> None:
    """Beside windowed pages of its own it takes over as many as it may hold, the last one, of which it takes a part, among them."""
    machine = WindowedPromises()
    machine.begin(BASES[0], 0, 0, 0, True)
    machine.write(0, CONTEXT - 1, True)
    machine.cut(0, 0)
    machine.write(0, 2 * PAGE, True)
    machine.match(0)
    machine.all_is_where_it_should_be()
    assert machine.live[0].sequence.length == 5 * PAGE
    machine.teardown()


class AllWindowedPromises(Promises):
    """No layer sees everything; windows of a page and a bit."""

    layout = KVLayout(PAGE, whole=0, windowed=1, window=70, step=16)
    scale, pages, step = 2, 9, 16


TestPromises: Any = Promises.TestCase
TestWindowedPromises: Any = WindowedPromises.TestCase
TestAllWindowedPromises: Any = AllWindowedPromises.TestCase
TestPromises.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestWindowedPromises.settings = TestAllWindowedPromises.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
