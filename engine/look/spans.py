"""Which rows of a step are whose, and which positions somebody asked for."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, quoted

if TYPE_CHECKING:
    from ..run.kv_cache import Sequence
    from ..run.runtime import Feed


@dataclass(frozen=True)
class Span:
    """Rows [first, last) of a step: tokens of one sequence at `positions`, int64 [last - first]."""

    first: int
    last: int
    positions: np.ndarray
    ids: np.ndarray
    sequence: Sequence


def spans(feeds: list[Feed]) -> list[Span]:
    """Of a step about to be taken."""
    found, at = [], 0
    for feed in feeds:
        n, start = len(feed.ids), feed.sequence.length
        found.append(Span(at, at + n, np.arange(start, start + n), np.asarray(feed.ids, np.int64), feed.sequence))
        at += n
    return found


class Positions:
    """Positions of a text: None (all), a number (negative: from the end), "last", a slice, or several numbers."""

    def __init__(self, asked: Any = None) -> None:
        self.asked: int | slice | list[int] | None
        if asked is None or isinstance(asked, slice):
            for end in (asked.start, asked.stop, asked.step) if isinstance(asked, slice) else ():
                if end is not None and not _whole(end):
                    raise OptionError(f"positions: a slice must be of whole numbers, found {quoted(asked)}")
            if isinstance(asked, slice) and asked.step is not None and asked.step < 1:
                raise OptionError(f"positions: a slice must go forward, found {quoted(asked)}")
            self.asked = asked
        elif isinstance(asked, str):
            if asked != "last":
                raise OptionError(f"positions must be numbers, a slice or 'last', found {quoted(asked)}")
            self.asked = -1
        elif _whole(asked):
            self.asked = int(asked)
        elif isinstance(asked, Iterable):
            self.asked = [int(p) if _whole(p) else _refuse(p) for p in asked]
        else:
            _refuse(asked)

    def of(self, n: int) -> np.ndarray:
        """Of a text of n tokens: int64, ascending, each once. OptionError: a number outside it."""
        if self.asked is None:
            return np.arange(n)
        if isinstance(self.asked, slice):
            return np.arange(n)[self.asked]
        numbers = [self.asked] if isinstance(self.asked, int) else self.asked
        for p in numbers:
            if not -n <= p < n:
                raise OptionError(f"position {p} is outside a text of {n} tokens")
        return np.unique(np.array([p % n for p in numbers], np.int64))

    def ahead(self) -> None:
        """OptionError unless it can be said of each position alone whether it is meant, before the text's end is known."""
        a = self.asked
        ends = [a.start, a.stop] if isinstance(a, slice) else [a] if isinstance(a, int) else a or []
        if any(e is not None and e < 0 for e in ends):
            raise OptionError("positions counted from the end can't be told while a text grows: give numbers from 0 on, or a slice such as slice(5, None)")

    def among(self, positions: np.ndarray) -> np.ndarray:
        """Which of these are meant, bool; after `ahead`."""
        a = self.asked
        if a is None:
            return np.ones(len(positions), bool)
        if isinstance(a, slice):
            start, step = a.start or 0, a.step or 1
            return (positions >= start) & ((positions - start) % step == 0) & (positions < a.stop if a.stop is not None else True)
        return np.isin(positions, [a] if isinstance(a, int) else a)


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def _refuse(value: Any) -> int:
    raise OptionError(f"positions must be whole numbers, found {quoted(value)}")
