"""Embeddings and ranking: OpenAI's POST /v1/embeddings, llama-server's /embedding and /embeddings, Jina's and Cohere's /v1/rerank (and TEI's, by its field
`texts`), ollama's /api/embed and /api/embeddings.

    body -> texts (str or ids), checked -> Embedder or Reranker in a worker thread, one request at a time, between the steps of answers -> a protocol's shape
"""
from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import quoted
from .asked import MAX_GRAMMAR
from .call import Call
from .errors import ApiError
from .fields import Fields
from .llama_server import read_prompts
from .openai_chat import IGNORED

if TYPE_CHECKING:
    from ..model import Model
    from .registry import Served

MAX_TEXTS = 2048
KINDS = ("query", "document")
NATIVE = {"embd_normalize", "content", "image_data"}


def _texts(given: Any, model: Model) -> list[str | list[int]]:
    """A text, ids, or a list of either; llama-server's objects and lists of both, too. ApiError."""
    if isinstance(given, list) and all(isinstance(x, str) for x in given):
        parts: list[list[str | int]] = [[x] for x in given]
    elif given == "":
        parts = [[""]]
    else:
        parts, _ = read_prompts(_plain(given))
    if not parts or len(parts) > MAX_TEXTS:
        raise ApiError(400, f"input has {len(parts)} entries, from 1 to {MAX_TEXTS} are taken", "input")
    encode = model.tokenizer.encode
    return [one[0] if len(one) == 1 and isinstance(one[0], str) else
            [id for x in one for id in ([x] if isinstance(x, int) else encode(x, bos=False, eos=False))] for one in parts]


def _plain(given: Any) -> Any:
    """{"content": [{"type": "text", "text"}]} -> its text."""
    if isinstance(given, list):
        return [_plain(x) for x in given]
    if not isinstance(given, dict) or "content" not in given:
        return given
    content = given["content"]
    if not isinstance(content, list) or not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
        raise ApiError(400, f"input: content must be a list of text parts, found {quoted(content, 60)}: this server reads text only", "input")
    return "".join(part["text"] for part in content)


