"""engine/serve through the clients that people use: openai-python and anthropic's."""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import TEMPLATE, Server, serving

HELLO: list[Any] = [{"role": "user", "content": "Tell me a story"}]
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2]}}, "required": ["city", "days"],
           "additionalProperties": False}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(TEMPLATE) as found:
        yield found


@pytest.fixture(scope="module")
def openai(server: Server) -> Any:
    openai = pytest.importorskip("openai", reason="the client openai is not installed")
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def anthropic(server: Server) -> Any:
    anthropic = pytest.importorskip("anthropic", reason="the client anthropic is not installed")
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


# -- openai -------------------------------------------------------------------------------------------------------------------------------


def test_openai_chat(openai: Any, server: Server) -> None:
    answer = openai.chat.completions.create(model="demo", messages=HELLO, max_tokens=20, seed=1, logprobs=True, top_logprobs=3)
    assert answer.choices[0].message.content == server.model.chat(HELLO, max_tokens=20, seed=1).text()
    assert "".join(t.token for t in answer.choices[0].logprobs.content) == answer.choices[0].message.content and len(answer.choices[0].logprobs.content) == 20
    stream = openai.chat.completions.create(model="demo", messages=HELLO, max_tokens=20, seed=1, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer.choices[0].message.content
    assert chunks[-1].usage == answer.usage.model_copy(update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details})
    assert openai.models.list().data[0].id == "demo"


def test_openai_errors(openai: Any) -> None:
    import openai as library
    with pytest.raises(library.BadRequestError, match="at most 20|from 0 to 20") as caught:
        openai.chat.completions.create(model="demo", messages=HELLO, logprobs=True, top_logprobs=50)
    assert caught.value.param == "top_logprobs" and caught.value.type == "invalid_request_error"
    with pytest.raises(library.BadRequestError, match="dimensions"):
        openai.embeddings.create(model="demo", input="a", dimensions=-1)


