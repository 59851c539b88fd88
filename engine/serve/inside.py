"""POST /trace: what a model thought while it read a text or wrote an answer: how surprising each token was, and what it would have said after each layer.

    prompt, or messages, and the answer's ids ─► one pass in small steps, between those of answers ─► a lens of the last tokens ─► JSON

`Model.trace` and `Model.lens` of engine/look, with the same bits. Nothing of it is kept, and no other's prompt is looked at.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import quoted
from .asked import adapters
from .call import Call
from .conversation import MAX_TOOLS, ChatAsked, prompt_ids, read_messages, read_tools, template_options
from .embeddings import computed
from .errors import ApiError
from .fields import Fields
from .llama_server import prompt_of, read_prompts
from .openai_chat import IGNORED
from .shapes import token_entry

if TYPE_CHECKING:
    import numpy as np

    from ..look.lens import Lens
    from ..look.reading import Rows
    from ..model import Model
    from ..run.runtime import Runtime

MOST_TOKENS = 1024
"""That are told of: each is as many rows of the output matrix as there are layers."""
STEP = 32
"""Tokens of a step: others' answers wait for no more."""
MAX_TOP = 20


async def trace(request: Request) -> Response:
    """How a model reads a text, or wrote an answer: surprise, rank, and what it would have said after each layer."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model = served.loaded[0]
        find, top, layers = _read(body, model), body.integer("top", 5, 1, MAX_TOP), body.truth("lens")
        first, use = body.integer("first", None, 0, 1 << 31), adapters(body)
        call.ignored = body.done(IGNORED)

        def work(left: Callable[[], bool]) -> dict[str, Any]:
            ids, n_prompt = find()
            at = max(0, n_prompt - 1) if first is None else first
            return shown(model, looked(model, ids, at, top, left, use), at, layers)
        found = await computed(call, served, work)
        return call.json({"object": "trace", "model": served.name, **found})


def _read(body: Fields, model: Model) -> Callable[[], tuple[list[int], int]]:
    """-> what finds (ids of all, how many of them only lead there). ApiError."""
    answer = body.list("answer", None, 1 << 20)
    if answer is not None and not all(isinstance(id, int) and not isinstance(id, bool) for id in answer):
        raise ApiError(400, f"answer must be a list of token ids, found {quoted(answer, 60)}", "answer")
    if "messages" in body:
        if "prompt" in body:
            raise ApiError(400, "prompt and messages contradict each other: give one of them", "prompt")
        asked = ChatAsked(messages=read_messages(body.any("messages")), tools=read_tools(body.list("tools", None, MAX_TOOLS)))
        asked.template_options = template_options(body.object("chat_template_kwargs", {}))
        if answer is None:
            raise ApiError(400, "answer, the token ids that were said to these messages, is missing", "answer")
        ids_of: Callable[[], list[int]] = lambda: prompt_ids(model, asked)[0]  # noqa: E731
    else:
        prompts, several = read_prompts(body.any("prompt"))
        if several:
            raise ApiError(400, "prompt must be one text: a string, token ids, or a list of both", "prompt")
        ids_of = lambda: prompt_of(model, prompts[0])  # noqa: E731

    def find() -> tuple[list[int], int]:
        ids = ids_of()
        return model._check_ids([*ids, *(answer or [])]), 0 if answer is None else len(ids)
    return find


def looked(model: Model, ids: list[int], first: int, top: int, left: Callable[[], bool], use: Any = None) -> Lens:
    """The lens of all layers from token `first` on. left(): nobody waits any more. use: adapters, as of Model.generate. ApiError, and
    what `Model.lens` raises."""
    from ..look.lens import Reader, layers_of, top_of
    from ..look.reading import read
    from ..look.texts import ids_of
    ids = ids_of(model, ids)
    if not first < len(ids):
        raise ApiError(400, f"first is {first}, and there are {len(ids)} tokens", "first")
    if len(ids) - first > MOST_TOKENS:
        raise ApiError(400, f"{len(ids) - first} tokens are to be told of, at most {MOST_TOKENS} are: give `first`, the number of the token from which on",
                       "first")
    reader = Reader(model, ids, layers_of(model, None), top_of(model, min(top, model.config.n_vocab)), {}, first)

    def each(runtime: Runtime, positions: np.ndarray, rows: Rows) -> None:
        if left():
            raise ApiError(408, "the request took too long and was given up", code="timeout")
        reader.step(runtime, positions, rows)
    read(model, ids, reader.wanted(), each, STEP, use)
    return reader.lens()


def shown(model: Model, lens: Lens, first: int, layers: bool) -> dict[str, Any]:
    """A lens as JSON: by token, what was expected in its place (of the first one, nothing is known). Natural logarithms. layers: with the first choice after
    each layer, its probability and the rank of the token that came."""
    from ..look.trace import Trace
    trace, rows, k = Trace(lens, None), [], lens.top_ids.shape[2]
    surprise, entropy, rank, settled = (a.tolist() for a in (trace.surprise, trace.entropy, trace.rank, trace.settled))

    def choices(layer: int, place: int, n: int) -> list[dict[str, Any]]:
        return [_choice(model, int(id), float(p)) for id, p in zip(lens.top_ids[layer, place, :n], lens.top_probs[layer, place, :n])]
    for i, id in enumerate(lens.ids):
        row = _named(model, id)
        if i:
            row |= {"surprise": surprise[i], "entropy": entropy[i], "rank": rank[i], "settled": settled[i], "expected": choices(-1, i - 1, k)}
            if layers:
                row["lens"] = [{**choices(n, i - 1, 1)[0], "rank": int(lens.rank[n, i - 1])} for n in range(len(lens.layers))]
        rows.append(row)
    return {"first": first, "layers": lens.layers, "tokens": rows, "next": choices(-1, len(lens.ids) - 1, k)}


def _named(model: Model, id: int) -> dict[str, Any]:
    found = token_entry(model.tokenizer, id, 0.0)
    del found["logprob"]
    return found


def _choice(model: Model, id: int, p: float) -> dict[str, Any]:
    return {**_named(model, id), "prob": p}
