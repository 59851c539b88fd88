"""POST /v1/messages and /v1/messages/count_tokens (https://docs.anthropic.com/en/api/messages).

    system, messages of blocks -> messages of a chat -> answers -> Answer's parts -> content blocks: thinking, text, tool_use
"""
from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import quoted
from .asked import MAX_STOP, MAX_STOPS, obey_format, sampling
from .call import Call
from .conversation import MAX_MESSAGES, MAX_TOOLS, Answer, ChatAsked, Part, answers, choose, prompt_ids, read_messages, read_tools, with_begun
from .engine import Ticket
from .errors import ApiError, of
from .fields import Fields
from .sse import event

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model

IGNORED = {"metadata", "service_tier", "thinking", "container", "context_management", "mcp_servers", "output_config", "cache_control", "inference_geo"}
REASONS = {"eos": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "context": "max_tokens"}


def read(body: Fields, model: Model, defaults: dict[str, Any], counting: bool = False) -> ChatAsked:
    """ApiError. counting: for the length of the prompt alone, which needs no max_tokens."""
    system = [] if (given := body.any("system")) is None else [{"role": "system", "content": _texts(given, "system")}]
    asked = ChatAsked(messages=read_messages([*system, *read_blocks(body.any("messages"))]))
    most = body.integer("max_tokens", None, 1, 1 << 31)
    if most is None and not counting:
        raise ApiError(400, "max_tokens is missing", "max_tokens")
    stop = [s for s in body.strings("stop_sequences", MAX_STOPS, MAX_STOP) if s]
    asked.options = {**sampling(body, model.config.n_vocab, defaults), "max_tokens": most, "stop": stop}
    config = body.sub("output_config")
    if config is not None:
        asked.options |= obey_format(config, "format")
    asked.stream = body.truth("stream")
    tools = read_tools([{"type": "function", "function": {"name": tool.get("name"), "description": tool.get("description", ""),
                                                          "parameters": tool.get("input_schema")}} if isinstance(tool, dict) else tool
                        for tool in body.list("tools", [], MAX_TOOLS)])
    choice = body.sub("tool_choice")
    if choice is None:
        choose(asked, tools, "auto")
    else:
        kind, name = choice.text("type", "auto", ("auto", "any", "none", "tool")), choice.text("name")
        asked.parallel = not choice.truth("disable_parallel_tool_use")
        choose(asked, tools, {"name": name} if kind == "tool" else {"any": "required"}.get(kind, kind))
        choice.done()
    with_begun(asked, Fields({}))
    return asked


def read_blocks(given: Any) -> list[dict[str, Any]]:
    """Messages of blocks -> OpenAI's: results of tools are messages of their own, calls of them a field."""
    if not isinstance(given, list) or not given or len(given) > MAX_MESSAGES:
        raise ApiError(400, f"messages must be a list of 1 to {MAX_MESSAGES} messages, found {quoted(given, 60)}", "messages")
    found: list[dict[str, Any]] = []
    for i, one in enumerate(given):
        where = f"messages[{i}]"
        fields = Fields(one, where + ".")
        role, content = fields.text("role", "", ("user", "assistant", "system")), fields.any("content")
        fields.done({"cache_control"})
        if not role or content is None:
            raise ApiError(400, f"{where}.{'content' if role else 'role'} is missing", where)
        if isinstance(content, str):
            found.append({"role": role, "content": content})
            continue
        if not isinstance(content, list):
            raise ApiError(400, f"{where}.content must be a string or a list of blocks, found {quoted(content, 60)}", f"{where}.content")
        message: dict[str, Any] = {"role": role, "content": None}
        for n, block in enumerate(content):
            at, kind = f"{where}.content[{n}]", block.get("type") if isinstance(block, dict) else None
            if kind == "text":
                text = _texts([block], at)
                message["content"] = text if message["content"] is None else f"{message['content']}\n{text}"
            elif kind == "tool_use" and role == "assistant":
                call = {"id": block.get("id"), "type": "function", "function": {"name": block.get("name"), "arguments": block.get("input", {})}}
                message.setdefault("tool_calls", []).append(call)
            elif kind == "tool_result" and role == "user":
                if message["content"] is not None:
                    found.append(message)
                    message = {"role": role, "content": None}
                found.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _texts(block.get("content") or "", f"{at}.content")})
            elif kind == "thinking" and role == "assistant":
                message["reasoning_content"] = str(block.get("thinking", ""))
            elif kind != "redacted_thinking":
                shown = kind if isinstance(kind, str) else quoted(block, 60)
                raise ApiError(400, f"{at}: blocks of type {shown[:60]} are not supported here: this server reads text only", at, "unsupported_content")
        if message["content"] is not None or message.get("tool_calls") or role == "assistant":
            found.append(message)
        elif not content:
            raise ApiError(400, f"{where}.content is empty", f"{where}.content")
    return found