def test_openai_completions(openai: Any) -> None:
    answer = openai.completions.create(model="demo", prompt=["Once", "The"], max_tokens=5, logprobs=1, temperature=0)
    streamed = ["", ""]
    for chunk in openai.completions.create(model="demo", prompt=["Once", "The"], max_tokens=5, temperature=0, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert [c.text for c in answer.choices] == streamed and len(answer.choices[1].logprobs.tokens) == 5


def test_openai_tools(openai: Any) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}]
    answer = openai.chat.completions.create(model="demo", messages=HELLO, tools=tools, tool_choice="required", seed=2)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    with openai.chat.completions.stream(model="demo", messages=HELLO, tools=tools, tool_choice="required", seed=2) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    more = [*HELLO, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert openai.chat.completions.create(model="demo", messages=more, tools=tools, max_tokens=4).choices[0].message.content


def test_openai_parse(openai: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    from typing import Literal
    person = pydantic.create_model("Person", name=(Literal["Lily", "Tom"], ...), friends=(bool, ...))
    answer = openai.chat.completions.parse(model="demo", messages=HELLO, response_format=person)
    assert answer.choices[0].message.parsed.name in ("Lily", "Tom") and answer.choices[0].message.parsed.friends in (True, False)
    assert openai.responses.parse(model="demo", input=HELLO, text_format=person).output_parsed.name in ("Lily", "Tom")


def test_openai_responses(openai: Any, server: Server) -> None:
    asked = {"model": "demo", "input": HELLO, "max_output_tokens": 16, "temperature": 0, "instructions": "Be kind"}
    answer = openai.responses.create(**asked)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens" and answer.usage.output_tokens == 16
    chat = server.model.chat([{"role": "system", "content": "Be kind"}, *HELLO], max_tokens=16, temperature=0).text()
    assert answer.output_text == chat and answer.output[0].id.startswith("msg_")
    kinds, text = [], ""
    for e in openai.responses.create(stream=True, **asked):
        kinds.append(e.type)
        text += e.delta if e.type == "response.output_text.delta" else ""
        assert e.sequence_number == len(kinds) - 1
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"] and text == chat
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"]
    assert e.response.output_text == chat


def test_openai_responses_with_tools(openai: Any) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    answer = openai.responses.create(model="demo", input="weather?", tools=tools, tool_choice={"type": "function", "name": "weather"}, temperature=0)
    call = answer.output[0]
    assert answer.status == "completed" and call.type == "function_call" and json.loads(call.arguments).keys() == {"city", "days"}
    events = list(openai.responses.create(model="demo", input="weather?", tools=tools, tool_choice="required", temperature=0, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == call.arguments
    more = [{"role": "user", "content": "weather?"}, *answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    assert openai.responses.create(model="demo", input=more, max_output_tokens=4).output_text
    import openai as library
    with pytest.raises(library.BadRequestError, match="keeps nothing between requests"):
        openai.responses.create(model="demo", input="a", previous_response_id="resp_1")
    with pytest.raises(library.BadRequestError, match="input_image"):
        openai.responses.create(model="demo", input=[{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}])


# -- anthropic ----------------------------------------------------------------------------------------------------------------------------


def test_anthropic_messages(anthropic: Any, server: Server) -> None:
    asked = {"model": "demo", "max_tokens": 16, "messages": HELLO, "system": "Be kind", "extra_body": {"temperature": 0}}
    answer = anthropic.messages.create(**asked)
    chat = server.model.chat([{"role": "system", "content": "Be kind"}, *HELLO], max_tokens=16, temperature=0).text()
    assert answer.content[0].text == chat and answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 16
    with anthropic.messages.stream(**asked) as stream:
        events = [e.type for e in stream]
    assert stream.get_final_message().content[0].text == chat
    assert [e for i, e in enumerate(events) if e not in events[:i] and e != "text"] == \
        ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"]
    counted = anthropic.messages.count_tokens(model="demo", messages=HELLO, system=[{"type": "text", "text": "Be kind"}]).input_tokens
    assert counted == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    word = chat.split()[3]
    stopped = anthropic.messages.create(stop_sequences=["never", word], **asked)
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == word and word not in stopped.content[0].text
    begun = anthropic.messages.create(**{**asked, "messages": [*HELLO, {"role": "assistant", "content": chat[:12]}]})
    assert begun.content[0].text and begun.usage.input_tokens + begun.usage.cache_read_input_tokens > counted


def test_anthropic_tools(anthropic: Any) -> None:
    tools = [{"name": "weather", "description": "of a city", "input_schema": WEATHER}]
    asked = {"model": "demo", "max_tokens": 100, "tools": tools, "tool_choice": {"type": "any"}, "extra_body": {"temperature": 0}}
    answer = anthropic.messages.create(messages=HELLO, **asked)
    (block,) = answer.content
    assert answer.stop_reason == "tool_use" and block.type == "tool_use" and block.name == "weather" and block.input.keys() == {"city", "days"}
    with anthropic.messages.stream(messages=HELLO, **asked) as stream:
        assert stream.get_final_message().content[0].input == block.input
    more = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "sunny"}]}, {"type": "text", "text": "And?"}]}]
    assert anthropic.messages.create(messages=more, model="demo", max_tokens=4, tools=tools).content[0].text


def test_anthropic_errors(anthropic: Any, server: Server) -> None:
    import anthropic as library
    with pytest.raises(library.BadRequestError, match="image"):
        anthropic.messages.create(model="demo", max_tokens=4, messages=[{"role": "user", "content": [{"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]}])
    for body in ({}, {"messages": HELLO}, {"messages": [], "max_tokens": 4}, {"messages": [{"role": "user", "content": []}], "max_tokens": 4},
                 {"messages": HELLO, "max_tokens": 4, "tool_choice": {"type": "any"}}, {"messages": HELLO, "max_tokens": 4, "volume": 11},
                 {"messages": [{"role": "user", "content": "long " * 3000}], "max_tokens": 4}):
        answer = server.post("/v1/messages", **body)
        assert answer.status_code == 400 and answer.json()["type"] == "error" and answer.json()["error"]["type"] == "invalid_request_error"
    assert server.settled()
