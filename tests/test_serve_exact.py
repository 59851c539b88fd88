"""Exact under load: the same request with a seed has the same text, ids and log-probabilities alone, among many others, with the cache warm or cold."""
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import Server, serving

OTHERS = 31


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(parallel=32) as found:
        yield found


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Of several endpoints, greedy and drawn, long prompts that share their beginning and short ones, plain and held by a form."""
    long = "The king told a story of the sea and the wind. " * 9
    messages = [{"role": "system", "content": long}, {"role": "user", "content": "Tell me more"}]
    return [("/v1/chat/completions", {"messages": messages, "max_tokens": 30, "seed": 11, "logprobs": True, "top_logprobs": 3, "temperature": 1.1}),
            ("/v1/completions", {"prompt": long + "Then", "max_tokens": 30, "seed": 12, "logprobs": 3}),
            ("/v1/completions", {"prompt": ["Once", "The cat"], "n": 2, "max_tokens": 20, "seed": 13, "logprobs": 1, "temperature": 1.4, "min_p": 0.05}),
            ("/completion", {"prompt": "A little", "n_predict": 40, "seed": 14, "n_probs": 2, "return_tokens": True, "dry_multiplier": 0.8}),
            ("/v1/chat/completions", {"messages": messages[1:], "seed": 15, "logprobs": True, "response_format": {"type": "json_schema", "json_schema": {
                "schema": {"type": "object", "properties": {"name": {"enum": ["Lily", "Tom", "Nina"]}}, "required": ["name"]}}}})]


def told(answer: dict[str, Any]) -> Any:
    """All that must be the same: not the id, the times, and what the cache had."""
    kept = {name: value for name, value in answer.items() if name not in ("id", "created", "timings", "usage")}
    return {**kept, "made": answer.get("usage", {}).get("completion_tokens")}


def test_alone_and_among_others(server: Server) -> None:
    asked = requests()
    alone = []
    for path, body in asked:
        server.model.clear_prefix_cache()
        alone.append(told(server.ok(path, **body)))
    warm = [told(server.ok(path, **body)) for path, body in asked]
    assert warm == alone
    crowd = [("/v1/completions", {"prompt": f"The {'very ' * (i % 9)}old man number {i}", "max_tokens": 20 + i, "seed": i}) for i in range(OTHERS)]
    for cold in (True, False):
        if cold:
            server.model.clear_prefix_cache()
        steps, busy = server.engine.counters.steps, server.engine.counters.answers_in_steps
        with ThreadPoolExecutor(len(asked) + OTHERS) as threads:
            others = [threads.submit(server.ok, path, **body) for path, body in crowd[:OTHERS // 2]]
            found = [threads.submit(server.ok, path, **body) for path, body in asked]
            others += [threads.submit(server.ok, path, **body) for path, body in crowd[OTHERS // 2:]]
            assert [told(f.result()) for f in found] == alone
            assert all(f.result()["choices"] for f in others)
        assert (server.engine.counters.answers_in_steps - busy) / (server.engine.counters.steps - steps) > 4  # they did share steps
    assert server.settled()