async def computed(call: Call, served: Served, work: Callable[[Callable[[], bool]], Any]) -> Any:
    """work(left) in a worker thread; left() tells it that nobody waits any more. One at a time: a step wants all cores. ApiError 429: too many wait."""
    server, engine = call.server, served.loaded[1]
    if server.embedding > engine.queue:
        raise ApiError(429, f"{server.embedding} requests for embeddings wait already: try again later", code="queue_full", headers={"Retry-After": "2"})
    gone, end = threading.Event(), time.monotonic() + server.limits.total_seconds

    async def watch() -> None:
        while (await call.request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
    watching = asyncio.ensure_future(watch())
    server.embedding += 1
    try:
        async with server.embedders:
            return await call.make(lambda: work(lambda: gone.is_set() or time.monotonic() > end))
    finally:
        gone.set()
        watching.cancel()
        server.embedding -= 1


def _all(found: Iterator[Any], left: Callable[[], bool]) -> list[Any]:
    listed = []
    for one in found:
        listed.append(one)
        if left():
            raise ApiError(408, "the request took too long and was given up", code="timeout")
    return listed


async def _embedded(call: Call, served: Served, texts: list[str | list[int]], salt: str = "", **options: Any) -> tuple[list[Any], int]:
    """(float32 [dim] of each text, tokens)"""
    from ..score.embedding import Embedder
    model, engine = served.loaded

    def work(left: Callable[[], bool]) -> tuple[list[Any], int]:
        embedder = Embedder(model, salt=call.salt(salt), **options)
        return _all(embedder.embed(texts), left), embedder.tokens
    found, tokens = await computed(call, served, work)
    engine.counters.embedded_tokens += tokens
    return found, tokens


async def embeddings(request: Request) -> Response:
    """Embeddings of texts, in OpenAI's form."""
    return await _openai(request, native=False)


async def native(request: Request) -> Response:
    """Embeddings of texts, in llama-server's own form."""
    return await _openai(request, native=True)


async def _openai(request: Request, native: bool) -> Response:
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        given = body.any("content", body.any("input")) if native else body.any("input")
        if given is None:
            raise ApiError(400, "input is missing", "input")
        texts = _texts(given, served.loaded[0])
        options = {"truncate_dim": body.integer("dimensions", None, 1, 1 << 20), "kind": body.text("input_type", None, KINDS)}
        form = body.text("encoding_format", "float", ("float", "base64"))
        call.ignored = body.done(IGNORED | (NATIVE if native else set()))
        found, tokens = await _embedded(call, served, texts, body.text("user", "", most=500) or "", **options)
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() if form == "base64" else row.tolist() for row in found]
        if native:
            return call.json([{"index": i, "embedding": [row]} for i, row in enumerate(rows)])
        return call.json({"object": "list", "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
                          "model": served.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


async def rerank(request: Request) -> Response:
    """Documents by how well they answer a query."""
    from ..score.rerank import Reranker
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        model, engine = served.loaded
        tei = "texts" in body
        query = body.text("query", most=MAX_GRAMMAR)
        listed = body.list("texts" if tei else "documents", [], MAX_TEXTS)
        documents = [d["text"] if isinstance(d, dict) and isinstance(d.get("text"), str) else d for d in listed]
        if not isinstance(query, str):
            raise ApiError(400, "query is missing", "query")
        if not documents or not all(isinstance(d, str) for d in documents):
            raise ApiError(400, f"documents must be a list of at least one text, found {quoted(documents, 60)}", "documents")
        top = body.integer("top_n", None, 1)
        shows = body.truth("return_text") if tei else body.truth("return_documents")
        judge, instruction = body.list("judge", None, 2), body.text("instruction", most=4096)
        body.any("truncate"), body.any("max_tokens_per_doc")
        call.ignored = body.done(IGNORED | {"raw_scores", "truncation_direction"})

        def work(left: Callable[[], bool]) -> tuple[list[float], int]:
            ranker = Reranker(model, judge=judge, instruction=instruction, salt=call.salt(""))
            return _all(ranker.scores(query, documents), left), ranker.tokens
        scores, tokens = await computed(call, served, work)
        engine.counters.embedded_tokens += tokens
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:top]
        if tei:
            return call.json([{"index": i, "score": scores[i], **({"text": documents[i]} if shows else {})} for i in order])
        return call.json({"object": "list", "model": served.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}, "results": [
            {"index": i, "relevance_score": scores[i], **({"document": {"text": documents[i]}} if shows else {})} for i in order]})


async def ollama_embed(request: Request) -> Response:
    """Embeddings of texts, in ollama's form."""
    async with Call(request) as call:
        body, since = await call.body(), time.perf_counter_ns()
        served = await call.model(body.text("model"))
        texts, cut = _texts(body.any("input", ""), served.loaded[0]), body.truth("truncate", True)
        dimensions = body.integer("dimensions", None, 1, 1 << 20)
        call.ignored = _ollama_ignored(body)
        found, tokens = await _embedded(call, served, texts, truncate=cut, truncate_dim=dimensions)
        return call.json({"model": served.name, "embeddings": [row.tolist() for row in found], "total_duration": time.perf_counter_ns() - since,
                          "load_duration": 0, "prompt_eval_count": tokens})


async def ollama_embeddings(request: Request) -> Response:
    """The embedding of one text, in ollama's older form."""
    async with Call(request) as call:
        body = await call.body()
        served = await call.model(body.text("model"))
        text = body.text("prompt", "")
        call.ignored = _ollama_ignored(body)
        found, _ = await _embedded(call, served, [text], truncate=True)
        return call.json({"embedding": found[0].tolist()})


def _ollama_ignored(body: Fields) -> list[str]:
    return body.done({"options", "keep_alive"})
