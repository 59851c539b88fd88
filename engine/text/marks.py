"""Special tokens in stop strings and banned texts: a control token has no text in an answer, so where one is named it leaves a mark, which can be found.

    ["</s>", "User:"] -> Marks: the control tokens named, a mark for each -> .spellings(texts): as text and as marks -> StopStrings, BannedTexts
    id -> .of.get(id): its mark, put where its text would stand -> … -> .strip(piece): what is shown

Marks are lone surrogates, which no decoded text holds; only the first half of them (U+D800 to U+DBFF), because JSON would join two halves in a session.
"""
from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer.base import SpecialTexts

MARK = re.compile("[\ud800-\udbff]")
_FIRST, _MOST = 0xD800, 1024
_ALL_SPELLINGS = 4
"""Special tokens of a text up to which each may be written either way; with more, all are tokens or all are text."""


class Marks:
    """.of: {id: mark} of the control tokens named in `texts`; shown: ids whose text stands in the answer anyhow."""

    def __init__(self, control: SpecialTexts, texts: Iterable[str], shown: Collection[int] = ()) -> None:
        self._control = control
        named = sorted({part for text in texts for part in control.split(text) if isinstance(part, int) and part not in shown})
        self.of = {id: chr(_FIRST + i) for i, id in enumerate(named[:_MOST])}
        self._shown = {ord(mark): None for mark in self.of.values()}
        self._text = {id: text for text, id in control.ids.items() if id in self.of or id in shown}

    def spellings(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Each text, and the same with its special tokens as marks."""
        found: dict[str, None] = {}
        for text in texts:
            parts = [[part] if isinstance(part, str) else [self._text[part], *filter(None, [self.of.get(part)])] if part in self._text else None
                     for part in self._control.split(text)]
            known = [part for part in parts if part is not None]
            if len(known) < len(parts):  # more special tokens than there are marks
                found[text] = None
            elif sum(len(part) > 1 for part in known) <= _ALL_SPELLINGS:
                found.update(dict.fromkeys(map("".join, itertools.product(*known))))
            else:
                found.update({text: None, "".join(part[-1] for part in known): None})
        return tuple(found)

    def strip(self, text: str) -> str:
        """The text without marks."""
        return text.translate(self._shown) if self._shown else text
