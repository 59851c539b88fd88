"""Calls of tools found in answers, in every way of writing them, however the text is cut; and Model.chat."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fake_model import FakeRuntime, fake_model
from llamina.engine.errors import ClosedError, OptionError, UnsupportedError
from llamina.engine.model import Model
from llamina.engine.run.scheduler import Scheduler
from llamina.engine.text.chat_template import ChatTemplate
from llamina.engine.text.tool_calls import ToolCall, Visible, check_tools, parse, tool_format
from test_chat_template import CALLS, TEMPLATES, TOOLS, llama3, spm

HERMES = """{%- if tools %}<|im_start|>system
<tools>{{ tools | tojson }}</tools><|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{%- for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{%- endfor %}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALL = ToolCall("weather", {"place": "Zürich"}, "call00000")
FOUND: list[tuple[str, str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("llama3", '{"name": "weather", "parameters": {"place": "Zürich"}}', "", [("weather", {"place": "Zürich"})]),
    ("llama3", '\n {"name": "weather", "arguments": {}}; {"name": "time", "parameters": "{\\"n\\": 1}"}\n', "", [("weather", {}), ("time", {"n": 1})]),
    ("llama3", '<|python_tag|>{"name": "other", "parameters": {}}', "", [("other", {})]),
    ("llama3", 'Look: <|python_tag|>brave_search.call(query="a, (b)", n=2)', "Look: ", [("brave_search", {"query": "a, (b)", "n": 2})]),
    ("llama3", "<|python_tag|>print(1)\nprint(2)", "", [("code_interpreter", {"code": "print(1)\nprint(2)"})]),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"place": "x"}, "id": "abcdefghi"}]', "", [("weather", {"place": "x"})]),
    ("mistral", 'Yes.[TOOL_CALLS][{"name": "weather", "arguments": {}}, {"name": "time", "arguments": {}}]', "Yes.", [("weather", {}), ("time", {})]),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"a": 1}[TOOL_CALLS]time[CALL_ID]xyz[ARGS]{}', "", [("weather", {"a": 1}), ("time", {})]),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"a": [1]}}\n</tool_call>', "", [("weather", {"a": [1]})]),
    ("hermes", 'I look.\n<tool_call>{"name": "a"}</tool_call>\n<tool_call>{"name": "b", "arguments": {}}', "I look.\n\n", [("a", {}), ("b", {})]),
    ("function", '<function=weather>{"a": 1}</function>', "", [("weather", {"a": 1})]),
]
TEXT = [("llama3", '{"answer": 42}'), ("llama3", '{"name": "Ann", "parameters": {}}'), ("llama3", '{"name": "weather", "parameters": 3}'),
    ("llama3", '{"name": "weather"'),
        ("llama3", '{"name": "weather", "parameters": {}} is how to call it'), ("llama3", "<|python_tag|>"), ("llama3", "a <|python"),
        ("llama3", "[" * 100_000),
        ("llama3", "<|python_tag|> "), ("mistral", "[TOOL_CALLS] nothing"), ("mistral", "[TOOL_CALLS][1]"), ("mistral", "[TOOL_CALLS]" + "[" * 100_000),
        ("mistral", "[TOOL"),
        ("mistral", "[TOOL_CALLS]a[ARGS]b"), ("hermes", "<tool_call>{</tool_call>"), ("hermes", "<tool_call>[]</tool_call>"), ("hermes", "a <b> <tool"),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'), ("function", "<function=f>x</function>"), (None, "<tool_call>{}</tool_call>")]


@pytest.mark.parametrize("format, text, content, calls", FOUND, ids=lambda v: str(v)[:40])
def test_calls_are_found(format, text, content, calls):
    found = parse(text, format, ["weather", "time"])
    assert found[0] == content and [(call.name, call.arguments) for call in found[1]] == calls
    assert len({call.id for call in found[1]}) == len(calls)
    for size in 1, 2, 5, 1000:
        visible = Visible(format)
        shown = "".join(visible.push(text[i:i + size]) for i in range(0, len(text), size))
        assert content.startswith(shown) and "name" not in shown and "<" not in shown


@pytest.mark.parametrize("format, text", TEXT, ids=lambda v: str(v)[:40])
def test_what_is_no_call_stays_text(format, text):
    assert parse(text, format, ["weather"]) == (text, [])
    for size in 1, 3, 100_000:
        visible = Visible(format)
        assert text.startswith("".join(visible.push(text[i:i + size]) for i in range(0, len(text), size)))


@pytest.mark.parametrize("name, source", [("llama3.1-tools", TEMPLATES["llama3.1-tools"]), ("mistral-tools", TEMPLATES["mistral-tools"]), ("hermes", HERMES)])
def test_what_a_template_writes_is_read_back(name, source):
    """The template's own writing of a call, when the conversation goes on, is what its model was trained to write."""
    template = ChatTemplate(source, llama3() if "llama3" in name else spm())
    turns = [CALLS[0], {"role": "assistant", "content": "", "tool_calls": [{**CALL.as_dict(), "id": "abcdefghi"}]}]
    prompt, whole = template.render(turns[:1], True, tools=TOOLS), template.render(turns, False, tools=TOOLS)
    written = whole[len(prompt):] if whole.startswith(prompt) else whole[len(prompt.rstrip()):]
    for end in "<|eot_id|>", "</s>", "<|im_end|>\n":
        written = written.removesuffix(end)
    format = tool_format(template.sources)
    assert [(call.name, call.arguments) for call in parse(written, format, ["weather"])[1]] == [("weather", {"place": "Zürich"})], (format, written)


def test_formats_of_templates():
    assert [tool_format(TEMPLATES[name]) for name in ("llama2", "llama3", "zephyr", "llama3.1-tools", "mistral-tools")] == [None] * 3 + ["llama3", "mistral"]
    assert tool_format(HERMES) == "hermes"


def test_tools_are_checked():
    inner = {"name": "f", "parameters": {}}
    assert check_tools([inner]) == check_tools([{"type": "function", "function": inner}]) == [{"type": "function", "function": inner}]
    bad: Any = ("f", {"name": "f"}, 3, [3], [{}], [{"function": {}}], [{"name": 3}], [{"function": None}])
    for wrong in bad:
        with pytest.raises(OptionError, match="tools"):
            check_tools(wrong)


class Says(FakeRuntime):
    """Continues a prompt with these ids, whatever it is."""

    def __init__(self, n_vocab: int, answer: list[int]) -> None:
        self.answer, self.at, self.n_vocab = answer, 0, n_vocab
        super().__init__(self._next, context=4000, max_batch=4000)
        self.config.n_vocab = n_vocab

    def _next(self, ids: list[int]) -> int:
        self.at += 1
        return self.answer[self.at - 1]

    def step(self, feeds: list[Any]) -> np.ndarray:
        rows = np.zeros((len(feeds), self.n_vocab), np.float32)
        for row, feed in zip(rows, feeds):
            feed.sequence.ids += feed.ids
            row[self._next(feed.sequence.ids)] = 10
        return rows


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Without the space that SentencePiece would begin with."""
    return [id for part in tokenizer.split(text, parse_special=True) for id in ([part] if isinstance(part,
                int) else tokenizer.encode_parts(["X" + part])[-len(part.encode()):])]


def says(name: str, source: str, text: str) -> Model:
    model = fake_model()
    model.tokenizer = tokenizer = llama3() if name == "llama3" else spm([("[TOOL_CALLS]", 3)])
    eos = 260 if name == "llama3" else 2
    model.runtime = Says(tokenizer.n_vocab, [*_ids(tokenizer, text), eos])  # type: ignore[assignment]
    model.scheduler = Scheduler(model.runtime)
    model._template = ChatTemplate(source, tokenizer)
    return model


@pytest.mark.parametrize("name, source, text, shown", [
    ("llama3", TEMPLATES["llama3.1-tools"], '<|python_tag|>{"name": "weather", "parameters": {"place": "Zürich"}}', ""),
    ("llama3", TEMPLATES["llama3.1-tools"], '{"name": "weather", "parameters": {"place": "Zürich"}}', ""),
    ("mistral", TEMPLATES["mistral-tools"], '[TOOL_CALLS][{"name": "weather", "arguments": {"place": "Zürich"}, "id": "call00000"}]', ""),
    ("hermes", HERMES, 'I <i>ask</i>.\n<tool_call>{"name": "weather", "arguments": {"place": "Zürich"}}</tool_call>', "I <i>ask</i>.\n"),
])
def test_chat_with_tools(name, source, text, shown):
    answer = says(name, source, text).chat([CALLS[0]], tools=TOOLS)
    assert answer.tool_calls == []  # not known yet
    assert "".join(answer) == answer.text() == shown and answer.finish_reason == "eos"
    assert answer.tool_calls == [CALL]
    assert answer.message == {"role": "assistant", "content": shown, "tool_calls": [CALL.as_dict()]}
    json.dumps(answer.message)
    # the conversation goes on, and ids stay one of a kind
    turns = [CALLS[0], answer.message, {"role": "tool", "tool_call_id": "call00000", "content": "21 °C"}]
    again = says(name, source, text.replace(', "id": "call00000"', "")).chat(turns, tools=TOOLS)
    assert again.text() == shown and [call.id for call in again.tool_calls] == ["call00001"]
    # without tools it is text
    plain = says(name, source, text).chat("Hi")
    assert plain.text().endswith(text.replace("<|python_tag|>", "").replace("[TOOL_CALLS]", "")) and plain.tool_calls == []
    # text that only looks like a call at first is shown at the end
    other = says(name, source, '{"name": 1}').chat("Hi", tools=TOOLS)
    assert other.text() == '{"name": 1}' and other.message == {"role": "assistant", "content": '{"name": 1}'}


def test_chat_without_tools():
    with fake_model(" ok", after="u:hiXa:", context=64) as model:
        assert model.chat("hi").text() == model.chat([{"role": "user", "content": "hi"}]).text() == " ok"
        assert list(model.chat("hi", max_tokens=2)) == [" ", "o"]
        with pytest.raises(OptionError, match="no messages"):
            model.chat([])
        model._template = ChatTemplate(TEMPLATES["zephyr"], spm())
        with pytest.raises(UnsupportedError, match="takes no tools"):
            model.chat("hi", tools=TOOLS)
        with pytest.raises(OptionError, match=r"messages\[0\] must be an object"):
            model.chat([1])
    with pytest.raises(ClosedError):
        model.chat("hi")


GEMMA = [
    ('<|tool_call>call:weather{place:<|"|>Zürich<|"|>}<tool_call|>', "", [("weather", {"place": "Zürich"})]),
    ('Let me see.<|tool_call>call:a.b-c{n:-3.5,on:true,off:false,no:null,list:[1,<|"|>x, y}<|"|>,{k:[]}],deep:{a:{b:<|"|><tool_call|><|"|>}}}<tool_call|>',
     "Let me see.", [("a.b-c", {"n": -3.5, "on": True, "off": False, "no": None, "list": [1, "x, y}", {"k": []}], "deep": {"a": {"b": "<tool_call|>"}}})]),
    ("<|tool_call>call:time{}<tool_call|><|tool_call>call:time{ zone : CET }", "", [("time", {}), ("time", {"zone": "CET"})]),
    ('<|tool_call>call:f{<|"|>a key<|"|>:1}<tool_call|>', "", [("f", {"a key": 1})]),
]
QWEN = [
    ("<tool_call>\n<function=weather>\n<parameter=place>\nZürich\n</parameter>\n</function>\n</tool_call>", "", [("weather", {"place": "Zürich"})]),
    ("I look.\n<tool_call>\n<function=f>\n<parameter=code>\n12\n</parameter>\n<parameter=n>\n12\n</parameter>"
     "\n<parameter=more>\n[1, {\"a\": null}]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=time>\n</function>\n</tool_call>", "I look.\n\n",
     [("f", {"code": "12", "n": 12, "more": [1, {"a": None}]}), ("time", {})]),
    ("<function=f>\n<parameter=code>\n if x:\n  y\n\n</parameter>\n</function>", "", [("f", {"code": " if x:\n  y\n"})]),
]
SCHEMAS = {"f": {"type": "object", "properties": {"code": {"type": "string"}, "n": {"type": "integer"}}}, "weather": None, "time": {}}
ORDINARY = [("gemma4", "<|tool_call>call:f{a:<tool_call|>"), ("gemma4", "<|tool_call>weather{}<tool_call|>"), ("gemma4", "<|tool_call>call:f" + "{a:" * 5000),
            ("gemma4", '<|tool_call>call:f{a:<|"|>x}<tool_call|>'), ("gemma4", "<|tool_call>"), ("gemma4", "<|tool_call>call:f{a:1}x<tool_call|>"),
            ("qwen", "<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>"), ("qwen", "<tool_call>{}</tool_call>"),
            ("qwen", "<function=f>hello</function>"), ("qwen", "<tool_call>" * 1000)]


@pytest.mark.parametrize("format, text, content, calls", [("gemma4", *case) for case in GEMMA] + [("qwen", *case) for case in QWEN])
def test_other_notations(format: str, text: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    found = parse(text, format, SCHEMAS)
    assert (found[0], [(call.name, call.arguments) for call in found[1]]) == (content, calls)
    for size in 1, 3, 1000:
        visible = Visible(format)
        shown = "".join(visible.push(text[i:i + size]) for i in range(0, len(text), size))
        assert content.startswith(shown) and "call" not in shown


@pytest.mark.parametrize("format, text", ORDINARY, ids=lambda v: str(v)[:40])
def test_other_notations_that_do_not_parse(format: str, text: str) -> None:
    assert parse(text, format, SCHEMAS) == (text, [])


def test_notations_by_template() -> None:
    assert tool_format("{{ tools }}<|tool_call>call:{}<tool_call|>") == "gemma4"
    assert tool_format("{{ tools }}<tool_call>\n<function=f>") == "qwen"
    assert tool_format("{{ tools }}<tool_call>") == "hermes"
