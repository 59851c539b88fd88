"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat), streamed or whole."""
from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import quoted
from .asked import MAX_N, MAX_TOP_LOGPROBS, Asked, arguments_text, limit, obey, plain_text, sampling, stops, tool_choice
from .call import Call
from .engine import Ticket
from .errors import ApiError, of
from .fields import Fields
from .shapes import STOPPED, Thinking, chat_logprobs, timings, usage
from .sse import event
from .tools import Forced, forced_prompt, schema_of

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model

IGNORED = {"user", "store", "metadata", "service_tier", "prediction", "modalities", "verbosity", "prompt_cache_key", "safety_identifier", "cache_prompt",
           "prompt_cache_retention", "thinking_forced_open", "return_progress", "id_slot", "reasoning_effort"}
"""What OpenAI's and llama-server's clients send as a matter of course and what changes nothing here."""
MAX_MESSAGES, MAX_TOOLS = 2048, 256
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class ChatAsked(Asked):
    """A chat request, checked."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    callable: list[Any] | None
    choice: str
    parallel: bool
    template_options: dict[str, Any]


def read_messages(given: Any, where: str = "messages") -> list[dict[str, Any]]:
    """OpenAI's messages as templates want them. developer is system's new name; arguments of earlier calls are read."""
    if not isinstance(given, list) or not given:
        raise ApiError(400, f"{where} must be a list of at least one message, found {quoted(given, 60)}", where)
    if len(given) > MAX_MESSAGES:
        raise ApiError(400, f"{where} has {len(given)} entries, at most {MAX_MESSAGES} are taken", where)
    found = []
    for i, one in enumerate(given):
        at = f"{where}[{i}]"
        fields = Fields(one, at + ".")
        role = fields.text("role", "", ROLES)
        if not role:
            raise ApiError(400, f"{at}.role is missing", f"{at}.role")
        content, calls = fields.any("content"), fields.list("tool_calls", None, MAX_TOOLS)
        message: dict[str, Any] = {"role": {"developer": "system", "function": "tool"}.get(role, role), "content": plain_text(content, f"{at}.content")}
        if content is None and not calls and role != "assistant":
            raise ApiError(400, f"{at}.content is missing", f"{at}.content")
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := fields.text(name)) is not None:
                message[name] = value
        for name in ("refusal", "audio", "annotations", "function_call", "reasoning", "index", "id", "type", "status"):
            fields.any(name)
        if calls:
            message["tool_calls"] = [_earlier_call(call, f"{at}.tool_calls[{n}]") for n, call in enumerate(calls)]
        fields.done()
        found.append(message)
    return found


def _earlier_call(call: Any, where: str) -> dict[str, Any]:
    import json
    inner = call.get("function") if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise ApiError(400, f"{where} must be a call with function.name and function.arguments, found {quoted(call, 60)}", where)
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise ApiError(400, f"{where}.function.arguments must be JSON, found {quoted(arguments, 60)}", f"{where}.function.arguments") from None
    return {"id": str(call.get("id") or "")[:100], "type": "function", "function": {"name": inner["name"], "arguments": arguments}}


def read(body: Fields, model: Model) -> ChatAsked:
    """Everything but `model`, which was read before. ApiError."""
    asked = ChatAsked()
    asked.messages = read_messages(body.any("messages"))
    options = sampling(body, model.config.n_vocab, model.sampling_defaults)
    asked.options = {**options, "max_tokens": limit(body, "max_completion_tokens", "max_tokens", "n_predict"), "stop": stops(body), **obey(body)}
    asked.n = body.integer("n", 1, 1, MAX_N)
    asked.stream, asked.timings_per_token = body.truth("stream"), body.truth("timings_per_token")
    more = body.sub("stream_options")
    if more is not None:
        asked.include_usage = more.truth("include_usage")
        more.done({"include_obfuscation"})
    asked.top_logprobs = body.integer("top_logprobs", None, 0, MAX_TOP_LOGPROBS)
    if not body.truth("logprobs"):
        if asked.top_logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        asked.top_logprobs = None
    elif asked.top_logprobs is None:
        asked.top_logprobs = 0
    tools = body.list("tools", None, MAX_TOOLS)
    asked.choice, asked.callable = tool_choice(body, tools)
    asked.tools = None if asked.choice == "none" else tools
    asked.parallel = body.truth("parallel_tool_calls", True)
    asked.template_options = body.object("chat_template_kwargs", {})
    if asked.choice == "required" and obey_names(asked.options):
        raise ApiError(400, "a forced call and a format for the answer contradict each other", "tool_choice")
    return asked


def obey_names(options: Mapping[str, Any]) -> list[str]:
    return [name for name in ("json_schema", "regex", "grammar", "choices") if name in options]


def make(model: Model, asked: ChatAsked) -> list[Generation]:
    """The answers; nothing is computed yet."""
    from ..answers.chat_answer import chat_prompt
    more = {"logprobs": asked.top_logprobs}
    if asked.options.get("seed") is None:
        asked.options["seed"] = secrets.randbits(32)
    if asked.choice != "required":
        return [model.chat(asked.messages, tools=asked.tools, template_options=asked.template_options, sample_index=i, **asked.options, **more)
                for i in range(asked.n)]
    ids, format, _ = chat_prompt(model, asked.messages, asked.tools, asked.template_options)
    schema = schema_of(asked.callable or [], format)
    return [model.generate(forced_prompt(model, ids, format), json_schema=schema, sample_index=i, **asked.options, **more) for i in range(asked.n)]


class Answer:
    """One answer as OpenAI's deltas. start(thinking opened by the template), then push(event) -> deltas."""

    def __init__(self, forced: bool, inside: bool) -> None:
        self._forced = Forced() if forced else None
        self._thinking = Thinking(inside)
        self.id = "call_" + secrets.token_hex(12)
        self.content = self.reasoning = self.arguments = ""
        self.name: str | None = None

    def push(self, text: str, last: bool) -> list[dict[str, Any]]:
        if self._forced is not None:
            name, more = self._forced.push(text, last)
            deltas: list[dict[str, Any]] = []
            if name is not None:
                self.name = name
                deltas.append({"tool_calls": [{"index": 0, "id": self.id, "type": "function", "function": {"name": name, "arguments": ""}}]})
            if more:
                self.arguments += more
                deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": more}}]})
            return deltas
        thought, said = self._thinking.push(text, last)
        self.reasoning, self.content = self.reasoning + thought, self.content + said
        return ([{"reasoning_content": thought}] if thought else []) + ([{"content": said}] if said else [])

    def calls(self, generation: Generation) -> list[dict[str, Any]]:
        """The calls at the end, arguments as JSON text."""
        if self._forced is not None:
            return [{"id": self.id, "type": "function", "function": {"name": self.name or "", "arguments": self.arguments}}] if self.name else []
        return [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": arguments_text(c.arguments)}}
                for c in getattr(generation, "tool_calls", [])]


