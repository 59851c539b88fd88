"""What recurrent layers add to a step: where each sequence's state is read and written, and the tokens that a lagging state must see again.

    feeds ──► feed_words ──► the ops (kernels/conv.py)          feeds whose states lag ──► replayed: the tokens between go first
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.conv import FEED_WORDS, SEGMENT_WORDS

if TYPE_CHECKING:
    from .runtime import Feed

TOGETHER = 32
"""So few tokens to be replayed go into the step itself."""


def feed_words(feeds: list[Feed], states: np.ndarray) -> list[Any]:
    """Make room for the states that the step makes, and write `states` (layout.feeds) -> what must stay alive meanwhile. OutOfMemoryError."""
    words, segments, first = np.zeros((len(feeds), FEED_WORDS), np.int64), [], 0
    for i, feed in enumerate(feeds):
        start, n = feed.sequence.length, len(feed.ids)
        state = feed.sequence.ready(start + n)
        writes = [(first + to - start, address) for to, address in state.writes(start + n)]
        words[i] = first, first + n, state.address, len(segments), len(writes)
        segments += writes
        first += n
    table = np.array(segments, np.int64)
    words[:, 3] = table.ctypes.data + 8 * SEGMENT_WORDS * words[:, 3]
    states[:] = len(feeds), words.ctypes.data
    return [words, table]


def replayed(step: Callable[..., np.ndarray], feeds: list[Feed], most: int, observe: Any, hidden: bool, part: Any = None) -> np.ndarray:
    """A step of at most `most` tokens, some of whose sequences' states lag: few tokens that these must see again go with it, more of them before it."""
    from .runtime import Feed
    tails = [feed.sequence.step_back() for feed in feeds]
    try:
        looked = any(feed.look is not None for feed in feeds)
        if observe or looked or sum(map(len, tails)) > TOGETHER or sum(len(tail) + len(feed.ids) for tail, feed in zip(tails, feeds)) > most:
            for feed, tail in zip(feeds, tails):
                while tail:
                    step([Feed(feed.sequence, tail[:most], "none")])
                    del tail[:most]
        rows = step([Feed(feed.sequence, [*tail, *feed.ids], feed.logits, feed.look) for feed, tail in zip(feeds, tails)], observe, hidden, part)
    except BaseException:
        for feed, tail in zip(feeds, tails):
            feed.sequence.step_forward(tail)
        raise
    if looked:
        return rows
    wanted, at = [], 0
    for feed, tail in zip(feeds, tails):
        n = {"none": 0, "last": 1, "all": len(tail) + len(feed.ids)}[feed.logits]
        wanted += range(at + (len(tail) if feed.logits == "all" else 0), at + n)
        at += n
    return rows if len(wanted) == at else rows[wanted]
