"""Stop strings: found in a stream of text pieces, wherever the borders between pieces lie."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import OptionError, quoted
from .marks import MARK


class StopStrings:
    """Finds the first stop string in a stream of text pieces, wherever the borders between pieces lie.

    Text that could be the beginning of a stop string is held back. The string that is complete first wins (of two that end together the longer),
    so the result does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether a stop string was found: it and what follows are dropped)."""
        text = self.held + text
        start = find_first(text, self.stops)
        if start is not None:
            self.held = ""
            after = _without_marks(text[start:], "")[0]
            self.found = max((w for w in self.stops if after.startswith(_without_marks(w, "")[0])), key=len, default=None)
            return text[:start], True
        start = may_begin(text, self.stops)
        self.held = text[start:]
        return text[:start], False

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self.held = self.held, ""
        return held


def find_first(text: str, wanted: Sequence[str]) -> int | None:
    """Where the text begins that is complete first, of those that end together the longest; None if there is none of them. Marks (marks.py) that are not
    in a wanted text are nothing for it."""
    found = []
    for w in wanted:
        seen, places = _without_marks(text, w)
        at = seen.find(w)
        if at >= 0:
            found.append((places[at + len(w) - 1], places[at]))
    return min(found)[1] if found else None


def may_begin(text: str, wanted: Sequence[str]) -> int:
    """Where the longest end of `text` begins that may be the beginning of a wanted text; its length if there is none."""
    first = len(text)
    for w in wanted:
        seen, places = _without_marks(text, w)
        longest = next((n for n in range(min(len(w) - 1, len(seen)), 0, -1) if seen.endswith(w[:n])), 0)
        if longest:
            first = min(first, places[len(seen) - longest])
    return first


def _without_marks(text: str, wanted: str) -> tuple[str, Sequence[int]]:
    """(the text without the marks that are not in `wanted`, where each of its characters stood)."""
    if not MARK.search(text):
        return text, range(len(text))
    places = [i for i, c in enumerate(text) if not MARK.match(c) or c in wanted]
    return "".join(text[i] for i in places), places


def check_stop(stop: Any) -> tuple[str, ...]:
    """One stop string or several. OptionError if one is empty or not a string."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ()) if isinstance(stop or (), Iterable) else (stop,)
    for s in stops:
        if not isinstance(s, str) or not s:
            raise OptionError(f"stop must be non-empty strings, found {quoted(s)}")
    return stops
