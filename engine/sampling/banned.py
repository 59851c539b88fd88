"""Banned texts: an answer goes back to the token with which one began, and that token is forbidden there.

    token's text ──► held back while it may be the beginning of a banned text ──► released, or: go back n tokens

A character may take several tokens, of which the last one completes it: a text begins with the first token of its first character.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..text.stops import find_first, may_begin


class BannedTexts:
    """Watches a stream of tokens' texts; releases them by whole tokens, so that what was shown never has to be taken back.

    .at(position): ids that are forbidden there, until the answer goes back before it; never: ids that are forbidden everywhere.
    """

    def __init__(self, texts: Sequence[str], never: Collection[int] = ()) -> None:
        self.texts = tuple(texts)
        self._never = frozenset(never)
        self._held: list[str] = []  # of the last tokens
        self._pending: list[bool] = []  # whether each of them ends inside a character
        self._forbidden: dict[int, set[int]] = {}

    def at(self, position: int) -> Collection[int]:
        found = self._forbidden.get(position)
        return self._never if found is None else self._never | found

    def completes(self, text: str) -> bool:
        """Whether a banned text ends with this one, should it come next."""
        return bool(text) and find_first("".join(self._held) + text, self.texts) is not None

    def push(self, text: str, pending: bool = False) -> tuple[str, int]:
        """A token's text; pending: it ends inside a character, whose text a later token will bring. (text that may go on, 0) or (text before, how many
        tokens, this one included, must go)."""
        self._held.append(text)
        self._pending.append(pending)
        whole = "".join(self._held)
        start = find_first(whole, self.texts)
        if start is not None:
            keep = self._tokens_before(start)
            n = len(self._held) - keep
            del self._held[keep:], self._pending[keep:]
            return self._release_settled(), n
        return self._release_settled(), 0

    def _release_settled(self) -> str:
        """What no banned text can begin with any more. A token stays while what follows it may be taken back, if with something else it would be the
        beginning of a banned text: of "aa" the first a, if "ab" is banned."""
        n, before = len(self._held), -1
        while n != before:
            text = "".join(self._held[:n])
            n, before = min(n, self._tokens_before(may_begin(text, self.texts))), n
        return self._release(n)

    def _release(self, n: int) -> str:
        """The text of the first n held tokens, which are held no more."""
        shown = "".join(self._held[:n])
        del self._held[:n], self._pending[:n]
        return shown

    def _tokens_before(self, offset: int) -> int:
        """Held tokens that have nothing of the held text from an offset on, not even the first bytes of a character."""
        end = 0
        for i, (text, pending) in enumerate(zip(self._held, self._pending)):
            end += len(text)
            if end > offset or pending and end == offset:
                return i
        return len(self._held)

    def forbid(self, position: int, id: int) -> None:
        """`id` began a banned text at `position`; what was learnt about later positions no longer holds."""
        self._forbidden = {p: ids for p, ids in self._forbidden.items() if p <= position}
        self._forbidden.setdefault(position, set()).add(id)

    def state(self) -> dict[str, Any]:
        """As plain data, for `restore`."""
        return {"held": self._held, "pending": self._pending, "forbidden": [[p, sorted(ids)] for p, ids in self._forbidden.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._held, self._pending = [str(text) for text in state["held"]], [bool(p) for p in state.get("pending", ())]
        self._pending = [*self._pending, *[False] * len(self._held)][:len(self._held)]
        self._forbidden = {int(p): {int(id) for id in ids} for p, ids in state["forbidden"]}

    def flush(self) -> str:
        return self._release(len(self._held))
