"""POST /v1/completions, OpenAI's older endpoint: texts, lists of texts, ids, lists of ids; echo with the prompt's log-probabilities."""
from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import quoted
from .asked import MAX_N, MAX_TOP_LOGPROBS, Asked, draw_seed, limit, obey, sampling, stops
from .call import Call
from .engine import Ticket
from .errors import ApiError, of
from .fields import Fields
from .openai_chat import IGNORED, read_stream, salt_of
from .shapes import STOPPED, legacy_logprobs, timings, usage
from .sse import event

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model
    from ..sampling.sampler import TokenLogprob

MAX_PROMPTS = 256
DEFAULT_TOKENS = 16  # OpenAI's


@dataclass
class CompletionAsked(Asked):
    """prompts: texts and lists of ids. echo: give each prompt back before the answer."""

    prompts: list[Any] = field(default_factory=list)
    echo: bool = False


def read_prompts(given: Any) -> list[Any]:
    """-> a list of texts and lists of ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given and len(given) <= 1 << 20:
        if all(isinstance(x, int) and not isinstance(x, bool) for x in given):
            return [given]
        if len(given) > MAX_PROMPTS:
            raise ApiError(400, f"prompt has {len(given)} entries, at most {MAX_PROMPTS} are taken", "prompt")
        if all(isinstance(x, str) or isinstance(x, list) and x and all(isinstance(id, int) and not isinstance(id, bool) for id in x) for x in given):
            return given
    raise ApiError(400, f"prompt must be a string, a list of strings, of token ids, or of lists of token ids, found {quoted(given, 60)}", "prompt")


def read(body: Fields, model: Model, defaults: dict[str, Any]) -> CompletionAsked:
    asked = CompletionAsked()
    asked.prompts = read_prompts(body.any("prompt", ""))
    options = sampling(body, model.config.n_vocab, defaults)
    tokens = limit(body, {"max_tokens": DEFAULT_TOKENS, **defaults}, "max_tokens", "max_completion_tokens", "n_predict")
    asked.options = {**options, "max_tokens": tokens, "stop": stops(body), "ignore_eos": body.truth("ignore_eos"), **obey(body)}
    asked.n, asked.echo = body.integer("n", 1, 1, MAX_N), body.truth("echo")
    if body.integer("best_of", asked.n, 1, MAX_N) != asked.n:
        raise ApiError(400, "best_of other than n is not supported", "best_of")
    if body.text("suffix"):
        raise ApiError(400, "suffix (filling in the middle) is not supported", "suffix")
    read_stream(asked, body)
    asked.top_logprobs = body.integer("logprobs", None, 0, MAX_TOP_LOGPROBS)
    return asked


def make(model: Model, asked: CompletionAsked) -> tuple[list[list[int]], list[Generation]]:
    """(ids of each prompt, answers: n to the first prompt, n to the second, …)"""
    draw_seed(asked)
    prompts = [model.prompt_ids(p) for p in asked.prompts]
    return prompts, [model.generate(ids, sample_index=i, logprobs=asked.top_logprobs, **asked.options) for ids in prompts for i in range(asked.n)]


async def completions(request: Request) -> Response:
    """An answer to a prompt, or to several."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        asked, salt = read(body, model, call.defaults()), salt_of(body)
        call.ignored = body.done(IGNORED)
        prompts: list[list[int]] = []

        def work() -> list[Generation]:
            ids, found = make(model, asked)
            prompts.extend(ids)
            return found
        ticket = await call.start(work, salt)
        heads = await _heads(call, model, asked, prompts)
        common = {"id": "cmpl-" + secrets.token_hex(12), "object": "text_completion", "created": int(time.time()), "model": served.name,
                  "system_fingerprint": served.fingerprint}
        if asked.stream:
            return call.stream(_pieces(model, asked, ticket, heads, common))
        return await call.whole(lambda t: _whole(model, asked, t, heads, common))


Head = tuple[str, list[int], list[Any]]
"""An echoed prompt: text, ids, log-probabilities."""


async def _heads(call: Call, model: Model, asked: CompletionAsked, prompts: list[list[int]]) -> list[Head]:
    if not asked.echo:
        return [("", [], [])] * len(prompts)

    def one(given: Any, ids: list[int]) -> Head:
        found = [None, *model.logprobs(ids, asked.top_logprobs)] if asked.top_logprobs is not None else []
        return given if isinstance(given, str) else model.detokenize(ids), ids, found
    return [await call.make(partial(one, given, ids)) for given, ids in zip(asked.prompts, prompts)]


def _end(g: Generation) -> list[TokenLogprob]:
    """The token that ended an answer is listed, too, as OpenAI lists it: who scores a prompt asks for one token more, and drops it."""
    return [g.end_logprob] if g.end_logprob is not None else []


async def _whole(model: Model, asked: CompletionAsked, ticket: Ticket, heads: list[Head], common: dict[str, Any]) -> dict[str, Any]:
    texts = [""] * len(ticket.generations)
    async for e in ticket:
        if e.error is not None:
            raise of(e.error)
        texts[e.index] += e.text
    choices = []
    for i, (text, g) in enumerate(zip(texts, ticket.generations)):
        head, ids, found = heads[i // asked.n]
        told = None
        if asked.top_logprobs is not None:
            before = legacy_logprobs(model.tokenizer, found, ids)
            after = legacy_logprobs(model.tokenizer, listed := [*g.logprobs, *_end(g)], [t.id for t in listed], len(head))
            told = {name: before[name] + after[name] for name in before if name != "end"}
        choices.append({"index": i, "text": head + text, "logprobs": told, "finish_reason": STOPPED.get(g.finish_reason or "", "stop")})
    return {**common, "choices": choices, "usage": usage(ticket.generations, asked.n),
            "timings": timings(ticket.generations[0]), "seed": ticket.generations[0].stats.seed}


async def _pieces(model: Model, asked: CompletionAsked, ticket: Ticket, heads: list[Head], common: dict[str, Any]) -> AsyncIterator[str]:
    null = {"usage": None} if asked.include_usage else {}

    def chunk(i: int, text: str, told: Any = None, reason: str | None = None) -> str:
        return event({**common, "choices": [{"index": i, "text": text, "logprobs": told, "finish_reason": reason}], **null})
    begun: set[int] = set()
    at = [0] * len(ticket.generations)
    async for e in ticket:
        if e.error is not None:
            yield event(of(e.error).openai())
            return
        if e.prompt is not None:
            continue
        i = e.index
        head, ids, found = heads[i // asked.n]
        if i not in begun:
            begun.add(i)
            if asked.echo:
                before = None if asked.top_logprobs is None else legacy_logprobs(model.tokenizer, found, ids)
                if before is not None:
                    del before["end"]
                yield chunk(i, head, before)
                at[i] = len(head)
        told = None
        listed = [*e.logprobs, *(_end(ticket.generations[i]) if e.finish_reason else [])]
        if listed:
            told = legacy_logprobs(model.tokenizer, listed, [t.id for t in listed], at[i])
            at[i] = told.pop("end")
        reason = None if e.finish_reason is None else STOPPED.get(e.finish_reason, "stop")
        if e.text or told or reason:
            yield chunk(i, e.text, told, reason)
    if asked.include_usage:
        yield event({**common, "choices": [], "usage": usage(ticket.generations, asked.n)})
    yield event("[DONE]")