def opened(model: Model, generation: Generation) -> bool:
    """Whether the template ends with <think>, so that the answer begins inside."""
    tail = model.tokenizer.decode(generation.history[-8:], special=True)
    return tail.rstrip().endswith(Thinking.OPEN)


def reason_of(generation: Generation, calls: list[Any], parallel: bool) -> str:
    return "tool_calls" if calls else STOPPED.get(generation.finish_reason or "", "stop")


async def chat_completions(request: Request) -> Response:
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        asked = read(body, model)
        salt = body.text("cache_salt", "", most=200) or body.text("user", "", most=500) or ""
        call.ignored = body.done(IGNORED)
        ticket = await call.start(lambda: make(model, asked), salt)
        common = {"id": "chatcmpl-" + secrets.token_hex(12), "created": int(time.time()), "model": served.name, "system_fingerprint": served.fingerprint}
        call.note(asked.options, ticket)
        if asked.stream:
            return call.stream(_pieces(call, model, asked, ticket, common))
        return await call.whole(lambda t: _whole(model, asked, t, common))


async def _whole(model: Model, asked: ChatAsked, ticket: Ticket, common: dict[str, Any]) -> dict[str, Any]:
    answers = [Answer(asked.choice == "required", opened(model, g)) for g in ticket.generations]
    async for e in ticket:
        if e.error is not None:
            raise of(e.error)
        answers[e.index].push(e.text, e.finish_reason is not None)
    choices = []
    for i, (answer, g) in enumerate(zip(answers, ticket.generations)):
        calls = answer.calls(g)
        if not asked.parallel:
            calls = calls[:1]
        message: dict[str, Any] = {"role": "assistant", "content": answer.content if answer.content or not calls else None, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = message["reasoning"] = answer.reasoning
        if calls:
            message["tool_calls"] = calls
        choices.append({"index": i, "message": message, "logprobs": None if asked.top_logprobs is None else chat_logprobs(model.tokenizer, g.logprobs),
                        "finish_reason": reason_of(g, calls, asked.parallel)})
    return {**common, "object": "chat.completion", "choices": choices, "usage": usage(ticket.generations), "timings": timings(ticket.generations[0]),
            "seed": ticket.generations[0].stats.seed}


async def _pieces(call: Call, model: Model, asked: ChatAsked, ticket: Ticket, common: dict[str, Any]) -> AsyncIterator[str]:
    answers = [Answer(asked.choice == "required", opened(model, g)) for g in ticket.generations]
    common = {**common, "object": "chat.completion.chunk"}
    null = {"usage": None} if asked.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        return event({**common, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason, **more}], **null})
    begun: set[int] = set()
    waiting: dict[int, list[Any]] = {i: [] for i in range(asked.n)}
    async for e in ticket:
        if e.error is not None:
            yield event(of(e.error).openai())
            return
        if e.prompt is not None:
            continue
        i, answer, g = e.index, answers[e.index], ticket.generations[e.index]
        if i not in begun:
            begun.add(i)
            yield chunk(i, {"role": "assistant", "content": "" if asked.choice != "required" else None})
        waiting[i] += e.logprobs
        last = e.finish_reason is not None
        for delta in answer.push(e.text, last):
            told = {"logprobs": chat_logprobs(model.tokenizer, waiting[i])} if asked.top_logprobs is not None else {}
            waiting[i] = []
            yield chunk(i, delta, **told)
        if last:
            calls = answer.calls(g)[:None if asked.parallel else 1]
            if asked.choice != "required":
                for n, c in enumerate(calls):
                    head = {"index": n, "id": c["id"], "type": "function", "function": {"name": c["function"]["name"], "arguments": ""}}
                    yield chunk(i, {"tool_calls": [head]})
                    yield chunk(i, {"tool_calls": [{"index": n, "function": {"arguments": c["function"]["arguments"]}}]})
            told = {"logprobs": chat_logprobs(model.tokenizer, waiting[i])} if asked.top_logprobs is not None and waiting[i] else {}
            extra = {"timings": timings(g)} if not asked.include_usage else {}
            yield event({**common, "choices": [{"index": i, "delta": {}, "logprobs": None, "finish_reason": reason_of(g, calls, asked.parallel), **told}],
                         **null, **extra})
    if asked.include_usage:
        yield event({**common, "choices": [], "usage": usage(ticket.generations), "timings": timings(ticket.generations[0])})
    yield event("[DONE]")
