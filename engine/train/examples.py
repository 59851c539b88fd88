"""What a row of data teaches: ids, and which of them are targets.

    plain text               BOS, the text, EOS                                   all but the first
    prompt and completion    ids of the whole, as `llamina eval` scores it, EOS    those of the completion
    a conversation           as the chat template writes it                        every turn of the assistant, to the token that ends it

A template may write an earlier turn otherwise than it wrote it when it was the last (thoughts are left out, say). Then a conversation is several examples, one
for each turn, each as the model saw it when it had to say this.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..answers.core import common_prefix
from ..errors import OptionError, quoted
from ..score.border import joined

if TYPE_CHECKING:
    from ..answers.core import Core

LOSSES = ("assistant", "completion", "all")


@dataclass(frozen=True)
class Example:
    """ids int32 [n], mask bool [n]: is a target (never the first); line: where its row begins in the file. empty: there was nothing to say but the end."""

    ids: np.ndarray
    mask: np.ndarray
    line: int = 0
    empty: bool = False

    @classmethod
    def of(cls, ids: Sequence[int], targets: Sequence[tuple[int, int]], empty: bool = False) -> Example:
        """targets: (first, end) of each piece of targets."""
        mask = np.zeros(len(ids), bool)
        for first, end in targets:
            mask[first:end] = True
        mask[:1] = False
        return cls(np.array(ids, np.int32), mask, empty=empty)


def text_example(model: Core, text: str) -> Example:
    """TokenizerError."""
    ids = [*model.tokenizer.encode(text, eos=False), *_end(model)]
    return Example.of(ids, [(0, len(ids))], not text)


def completion_example(model: Core, prompt: str, completion: str, loss: str) -> Example:
    """completion: with what stands between it and the prompt. TokenizerError, OptionError (neither says anything)."""
    if completion:
        whole = joined(model, prompt, completion)
        ids, first = [*whole.ids, *_end(model)], whole.first
    else:
        before = model.tokenizer.encode(prompt, eos=False)
        ids, first = [*before, *_end(model)], len(before)
    return Example.of(ids, [(0 if loss == "all" else first, len(ids))], not completion.strip())


def _end(model: Core) -> list[int]:
    return [] if model.tokenizer.eos_id is None else [model.tokenizer.eos_id]


def chat_examples(model: Core, messages: Any, tools: Any, loss: str) -> list[Example]:
    """loss: "assistant" (every turn of its), "completion" (the last one), "all". A message with "weight": 0 is not learned, as OpenAI has it. OptionError."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise OptionError(f'"messages" must be a list of objects with "role" and "content", found {quoted(messages)}')
    if tools is not None and (not isinstance(tools, Sequence) or isinstance(tools, str)):
        raise OptionError(f'"tools" must be a list of objects, found {quoted(tools)}')
    learned = [bool(m.get("weight", 1)) for m in messages]
    turns = [{key: value for key, value in m.items() if key != "weight"} for m in messages]
    spoken = [i for i, m in enumerate(turns) if m.get("role") == "assistant" and learned[i]]
    if not spoken:
        raise OptionError("has no message of the assistant's: there is nothing to learn")
    if loss == "completion":
        spoken = spoken[-1:]
    chat = _Conversation(model, turns, tools)
    whole = chat.through(len(turns))
    empty = all(not turns[i].get("content") and not turns[i].get("tool_calls") for i in spoken)
    if loss == "all":
        return [Example.of(whole, [(0, len(whole))], empty)]
    pieces = [chat.targets(i, whole) for i in spoken]
    if all(piece is not None for piece in pieces):
        return [Example.of(whole, [piece for piece in pieces if piece is not None], empty)]
    found = []
    for i in spoken:
        ids = chat.through(i + 1)
        piece = chat.targets(i, ids)
        if piece is None:
            raise OptionError(f"the chat template writes messages[{i}] so that it can't be told from what stands before it")
        found.append(Example.of(ids[:piece[1]], [piece], empty))
    return found


class _Conversation:
    """ids of a conversation's beginnings, each made once."""

    def __init__(self, model: Core, turns: Sequence[Mapping[str, Any]], tools: Any) -> None:
        self._turns, self._template, self._ends = turns, model.chat_template, model.tokenizer.eog_ids
        self._extra = {"tools": tools} if tools else {}
        self._made: dict[int, list[int]] = {}

    def through(self, n: int) -> list[int]:
        """Of the first n messages."""
        if n not in self._made:
            self._made[n] = self._template.encode(self._turns[:n], False, **self._extra)
        return self._made[n]

    def targets(self, i: int, ids: list[int]) -> tuple[int, int] | None:
        """(first, end) of message i among the ids of the whole; None if the whole doesn't begin as the conversation up to there does. The turn begins where
        ids are no longer those that wait for it, and ends with the first token that ends an answer, or where its text does."""
        end = len(self.through(i + 1))
        if ids[:end] != self.through(i + 1):
            return None
        asked = self._template.encode(self._turns[:i], True, **self._extra) if i else []
        first = common_prefix(asked, ids)
        if i and first < min(len(asked), end) and first + 4 < len(asked):  # a token or two may be joined with the answer's first, no more
            first = max(first, common_prefix(self.through(i), ids))
        end = next((at + 1 for at in range(first, end) if ids[at] in self._ends), end)
        return (first, end) if first < end else None
