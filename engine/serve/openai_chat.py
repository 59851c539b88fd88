"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat), streamed or whole."""
from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from .asked import MAX_N, limit, obey, sampling, stops
from .call import Call
from .conversation import (
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
    top_logprobs,
    with_begun,
)
from .engine import Ticket
from .errors import of
from .fields import Fields
from .shapes import chat_logprobs, progress, prompt_text, timings, usage
from .sse import event

if TYPE_CHECKING:
    from ..model import Model

IGNORED = {"user", "store", "metadata", "service_tier", "prediction", "modalities", "verbosity", "prompt_cache_key", "safety_identifier", "cache_prompt",
           "prompt_cache_retention", "thinking_forced_open", "id_slot", "reasoning_effort", "t_max_predict_ms", "backend_sampling"}
"""What OpenAI's and llama-server's clients send as a matter of course and what changes nothing here."""


def read(body: Fields, model: Model, defaults: dict[str, Any]) -> ChatAsked:
    """Everything but `model`, which was read before. ApiError."""
    asked = ChatAsked(messages=read_messages(body.any("messages")))
    with_begun(asked, body)
    options = sampling(body, model.config.n_vocab, defaults)
    asked.options = {**options, "max_tokens": limit(body, defaults, "max_completion_tokens", "max_tokens", "n_predict"), "stop": stops(body), **obey(body)}
    asked.n, asked.top_logprobs = body.integer("n", 1, 1, MAX_N), top_logprobs(body)
    read_stream(asked, body)
    asked.ignore_eos = body.truth("ignore_eos")
    asked.split_thoughts = body.text("reasoning_format", "auto", ("none", "auto", "deepseek", "deepseek-legacy")) != "none"
    choose(asked, read_tools(body.list("tools", None, MAX_TOOLS)), body.any("tool_choice", "auto"))
    asked.parallel = body.truth("parallel_tool_calls", True)
    asked.template_options = template_options(body.object("chat_template_kwargs", {}))
    return asked


def read_stream(asked: Any, body: Fields) -> None:
    """What several endpoints of OpenAI's and llama-server's ask about streaming."""
    asked.stream, asked.timings_per_token, asked.return_progress = body.truth("stream"), body.truth("timings_per_token"), body.truth("return_progress")
    asked.verbose = body.truth("verbose")
    more = body.sub("stream_options")
    if more is not None:
        asked.include_usage = more.truth("include_usage")
        more.done({"include_obfuscation"})


def salt_of(body: Fields) -> str:
    """By what the prefix cache is divided, beside the key."""
    return body.text("cache_salt", "", most=200) or body.text("user", "", most=500) or ""


async def chat_completions(request: Request) -> Response:
    """The next message of a conversation."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        asked, salt = read(body, model, call.defaults()), salt_of(body)
        call.ignored = body.done(IGNORED)
        ticket = await call.start(lambda: answers(model, asked), salt)
        common = {"id": "chatcmpl-" + secrets.token_hex(12), "created": int(time.time()), "model": served.name, "system_fingerprint": served.fingerprint}
        if asked.stream:
            return call.stream(_pieces(model, asked, ticket, common))
        return await call.whole(lambda t: _whole(model, asked, t, common))


async def input_tokens(request: Request) -> Response:
    """How many tokens a chat request's prompt has; nothing is computed."""
    async with Call(request) as call:
        body = await call.body()
        model, _ = (await call.model(body.text("model"))).loaded
        asked, _ = read(body, model, call.defaults()), salt_of(body)
        call.ignored = body.done(IGNORED)
        ids, _ = await call.make(lambda: prompt_ids(model, asked))
        return call.json({"object": "response.input_tokens", "input_tokens": len(ids)})


def verbose(model: Model, ticket: Ticket) -> dict[str, Any]:
    """What llama-server tells when asked to: the prompt as the model reads it."""
    return {"__verbose": {"prompt": prompt_text(model, ticket.generations[0])}}


async def _whole(model: Model, asked: ChatAsked, ticket: Ticket, common: dict[str, Any]) -> dict[str, Any]:
    found = [Answer(model, asked, g) for g in ticket.generations]
    async for e in ticket:
        if e.error is not None:
            raise of(e.error)
        found[e.index].push(e.text, e.finish_reason is not None)
    choices = []
    for i, (answer, g) in enumerate(zip(found, ticket.generations)):
        message: dict[str, Any] = {"role": "assistant", "content": answer.content if answer.content or not answer.calls else None, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = message["reasoning"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [{"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}} for c in answer.calls]
        choices.append({"index": i, "message": message, "logprobs": None if asked.top_logprobs is None else chat_logprobs(model.tokenizer, g.logprobs),
                        "finish_reason": answer.finish_reason})
    return {**common, "object": "chat.completion", "choices": choices, "usage": usage(ticket.generations), "timings": timings(ticket.generations[0]),
            "seed": ticket.generations[0].stats.seed, **(verbose(model, ticket) if asked.verbose else {})}


def delta(part: Part) -> dict[str, Any]:
    """A part of an answer as OpenAI's clients add it up."""
    if part.kind == "said":
        return {"content": part.text}
    if part.kind == "thought":
        return {"reasoning_content": part.text, "reasoning": part.text}
    if part.kind == "call":
        return {"tool_calls": [{"index": part.index, "id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


async def _pieces(model: Model, asked: ChatAsked, ticket: Ticket, common: dict[str, Any]) -> AsyncIterator[str]:
    found = [Answer(model, asked, g) for g in ticket.generations]
    common = {**common, "object": "chat.completion.chunk"}
    null = {"usage": None} if asked.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, told: Any = None, **more: Any) -> str:
        return event({**common, "choices": [{"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}], **null, **more})

    def logprobs(i: int) -> Any:
        """Those since the last chunk; tokens whose text is held back are told with the next text."""
        now, waiting[i] = waiting[i], []
        return None if asked.top_logprobs is None else chat_logprobs(model.tokenizer, now)
    begun: set[int] = set()
    waiting: dict[int, list[Any]] = {i: [] for i in range(asked.n)}
    async for e in ticket:
        if e.error is not None:
            yield event(of(e.error).openai())
            return
        i, g, last = e.index, ticket.generations[e.index], e.finish_reason is not None
        if i not in begun:
            begun.add(i)
            yield chunk(i, {"role": "assistant", "content": None})
        if e.prompt is not None:
            if asked.return_progress:
                yield chunk(i, {}, **progress(e.prompt))
            continue
        waiting[i] += e.logprobs
        more: dict[str, Any] = {"timings": timings(g)} if asked.timings_per_token else {}
        for part in found[i].push(e.text, last):
            yield chunk(i, delta(part), told=logprobs(i), **more)
        if last:
            if not asked.include_usage:
                more = {"timings": timings(g), "seed": g.stats.seed}
            yield chunk(i, {}, found[i].finish_reason, logprobs(i) if waiting[i] else None, **more)
    if asked.include_usage:
        yield event({**common, "choices": [], "usage": usage(ticket.generations), "timings": timings(ticket.generations[0]),
                     "seed": ticket.generations[0].stats.seed})
    yield event("[DONE]")
