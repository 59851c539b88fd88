"""Thoughts told from answers, however the text is cut."""
from __future__ import annotations

from typing import Any

import pytest
from llamina.engine.text.chat_template import ChatTemplate
from llamina.engine.text.thoughts import CHANNEL, TAGS, Thinking, apart, marks_of
from llamina.engine.text.tool_calls import parse, tool_format
from test_chat_template import TEMPLATES, spm

CASES = [
    (TAGS, False, "<think>\nwell\n</think>\n\nYes.", "\nwell\n", "Yes."),
    (TAGS, True, "well</think>Yes. <think>", "well", "Yes. <think>"),
    (TAGS, False, "Yes. <think>no</think>", "", "Yes. <think>no</think>"),
    (TAGS, True, "well", "well", ""),
    (CHANNEL, False, "<|channel>thought\nwell <channel\n<channel|>Yes.", "\nwell <channel\n", "Yes."),
    (CHANNEL, False, "<|chan", "", "<|chan"),
]


@pytest.mark.parametrize("marks, inside, text, thought, said", CASES)
def test_thoughts_are_split(marks: tuple[str, str], inside: bool, text: str, thought: str, said: str) -> None:
    for size in 1, 2, 7, 100:
        thinking, thoughts, rest = Thinking(inside, marks), "", ""
        for i in range(0, len(text), size):
            a, b = thinking.push(text[i:i + size])
            thoughts, rest = thoughts + a, rest + b
        a, b = thinking.push("", True)
        assert (thoughts + a, rest + b) == (thought, said)


def test_thoughts_are_shown_as_a_quotation() -> None:
    for size in 1, 3, 100:
        text = "<think>\nfirst\nsecond\n</think>\n\nThe answer.\nMore."
        pieces = [text[i:i + size] for i in range(0, len(text), size)]
        assert "".join(apart(pieces, Thinking(False))) == "> first\n> second\n\nThe answer.\nMore."
    assert "".join(apart(["No ", "thought."], Thinking(False))) == "No thought."


def test_marks_follow_the_template() -> None:
    assert marks_of("… <|channel>thought …") == CHANNEL and marks_of("… <think> …") == TAGS and marks_of("") == TAGS


def rendered(messages: list[dict[str, Any]], **extra: Any) -> str:
    return ChatTemplate(TEMPLATES["gemma4"], spm()).render(messages, **extra)


def test_thoughts_are_left_out_of_the_history() -> None:
    """Messages keep them; Gemma 4's template takes them out."""
    ask = {"role": "user", "content": "Well?"}
    answered = rendered([ask, {"role": "assistant", "content": "<|channel>thought\nhm\n<channel|>Yes."}, ask])
    assert answered == rendered([ask, {"role": "assistant", "content": "Yes."}, ask]) and "hm" not in answered


def test_a_call_that_a_template_writes_is_read_as_it_was() -> None:
    arguments = {"place": "Zürich, {a}", "n": -3, "x": 1.5, "on": True, "no": None, "list": [1, "two", {"k": []}], "deep": {"a": {"b": "<tool_call|>"}}}
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    text = rendered([{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}], add_generation_prompt=False)
    format = tool_format(TEMPLATES["gemma4"])
    written = text[text.index("<|tool_call>"):]
    assert format == "gemma4" and [(found.name, found.arguments) for found in parse(written, format)[1]] == [("weather", arguments)]
