"""The answer to a list of messages: a Generation that knows calls of tools from text. Made by `Model.chat`.

    messages, tools -> chat template -> ids -> steps -> text with markers -> pieces without calls, .tool_calls, .message
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, UnsupportedError
from ..text import harmony
from ..text.messages import normalise
from ..text.thoughts import mark_ids
from ..text.tool_calls import ToolCall, calls_before, check_tools, parse, tool_format, visible, written_ids
from .generation import Generation

if TYPE_CHECKING:
    from ..sampling.sampler import SamplingOptions
    from ..text.tokenizer.stream import StreamDecoder
    from .core import Core


def chat_prompt(model: Core, messages: Sequence[Any], tools: Any = None, template_options: Mapping[str, Any] | None = None,
                begun: str = "") -> tuple[list[int], str | None, dict[str, Any]]:
    """(ids, how the template wants calls written, names of the tools, with the schemas of
    their parameters). begun: the answer's beginning, to be continued. OptionError, UnsupportedError,
    FormatError, TokenizerError."""
    template, extra = model.chat_template, dict(template_options or {})
    if not messages:
        raise OptionError("there are no messages to answer")
    messages = normalise(messages, template.sources)
    if begun:
        extra["begun"] = begun
    if not tools:
        return template.encode(messages, **extra), "harmony" if harmony.is_harmony(template.sources) else None, {}
    extra["tools"] = checked = check_tools(tools)
    if "tools" not in template.sources:
        raise UnsupportedError(f"{model.path}: the model's chat template takes no tools: use a model that was trained for them")
    return template.encode(messages, **extra), tool_format(template.sources), {tool["function"]["name"]: tool["function"].get("parameters") for tool in checked}


class ChatAnswer(Generation):
    """An iterator over pieces of the answer's text, like Generation. If tools were given, calls of them are no part of the text but in .tool_calls, known
    at the end. .message: {"role": "assistant", "content": …, "tool_calls": …}, to be appended to the messages of the next turn."""

    def __init__(self, model: Core, messages: Sequence[Mapping[str, Any]], options: SamplingOptions, *, tools: Sequence[Mapping[str, Any]] | None = None,
                 template_options: Mapping[str, Any] | None = None, **more: Any) -> None:
        ids, self._format, self._names = chat_prompt(model, messages, tools, template_options)
        if self._format == "harmony" and more.get("grammar") is not None:
            ids = ids + model.tokenizer.encode(harmony.FINAL, bos=False, eos=False, parse_special=True)
        self._first = calls_before(messages)
        self._written = (written_ids(model.tokenizer, self._format) if self._format else frozenset()) | mark_ids(model.tokenizer)
        self._visible, self._raw, self._shown = visible(self._format), "", ""
        super().__init__(model, ids, options, stop_ids=frozenset(model.chat_template.stop_ids), **more)

    def _stream(self, ids: Sequence[int]) -> StreamDecoder:
        return self._model.tokenizer.stream(ids, special=self._written, at_start=self._constraint is None)

    def _filter(self, piece: str) -> str:
        self._raw += piece
        text = self._visible.push(piece)
        if self.finish_reason is not None and self._format:  # what was held back and is no call
            text += self._parse()[0][len(self._shown) + len(text):].rstrip()
        self._shown += text
        return text

    def _parse(self) -> tuple[str, list[ToolCall]]:
        return parse(self._raw, self._format, self._names, self._first)

    def save(self, path: str | os.PathLike[str]) -> None:
        """OptionError: messages are what to keep."""
        raise OptionError("an answer to messages can't be saved halfway: keep the messages, or use Chat.save")

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls, once the answer has ended."""
        return [] if self.finish_reason is None else self._parse()[1]

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, as far as it is known."""
        calls, content = self.tool_calls, self.so_far
        more: dict[str, Any] = {}
        if self._format == "harmony":
            thoughts, content = harmony.split(content)
            more = {"thinking": thoughts} if thoughts and not (calls and content) else {}  # its template takes one of them beside calls
        return {"role": "assistant", "content": content, **more} | ({"tool_calls": [call.as_dict() for call in calls]} if calls else {})
