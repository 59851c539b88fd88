"""Harmony, the form of gpt-oss's answers: messages in channels, of which only one is for the reader.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…             thoughts, then the answer
    … <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}      a call (its recipient may also stand before the channel)

    answer's text, markers included -> Harmony.push() -> <think>thoughts</think>answer, as it comes       -> .calls, once it has ended

So what follows (servers, the terminal) sees thoughts as other models write them. Thoughts are no part of what the history keeps: `said`.
Source: OpenAI's harmony response format, 2025.
"""
from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

CONTROLS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
"""Control tokens whose text is wanted."""
FINAL = "<|channel|>final<|message|>"
"""Header of the message for the reader: what a prompt ends with where a grammar holds the answer, which knows no channels."""
OPEN, CLOSE = "<think>", "</think>"
_ENDS = re.compile(r"<\|(?:end|call|return|start)\|>")
_TO, _CHANNEL = re.compile(r"\bto=([^\s<]+)"), re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTIONS = "functions."


class Message(NamedTuple):
    """channel: analysis, commentary, final, or "" if none was named; to: who is addressed, "" for the reader."""

    channel: str
    to: str
    text: str


def is_harmony(template: str) -> bool:
    """Whether a chat template (its source) writes answers in channels."""
    return "<|start|>" in template and "<|channel|>" in template and "<|message|>" in template


def messages(text: str) -> list[Message]:
    """The messages of an answer as far as it goes; one whose header has not ended is none yet. The header of the first, <|start|>assistant, is the prompt's."""
    found, at = [], 0
    while (begin := text.find("<|message|>", at)) >= 0:
        header, body = text[at:begin], begin + len("<|message|>")
        end = _ENDS.search(text, body)
        channel, to = _CHANNEL.search(header), _TO.search(header)
        found.append(Message(channel[1] if channel else "", to[1] if to else "", text[body:end.start() if end else len(text)]))
        if not end:
            return found
        at = end.end()
    if not found and not any(control in text for control in CONTROLS):  # a model that was made to write something else, as by a grammar
        return [Message("final", "", text)] if text else []
    return found


def shown(found: list[Message]) -> str:
    """Thoughts between <think> and </think>, then what is for the reader; calls are no part of it."""
    text, thinking = "", False
    for m in found:
        if m.channel == "analysis" and not m.to:
            text += ("\n\n" if thinking else OPEN) + m.text
            thinking = True
            continue
        if thinking:
            text, thinking = text + CLOSE, False
        if not m.to:
            text += m.text
    return text


def split(text: str) -> tuple[str, str]:
    """(thoughts, what was said) of what `shown` made."""
    thoughts, said = [], ""
    while text.startswith(OPEN) or OPEN in text:
        before, _, rest = text.partition(OPEN)
        thought, _, text = rest.partition(CLOSE)
        said += before
        thoughts.append(thought)
    return "\n\n".join(thoughts), said + text


def calls(found: list[Message]) -> list[tuple[str, Any]]:
    """(name, arguments) of the calls that are JSON objects."""
    made = []
    for m in found:
        if m.to.startswith(_FUNCTIONS):
            try:
                arguments = json.loads(m.text)
            except (ValueError, RecursionError):
                continue
            made.append((m.to.removeprefix(_FUNCTIONS), arguments))
    return made


class Harmony:
    """Turns an answer's text, as it comes, into what is shown of it."""

    def __init__(self) -> None:
        self._raw = self._shown = ""

    def push(self, text: str) -> str:
        self._raw += text
        now = shown(messages(self._raw))
        new, self._shown = now[len(self._shown):], now
        return new
