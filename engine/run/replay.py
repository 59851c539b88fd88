"""What recurrent layers add to a step: where each sequence's state is read and written, and the tokens that a lagging state must see again.

    feeds ──► Recurrence.words ──► the ops (kernels/conv.py)
    feeds whose states lag ──► Recurrence.step: guesses that were kept (ops/journal.py) by a scan of the recurrent layers alone, others as tokens of a step
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.conv import FEED_WORDS, SEGMENT_WORDS
from .ops import common as f
from .ops.journal import TOKENS
from .state_slots import Kept

if TYPE_CHECKING:
    from .layout import Layout
    from .runtime import Feed, Runtime

TOGETHER = 32
"""So few tokens to be replayed go into the step itself."""


class Recurrence:
    """Of one runtime. Does nothing for a model without recurrent layers."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self._version = layout, 0  # grows with every step that something is kept of, and that the journal then holds

    def words(self, feeds: list[Feed], keep: bool) -> list[Any]:
        """Make room for the states that the step makes, and write layout.feeds -> what must stay alive meanwhile. keep: rows of guesses. OutOfMemoryError."""
        layout = self._layout
        if not layout.state_places:
            return []
        alive = self._places([(feed, feed.sequence.length, feed.sequence.length + len(feed.ids)) for feed in feeds])
        layout.kept_rows[0] = 0
        guesses = [feed for feed in feeds if feed.sequence.tentative] if keep else []
        if guesses and sum(len(feed.ids) for feed in guesses) <= TOKENS:
            self._version += 1
            rows, m = list[tuple[int, int]](), 0
            for feed in feeds:
                if feed.sequence.tentative and feed.sequence.states:
                    feed.sequence.states.keeping = Kept(self._version, feed.sequence.length, list(map(int, feed.ids)), len(rows))
                    rows += [(m + i, len(rows) + i) for i in range(len(feed.ids))]
                m += len(feed.ids)
            self._keep(rows)
        return alive

    def _keep(self, rows: list[tuple[int, int]]) -> None:
        kept = self._layout.kept_rows
        kept[0], kept[1:1 + 2 * len(rows)] = len(rows), np.array(rows, np.int64).reshape(-1)

    def _places(self, feeds: list[tuple[Feed, int, int]]) -> list[Any]:
        """Words of feeds that bring states from so many positions to so many."""
        words, segments, first = np.zeros((len(feeds), FEED_WORDS), np.int64), list[tuple[int, int]](), 0
        for i, (feed, start, to) in enumerate(feeds):
            state = feed.sequence.ready(to)
            writes = [(first + at - start, address) for at, address in state.writes(to)]
            words[i] = first, first + to - start, state.address, len(segments), len(writes)
            segments += writes
            first += to - start
        table = np.array(segments, np.int64)
        words[:, 3] = table.ctypes.data + 8 * SEGMENT_WORDS * words[:, 3]
        self._layout.feeds[:] = len(feeds), words.ctypes.data
        return [words, table]

    def step(self, runtime: Runtime, feeds: list[Feed], observe: Any, hidden: bool, part: Any) -> np.ndarray:
        """A step, some of whose sequences' states lag: few tokens that these must see again go with it, more of them before it."""
        if kept := [feed for feed in feeds if feed.sequence.states and feed.sequence.states.kept_for(feed.sequence.ids, self._version)]:
            self._scan(runtime, kept)
        if any(feed.sequence.lag for feed in feeds):
            return _replayed(runtime, feeds, observe, hidden, part)
        return runtime.step(feeds, observe, hidden, part)

    def _scan(self, runtime: Runtime, feeds: list[Feed]) -> None:
        """The recurrent layers alone, on what they made of these sequences' last tokens when those were guesses."""
        s, program, rows = runtime._words, runtime.program, list[tuple[int, int]]()
        for feed in feeds:
            state = feed.sequence.states
            assert state is not None and state.kept is not None
            rows += [(len(rows) + i, state.kept.first + i) for i in range(feed.sequence.lag)]
        alive = self._places([(feed, feed.sequence.length - feed.sequence.lag, feed.sequence.length) for feed in feeds])
        self._keep(rows)
        before, s[f.N_TOKENS // 8], s[f.NOT_FINITE // 8] = s[f.N_TOKENS // 8], len(rows), 0
        runtime.team.clear_abort()
        try:
            runtime._run(program.scans[0], program.scans[-1], 0, 1, open=True)
        finally:
            s[f.N_TOKENS // 8], self._layout.kept_rows[0] = before, 0
            del alive
        for feed in feeds:
            feed.sequence.scanned()


def _replayed(runtime: Runtime, feeds: list[Feed], observe: Any, hidden: bool, part: Any) -> np.ndarray:
    """With the tokens that the states lack, whose logits nobody wants."""
    from .runtime import Feed
    tails, most = [feed.sequence.step_back() for feed in feeds], runtime.max_batch
    try:
        looked = any(feed.look is not None for feed in feeds)
        if observe or looked or sum(map(len, tails)) > TOGETHER or sum(len(tail) + len(feed.ids) for tail, feed in zip(tails, feeds)) > most:
            for feed, tail in zip(feeds, tails):
                while tail:
                    runtime.step([Feed(feed.sequence, tail[:most], "none")])
                    del tail[:most]
        rows = runtime.step([Feed(feed.sequence, [*tail, *feed.ids], feed.logits, feed.look) for feed, tail in zip(feeds, tails)], observe, hidden, part)
    except BaseException:
        for feed, tail in zip(feeds, tails):
            feed.sequence.step_forward(tail)
        raise
    if looked:
        return rows
    wanted, at = list[int](), 0
    for feed, tail in zip(feeds, tails):
        n = {"none": 0, "last": 1, "all": len(tail) + len(feed.ids)}[feed.logits]
        wanted += range(at + (len(tail) if feed.logits == "all" else 0), at + n)
        at += n
    return rows if len(wanted) == at else rows[wanted]
