"""`--log FILE` and `llamina replay FILE`: a log that proves its answers."""
from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")

from llamina.engine.serve.guard import Rules
from llamina.engine.serve.journal import Journal
from sockets import CHAT, LONG, serving, within

KEY = "a-key-that-nobody-logs"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one of each kind of request, with and without a seed, at once and one after the other, and of one whose client left."""
    path = tmp_path_factory.mktemp("log") / "served.jsonl"
    journal = Journal(str(path))
    with serving(Rules(hosts=None, keys=(KEY,)), key=KEY, journal=journal) as server:
        unseeded = {k: v for k, v in CHAT.items() if k != "seed"}
        for route, body in (("/v1/chat/completions", unseeded), ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3, "n": 2, "stream": True}),
                            ("/v1/completions", {"prompt": ["Once", [1, 300]], "max_tokens": 9, "logprobs": 2}),
                            ("/completion", {"prompt": "Once", "n_predict": 5}),
                            ("/v1/messages", {"model": "x", "max_tokens": 6, "messages": CHAT["messages"]}),
                            ("/api/generate", {"model": "x", "prompt": "Once", "stream": False, "options": {"num_predict": 7}}),
                            ("/v1/completions", {"prompt": "Once", "max_tokens": 12, "regex": "[a-f ]+", "temperature": 1.5})):
            assert server.post(route, body).status == 200, route
        assert server.post("/v1/chat/completions", {**CHAT, "n": 99}).status == 400
        left = server.begin({**LONG, "logprobs": 1})
        left.recv(20_000)
        left.close()
        within(lambda: not server.server.server_state.tasks)
    journal.close()
    return path


def test_what_a_log_holds(log: Path) -> None:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) == 8 and KEY not in log.read_text() and stat.S_IMODE(log.stat().st_mode) == 0o600
    assert all(answer["ids"] for record in records for answer in record["answers"])


def test_the_same_bits(log: Path, run: Any) -> None:
    result = run("replay", str(log), "--threads", "1", "-q")
    assert result.out == "8 of 8 requests have the same bits\n" and result.code == 0, result.err


@pytest.mark.parametrize("field", ["text", "ids", "logprobs", "finish_reason"])
def test_a_bit_that_differs(log: Path, tmp_path: Path, run: Any, field: str) -> None:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    answer = records[1]["answers"][1]
    answer[field] = {"text": answer["text"][:-1] + "\u00e9", "ids": [*answer["ids"][:-1], 5],
                     "finish_reason": "stop" if answer["finish_reason"] != "stop" else "eos",
                     "logprobs": [*answer["logprobs"][:-1], [answer["logprobs"][-1][0], answer["logprobs"][-1][1] * (1 + 2**-23),
                                                             answer["logprobs"][-1][2]]]}[field]
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join(map(json.dumps, records)) + "\n")
    result = run("replay", str(changed), "demo", "--threads", "1", "-q")
    assert result.code == 1 and f"line 2, /v1/chat/completions: answer 1: {field} differ" in result.out
    assert result.out.endswith("7 of 8 requests have the same bits\n")


@pytest.mark.parametrize("text", ["{}\n", "not json\n", '{"path": "/v1/completions"', "[1]\n", "null\n"])
def test_files_that_are_no_logs(tmp_path: Path, run: Any, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    result = run("replay", str(path))
    assert result.code == 1 and "line 1: is no record" in result.err and "Traceback" not in result.err
    assert run("replay", str(tmp_path / "none")).code == 1
