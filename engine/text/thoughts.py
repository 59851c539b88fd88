"""Thoughts: what a model writes before its answer, between marks that its chat template gives them.

    answer's text, marks included -> Thinking.push() -> (thought, said)          pieces -> apart() -> pieces whose thoughts are quotations, "> …"

Templates leave thoughts out of the history themselves, as their models were trained: messages keep them.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

TAGS, CHANNEL = ("<think>", "</think>"), ("<|channel>thought", "<channel|>")
"""Qwen's and most others' marks; Gemma 4's, which has channels."""
_WRITTEN = ("<|channel>", "<channel|>", "<think>", "</think>")


def marks_of(template: str) -> tuple[str, str]:
    """The marks that a chat template (its source) knows."""
    return CHANNEL if "<|channel>" in template else TAGS


def mark_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of control tokens that are marks: their text is wanted where thoughts are to be told from answers."""
    return frozenset(tokenizer.control.ids[text] for text in _WRITTEN if text in tokenizer.control.ids)


def opened(tokenizer: Tokenizer, ids: Sequence[int], marks: tuple[str, str]) -> bool:
    """Whether a prompt ends with the opening mark, so that the answer begins inside."""
    return tokenizer.decode(list(ids[-8:]), special=True).rstrip().endswith(marks[0])


class Thinking:
    """Splits an answer as it comes into what stands between the marks at its beginning, and the rest. inside: the template has opened it already."""

    def __init__(self, inside: bool, marks: tuple[str, str] = TAGS) -> None:
        self._state, self._held = ("thinking" if inside else "start"), ""
        self.open, self.close = marks

    def push(self, text: str, last: bool = False) -> tuple[str, str]:
        """(thought, said)"""
        thought = said = ""
        self._held += text
        while True:
            if self._state == "start":
                seen = self._held.lstrip()
                if seen.startswith(self.open):
                    self._state, self._held = "thinking", seen[len(self.open):]
                elif self.open.startswith(seen) and not last:
                    return thought, said
                else:
                    self._state = "said"
            elif self._state == "thinking":
                before, found, after = self._held.partition(self.close)
                if not found:
                    keep = 0 if last else max((n for n in range(1, len(self.close)) if self._held.endswith(self.close[:n])), default=0)
                    cut = len(self._held) - keep
                    thought, self._held = thought + self._held[:cut], self._held[cut:]
                    return thought, said
                thought, self._held, self._state = thought + before, after, "after"
            elif self._state == "after":  # the blank lines that part thought and answer
                self._held = self._held.lstrip("\n")
                if not self._held:
                    return thought, said
                self._state = "said"
            else:
                said, self._held = said + self._held, ""
                return thought, said


def apart(pieces: Iterable[str], thinking: Thinking) -> Iterator[str]:
    """The pieces of an answer with its thoughts as a quotation before it: each line of theirs begins with "> "."""
    begun, fresh = False, True  # whether there was a thought; whether a line begins
    ended = False
    for piece, last in _marked(pieces):
        thought, said = thinking.push(piece, last)
        thought, out = thought if begun else thought.lstrip("\n"), ""
        for line in thought.splitlines(keepends=True):
            out += ("> " if fresh else "") + line
            begun, fresh = True, line.endswith("\n")
        if said and begun and not ended:
            out, ended = out + ("\n" if fresh else "\n\n"), True
        if out or said:
            yield out + said


def _marked(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """(piece, is it the last?), and an empty last one: pieces are passed on as they come."""
    for piece in pieces:
        yield piece, False
    yield "", True
