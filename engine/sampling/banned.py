"""Banned texts: an answer goes back to the token with which one began, and that token is forbidden there.

    token's text ──► held back while it may be the beginning of a banned text ──► released, or: go back n tokens
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class BannedTexts:
    """Watches a stream of tokens' texts; releases them by whole tokens, so that what was shown never has to be taken back.

    .at(position): ids that are forbidden there, until the answer goes back before it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._held: list[str] = []  # of the last tokens
        self._forbidden: dict[int, set[int]] = {}

    def at(self, position: int) -> set[int] | tuple[()]:
        return self._forbidden.get(position, ())

    def push(self, text: str) -> tuple[str, int]:
        """(text that may go on, 0) or ("", how many tokens, this one included, must go)."""
        self._held.append(text)
        whole = "".join(self._held)
        found = [(i + len(t), i) for t in self.texts if (i := whole.find(t)) >= 0]
        if found:
            keep = self._tokens_before(min(found)[1])
            n = len(self._held) - keep
            shown = "".join(self._held[:keep])
            self._held = []
            return shown, n
        longest = max((n for t in self.texts for n in range(1, len(t)) if whole.endswith(t[:n])), default=0)
        keep = self._tokens_before(len(whole) - longest) if longest else len(self._held)
        shown, self._held = "".join(self._held[:keep]), self._held[keep:]
        return shown, 0

    def _tokens_before(self, offset: int) -> int:
        """Held tokens whose text ends at or before an offset into the held text."""
        end = 0
        for i, text in enumerate(self._held):
            end += len(text)
            if end > offset:
                return i
        return len(self._held)

    def forbid(self, position: int, id: int) -> None:
        """`id` began a banned text at `position`; what was learnt about later positions no longer holds."""
        self._forbidden = {p: ids for p, ids in self._forbidden.items() if p <= position}
        self._forbidden.setdefault(position, set()).add(id)

    def state(self) -> dict[str, Any]:
        """As plain data, for `restore`."""
        return {"held": self._held, "forbidden": [[p, sorted(ids)] for p, ids in self._forbidden.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._held = [str(text) for text in state["held"]]
        self._forbidden = {int(p): {int(id) for id in ids} for p, ids in state["forbidden"]}

    def flush(self) -> str:
        held, self._held = "".join(self._held), []
        return held
