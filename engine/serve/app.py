"""The application: routes, and what a server of them shares."""
from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import about, anthropic, embeddings, inside, llama_server, ollama, openai_responses, page
from .errors import ApiError, of, shape_of
from .guard import Guard, Rules
from .journal import Journal, Memory
from .metrics import metrics
from .openai_chat import chat_completions, input_tokens
from .openai_completions import completions
from .registry import Registry, Served


@dataclass(frozen=True)
class Limits:
    """total_seconds: of an answer, from when it was taken to its end. workers: requests that are checked (templates, grammars) at once."""

    total_seconds: float = 3600.0
    workers: int = 4


class Server:
    """What routes find as request.app.state.server."""

    def __init__(self, registry: Registry, limits: Limits, defaults: Mapping[str, Any] | None = None, journal: Journal | Memory | None = None) -> None:
        """defaults: sampling options, and max_tokens, of requests that say nothing of them; they go before what a model's file recommends."""
        self.registry, self.limits, self.defaults, self.journal = registry, limits, dict(defaults or {}), journal
        self.workers, self.embedders = asyncio.Semaphore(limits.workers), asyncio.Semaphore(1)
        self.embedding = 0
        """Requests for embeddings that are computed or wait."""


def application(registry: Registry, rules: Rules | None = None, limits: Limits | None = None, drain_seconds: float = 20.0,
                defaults: Mapping[str, Any] | None = None, journal: Journal | Memory | None = None, with_page: bool = True) -> ASGIApp:
    """The whole server as an ASGI application; it closes the registry when it ends. journal: where requests and answers are written, if anywhere."""
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.server = Server(registry, limits or Limits(), defaults, journal)
        yield
        await asyncio.to_thread(registry.close, drain_seconds)
    app = Starlette(routes=[*routes(), *(page.routes() if with_page else [])], lifespan=lifespan,
                    exception_handlers={ApiError: _refused, HTTPException: _not_found, Exception: _failed})
    rules = rules or Rules()
    return Guard(app, replace(rules, open_paths={*rules.open_paths, *page.PATHS}) if with_page else rules)


@contextlib.asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[Server]:
    """An application at work without a socket, for `llamina replay`."""
    assert isinstance(app, Guard) and isinstance(app.inner, Starlette)
    async with app.inner.router.lifespan_context(app.inner):
        yield app.inner.state.server


def routes() -> list[Route]:
    def both(path: str, endpoint: Callable[[Request], Any], method: str) -> list[Route]:
        return [Route("/v1" + path, endpoint, methods=[method]), Route(path, endpoint, methods=[method])]
    return [*both("/chat/completions", chat_completions, "POST"), Route("/v1/completions", completions, methods=["POST"]), *both("/models", models, "GET"),
            *both("/chat/completions/input_tokens", input_tokens, "POST"), *both("/responses", openai_responses.responses, "POST"),
            *both("/responses/input_tokens", openai_responses.input_tokens, "POST"),
            Route("/v1/messages", anthropic.messages, methods=["POST"]), Route("/v1/messages/count_tokens", anthropic.count_tokens, methods=["POST"]),
            Route("/v1/embeddings", embeddings.embeddings, methods=["POST"]), *both("/rerank", embeddings.rerank, "POST"),
            *[Route(path, embeddings.native, methods=["POST"]) for path in ("/embedding", "/embeddings")],
            *[Route(path, llama_server.completion, methods=["POST"]) for path in ("/completion", "/completions")], Route("/metrics", metrics, methods=["GET"]),
            *[Route(path, endpoint, methods=["POST"]) for path, endpoint in (
                ("/tokenize", about.tokenize), ("/detokenize", about.detokenize), ("/apply-template", about.apply_template), ("/trace", inside.trace),
                ("/lora-adapters", about.lora_adapters),
                ("/api/chat", ollama.chat), ("/api/generate", ollama.generate), ("/api/show", ollama.show), ("/api/embed", embeddings.ollama_embed),
                ("/api/embeddings", embeddings.ollama_embeddings))],
            *[Route(path, endpoint, methods=["GET"]) for path, endpoint in (
                ("/props", about.props), ("/lora-adapters", about.lora_adapters), ("/slots", about.slots),
                ("/tokenizer_info", about.tokenizer_info), ("/openapi.json", about.openapi),
                ("/api/tags", ollama.tags), ("/api/version", ollama.version))],
            Route("/v1/models/{name:path}", one_model, methods=["GET"]), *both("/health", health, "GET")]


async def health(request: Request) -> Response:
    """Whether the server can answer."""
    server: Server = request.app.state.server
    dead = [engine.failure for engine in server.registry.engines() if engine.failure]
    return JSONResponse({"status": "error", "error": dead[0]}, 500) if dead else JSONResponse({"status": "ok"})


def describe(served: Served) -> dict[str, Any]:
    """OpenAI's model object, with the context under the names that llama-server, vLLM and LM Studio have for it."""
    found: dict[str, Any] = {"id": served.name, "object": "model", "created": served.created, "owned_by": "llamina"}
    if served.model is not None:
        c = served.model.config
        found |= {"max_model_len": served.model.context, "context_length": served.model.context,
                  "meta": {"n_ctx": served.model.context, "n_ctx_train": c.context_length, "n_vocab": c.n_vocab, "n_embd": c.dim,
                           "size": served.model.memory_plan.weights}}
    return found


async def models(request: Request) -> Response:
    """The models there are."""
    server: Server = request.app.state.server
    return JSONResponse({"object": "list", "data": [describe(served) for served in server.registry.all()]})


async def one_model(request: Request) -> Response:
    """One of the models."""
    server: Server = request.app.state.server
    name = request.path_params["name"]
    for served in server.registry.all():
        if served.name == name:
            return JSONResponse(describe(served))
    raise ApiError(404, f"the model {name[:80]!r} does not exist here", "model", "model_not_found")


async def _refused(request: Request, error: Exception) -> Response:
    found = of(error)
    return JSONResponse(shape_of(request.url.path, found), found.status, headers=found.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"there is nothing at {request.url.path[:120]}", 405: f"{request.method} is not for {request.url.path[:120]}"}
    found = ApiError(error.status_code, what.get(error.status_code, str(error.detail)))
    return JSONResponse(shape_of(request.url.path, found), found.status, headers=dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    found = of(error)
    return JSONResponse(shape_of(request.url.path, found), found.status)
