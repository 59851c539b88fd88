"""Thoughts told from answers, however the text is cut."""
from __future__ import annotations

import pytest
from llamina.engine.text.thoughts import CHANNEL, TAGS, Thinking, apart, marks_of

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
