"""Ollama's endpoints (https://github.com/ollama/ollama/blob/main/docs/api.md), for its clients: /api/chat, /api/generate, /api/tags, /api/show, /api/version.

Streams unless told otherwise, a JSON object a line. Options in `options` under its names.
"""
from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__
from .asked import MAX_STOP, MAX_STOPS, sampling
from .call import Call
from .conversation import MAX_MESSAGES, MAX_TOOLS, Answer, ChatAsked, answers, choose, read_messages, read_tools
from .engine import Ticket
from .errors import ApiError, of
from .fields import Fields
from .sse import line

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model
    from .app import Server
    from .registry import Served

IGNORED = {"keep_alive", "truncate", "shift", "context"}
IGNORED_OPTIONS = {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "numa", "num_keep", "low_vram", "penalize_newline", "tfs_z",
                   "use_mlock", "vocab_only", "f16_kv"}
"""What Ollama sets of its engine; here the server's own start says it."""
REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


def read(body: Fields, asked: ChatAsked, model: Model, defaults: dict[str, Any]) -> list[str]:
    """What chat and generate share -> names of ignored options."""
    inner = Fields(body.object("options", {}), "options.")
    found = {**sampling(inner, model.config.n_vocab, defaults)}
    most = inner.integer("num_predict", None, -2, 1 << 31)
    found["max_tokens"] = defaults.get("max_tokens") if most is None else None if most < 0 else most
    found["stop"] = [s for s in inner.strings("stop", MAX_STOPS, MAX_STOP) if s]
    ignored = inner.done(IGNORED_OPTIONS)
    format = body.any("format")
    if format == "json":
        found["json_schema"] = {"type": "object"}
    elif isinstance(format, dict):
        found["json_schema"] = format
    elif format not in (None, ""):
        raise ApiError(400, 'format must be "json" or a JSON schema', "format")
    asked.options, asked.stream = found, body.truth("stream", True)
    think = body.any("think")
    if think is not None:
        if not isinstance(think, (bool, str)):
            raise ApiError(400, "think must be true, false or a level", "think")
        asked.template_options = {"enable_thinking": think not in (False, "none")}
    return [f"options.{name}" for name in ignored]


def chat_messages(given: Any) -> list[dict[str, Any]]:
    """Ollama's messages as OpenAI's: pictures are refused, calls have objects for arguments already."""
    found = []
    for i, message in enumerate(given if isinstance(given, list) else []):
        if isinstance(message, dict):
            if message.get("images"):
                raise ApiError(400, f"messages[{i}].images are not supported: this server reads text only", f"messages[{i}].images", "unsupported_content")
            message = {k: v for k, v in message.items() if k not in ("images", "thinking", "tool_name")}
        found.append(message)
    if not found or len(found) > MAX_MESSAGES:
        raise ApiError(400, f"messages must be a list of 1 to {MAX_MESSAGES} messages", "messages")
    return read_messages(found)


async def chat(request: Request) -> Response:
    """The next message of a conversation."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        asked = ChatAsked(messages=chat_messages(body.any("messages")))
        ignored = read(body, asked, model, call.defaults())
        choose(asked, read_tools(body.list("tools", None, MAX_TOOLS)), "auto")
        call.ignored = [*body.done(IGNORED), *ignored]
        ticket = await call.start(lambda: answers(model, asked))
        return await _answered(call, model, asked, ticket, served, chat=True)


async def generate(request: Request) -> Response:
    """An answer to a prompt: through the chat template, unless `raw` is true."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        prompt, system, raw = body.text("prompt", ""), body.text("system"), body.truth("raw")
        for name in ("suffix", "images", "template"):
            if body.any(name):
                raise ApiError(400, f"{name} is not supported", name, "unsupported_parameter")
        asked = ChatAsked(messages=[*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}])
        ignored = read(body, asked, model, call.defaults())
        call.ignored = [*body.done(IGNORED), *ignored]
        ticket = await call.start((lambda: [model.generate(prompt, **asked.options)]) if raw else (lambda: answers(model, asked)))
        return await _answered(call, model, asked, ticket, served, chat=False)


