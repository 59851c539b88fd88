"""engine/serve: embeddings and ranking over HTTP are what the library says, in each client's form."""
from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import TEMPLATE, Server, serving

TEXTS = ["Once upon a time", "The cat sat on the mat."]
JUDGE = ["the", "a"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(TEMPLATE) as found:  # a causal model embeds with its last row
        yield found


def same(row: Any, expected: np.ndarray) -> bool:
    """Bit for bit, through JSON."""
    return np.array_equal(np.array(row, np.float32), expected) and len(row) == len(expected)


def test_openai(server: Server) -> None:
    expected = server.model.embed(TEXTS)
    found = server.ok("/v1/embeddings", input=TEXTS)
    assert [d["index"] for d in found["data"]] == [0, 1] and found["object"] == "list" and found["model"] == "demo"
    assert all(same(d["embedding"], row) and d["object"] == "embedding" for d, row in zip(found["data"], expected))
    ids = [server.model.tokenizer.encode(text, eos=False) for text in TEXTS]
    assert found["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    for given in (TEXTS[0], [TEXTS[0]], ids[0], [ids[0]], {"prompt_string": TEXTS[0]}, {"content": [{"type": "text", "text": TEXTS[0]}]}):
        assert same(server.ok("/v1/embeddings", input=given)["data"][0]["embedding"], expected[0]), given
    packed = server.ok("/v1/embeddings", input=TEXTS, encoding_format="base64")["data"]
    assert [base64.b64decode(d["embedding"]) for d in packed] == [row.astype("<f4").tobytes() for row in expected]
    short = server.ok("/v1/embeddings", input=TEXTS, dimensions=16, user="me")["data"][1]["embedding"]
    assert same(short, server.model.embed(TEXTS[1], truncate_dim=16)) and len(short) == 16
    native = server.ok("/embedding", content=TEXTS[0])
    assert native[0]["index"] == 0 and same(native[0]["embedding"][0], expected[0])
    assert server.settled() and server.engine.counters.embedded_tokens > 0


@pytest.mark.parametrize(("body", "says"), [
    ({}, "input"), ({"input": []}, "input"), ({"input": 5}, "prompt"), ({"input": [[]]}, "prompt"), ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": 10**6}, "truncate_dim"), ({"input": "a", "encoding_format": "int8"}, "encoding_format"), ({"input": [10**9]}, "0"),
    ({"input": "long " * 3000}, "tokens"), ({"input": ["a"] * 2049}, "2048"), ({"input": "a", "volume": 11}, "volume"),
    ({"input": {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}}, "text only"), ({"input": {"content": "a"}}, "content")])
def test_what_is_wrong_is_named(server: Server, body: dict[str, Any], says: str) -> None:
    answer = server.post("/v1/embeddings", **body)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"], answer.text


def test_rank(server: Server) -> None:
    query, documents = "a story", ["Once upon a time", "The weather is cold", "Tom ran"]
    expected = server.model.rerank(query, documents, judge=JUDGE)
    order = sorted(range(3), key=lambda i: -expected[i])
    asked = {"query": query, "documents": documents, "judge": JUDGE}
    found = server.ok("/v1/rerank", model="demo", **asked)
    assert [r["index"] for r in found["results"]] == order and found["usage"]["total_tokens"] > 20
    assert [np.float32(r["relevance_score"]) for r in found["results"]] == [expected[i] for i in order] and "document" not in found["results"][0]
    top = server.ok("/rerank", top_n=1, return_documents=True, **{**asked, "documents": [{"text": d} for d in documents]})["results"]
    assert len(top) == 1 and top[0]["document"] == {"text": documents[order[0]]}
    tei = server.ok("/rerank", query=query, texts=documents, judge=JUDGE, return_text=True)
    assert [(r["index"], r["text"]) for r in tei] == [(i, documents[i]) for i in order]
    for body, says in (({"judge": None}, "no rank head"), ({"documents": []}, "documents"), ({"documents": [1, 2]}, "documents"), ({"query": None}, "query"),
                       ({"documents": None}, "documents"), ({"documents": 5}, "documents"), ({"top_n": 0}, "top_n"),
                       ({"documents": ["long " * 3000]}, "tokens"),
                       ({"judge": ["yes"]}, "judge")):
        answer = server.post("/v1/rerank", **{**asked, **body})
        assert answer.status_code == 400 and says in answer.json()["error"]["message"], answer.text
    assert server.settled()


def test_ollama(server: Server) -> None:
    expected = server.model.embed(TEXTS)
    found = server.ok("/api/embed", model="demo", input=TEXTS)
    assert all(same(a, b) for a, b in zip(found["embeddings"], expected)) and found["prompt_eval_count"] > 4 and found["total_duration"] > 0
    assert same(server.ok("/api/embed", model="demo", input=TEXTS[0], keep_alive="5m")["embeddings"][0], expected[0])
    assert same(server.ok("/api/embeddings", model="demo", prompt=TEXTS[0])["embedding"], expected[0])
    assert len(server.ok("/api/embed", model="demo", input="long " * 3000)["embeddings"]) == 1  # ollama cuts, unless it is told not to
    answer = server.post("/api/embed", model="demo", input="long " * 3000, truncate=False)
    assert answer.status_code == 400 and isinstance(answer.json()["error"], str)


def test_openai_client(server: Server) -> None:
    library = pytest.importorskip("openai", reason="the client openai is not installed")
    client = library.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(model="demo", input=TEXTS)  # it asks for base64 by itself
    assert all(same(d.embedding, row) for d, row in zip(found.data, server.model.embed(TEXTS)))


def test_among_answers(server: Server) -> None:
    """Embedded while answers are under way: both have the bits that they have alone."""
    expected = server.model.embed(TEXTS[0])
    alone = server.ok("/v1/completions", prompt="The old man", max_tokens=60, temperature=0)["choices"][0]["text"]
    with server.http.stream("POST", "/v1/completions", json={"prompt": "The old man", "max_tokens": 60, "temperature": 0, "stream": True}) as stream:
        lines = stream.iter_lines()
        got = [next(lines) for _ in range(4)]
        for _ in range(3):
            assert same(server.ok("/v1/embeddings", input=TEXTS[0])["data"][0]["embedding"], expected)
        got += list(lines)
    import json
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in got if line.startswith("data: {"))
    assert text == alone and server.settled()
