"""POST /v1/responses (https://platform.openai.com/docs/api-reference/responses), without memory: what was said before comes with each request.

    input items -> messages of a chat -> answers -> Answer's parts -> output items: reasoning, message, function_call
"""
from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import quoted
from .asked import MAX_TOP_LOGPROBS, limit, obey_format, sampling, stops
from .call import Call
from .conversation import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Answer,
    ChatAsked,
    Part,
    answers,
    choose,
    prompt_ids,
    read_messages,
    read_tools,
    template_options,
)
from .engine import Ticket
from .errors import ApiError, of
from .fields import Fields
from .openai_chat import IGNORED, salt_of
from .shapes import chat_logprobs, progress, timings, usage
from .sse import event

if TYPE_CHECKING:
    from ..model import Model

ALSO_IGNORED = {"store", "include", "truncation", "reasoning", "background", "max_tool_calls", "stream_options"}
STATEFUL = ("previous_response_id", "conversation", "prompt")


def read(body: Fields, model: Model, defaults: dict[str, Any]) -> ChatAsked:
    """ApiError; also for what would need a memory of earlier requests."""
    for name in STATEFUL:
        if body.any(name) is not None:
            raise ApiError(400, f"{name} is not supported: this server keeps nothing between requests; send the whole conversation as input", name,
                           "unsupported_parameter")
    if body.truth("background"):
        raise ApiError(400, "background is not supported: this server keeps nothing between requests", "background", "unsupported_parameter")
    asked = ChatAsked(messages=read_messages(read_input(body.any("input"), body.text("instructions")), "input"))
    options = sampling(body, model.config.n_vocab, defaults)
    text = body.sub("text")
    format = {} if text is None else obey_format(text, "format")
    if text is not None:
        text.done({"verbosity"})
    asked.options = {**options, "max_tokens": limit(body, defaults, "max_output_tokens"), "stop": stops(body), **format}
    asked.top_logprobs = body.integer("top_logprobs", None, 0, MAX_TOP_LOGPROBS)
    asked.stream, asked.timings_per_token, asked.return_progress = body.truth("stream"), body.truth("timings_per_token"), body.truth("return_progress")
    choose(asked, _tools(body.list("tools", None, MAX_TOOLS)), body.any("tool_choice", "auto"))
    asked.parallel = body.truth("parallel_tool_calls", True)
    asked.template_options = template_options(body.object("chat_template_kwargs", {}))
    return asked


def _tools(given: list[Any] | None) -> list[dict[str, Any]] | None:
    """{"type": "function", "name", "parameters", …} -> chat's form."""
    return read_tools([{"type": t.get("type"), "function": {k: v for k, v in t.items() if k in ("name", "description", "parameters")}}
                       if isinstance(t, dict) and "function" not in t else t for t in given or []])