async def _answered(call: Call, model: Model, asked: ChatAsked, ticket: Ticket, served: Served, chat: bool) -> Response:
    def told(text: str, thought: str = "", calls: Any = None) -> dict[str, Any]:
        common = {"model": served.name, "created_at": now()}
        if not chat:
            return {**common, "response": text, **({"thinking": thought} if thought else {}), "done": False}
        message = {"role": "assistant", "content": text, **({"thinking": thought} if thought else {}), **({"tool_calls": calls} if calls else {})}
        return {**common, "message": message, "done": False}
    answer = Answer(model, asked, ticket.generations[0])

    def calls() -> list[dict[str, Any]]:
        return [{"function": {"name": c["name"], "arguments": json.loads(c["arguments"])}} for c in answer.calls]

    async def pieces() -> AsyncIterator[str]:
        async for e in ticket:
            if e.error is not None:
                yield line(of(e.error).ollama())
                return
            for part in answer.push(e.text, e.finish_reason is not None):
                if part.kind in ("said", "thought"):
                    yield line(told(part.text if part.kind == "said" else "", part.text if part.kind == "thought" else ""))
        if answer.calls:
            yield line(told("", calls=calls()))
        yield line({**told(""), **ended(ticket.generations[0])})

    async def whole(ticket: Ticket) -> dict[str, Any]:
        async for e in ticket:
            if e.error is not None:
                raise of(e.error)
            answer.push(e.text, e.finish_reason is not None)
        return {**told(answer.content, answer.reasoning, calls()), **ended(ticket.generations[0])}
    if asked.stream:
        return call.stream(pieces(), comment="", media_type="application/x-ndjson")
    return await call.whole(whole)


def ended(generation: Generation) -> dict[str, Any]:
    """Nanoseconds, and tokens."""
    s = generation.stats
    prompt, made = int(s.prompt_seconds * 1e9), int(s.generate_seconds * 1e9)
    return {"done": True, "done_reason": REASONS.get(generation.finish_reason or "", "stop"), "total_duration": prompt + made, "load_duration": 0,
            "prompt_eval_count": s.prompt_tokens, "prompt_eval_duration": prompt, "eval_count": s.generated_tokens, "eval_duration": made, "seed": s.seed}


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


def _about(served: Served) -> dict[str, Any]:
    at = datetime.datetime.fromtimestamp(served.created, datetime.timezone.utc).isoformat()
    found: dict[str, Any] = {"name": served.name, "model": served.name, "modified_at": at, "size": 0, "digest": "", "details": {"format": "gguf"}}
    if served.model is not None:
        found |= {"size": served.model.memory_plan.weights, "digest": served.digest,
                  "details": {"format": "gguf", "family": served.model.config.architecture, "families": [served.model.config.architecture]}}
    return found


async def tags(request: Request) -> Response:
    """The models there are."""
    server: Server = request.app.state.server
    return JSONResponse({"models": [_about(served) for served in server.registry.all()]})


async def show(request: Request) -> Response:
    """A model's template and what it can do."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model", body.text("name")))
        model, _ = served.loaded
        call.ignored = body.done({"verbose", "system", "template", "options"})
        template, c = model.chat_template, model.config
        return call.json({"modelfile": "", "parameters": "", "template": template.source, "details": _about(served)["details"], "license": "",
                          "model_info": {"general.architecture": c.architecture, f"{c.architecture}.context_length": model.context,
                                         f"{c.architecture}.embedding_length": c.dim},
                          "capabilities": ["completion", *(["tools"] if "tools" in template.sources else [])], "modified_at": _about(served)["modified_at"]})


async def version(request: Request) -> Response:
    """llamina's version."""
    return JSONResponse({"version": __version__})
