"""GET /metrics: Prometheus's text. Our names, by model; and llama-server's as aliases, of all models together."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from .counters import Counters

if TYPE_CHECKING:
    from .app import Server
    from .registry import Served

OURS = (("prompt_tokens_total", "Prompt tokens computed.", "prompt_tokens"),
        ("prompt_tokens_cached_total", "Prompt tokens that the prefix cache had.", "cached_tokens"),
        ("embedded_tokens_total", "Tokens of texts that were embedded or ranked.", "embedded_tokens"),
        ("tokens_total", "Tokens of answers.", "tokens"), ("prompt_seconds_total", "Seconds spent on prompts, answers added up.", "prompt_seconds"),
        ("answer_seconds_total", "Seconds spent on tokens after the first, answers added up.", "answer_seconds"), ("steps_total", "Steps computed.", "steps"),
        ("busy_seconds_total", "Seconds of the clock in steps.", "busy_seconds"), ("drafted_tokens_total", "Tokens guessed ahead.", "drafted"),
        ("accepted_tokens_total", "Guesses that were right.", "accepted"))
THEIRS = (("prompt_tokens_total", "prompt_tokens"), ("prompt_tokens_cached_total", "cached_tokens"), ("prompt_seconds_total", "prompt_seconds"),
          ("tokens_predicted_total", "tokens"), ("tokens_predicted_seconds_total", "answer_seconds"), ("n_decode_total", "steps"),
          ("n_tokens_max", "longest"), ("spec_decode_num_draft_tokens_total", "drafted"), ("spec_decode_num_accepted_tokens_total", "accepted"))


async def metrics(request: Request) -> Response:
    """Counters and gauges for Prometheus."""
    server: Server = request.app.state.server
    found = Response("".join(_lines(server)), media_type="text/plain; version=0.0.4")
    found.raw_headers.append((b"Process-Start-Time-Unix", str(server.registry.started).encode()))  # with llama-server's capitals, which some look for
    return found


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _label(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _lines(server: Server) -> Iterator[str]:
    models = [served for served in server.registry.all() if served.engine is not None]
    for name, text, attribute in OURS:
        yield _head(f"llamina_{name}", "counter", text)
        for served in models:
            yield f'llamina_{name}{{model="{_label(served.name)}"}} {getattr(served.loaded[1].counters, attribute):g}\n'
    yield _head("llamina_answers_total", "counter", "Answers by how they ended.")
    for served in models:
        for how in ("finished", "failed", "cancelled"):
            yield f'llamina_answers_total{{model="{_label(served.name)}",end="{how}"}} {getattr(served.loaded[1].counters, how)}\n'
    yield _head("llamina_answers", "gauge", "Answers under way, and answers that wait.")
    for served in models:
        for state, n in zip(("running", "waiting"), served.loaded[1].counts):
            yield f'llamina_answers{{model="{_label(served.name)}",state="{state}"}} {n}\n'
    yield from _memory(models, server.registry.memory)
    yield from _aliases(models)


def _memory(models: list[Served], limit: int | None) -> Iterator[str]:
    yield _head("llamina_kv_pages", "gauge", "KV pages by what holds them.")
    for served in models:
        for state, n in served.loaded[0].runtime.kv_pages()._asdict().items():
            yield f'llamina_kv_pages{{model="{_label(served.name)}",state="{state}"}} {n}\n'
    yield _head("llamina_kv_pages_budget", "gauge", "KV pages that there may be.")
    for served in models:
        yield f'llamina_kv_pages_budget{{model="{_label(served.name)}"}} {served.loaded[0].memory_plan.pages}\n'
    held = sum(served.loaded[0].memory_plan.weights + served.loaded[0].memory_plan.kv for served in models)
    yield _head("llamina_memory_bytes", "gauge", "Bytes of weights and KV cache that loaded models may take.") + f"llamina_memory_bytes {held}\n"
    if limit is not None:
        yield _head("llamina_memory_limit_share", "gauge", "Share of --memory that they are.") + f"llamina_memory_limit_share {held / limit:g}\n"


def _aliases(models: list[Served]) -> Iterator[str]:
    every = [served.loaded[1].counters for served in models]
    total = Counters(**{name: sum(getattr(c, name) for c in every) for name in Counters.__dataclass_fields__})
    total.prompt_tokens += total.embedded_tokens
    total.longest = max((c.longest for c in every), default=0)
    for name, attribute in THEIRS:
        yield _head(f"llamacpp:{name}", "counter", "As llama-server counts.") + f"llamacpp:{name} {getattr(total, attribute):.12g}\n"
    yield _head("llamacpp:spec_decode_num_drafts_total", "counter", "As llama-server counts.") + f"llamacpp:spec_decode_num_drafts_total {total.drafted}\n"
    running, waiting = (sum(served.loaded[1].counts[i] for served in models) for i in (0, 1))
    for name, value in (("prompt_tokens_seconds", total.prompt_tokens / (total.prompt_seconds or 1)), ("requests_processing", running),
                        ("predicted_tokens_seconds", total.later_tokens / (total.answer_seconds or 1)), ("requests_deferred", waiting),
                        ("n_busy_slots_per_decode", total.answers_in_steps / (total.steps or 1))):
        yield _head(f"llamacpp:{name}", "gauge", "As llama-server measures.") + f"llamacpp:{name} {value:g}\n"
