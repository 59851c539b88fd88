"""engine/serve, OpenAI's endpoints: fields one by one over HTTP; the same through openai-python is in test_serve_clients.py."""
from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from serving import TEMPLATE, Server, serving

HELLO = [{"role": "user", "content": "Tell me a story"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {
    "type": "object", "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 99}}, "required": ["city", "days"],
    "additionalProperties": False, "$defs": {"City": {"enum": ["Paris", "Rome"]}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def tooled() -> Iterator[Server]:
    with serving(TEMPLATE) as found:
        yield found


def added_up(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What streamed chat chunks add up to, as clients add them: by choice."""
    found: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            one = found.setdefault(choice["index"], {"content": "", "reasoning_content": "", "calls": {}, "logprobs": [], "reason": None, "roles": 0})
            delta = choice["delta"]
            one["roles"] += "role" in delta
            for name in ("content", "reasoning_content"):
                one[name] += delta.get(name) or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] not in one["calls"] and call["function"]["arguments"] == "" and call["type"] == "function"
                    one["calls"][call["index"]] = {"id": call["id"], "name": call["function"]["name"], "arguments": ""}
                else:
                    one["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            one["logprobs"] += (choice["logprobs"] or {}).get("content", [])
            one["reason"] = choice["finish_reason"] or one["reason"]
    return found


def test_a_chat_is_what_the_library_says(server: Server) -> None:
    answer = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=20, seed=3, logprobs=True, top_logprobs=2)
    alone = server.model.chat(HELLO, max_tokens=20, seed=3, logprobs=2)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == alone.text() and choice["finish_reason"] == "length" and answer["seed"] == 3
    assert [(t["id"], t["logprob"], [x["logprob"] for x in t["top_logprobs"]]) for t in choice["logprobs"]["content"]] == \
        [(t.id, t.logprob, [p for _, p in t.top]) for t in alone.logprobs]
    assert answer["usage"]["completion_tokens"] == 20 and answer["usage"]["prompt_tokens"] == alone.stats.prompt_tokens
    assert answer["system_fingerprint"].startswith("b") and answer["object"] == "chat.completion"


@pytest.mark.parametrize("more", [{}, {"stop": ["the", "girl"]}, {"temperature": 0}, {"n": 3}, {"response_format": {"type": "json_object"}},
                                  {"repeat_penalty": 1.3, "dry_multiplier": 0.8, "min_p": 0.05}])
def test_streamed_and_whole_are_the_same(server: Server, more: dict[str, Any]) -> None:
    asked = {"messages": HELLO, "max_tokens": 40, "seed": 5, "logprobs": True, "top_logprobs": 1, **more}
    whole = server.ok("/v1/chat/completions", **asked)
    events = server.events("/v1/chat/completions", stream_options={"include_usage": True}, **asked)
    found = added_up(events)
    assert len(found) == len(whole["choices"]) == more.get("n", 1)
    for choice in whole["choices"]:
        one = found[choice["index"]]
        assert one["content"] == (choice["message"]["content"] or "") and one["reason"] == choice["finish_reason"] and one["roles"] == 1
        assert one["logprobs"] == choice["logprobs"]["content"]
        assert not any(stop in one["content"] for stop in more.get("stop", []))
    assert events[-1]["choices"] == [] and all(e["usage"] is None for e in events[:-1])
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] and events[-1]["seed"] == 5
    if more.get("n"):
        assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3


def test_a_seed_is_drawn_and_returned(server: Server) -> None:
    first = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=12, temperature=1.5)
    again = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=12, temperature=1.5, seed=first["seed"])
    assert again["choices"] == first["choices"]
    assert server.ok("/v1/chat/completions", messages=HELLO, max_tokens=1)["seed"] != first["seed"]


def test_cached_tokens_are_told(server: Server) -> None:
    long = [{"role": "user", "content": "Once upon a time there was a cat. " * 20}]
    server.ok("/v1/chat/completions", messages=long, max_tokens=1)
    assert server.ok("/v1/chat/completions", messages=long, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    other = server.ok("/v1/chat/completions", messages=long, max_tokens=1, user="somebody else")  # timing tells nobody another's prompt
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_messages_in_every_form(server: Server) -> None:
    """developer, content parts, refusals: the same prompt."""
    plain = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello\nyou"}]
    parts = [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]}]
    one, other = (server.ok("/v1/chat/completions", messages=m, max_tokens=10, temperature=0) for m in (plain, parts))
    assert one["choices"] == other["choices"] and one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]


def test_an_answer_can_be_begun(server: Server) -> None:
    whole = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=12, temperature=0)["choices"][0]["message"]["content"]
    begun = server.ok("/v1/chat/completions", messages=[*HELLO, {"role": "assistant", "content": " Once upon"}], max_tokens=8, temperature=0)
    assert whole.startswith(" Once upon" + begun["choices"][0]["message"]["content"])
    prompt = server.ok("/v1/chat/completions", messages=[*HELLO, {"role": "assistant", "content": "</s>"}], max_tokens=1, verbose=True)
    assert "</s>" in prompt["__verbose"]["prompt"] and 2 not in server.model.tokenize(prompt["__verbose"]["prompt"])[-3:]  # text, not the token


@pytest.mark.parametrize(("body", "param", "says"), [
    ({"messages": []}, "messages", "at least one"), ({"messages": "hi"}, "messages", "list"), ({}, "messages", "list"),
    ({"messages": [{}]}, "messages[0].role", "missing"), ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "one of"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"), ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]", "image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]", "input_audio"),
    ({"max_tokens": "many"}, "max_tokens", "whole number"), ({"n": 0}, "n", "from 1"), ({"n": 10**6}, "n", "to 16"), ({"temperature": -1}, "temperature", "0"),
    ({"top_p": 0}, None, "top_p"), ({"seed": 1.5}, "seed", "whole"), ({"stop": [5]}, "stop", "strings"), ({"stop": ["a"] * 99}, "stop", "at most"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token id"), ({"logit_bias": {"999999": 1}}, "logit_bias", "token id"),
    ({"top_logprobs": 5}, "top_logprobs", "needs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"), ({"response_format": {"type": "sound"}}, "response_format.type", "one of"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
    ({"response_format": {"type": "json_object", "schema": 123}}, "response_format", "schema"),
    ({"response_format": {"type": "json_object", "schema": {"type": "hiccup"}}}, None, "json_schema"), ({"regex": "("}, None, "regex"),
    ({"grammar": "root ::= this is (not valid GBNF"}, "grammar", "GBNF"), ({"regex": "a", "choices": ["b"]}, "response_format", "only one"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"), ({"tools": [{"type": "function"}]}, "tools[0]", "name"), ({"tools": [5]}, "tools[0]", "name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"), ({"tools": [CLOCK]}, None, "takes no tools"), ({"volume": 11}, "volume", "volume"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"), ({"stream_options": {"x": 1}}, "stream_options.x", "stream_options.x"),
    ({"stream": "yes"}, "stream", "true or false"), ({"messages": HELLO + [{"role": "assistant", "content": "a"}] * 2}, "messages", "both"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
     "messages[0].tool_calls[0].function.arguments", "object"), ({"n": 16, "max_tokens": 1, "temperature": float("1e300")}, "temperature", "100"),
])
def test_what_is_wrong_is_named(server: Server, body: dict[str, Any], param: str | None, says: str) -> None:
    answer = server.post("/v1/chat/completions", **{"messages": HELLO, "max_tokens": 4, **body} if body else {})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and says in error["message"] and "\n" not in error["message"], answer.text
    assert error["type"] in ("invalid_request_error",) and server.settled()


def test_what_does_not_fit_is_refused_whole(server: Server) -> None:
    for path, body in (("/v1/chat/completions", {"messages": [{"role": "user", "content": "story " * 2000}]}), ("/v1/completions", {"prompt": "story " * 2000}),
                       ("/v1/completions", {"prompt": [5] * 2000}), ("/v1/responses", {"input": "story " * 2000})):
        for stream in (False, True):
            answer = server.post(path, stream=stream, **body)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["type"] == "exceed_context_size_error"
            assert error["n_ctx"] == server.model.context < error["n_prompt_tokens"]
            assert "exceeds the available context size" in error["message"] and error["code"] == "context_length_exceeded"


def test_ignored_fields_are_listed(server: Server) -> None:
    answer = server.post("/v1/chat/completions", messages=HELLO, max_tokens=1, store=True, service_tier="auto", metadata=None)
    assert answer.status_code == 200 and answer.headers["x-llamina-ignored"] == "service_tier, store"


def test_answers_obey_their_form(server: Server) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["Lily", "Tom"]}, "age": {"type": "integer", "minimum": 1, "maximum": 9}},
              "required": ["name", "age"], "additionalProperties": False}
    format = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    found = json.loads(server.ok("/v1/chat/completions", messages=HELLO, response_format=format)["choices"][0]["message"]["content"])
    assert found["name"] in ("Lily", "Tom") and 1 <= found["age"] <= 9
    for asked, expected in (({"grammar": 'root ::= "a"{5,5}'}, "aaaaa"), ({"regex": "[x]{3}"}, "xxx"), ({"choices": ["yes", "yes!"]}, "yes")):
        answer = server.ok("/v1/chat/completions", messages=HELLO, temperature=0, **asked)["choices"][0]
        assert answer["message"]["content"].startswith(expected) and answer["finish_reason"] == "stop"


# -- tools --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tools", "choice", "names"), [
    ([WEATHER], "required", {"weather"}), ([WEATHER, CLOCK], "required", {"weather", "clock"}),
    ([CLOCK, WEATHER], {"type": "function", "function": {"name": "weather"}}, {"weather"})])
def test_forced_calls_always_parse(tooled: Server, tools: list[Any], choice: Any, names: set[str]) -> None:
    for seed in range(4):
        asked = {"messages": HELLO, "tools": tools, "tool_choice": choice, "seed": seed, "temperature": 1.2, "max_tokens": 300}
        whole = tooled.ok("/v1/chat/completions", **asked)["choices"][0]
        streamed = added_up(tooled.events("/v1/chat/completions", **asked))[0]
        (call,) = whole["message"]["tool_calls"]
        assert whole["finish_reason"] == streamed["reason"] == "tool_calls" and whole["message"]["content"] is None and not streamed["content"]
        assert call["function"]["name"] in names and call["id"]
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "weather":
            assert arguments.keys() == {"city", "days"} and arguments["city"] in ("Paris", "Rome")
        (other,) = streamed["calls"].values()
        assert (other["name"], other["arguments"]) == (call["function"]["name"], call["function"]["arguments"])


def test_calls_that_the_model_makes_by_itself(tooled: Server) -> None:
    """auto: what the template's markers enclose is a call (a grammar stands for a model that knows tools)."""
    from llamina.engine.serve.conversation import Answer, ChatAsked

    class Ended:
        finish_reason, history, stats = "eos", [1], SimpleNamespace(prompt_tokens=1)
        from llamina.engine.text.tool_calls import ToolCall
        tool_calls = [ToolCall("clock", {}, "a"), ToolCall("weather", {"city": "Rome"}, "b")]
    for parallel, n in ((True, 2), (False, 1)):
        answer = Answer(tooled.model, ChatAsked(parallel=parallel), Ended())  # type: ignore[arg-type]
        parts = answer.push("I look", False) + answer.push("", True)
        assert [p.kind for p in parts] == ["said"] + ["call", "arguments"] * n and answer.finish_reason == "tool_calls"
        assert [json.loads(c["arguments"]) for c in answer.calls] == [{}, {"city": "Rome"}][:n]
    for choice in ("auto", "none"):
        asked = {"messages": HELLO, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 8, "verbose": True}
        answer = tooled.ok("/v1/chat/completions", **asked)
        assert answer["choices"][0]["message"]["content"] and ("weather" in answer["__verbose"]["prompt"]) == (choice == "auto")


def test_a_conversation_with_calls(tooled: Server) -> None:
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]
    answer = tooled.ok("/v1/chat/completions", messages=messages, tools=[WEATHER], max_tokens=4, verbose=True)
    assert '"arguments": {"city": "Rome"}' in answer["__verbose"]["prompt"] and "tool: sunny" in answer["__verbose"]["prompt"]


def test_thoughts_are_split_from_the_answer(tooled: Server) -> None:
    """The template opens <think>; the grammar makes the demo close it."""
    asked = {"messages": HELLO, "chat_template_kwargs": {"thinking": True}, "max_tokens": 12, "temperature": 0}
    message = tooled.ok("/v1/chat/completions", **asked)["choices"][0]["message"]
    assert message["content"] == "" and message["reasoning_content"] == message["reasoning"] != ""
    streamed = added_up(tooled.events("/v1/chat/completions", **asked))[0]
    assert streamed["reasoning_content"] == message["reasoning"] and streamed["content"] == ""
    from llamina.engine.serve.conversation import Answer, ChatAsked  # the same if the engine was there first
    ended = tooled.model.chat(HELLO, template_options={"thinking": True}, max_tokens=12, temperature=0)
    late = ended.text() and Answer(tooled.model, ChatAsked(), ended)
    assert [p.kind for p in late.push(ended.so_far, True)] == ["thought"] and late.reasoning == message["reasoning"]
    raw = tooled.ok("/v1/chat/completions", reasoning_format="none", **asked)["choices"][0]["message"]
    assert raw["content"].strip() == message["reasoning"].strip() and "reasoning" not in raw
    held = tooled.ok("/v1/chat/completions", **{**asked, "choices": ["yes", "no"], "verbose": True})  # the form holds for the answer, not for the thoughts
    assert held["choices"][0]["message"]["content"] in ("yes", "no") and held["__verbose"]["prompt"].endswith("</think>\n\n")


# -- completions --------------------------------------------------------------------------------------------------------------------------


def test_completions_of_texts_and_ids(server: Server) -> None:
    ids = server.model.tokenize("Once upon a time")
    asked = {"max_tokens": 10, "temperature": 0}
    alone = server.model.generate("Once upon a time", max_tokens=10, temperature=0).text()
    assert server.ok("/v1/completions", prompt="Once upon a time", **asked)["choices"][0]["text"] == alone
    assert server.ok("/v1/completions", prompt=ids, **asked)["choices"][0]["text"] == alone
    many = server.ok("/v1/completions", prompt=["Once upon a time", "The cat"], n=2, **asked)
    assert [c["text"] for c in many["choices"]][:2] == [alone] * 2 and [c["index"] for c in many["choices"]] == [0, 1, 2, 3]
    assert many["usage"]["prompt_tokens"] == len(ids) + len(server.model.tokenize("The cat")) and many["usage"]["completion_tokens"] == 40
    assert server.ok("/v1/completions", prompt=[ids, ids], **asked)["choices"][1]["text"] == alone
    assert server.ok("/v1/completions", prompt="Once", temperature=0)["usage"]["completion_tokens"] == 16  # OpenAI's default


def test_completions_echo_with_the_prompts_logprobs(server: Server) -> None:
    """What lm-eval asks: the prompt again, with the log-probability of each of its tokens."""
    text = "Once upon a time"
    ids = server.model.tokenize(text)
    for more in ({"max_tokens": 0}, {"max_tokens": 5}):
        answer = server.ok("/v1/completions", prompt=text, echo=True, logprobs=2, temperature=0, **more)["choices"][0]
        told, expected = answer["logprobs"], server.model.logprobs(ids, 2)
        assert answer["text"].startswith(text) and len(told["tokens"]) == len(ids) + more["max_tokens"] == len(told["text_offset"])
        assert told["token_logprobs"][:len(ids)] == [None, *(t.logprob for t in expected)] and told["top_logprobs"][0] is None
        assert all(t <= 0 for t in told["token_logprobs"][1:])
        events = server.events("/v1/completions", prompt=text, echo=True, logprobs=2, temperature=0, **more)
        assert "".join(e["choices"][0]["text"] for e in events) == answer["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [x for e in events for x in (e["choices"][0]["logprobs"] or {}).get(name, [])] == told[name]


@pytest.mark.parametrize(("body", "says"), [
    ({"prompt": 5}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": {}}, "prompt"),
    ({"prompt": [10**9]}, "vocabulary"), ({"best_of": 3}, "best_of"), ({"suffix": "x"}, "suffix"), ({"logprobs": 21}, "logprobs"),
    ({"prompt": ["a"] * 1000}, "256")])
def test_completions_refuse(server: Server, body: dict[str, Any], says: str) -> None:
    answer = server.post("/v1/completions", **{"prompt": "Once", **body})
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


# -- models, embeddings -------------------------------------------------------------------------------------------------------------------


def test_models(server: Server) -> None:
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["id"] == "demo" and model["meta"]["n_ctx"] == model["max_model_len"] == model["context_length"] == server.model.context
    assert server.http.get("/v1/models/demo").json() == model and server.http.get("/v1/models/other").status_code == 404
    assert server.http.get("/v1/nothing").json()["error"]["type"] == "not_found_error" and server.http.get("/v1/completions").status_code == 405
