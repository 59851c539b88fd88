"""Adapters of single requests under load: each answer has the bits that it has alone, and nobody is given what was computed with another adapter."""
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from adapters import random_adapter
from llamina.engine.errors import FileError
from serving import TEMPLATE, Server, serving

LONG = "The cat sat on the mat and looked at the moon over the hill. " * 8
USES: list[Any] = [None, [], [{"id": 0, "scale": 1.0}], [{"name": "one", "scale": 0.5}], [{"id": 1, "scale": 1.0}], [{"id": 0}, {"name": "two", "scale": -1}]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("adapters")
    with serving(TEMPLATE, parallel=8) as found:
        for seed, name in enumerate(("one", "two")):
            random_adapter(found.model.config, seed=seed, only=lambda name: name.endswith(("attn_q.weight", "attn_v.weight"))).save(folder / f"{name}.gguf")
            found.model.add_adapter(folder / f"{name}.gguf", default=False)
        yield found


def ask(server: Server, use: Any, seed: int = 1) -> tuple[str, list[float], int]:
    """(text, log-probabilities, cached tokens)"""
    body = {"prompt": LONG, "n_predict": 24, "seed": seed, "n_probs": 1, "ignore_eos": True, **({} if use is None else {"lora": use})}
    found = server.ok("/completion", **body)
    return found["content"], [p["logprob"] for p in found["completion_probabilities"]], found["timings"]["cache_n"]


def test_mixed_answers_have_their_own_bits(server: Server) -> None:
    alone = []
    for use in USES:
        server.model.clear_prefix_cache()
        alone.append(ask(server, use)[:2])
    assert alone[0] == alone[1] and len({repr(one) for one in alone}) == len(USES) - 1
    for _ in range(2):  # the cache is cold, then warm
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda use: ask(server, use)[:2], USES * 2))
        assert found == alone * 2
    assert server.settled()


def test_beginnings_are_not_shared_between_them(server: Server) -> None:
    server.model.clear_prefix_cache()
    for use in (None, *USES[2:]):
        assert ask(server, use)[2] == 0, use
        assert ask(server, use)[2] > 0, use
    assert ask(server, [{"id": 0, "scale": 0.25}])[2] == 0 and ask(server, [{"id": 0, "scale": 0}])[2] > 0  # none at all


def test_every_protocol_and_what_is_told(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for path, body in (("/v1/chat/completions", {"messages": messages}), ("/v1/completions", {"prompt": "Hi"}), ("/v1/responses", {"input": "Hi"}),
                       ("/v1/messages", {"messages": messages, "max_tokens": 24})):
        length = "max_output_tokens" if "responses" in path else "max_tokens"
        answers = [server.ok(path, **{**body, length: 24, "temperature": 0}, **more) for more in ({}, {"lora": [{"name": "one", "scale": 2.0}]})]
        texts = [str(a["choices"][0].get("text", a["choices"][0].get("message")) if "choices" in a else
                     a["output"][0]["content"] if "output" in a else a["content"]) for a in answers]
        assert texts[0] != texts[1], path
        for bad in ([{"id": 7}], [{"name": "none"}], "one", [{"name": "one", "scale": "x"}], [{"name": "one", "path": "/etc/passwd"}],
                    [{"id": 0, "scale": 1e300}]):
            assert server.post(path, **{**body, length: 2, "lora": bad}).status_code == 400, (path, bad)
    asked: list[dict[str, Any]] = [{}, {"lora": [{"name": "one"}]}, {"lora": []}]
    traces = [server.ok("/trace", prompt="Hi there", **more)["tokens"] for more in asked]
    assert traces[0] == traces[2] != traces[1]


def test_scales_that_a_server_is_told(server: Server) -> None:
    """llama-server's POST /lora-adapters: what requests have that say nothing; what is not named is off; `lora` of a request still says otherwise."""
    def scales() -> list[float]:
        return [entry["scale"] for entry in server.http.get("/lora-adapters").json()]
    wanted: dict[Any, Any] = {}
    for use in USES[1:]:
        wanted[repr(use)] = ask(server, use)[:2]
    try:
        for use, expected in ([{"id": 0, "scale": 1.0}], [1.0, 0.0]), ([{"name": "one", "scale": 0.5}], [0.5, 0.0]), ([], [0.0, 0.0]), \
                ([{"id": 1, "scale": 1.0}], [0.0, 1.0]):
            found = server.http.post("/lora-adapters", json=use)
            assert found.status_code == 200 and found.json() == {"success": True} and scales() == expected
            assert ask(server, None)[:2] == wanted[repr(use)] and ask(server, [])[:2] == wanted["[]"]
            assert ask(server, USES[3])[:2] == wanted[repr(USES[3])]
        for bad in {"id": 0, "scale": 1}, [{"id": 7, "scale": 1}], [{"id": 0, "scale": None, "path": "x"}], [3], [{"scale": 1.0}], "x", [{"id": 0}] * 300:
            assert server.http.post("/lora-adapters", json=bad).status_code == 400 and scales() == [0.0, 1.0], bad
    finally:
        server.model.use_adapters([])


def test_the_fingerprint_is_of_now(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the adapters there are; the file is not asked again, which may be gone."""
    digest = server.model.digest

    def gone(stamps: Any) -> str:
        raise FileError("gone")
    monkeypatch.setattr("llamina.engine.answers.core.full_digest", gone)

    def told() -> str:
        found: str = server.ok("/v1/completions", prompt="Hi", max_tokens=1)["system_fingerprint"]
        return found
    before = told()
    assert server.http.get("/api/tags").json()["models"][0]["digest"] == digest
    server.model.add_adapter(random_adapter(server.model.config, seed=9, only=lambda name: name == "blk.0.attn_q.weight"), name="three", default=False)
    assert told() != before
    server.model.remove_adapter("three")
    assert told() == before
