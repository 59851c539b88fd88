"""POST /completion as llama-server has it (tools/server/README.md of llama.cpp), streamed or whole: its own fields, and its own account of an answer."""
from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import quoted
from ..sampling.options import SamplingOptions
from .asked import MAX_TOP_LOGPROBS, Asked, draw_seed, limit, obey, sampling, stops
from .call import Call
from .engine import Ticket
from .errors import ApiError, of
from .fields import Fields
from .openai_chat import IGNORED, salt_of
from .shapes import progress, prompt_text, timings, token_entry
from .sse import event

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model

MAX_PROMPTS = 256
REASONS = {"eos": "eos", "stop": "word", "length": "limit", "context": "limit"}
ALSO_IGNORED = {"min_keep", "n_discard", "n_indent", "lora", "speculative.n_max", "speculative.n_min", "speculative.p_min", "backend_sampling"}


@dataclass
class NativeAsked(Asked):
    """many: whether prompts were a list, so that the answer is one. after_sampling: probabilities are wanted of what was drawn from. fields: of the answer, if
    not all are wanted."""

    prompts: list[list[str | int]] = field(default_factory=list)
    many: bool = False
    return_tokens: bool = False
    after_sampling: bool = False
    fields: list[str] = field(default_factory=list)


def read_prompts(given: Any) -> tuple[list[list[str | int]], bool]:
    """A text, ids, both mixed, or a list of such -> (each as texts and ids in a row, whether there were several). ApiError."""
    def one(value: Any, where: str) -> list[str | int]:
        if isinstance(value, dict) and set(value) <= {"prompt_string", "multimodal_data"}:
            if value.get("multimodal_data"):
                raise ApiError(400, f"{where}.multimodal_data is not supported: this server reads text only", where, "unsupported_content")
            value = value.get("prompt_string")
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value and all(isinstance(x, (str, int)) and not isinstance(x, bool) for x in value):
            return value
        raise ApiError(400, f"{where} must be a string, token ids, or a list of both, found {quoted(value, 60)}", where)
    if isinstance(given, list) and given and (all(isinstance(x, str) for x in given) or any(isinstance(x, (list, dict)) for x in given)):
        if len(given) > MAX_PROMPTS:
            raise ApiError(400, f"prompt has {len(given)} entries, at most {MAX_PROMPTS} are taken", "prompt")
        return [one(value, f"prompt[{i}]") for i, value in enumerate(given)], True
    return [one(given, "prompt")], False


def read(body: Fields, model: Model, defaults: dict[str, Any]) -> NativeAsked:
    asked = NativeAsked()
    asked.prompts, asked.many = read_prompts(body.any("prompt"))
    asked.options = {**sampling(body, model.config.n_vocab, defaults, texts=True), "max_tokens": limit(body, defaults, "n_predict", "max_tokens"),
                     "stop": stops(body), "ignore_eos": body.truth("ignore_eos"), **obey(body)}
    keep = body.integer("n_keep", None, -1, 1 << 31)
    if defaults.get("context_shift"):
        asked.options |= {"context_shift": True} if not keep or keep < 0 else {"context_shift": True, "keep": keep}
    asked.stream, asked.return_tokens = body.truth("stream"), body.truth("return_tokens")
    asked.timings_per_token, asked.return_progress = body.truth("timings_per_token"), body.truth("return_progress")
    asked.top_logprobs = body.integer("n_probs", None, 0, MAX_TOP_LOGPROBS) or None
    asked.after_sampling = body.truth("post_sampling_probs")
    asked.fields = body.strings("response_fields", 100, 100)
    return asked


def make(model: Model, asked: NativeAsked) -> list[Generation]:
    draw_seed(asked)
    found = [model.generate(ids, logprobs=asked.top_logprobs, **asked.options) for ids in (prompt_of(model, parts) for parts in asked.prompts)]
    for generation in found:
        generation.after_sampling = asked.after_sampling
    return found


def prompt_of(model: Model, parts: list[str | int]) -> list[int]:
    """Texts and ids in a row as one prompt; control tokens in a text are what they say. BOS before a text at the beginning."""
    ids: list[int] = []
    for i, part in enumerate(parts):
        ids += [part] if isinstance(part, int) else model.tokenizer.encode(part, bos=None if i == 0 else False, eos=False, parse_special=True)
    return model.prompt_ids(ids)


