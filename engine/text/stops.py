"""Stop strings: found in a stream of text pieces, wherever the borders between pieces lie."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import OptionError, quoted


class StopStrings:
    """Finds the first stop string in a stream of text pieces, wherever the borders between pieces lie.

    Text that could be the beginning of a stop string is held back. The string that is complete first wins (of two that end together the longer),
    so the result does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether a stop string was found: it and what follows are dropped)."""
        text = self.held + text
        found = [(i + len(s), i) for s in self.stops if (i := text.find(s)) >= 0]
        if found:
            self.held = ""
            return text[:min(found)[1]], True
        longest = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self.held = text[len(text) - longest:]
        return text[:len(text) - longest], False

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self.held = self.held, ""
        return held


def check_stop(stop: Any) -> tuple[str, ...]:
    """One stop string or several. OptionError if one is empty or not a string."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ()) if isinstance(stop or (), Iterable) else (stop,)
    for s in stops:
        if not isinstance(s, str) or not s:
            raise OptionError(f"stop must be non-empty strings, found {quoted(s)}")
    return stops