def _texts(given: Any, where: str) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise ApiError(400, f"{where} must be a string or a list of text blocks, found {quoted(given, 60)}", where)
    for n, block in enumerate(given):
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            kind = block.get("type") if isinstance(block, dict) else None
            raise ApiError(400, f"{where}[{n}]: blocks of type {quoted(kind, 40)} are not supported here: this server reads text only", where)
    return "\n".join(block["text"] for block in given)


def _salt(body: Fields) -> str:
    """By what the prefix cache is divided, beside the key."""
    metadata = body.object("metadata", {})
    return str(metadata.get("user_id") or "")[:500]


async def messages(request: Request) -> Response:
    """The next message of a conversation, in Anthropic's form."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        asked, salt = read(body, model, call.defaults()), _salt(body)
        call.ignored = body.done(IGNORED)
        ticket = await call.start(lambda: answers(model, asked), salt)
        common = {"id": "msg_" + secrets.token_hex(12), "type": "message", "role": "assistant", "model": served.name}
        output = Output(model, asked, ticket, common)
        return call.stream(output.pieces()) if asked.stream else await call.whole(lambda t: output.whole())


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    async with Call(request) as call:
        body = await call.body()
        model, _ = (await call.model(body.text("model"))).loaded
        asked, _ = read(body, model, call.defaults(), counting=True), _salt(body)
        call.ignored = body.done(IGNORED)
        ids, _ = await call.make(lambda: prompt_ids(model, asked))
        return call.json({"input_tokens": len(ids)})


class Output:
    """The answer as blocks, one after the other; each part of it as the events that tell of it."""

    def __init__(self, model: Model, asked: ChatAsked, ticket: Ticket, common: dict[str, Any]) -> None:
        self._ticket, self._common = ticket, common
        self._generation: Generation = ticket.generations[0]
        self._answer = Answer(model, asked, self._generation)
        self._blocks: list[dict[str, Any]] = []
        self._open = False

    def _usage(self, made: bool = True, cached: int | None = None) -> dict[str, int]:
        stats = self._generation.stats
        cached = stats.reused_tokens if cached is None else cached
        return {"input_tokens": stats.prompt_tokens - cached, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
                "output_tokens": stats.generated_tokens if made else 0}

    def _stopped(self) -> dict[str, Any]:
        reason = REASONS.get(self._generation.finish_reason or "", "end_turn")
        if self._answer.finish_reason == "tool_calls":
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": self._generation.stopped_by if reason == "stop_sequence" else None}

    async def whole(self) -> dict[str, Any]:
        async for e in self._ticket:
            if e.error is not None:
                raise of(e.error)
            for part in self._answer.push(e.text, e.finish_reason is not None):
                self._part(part)
        for block, call in zip((b for b in self._blocks if b["type"] == "tool_use"), self._answer.calls):
            block["input"] = _object(call["arguments"])
        return {**self._common, "content": self._blocks, **self._stopped(), "usage": self._usage()}

    async def pieces(self) -> AsyncIterator[str]:
        begun = False
        async for e in self._ticket:
            if e.error is not None:
                yield event(of(e.error).anthropic(), "error")
                return
            if not begun:  # not sooner: now it is known what the prefix cache had
                begun = True
                start = {**self._common, "content": [], "stop_reason": None, "stop_sequence": None,
                         "usage": self._usage(False, e.prompt[1] if e.prompt else None)}
                yield event({"type": "message_start", "message": start}, "message_start")
            for part in self._answer.push(e.text, e.finish_reason is not None):
                for data in self._part(part):
                    yield event(data, data["type"])
        if self._open:
            yield event(self._close(), "content_block_stop")
        yield event({"type": "message_delta", "delta": self._stopped(), "usage": self._usage()}, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")

    def _close(self) -> dict[str, Any]:
        self._open = False
        return {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _part(self, part: Part) -> list[dict[str, Any]]:
        """The blocks grow by a part -> events."""
        kind = {"said": "text", "thought": "thinking", "call": "tool_use", "arguments": "tool_use"}[part.kind]
        told = []
        if part.kind == "call" or not self._open or self._blocks[-1]["type"] != kind:
            told += [self._close()] if self._open else []
            empty: dict[str, dict[str, Any]] = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""},
                                                "tool_use": {"id": part.id.replace("call_", "toolu_"), "name": part.name, "input": {}}}
            new: dict[str, Any] = {"type": kind, **empty[kind]}
            self._blocks.append(new)
            self._open = True
            told.append({"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(new)})
        block, delta = self._blocks[-1], {}
        if part.kind in ("said", "thought"):
            block[kind] += part.text
            delta = {"type": f"{kind}_delta", kind: part.text}
        elif part.kind == "arguments":
            delta = {"type": "input_json_delta", "partial_json": part.text}
        if delta:
            told.append({"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta})
        return told


def _object(text: str) -> Any:
    """A call's arguments; of one that max_tokens cut off nothing."""
    try:
        return json.loads(text)
    except ValueError:
        return {}
