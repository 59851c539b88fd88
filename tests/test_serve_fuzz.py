"""Whatever a stranger sends to any endpoint: an answer, or a refusal that says what is wrong. Never a fault of ours, a hang, or something left behind.

Every value of a good request in turn becomes every wrong one. The suite takes a part of them at random; LLAMINA_SERVE_FUZZ=1 sends all.
"""
from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from adapters import random_adapter
from serving import TEMPLATE, Server, serving

DEEP: Any = []
for _ in range(50):
    DEEP = [DEEP]
WRONG: list[Any] = [None, True, False, 0, -1, 1.5, -0.0, 1e308, 10**400, 2**63, 2**31, "", "x", "a\u0000b", "\u202e😀\ufffe", "\\", "{{ 1/0 }}", [], [[]],
                    [None], [True],
                    [""], ["x", 5], [1e308], [10**400], [-1], {}, {"": {}}, {"type": []}, {"type": "text"}, {"type": "text", "text": 5}, {"role": "user"},
                    {"function": 5}, [{"type": "function"}], [{"type": "function", "function": {"name": []}}],
                    [{"type": "function", "function": {"name": "f", "parameters": 5}}],
                    DEEP, {"a": DEEP}, "y" * 100_000, [{"role": "assistant", "content": None, "tool_calls": 5}]]