def read_input(given: Any, instructions: str | None) -> list[Any]:
    """A text, or items -> chat messages; one message for each place, so that errors name the right one, but for calls, which the last answer takes up."""
    first = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*first, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given or len(given) > MAX_MESSAGES:
        raise ApiError(400, f"input must be a string or a list of 1 to {MAX_MESSAGES} items, found {quoted(given, 60)}", "input")
    found: list[Any] = first
    for i, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            found.append({k: v for k, v in item.items() if k not in ("type", "id", "status", "phase")})
        elif kind == "function_call":
            call = {"id": item.get("call_id"), "type": "function", "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
            if not (found and found[-1].get("role") == "assistant"):
                found.append({"role": "assistant", "content": None})
            before = found[-1].get("tool_calls")
            if isinstance(before, list) or before is None:  # else it is refused with the message
                found[-1]["tool_calls"] = [*(before or []), call]
        elif kind == "function_call_output":
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":  # thoughts of earlier answers are not read again
            raise ApiError(400, f"input[{i}]: items of the type {quoted(kind, 40)} are not supported", f"input[{i}]", "unsupported_content")
    return found


async def responses(request: Request) -> Response:
    """The next items of a conversation."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        asked, salt = read(body, model, call.defaults()), salt_of(body)
        metadata, instructions = body.object("metadata", {}), body.text("instructions")
        call.ignored = body.done(IGNORED | ALSO_IGNORED)
        ticket = await call.start(lambda: answers(model, asked), salt)
        common = {"id": "resp_" + secrets.token_hex(12), "object": "response", "created_at": int(time.time()), "model": served.name,
                  "system_fingerprint": served.fingerprint, "error": None, "incomplete_details": None, "instructions": instructions, "metadata": metadata,
                  "parallel_tool_calls": asked.parallel, "temperature": asked.options.get("temperature"), "top_p": asked.options.get("top_p"),
                  "tool_choice": "auto" if asked.choice != "none" else "none", "tools": [], "store": False, "previous_response_id": None,
                  "max_output_tokens": asked.options["max_tokens"]}
        output = Output(model, asked, ticket, common)
        return call.stream(output.pieces()) if asked.stream else await call.whole(lambda t: output.whole())


async def input_tokens(request: Request) -> Response:
    """POST /v1/responses/input_tokens: how many tokens a request's prompt has."""
    async with Call(request) as call:
        body = await call.body()
        model, _ = (await call.model(body.text("model"))).loaded
        asked, _, _ = read(body, model, call.defaults()), salt_of(body), body.object("metadata")
        call.ignored = body.done(IGNORED | ALSO_IGNORED)
        ids, _ = await call.make(lambda: prompt_ids(model, asked))
        return call.json({"object": "response.input_tokens", "input_tokens": len(ids)})


class Output:
    """The answer as output items, made one after the other; each part of it as the events that tell of it."""

    def __init__(self, model: Model, asked: ChatAsked, ticket: Ticket, common: dict[str, Any]) -> None:
        self._model, self._asked, self._ticket, self._common = model, asked, ticket, common
        self._generation = ticket.generations[0]
        self._answer = Answer(model, asked, self._generation)
        self._items: list[dict[str, Any]] = []
        self._sequence = 0
        self._logprobs: list[Any] = []

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        return {**self._common, "status": status, "output": self._items, "usage": None, **more}

    def _ended(self) -> dict[str, Any]:
        if self._generation.finish_reason in ("length", "context"):
            return self._response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=self._usage())
        return self._response("completed", usage=self._usage())

    def _usage(self) -> dict[str, Any]:
        found = usage([self._generation])
        return {"input_tokens": found["prompt_tokens"], "input_tokens_details": found["prompt_tokens_details"], "output_tokens": found["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": found["total_tokens"]}

    async def whole(self) -> dict[str, Any]:
        async for e in self._ticket:
            if e.error is not None:
                raise of(e.error)
            self._logprobs += e.logprobs
            for part in self._answer.push(e.text, e.finish_reason is not None):
                self._part(part)
        self._close()
        return {**self._ended(), "seed": self._generation.stats.seed, "timings": timings(self._generation)}

    async def pieces(self) -> AsyncIterator[str]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        async for e in self._ticket:
            if e.error is not None:
                failed = of(e.error)
                yield self._event("response.failed", response=self._response("failed", error={"code": "server_error", "message": failed.message}))
                return
            if e.prompt is not None:
                if self._asked.return_progress:
                    yield self._event("response.in_progress", response=self._response("in_progress"), **progress(e.prompt))
                continue
            self._logprobs += e.logprobs
            more = {"timings": timings(self._generation)} if self._asked.timings_per_token else {}
            for part in self._answer.push(e.text, e.finish_reason is not None):
                for name, fields in self._part(part):
                    yield self._event(name, **fields, **more)
        for name, fields in self._close():
            yield self._event(name, **fields)
        ended = self._ended()
        yield self._event("response." + ended["status"], response={**ended, "seed": self._generation.stats.seed}, timings=timings(self._generation))

    def _event(self, name: str, /, **fields: Any) -> str:
        self._sequence += 1
        return event({"type": name, "sequence_number": self._sequence - 1, **fields}, name)

    def _part(self, part: Part) -> list[tuple[str, dict[str, Any]]]:
        """The items grow by a part -> events."""
        kind = {"said": "message", "thought": "reasoning", "call": "function_call", "arguments": "function_call"}[part.kind]
        told = []
        if part.kind == "call" or not self._items or self._items[-1]["type"] != kind:
            told = self._close() + self._begin(kind, part)
        item = self._items[-1]
        at = {"item_id": item["id"], "output_index": len(self._items) - 1}
        if part.kind == "said":
            item["content"][0]["text"] += part.text
            told.append(("response.output_text.delta", {**at, "content_index": 0, "delta": part.text, "logprobs": self._take_logprobs(item)}))
        elif part.kind == "thought":
            item["content"][0]["text"] += part.text
            told.append(("response.reasoning_text.delta", {**at, "content_index": 0, "delta": part.text}))
        elif part.kind == "arguments":
            item["arguments"] += part.text
            told.append(("response.function_call_arguments.delta", {**at, "delta": part.text}))
        return told

    def _take_logprobs(self, item: dict[str, Any]) -> list[Any]:
        if self._asked.top_logprobs is None:
            return []
        found, self._logprobs = chat_logprobs(self._model.tokenizer, self._logprobs)["content"], []
        item["content"][0]["logprobs"] += found
        return found

    def _begin(self, kind: str, part: Part) -> list[tuple[str, dict[str, Any]]]:
        id = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}[kind] + secrets.token_hex(12)
        item: dict[str, Any] = {"id": id, "type": kind, "status": "in_progress"}
        own: dict[str, dict[str, Any]] = {"message": {"role": "assistant", "content": []}, "reasoning": {"summary": [], "content": []},
                                          "function_call": {"call_id": part.id, "name": part.name, "arguments": ""}}
        item |= own[kind]
        self._items.append(item)
        at = {"output_index": len(self._items) - 1}
        told: list[tuple[str, dict[str, Any]]] = [("response.output_item.added", {**at, "item": _copy(item)})]
        if kind != "function_call":
            item["content"].append({"type": "output_text", "text": "", "annotations": [], "logprobs": []} if kind == "message"
                                   else {"type": "reasoning_text", "text": ""})
            told.append(("response.content_part.added", {**at, "item_id": id, "content_index": 0, "part": dict(item["content"][0])}))
        return told

    def _close(self) -> list[tuple[str, dict[str, Any]]]:
        """The last item, if one is open, is done."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return []
        item = self._items[-1]
        at = {"item_id": item["id"], "output_index": len(self._items) - 1}
        told: list[tuple[str, dict[str, Any]]] = []
        if item["type"] == "function_call":
            told.append(("response.function_call_arguments.done", {**at, "name": item["name"], "arguments": item["arguments"]}))
        else:
            part = item["content"][0]
            kind, more = ("output_text", {"logprobs": part["logprobs"]}) if item["type"] == "message" else ("reasoning_text", {})
            told.append((f"response.{kind}.done", {**at, "content_index": 0, "text": part["text"], **more}))
            told.append(("response.content_part.done", {**at, "content_index": 0, "part": part}))
        item["status"] = "completed"
        told.append(("response.output_item.done", {"output_index": at["output_index"], "item": item}))
        return told


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in item.items()}
