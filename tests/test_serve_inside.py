"""POST /trace: the numbers are Model.trace's and Model.lens's, bit for bit; what can't be asked is refused, and nobody else is held up or read."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from serving import TEMPLATE, Server, serving

ONCE = "Once upon a time there was a little girl"
ASKED = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(TEMPLATE, parallel=4) as found:
        yield found


def test_a_text(server: Server) -> None:
    told, own = server.ok("/trace", prompt=ONCE, lens=True, top=4), server.model.trace(ONCE, top=4, attribution=False)
    assert told["layers"] == own.lens.layers and told["first"] == 0
    rows = told["tokens"]
    assert [r["id"] for r in rows] == own.ids and "surprise" not in rows[0] and len(rows) == len(own.ids)
    assert [r["surprise"] for r in rows[1:]] == own.surprise[1:].tolist() and [r["rank"] for r in rows[1:]] == own.rank[1:].tolist()
    assert [r["settled"] for r in rows[1:]] == own.settled[1:].tolist() and [r["entropy"] for r in rows[1:]] == own.entropy[1:].tolist()
    for i, row in enumerate(rows[1:]):
        assert [(e["id"], e["prob"]) for e in row["expected"]] == list(zip(own.lens.top_ids[-1, i].tolist(), own.lens.top_probs[-1, i].tolist()))
        assert [(e["id"], e["prob"], e["rank"]) for e in row["lens"]] == \
            list(zip(own.lens.top_ids[:, i, 0].tolist(), own.lens.top_probs[:, i, 0].tolist(), own.lens.rank[:, i].tolist()))
    assert len(told["next"]) == 4 and "lens" not in server.ok("/trace", prompt=ONCE)["tokens"][1]
    assert server.ok("/trace", prompt=[*own.ids[:3], " was a", 300])["tokens"][-1]["id"] == 300
    part = server.ok("/trace", prompt=ONCE, first=3, top=4, lens=True)
    assert part["tokens"][1:] == rows[4:] and part["tokens"][0] == {k: rows[3][k] for k in ("id", "token", "bytes")} and part["next"] == told["next"]


def test_a_finished_answer(server: Server) -> None:
    """To the last digit what the answer was drawn from, and only the answer's tokens are told of."""
    answer = server.ok("/v1/chat/completions", messages=ASKED, max_tokens=40, temperature=1, seed=5, logprobs=True, top_logprobs=3)["choices"][0]
    said = answer["logprobs"]["content"]
    told = server.ok("/trace", messages=ASKED, answer=[t["id"] for t in said], lens=True, top=3)
    rows = told["tokens"][1:]
    assert [r["id"] for r in rows] == [t["id"] for t in said] and [r["bytes"] for r in rows] == [t["bytes"] for t in said]
    assert told["first"] + 1 == server.ok("/v1/messages/count_tokens", messages=ASKED)["input_tokens"]
    assert [r["surprise"] for r in rows] == pytest.approx([-t["logprob"] for t in said], abs=1e-5)
    assert [[e["id"] for e in r["expected"]] for r in rows] == [[t["id"] for t in one["top_logprobs"]] for one in said]
    assert all(r["lens"][-1]["id"] == r["expected"][0]["id"] and r["lens"][-1]["rank"] == r["rank"] for r in rows)


def test_beside_others(server: Server) -> None:
    """Answers under way keep their bits, what is read leaves nothing behind, and the numbers are the same."""
    alone, quiet = server.ok("/trace", prompt=ONCE, lens=True), server.model.generate(ONCE, max_tokens=60, seed=1).text()
    found: list[Any] = []
    others = [threading.Thread(target=lambda: found.append(server.ok("/completion", prompt=ONCE, n_predict=60, seed=1)["content"])) for _ in range(3)]
    for thread in others:
        thread.start()
    assert all(server.ok("/trace", prompt=ONCE, lens=True) == alone for _ in range(3))
    for thread in others:
        thread.join()
    assert found == [quiet] * 3 and server.settled()


def test_refused(server: Server) -> None:
    n = server.model.config.n_vocab
    wrong: list[dict[str, Any]] = [
        {}, {"prompt": []}, {"prompt": ["a", "b"]}, {"prompt": 5}, {"prompt": [n]}, {"prompt": [-1]}, {"prompt": [True]}, {"prompt": {}},
        {"messages": ASKED}, {"messages": ASKED, "answer": "text"}, {"messages": ASKED, "answer": [n]}, {"messages": ASKED, "answer": [1.5]},
        {"messages": ASKED, "answer": [True]}, {"messages": [], "answer": [1]}, {"messages": ASKED, "prompt": "a", "answer": [1]},
        {"prompt": ONCE, "top": 0}, {"prompt": ONCE, "top": 21}, {"prompt": ONCE, "lens": 1}, {"prompt": ONCE, "first": -1}, {"prompt": ONCE, "first": 400},
        {"prompt": ONCE, "first": "a"}, {"prompt": ONCE, "layers": [1]}, {"messages": ASKED, "answer": [1], "chat_template_kwargs": {"messages": []}},
        {"prompt": [300] * (server.model.context + 1)}, {"prompt": ONCE, "answer": 10 ** 400}]
    for body in wrong:
        refused = server.post("/trace", **body)
        assert refused.status_code == 400 and refused.json()["error"]["message"], (body, refused.text)
    assert server.settled()


def test_most_tokens_and_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamina.engine.serve import inside
    monkeypatch.setattr(inside, "MOST_TOKENS", 8)
    assert "first" in server.post("/trace", prompt=[300] * 20).json()["error"]["message"]
    assert len(server.ok("/trace", prompt=[300] * 20, first=12)["tokens"]) == 8
    with pytest.raises(Exception, match="given up"):  # the client has left
        inside.looked(server.model, [300] * 8, 0, 3, lambda: True)
    assert server.settled()