SAY = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD: dict[str, list[Any]] = {
    "/v1/chat/completions": [
        {"messages": [*SAY, {"role": "assistant", "content": "a", "tool_calls": [CALLED]},
                      {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "1"}]}],
         "max_tokens": 1, "tools": [{"type": "function", "function": TOOL}], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"messages": SAY, "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "stop": ["x"],
         "logit_bias": {"5": 1}, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, "user": "me", "n": 1},
        {"messages": SAY, "max_tokens": 1, "chat_template_kwargs": {"thinking": True}, "cache_salt": "s", "samplers": ["top_k"], "dry_sequence_breakers": ["x"],
         "seed": 1, "temperature": 1, "top_p": 1, "top_k": 3, "min_p": 0.1, "regex": "a"}],
    "/v1/completions": [{"prompt": ["Hi", [5, 6]], "max_tokens": 1, "echo": True, "logprobs": 1, "n": 1, "best_of": 1, "suffix": "", "stop": "x",
                         "stream": False}],
    "/v1/responses": [
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                   {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
                   {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c", "output": "1"},
                   {"type": "reasoning", "summary": []}, {"role": "user", "content": "b"}],
         "instructions": "i", "max_output_tokens": 1, "tools": [{"type": "function", **TOOL}], "tool_choice": "auto", "metadata": {"a": "b"}},
        {"input": "Hi", "max_output_tokens": 1, "stream": True, "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
         "top_logprobs": 1, "reasoning": {"effort": "low"}}],
    "/v1/messages": [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                      {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"},
                                                        {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "1"}]}]}],
         "system": [{"type": "text", "text": "s"}], "max_tokens": 1, "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
         "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}, "metadata": {"user_id": "u"}, "stop_sequences": ["x"]}],
    "/v1/messages/count_tokens": [{"messages": SAY, "system": "s"}],
    "/v1/embeddings": [{"input": ["Hi", [5, 6], {"prompt_string": "x"}, {"content": [{"type": "text", "text": "a"}]}], "encoding_format": "base64",
                        "dimensions": 8, "input_type": "query", "user": "u"}],
    "/embedding": [{"content": [["Hi", 5], "b"], "embd_normalize": 2}],
    "/v1/rerank": [{"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True, "judge": ["the", "a"], "instruction": "i"},
                   {"query": "q", "texts": ["a"], "return_text": True, "judge": ["the", "a"], "truncate": True}],
    "/completion": [{"prompt": [["Hi", 5], {"prompt_string": "x"}], "n_predict": 1, "n_probs": 2, "post_sampling_probs": True,
                     "logit_bias": [[5, 1], ["a", False]], "response_fields": ["content"], "stop": ["x"], "n_keep": 1,
                     "grammar": 'root ::= "a"', "samplers": ["top_k"], "stream": True}],
    "/tokenize": [{"content": ["a", 5], "add_special": True, "with_pieces": True}, {"prompt": "a", "add_special_tokens": True}],
    "/detokenize": [{"tokens": [5, 6]}],
    "/apply-template": [{"messages": SAY, "tools": [{"type": "function", "function": TOOL}], "chat_template_kwargs": {"thinking": True}}],
    "/trace": [{"messages": SAY, "answer": [5, 6], "lens": True, "top": 2}, {"prompt": ["a", 5], "first": 0}],
    "/api/chat": [{"messages": [{"role": "user", "content": "Hi", "images": []},
                                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                                {"role": "tool", "content": "1", "tool_name": "f"}],
                   "options": {"num_predict": 1, "stop": ["x"], "temperature": 1}, "format": {"type": "object"},
                   "tools": [{"type": "function", "function": TOOL}], "think": False, "keep_alive": "5m"}],
    "/api/generate": [{"prompt": "Hi", "system": "s", "raw": False, "options": {"num_predict": 1}, "format": "json", "stream": False, "images": [],
                       "context": [1]}],
    "/api/embed": [{"input": ["Hi", "b"], "truncate": True, "dimensions": 8, "options": {}}],
    "/api/embeddings": [{"prompt": "Hi", "options": {}}],
    "/api/show": [{"model": "demo", "verbose": True}],
    "/lora-adapters": [[{"id": 0, "scale": 0.5}, {"name": "two", "scale": -1.0}], []],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value, itself included."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    body = copy.deepcopy(body)
    here = body
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return body


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(TEMPLATE, parallel=4) as found:
        for seed, name in enumerate(("one", "two")):
            found.model.add_adapter(random_adapter(found.model.config, seed=seed, only=lambda name: name.endswith("attn_q.weight")), name=name, default=False)
        yield found


def test_the_good_ones(server: Server) -> None:
    """What is made wrong is right, and every endpoint is there."""
    for path, bodies in GOOD.items():
        for body in bodies:
            answer = server.http.post(path, json=body)
            assert answer.status_code == 200, (path, answer.text)
    told = server.http.get("/openapi.json").json()["paths"]
    same = {"/chat/completions", "/chat/completions/input_tokens", "/v1/chat/completions/input_tokens", "/responses", "/responses/input_tokens",
            "/v1/responses/input_tokens", "/rerank", "/embeddings", "/completions"}
    assert {path for path, about in told.items() if "post" in about} == set(GOOD) | same


@pytest.mark.parametrize("path", GOOD)
def test_wrong_values_everywhere(server: Server, path: str) -> None:
    cases = [(body, at, wrong) for body in GOOD[path] for at in places(body) for wrong in WRONG]
    if not os.environ.get("LLAMINA_SERVE_FUZZ"):
        cases = random.Random(path).sample(cases, min(len(cases), 20))
    for body, at, wrong in cases:
        sent = json.dumps(replaced(body, at, wrong))
        answer = server.http.post(path, content=sent, headers={"content-type": "application/json"})
        assert answer.status_code < 500 and "fault of llamina" not in answer.text, (at, repr(wrong)[:80], answer.text[:300])
        if answer.status_code >= 400:
            assert answer.json()["error"], (at, answer.text)
    assert server.settled() and server.http.get("/health").status_code == 200


@pytest.mark.parametrize("path", GOOD)
def test_what_is_no_json(server: Server, path: str) -> None:
    body = json.dumps(GOOD[path][0])
    for sent in (body.replace(": ", ": NaN, \"q\": ", 1), body.replace("Hi", "\\ud800"), body.replace("1", "-Infinity", 1), "[" * 100_000, '{"a":' * 5000,
                 body[:-1], body + "x", "\ufeff\ufeff" + body, '{"model": "demo", "model": "demo"}', body.replace('"', "'"), "1" * 5000, ""):
        answer = server.http.post(path, content=sent.encode(), headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 422) and "fault of llamina" not in answer.text, (sent[:80], answer.text[:200])
