"""Messages in every form that people and servers send, to one form; calls of tools beside bad ones, with any text in their strings."""
from __future__ import annotations

import json
import random
import warnings
from typing import Any

import pytest
from llamina import load
from llamina.engine.errors import LlaminaWarning, OptionError
from llamina.engine.text.chat_template import LLAMA2, ChatTemplate
from llamina.engine.text.messages import left_out, normalise
from llamina.engine.text.tool_calls import parse
from test_chat_template import TEMPLATES, TOOLS, llama3, spm
from test_tool_calls import HERMES

USER = {"role": "user", "content": "hi"}


def test_contents():
    def content(given: Any, role: str = "user", template: str = "") -> Any:
        return normalise([{"role": role, "content": given}], template)[0]["content"]
    text = {"type": "text", "text": "a"}
    assert content("a") == content([text]) == content(["a"]) == "a" and content([text, {"type": "input_text", "text": "b"}]) == "a\nb"
    assert content(None) == content([]) == "" and content({"n": 1}, "tool") == '{"n": 1}' and content({"n": 1}, "tool", "x is mapping") == {"n": 1}
    assert content([1, {"n": "é"}], "tool") == '[1, {"n": "é"}]'
    wrong: list[Any] = [5, {"n": 1}, b"a", [5], [{"type": "image_url", "image_url": "x"}], [{"type": "text"}], [{"type": "text", "text": 5}], True]
    for bad in wrong:
        with pytest.raises(OptionError, match=r"messages\[0\]\.content"):
            content(bad)
    more: list[Any] = ["a", USER, [5], [{"content": "x"}], [{"role": 5, "content": "x"}], [{"role": "user"}], 5, [None]]
    for bad in more:
        with pytest.raises(OptionError, match="role"):
            normalise(bad)
    given = [{"role": "developer", "content": [text], "name": "n"}]
    assert normalise(given) == [{"role": "system", "content": "a", "name": "n"}] and given[0]["role"] == "developer"
    assert normalise(given, "<|start|>developer")[0]["role"] == "developer"


