"""gpt-oss's answers: channels apart, calls found, streamed as if at once; what the history keeps; in a chat and in answers to messages."""
from __future__ import annotations

import pytest
from fake_model import fake_model
from llamina.engine.answers.chat import Chat
from llamina.engine.model import Model
from llamina.engine.run.scheduler import Scheduler
from llamina.engine.text.chat_template import ChatTemplate
from llamina.engine.text.harmony import CONTROLS, Harmony, calls, is_harmony, messages, shown, split
from llamina.engine.text.tool_calls import parse, tool_format
from test_chat_template import spm
from test_tool_calls import Says, _ids

THOUGHT = "<|channel|>analysis<|message|>They ask for 2 + 2.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>It is 4."
CALL = "<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a\": 2, \"b\": [\"<x>\"]}"
ANSWERS = {
    "plain": (THOUGHT + FINAL, "<think>They ask for 2 + 2.</think>It is 4.", []),
    "ended": (THOUGHT + FINAL + "<|return|>", "<think>They ask for 2 + 2.</think>It is 4.", []),
    "no thought": ("<|channel|>final<|message|>Yes.", "Yes.", []),
    "two thoughts": (THOUGHT + "<|start|>assistant" + THOUGHT + FINAL, "<think>They ask for 2 + 2.\n\nThey ask for 2 + 2.</think>It is 4.", []),
    "cut off": (THOUGHT[:45], "<think>They ask for 2 ", []),
    "a call": (THOUGHT + CALL + "<|call|>", "<think>They ask for 2 + 2.</think>", [("add", {"a": 2, "b": ["<x>"]})]),
    "recipient first": (THOUGHT + "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{}<|call|>", "<think>They ask for 2 + 2.</think>",
                        [("add", {})]),
    "preamble": ("<|channel|>commentary<|message|>I'll add them.<|end|>" + CALL, "I'll add them.", [("add", {"a": 2, "b": ["<x>"]})]),
    "a bad call": (CALL.replace("{", "["), "", []),
    "thought between": ("<|channel|>commentary<|message|>First.<|end|><|start|>assistant" + THOUGHT + FINAL,
                        "First.<think>They ask for 2 + 2.</think>It is 4.", []),
    "header only": ("<|channel|>ana", "", []),
    "held by a grammar": ('{"a": 1}', '{"a": 1}', []),
    "nothing": ("", "", []),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    raw, expected, made = ANSWERS[name]
    found = messages(raw)
    assert shown(found) == expected and calls(found) == made
    content, tool_calls = parse(raw, "harmony")
    assert content == expected and [(c.name, c.arguments) for c in tool_calls] == made
    assert len({c.id for c in tool_calls}) == len(tool_calls)


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "held by a grammar"])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_streamed(name: str, size: int) -> None:
    """Control tokens come whole; the text between them in any pieces. What was shown is never taken back."""
    raw, expected, _ = ANSWERS[name]
    pieces, at = [], 0
    while at < len(raw):
        end = raw.find("|>", at) + 2 if raw.startswith("<|", at) and "|>" in raw[at:] else min(at + size, raw.find("<|", at) if "<|" in raw[at:] else len(raw))
        pieces.append(raw[at:end])
        at = end
    stream = Harmony()
    assert "".join(stream.push(piece) for piece in pieces) == expected


@pytest.mark.parametrize("text, thoughts, said", [
    ("<think>a</think>b", "a", "b"), ("b", "", "b"), ("<think>a", "a", ""), ("x<think>a</think>b<think>c</think>", "a\n\nc", "xb"), ("", "", "")])
def test_split(text: str, thoughts: str, said: str) -> None:
    assert split(text) == (thoughts, said)


def test_which_templates() -> None:
    harmony = "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}"
    assert is_harmony(harmony) and tool_format(harmony) == "harmony"
    assert not is_harmony("<|im_start|>{{ message.content }}<|im_end|>")


TEMPLATE = """{%- for m in messages -%}
{{- '<|start|>' + m.role + ('<|channel|>final' if m.role == 'assistant' else '') + '<|message|>' + m.content + '<|end|>' -}}
{%- endfor -%}{{- (tools | length | string if tools else '') + '<|start|>assistant' if add_generation_prompt -}}"""




def oss(text: str) -> Model:
    """A model that answers with this text, whatever it is asked."""
    model = fake_model()
    model.tokenizer = tokenizer = spm([(text, 3) for text in CONTROLS])
    model.runtime = Says(tokenizer.n_vocab, [*_ids(tokenizer, text), 2])  # type: ignore[assignment]
    model.scheduler = Scheduler(model.runtime)
    model._template = ChatTemplate(TEMPLATE, tokenizer)
    return model


def test_answers_to_messages() -> None:
    answer = oss(THOUGHT + FINAL).chat("What is 2 + 2?")
    assert "".join(answer) == answer.text() == "<think>They ask for 2 + 2.</think>It is 4." and answer.tool_calls == []
    assert answer.message == {"role": "assistant", "content": "It is 4.", "thinking": "They ask for 2 + 2."}
    called = oss(THOUGHT + CALL).chat("What is 2 + 2?", tools=[{"name": "add", "parameters": {}}])
    assert called.text() == "<think>They ask for 2 + 2.</think>"
    assert [(c.name, c.arguments) for c in called.tool_calls] == [("add", {"a": 2, "b": ["<x>"]})]
    assert called.message["content"] == "" and called.message["thinking"] == "They ask for 2 + 2." and len(called.message["tool_calls"]) == 1


def test_a_chat_keeps_what_was_said() -> None:
    with Chat(oss(THOUGHT + FINAL)) as chat:
        answer = chat.ask("What is 2 + 2?")
        assert answer.text() == "<think>They ask for 2 + 2.</think>It is 4."
        assert chat.messages == [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