async def completion(request: Request) -> Response:
    """An answer to a prompt, as llama-server gives it."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, _ = served.loaded
        asked, salt = read(body, model, call.defaults()), salt_of(body)
        call.ignored = body.done(IGNORED | ALSO_IGNORED)
        ticket = await call.start(lambda: make(model, asked), salt)
        if asked.stream:
            return call.stream(_pieces(model, served.name, asked, ticket))
        return await call.whole(lambda t: _whole(model, served.name, asked, t))


def settings(model: Model, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """generation_settings: what an answer was made with, under llama-server's names."""
    names = SamplingOptions.__dataclass_fields__.keys()
    found = asdict(SamplingOptions(**{name: value for name, value in options.items() if name in names}))
    biases = [*found.pop("logit_bias"), *([(id, -math.inf) for id in sorted(model.tokenizer.eog_ids)] if options.get("ignore_eos") else [])]
    most = options.get("max_tokens")
    return {**found, "seed": seed, "samplers": list(SamplingOptions(**{n: v for n, v in options.items() if n in names}).stages), "n_ctx": model.context,
            "logit_bias": [{"token": id, "bias": bias if math.isfinite(bias) else None} for id, bias in biases],
            "n_predict": -1 if most is None else most, "max_tokens": -1 if most is None else most, "stop": list(options.get("stop", ())),
            "ignore_eos": bool(options.get("ignore_eos")), "n_keep": options.get("keep") or 0, "adaptive_target": -1.0, "adaptive_decay": 0.0,
            "dry_penalty_last_n": found["dry_last_n"], "dry_sequence_breakers": list(found["dry_breakers"])}


def account(model: Model, name: str, asked: NativeAsked, i: int, generation: Generation, content: str) -> dict[str, Any]:
    """All that is told of an ended answer."""
    s = generation.stats
    found = {"index": i, "content": content, "tokens": list(generation.ids) if asked.return_tokens and not asked.stream else [], "id_slot": 0, "stop": True,
             "model": name, "tokens_predicted": s.generated_tokens, "tokens_evaluated": s.prompt_tokens,
             "generation_settings": settings(model, asked.options, s.seed),
             "prompt": prompt_text(model, generation), "has_new_line": "\n" in generation.so_far,
             "truncated": bool(s.context_shifts) or generation.finish_reason == "context", "stop_type": REASONS.get(generation.finish_reason or "", "none"),
             "stopping_word": generation.stopped_by or "", "tokens_cached": s.prompt_tokens + s.generated_tokens - 1, "timings": timings(generation)}
    if asked.top_logprobs and not asked.stream:
        found["completion_probabilities"] = _probabilities(model, asked, generation.logprobs)
    if asked.fields:
        found = {name: value for name in asked.fields if (value := _at(found, name)) is not None}
    return found


def _at(found: Any, path: str) -> Any:
    for name in path.split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _probabilities(model: Model, asked: NativeAsked, logprobs: list[Any]) -> list[dict[str, Any]]:
    """Of the model as logprob and top_logprobs, of what was drawn from as prob and top_probs."""
    def one(id: int, logprob: float) -> dict[str, Any]:
        found = token_entry(model.tokenizer, id, logprob)
        if asked.after_sampling:
            found["prob"] = math.exp(found.pop("logprob"))
        return found
    top = "top_probs" if asked.after_sampling else "top_logprobs"
    return [{**one(t.id, t.logprob), top: [one(id, p) for id, p in t.top]} for t in logprobs]


async def _whole(model: Model, name: str, asked: NativeAsked, ticket: Ticket) -> Any:
    texts = [""] * len(ticket.generations)
    async for e in ticket:
        if e.error is not None:
            raise of(e.error)
        texts[e.index] += e.text
    found = [account(model, name, asked, i, g, text) for i, (g, text) in enumerate(zip(ticket.generations, texts))]
    return found if asked.many else found[0]


async def _pieces(model: Model, name: str, asked: NativeAsked, ticket: Ticket) -> AsyncIterator[str]:
    async for e in ticket:
        if e.error is not None:
            yield event(of(e.error).openai())
            return
        g = ticket.generations[e.index]
        more: dict[str, Any] = {"timings": timings(g)} if asked.timings_per_token else {}
        if asked.top_logprobs:
            more["completion_probabilities"] = _probabilities(model, asked, e.logprobs)
        if e.prompt is not None:
            if not asked.return_progress:
                continue
            more = progress(e.prompt)
        if e.ids or e.text or e.prompt is not None:
            yield event({"index": e.index, "content": e.text, "tokens": e.ids, "stop": False, "id_slot": -1, "tokens_predicted": len(g.ids),
                         "tokens_evaluated": g.stats.prompt_tokens, **more})
        if e.finish_reason is not None:
            yield event(account(model, name, asked, e.index, g, ""))