def test_calls():
    """OpenAI's form, its older one, the inner dict alone, and the templates' own: all the same."""
    wanted = [{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}]
    text = json.dumps({"a": [1, "é"]})
    for arguments in {"a": [1, "é"]}, text, f" {text}\n":
        call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": arguments}}
        assert normalise([{"role": "assistant", "tool_calls": [call]}])[0] == {"role": "assistant", "content": "", "tool_calls": wanted}
        old = normalise([{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": arguments}}])[0]
        bare = normalise([{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}])[0]
        assert old["tool_calls"] == bare["tool_calls"] == [{k: v for k, v in wanted[0].items() if k != "id"}] and "function_call" not in old
    for nothing in None, "", " ":
        found = normalise([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": nothing}}]}])
        assert found[0]["tool_calls"][0]["function"]["arguments"] == {}
    assert "tool_calls" not in normalise([{**USER, "tool_calls": []}])[0]
    wrong: list[Any] = ["x", {}, [5], [{}], [{"function": 5}], [{"function": {"name": 5}}],
                        *[[{"function": {"name": "f", "arguments": a}}] for a in ("{", "[1]", 5, [1])]]
    for bad in wrong:
        with pytest.raises(OptionError, match=r"messages\[0\]\.tool_calls|messages\[0\] must"):
            normalise([{"role": "assistant", "content": "", "tool_calls": bad} if bad else {"role": "assistant", "tool_calls": bad}])


@pytest.mark.parametrize("name", ["llama3.1-tools", "mistral-tools", "hermes"])
def test_templates_write_both_forms_alike(name):
    template = ChatTemplate(HERMES if name == "hermes" else TEMPLATES[name], llama3() if "llama3" in name else spm())

    def ids(arguments: Any, content: Any) -> list[int]:
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        return template.encode([{"role": "user", "content": content}, {"role": "assistant", "tool_calls": [call]},
                                {"role": "tool", "tool_call_id": "abcdefghi", "content": "22"}], tools=TOOLS)
    assert ids({"place": "Zürich"}, "hi") == ids(json.dumps({"place": "Zürich"}), [{"type": "text", "text": "hi"}])


def test_every_way_in(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}]
    with load("demo", threads=1) as model:
        ref = model.chat("Who are you?", max_tokens=8, seed=1).text()
        assert model.chat(parts, max_tokens=8, seed=1).text() == ref
        assert next(model.generate_many([parts], max_tokens=8, seed=1)).text == ref
        with pytest.raises(OptionError, match=r"messages\[0\]\.content\[0\] is of the type 'image_url'"):
            model.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_a_system_message_that_is_left_out_is_told():
    deaf = ChatTemplate("{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}", spm())
    messages = [{"role": "system", "content": "Be brief."}, USER]
    with pytest.warns(LlaminaWarning, match=r"leaves out the system message \(messages\[0\]\)"):
        deaf.encode(messages)
    late = ChatTemplate("{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
                        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", spm())
    with pytest.warns(LlaminaWarning, match=r"messages\[2\]"):
        late.encode([*messages, {"role": "system", "content": "Now sing."}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source, text in (LLAMA2, "Be brief."), (LLAMA2, "  a\n <s> </s> b  "), (LLAMA2, ""), (TEMPLATES["zephyr"], "Be\n\nbrief."):
            ChatTemplate(source, spm()).encode([{"role": "system", "content": text}, USER])
    assert left_out([{"role": "system", "content": "a  b"}], "x a\nb y") is None


def test_closing_tags_and_markers_in_strings():
    for text in "</tool_call>", "<tool_call>", "</function>", "[TOOL_CALLS]", "[ARGS]", '"}', "\\":
        inner = json.dumps({"q": text})
        call = f'{{"name": "f", "arguments": {inner}}}'
        for format, written in (("hermes", f"<tool_call>\n{call}\n</tool_call>"), ("function", f"<function=f>{inner}</function>"),
                                ("mistral", f"[TOOL_CALLS] [{call}]"),
                                ("mistral", f"[TOOL_CALLS]f[ARGS]{inner}"), ("llama3", f"<|python_tag|>{call}")):
            content, calls = parse(written, format, ["f"])
            assert (content, [(c.name, c.arguments) for c in calls]) == ("", [("f", {"q": text})]), (format, text)


BAD = {"hermes": ["<tool_call>{</tool_call>", "<tool_call>[1]</tool_call>", '<tool_call>{"name": 5}</tool_call>',
                  '<tool_call>{"name": "f", "arguments": 5} x</tool_call>'],
       "function": ["<function=f>x</function>", "<function=f>[]</function>"], "mistral": ["[TOOL_CALLS]f[ARGS]x", "[TOOL_CALLS]f[ARGS]5"],
       "llama3": ['{"answer": 42}', '{"name": "f", "parameters": 5}', "17"]}
GOOD = {"hermes": '<tool_call>{{"name": "f", "arguments": {}}}</tool_call>', "function": "<function=f>{}</function>", "mistral": "[TOOL_CALLS]f[ARGS]{}",
        "llama3": '{{"name": "f", "parameters": {}}}'}


@pytest.mark.parametrize("format", BAD)
def test_bad_calls_stay_text_beside_good_ones(format):
    rng = random.Random(1)
    for _ in range(200):
        parts, wanted, text = [], [], ""
        for i in range(rng.randint(1, 5)):
            if rng.random() < 0.5:
                wanted.append({"n": i})
                parts.append(GOOD[format].format(json.dumps({"n": i})))
            else:
                parts.append(rng.choice(BAD[format]))
                text += parts[-1]
        if not wanted:
            continue
        if format == "mistral" and parts[0] in BAD[format]:
            parts.reverse()
            wanted.reverse()
            if parts[0] in BAD[format]:
                continue
        content, calls = parse(("\n" if format == "llama3" else "").join(parts), format, ["f"])
        assert [c.arguments for c in calls] == wanted, parts
        left = content.replace("[TOOL_CALLS]", "")
        assert all(bad.replace("[TOOL_CALLS]", "") in left for bad in parts if bad in BAD[format]), (parts, content)


def test_what_json_cannot_say_is_no_call():
    for value in "{1, 2}", "b'x'", "1e999", "...", "1j", "0x" + "f" * 5000, "{(1, 2): 3}":
        written = f"<|python_tag|>f.call(a={value})"
        assert parse(written, "llama3", ["f"]) == (written, []), value
    assert parse("<|python_tag|>f.call(a=(1, None), b={1: 'x'})", "llama3", ["f"])[1][0].arguments == {"a": [1, None], "b": {"1": "x"}}
    assert parse('<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', "hermes")[1] == []
