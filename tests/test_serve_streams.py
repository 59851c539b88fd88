"""engine/serve: what a stream does while nothing comes, when nobody reads, and what clients learn of each other."""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")

from llamina.engine.serve import engine as engine_module
from llamina.engine.serve import sse
from llamina.engine.serve.guard import Rules
from sockets import LONG, Serving, read_all, serving, within

SHARED: dict[str, Any] = {"prompt": "Once upon a time there was a cat. " * 20, "max_tokens": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as found:
        yield found


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion"])
def test_comments_while_nothing_comes(server: Serving, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """While an answer waits or its prompt is read: lines that clients skip; then the answer, as always."""
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.05)
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
    body = {"/v1/messages": {**said, "max_tokens": 4}, "/v1/chat/completions": {**said, "max_tokens": 4},
            "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
            "/completion": {"prompt": "Hello", "n_predict": 4}}.get(path, {"prompt": "Hello", "max_tokens": 4})
    with server.paused():
        connection = server.begin({**body, "stream": True, "temperature": 0}, path)
        got = b""
        while got.count(b": keep-alive\n\n") < 3:
            got += (piece := connection.recv(65536))
            assert piece
    while b"\r\n0\r\n\r\n" not in got:
        got += connection.recv(65536)
    connection.close()
    plain = server.post(path, {**body, "stream": True, "temperature": 0}).body.count(b"data: ")
    assert got.count(b"data: ") == plain > 2
    server.quiet()


def test_a_slow_reader_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves unread is bounded: the answer ends with an error, another goes on."""
    asked: list[engine_module.Ticket] = []
    init = engine_module.Ticket.__init__

    def made(self: engine_module.Ticket, generations: Any, loop: Any, most_unread: int | None = 20) -> None:
        init(self, generations, loop, most_unread)
        asked.append(self)
    monkeypatch.setattr(engine_module.Ticket, "__init__", made)
    blocked = threading.Event()

    async def stuck(self: engine_module.Ticket, timeout: float | None = None) -> Any:
        """The route gets no further than its client's socket takes."""
        if self is asked[0] and not blocked.is_set():
            import asyncio
            while not blocked.is_set():
                await asyncio.sleep(0.01)
        return await following(self, timeout)
    following = engine_module.Ticket.next
    monkeypatch.setattr(engine_module.Ticket, "next", stuck)
    with serving() as server:
        slow = server.begin({**LONG, "max_tokens": 300})
        within(lambda: asked and asked[0].cancelled)
        blocked.set()
        assert server.post("/v1/completions", {**LONG, "max_tokens": 8}).events()[-1]["choices"][0]["finish_reason"] == "length"
        got = b""
        while b"\r\n0\r\n\r\n" not in got:
            got += slow.recv(65536)
        assert b'"code":"slow_reader"' in got
        slow.close()
        server.quiet()


def cached(server: Serving, key: str, **more: str) -> int:
    """Tokens of a prompt that the prefix cache had."""
    reply = server.post("/v1/completions", {**SHARED, **more}, X_Api_Key=key)
    assert reply.status == 200, reply.body
    found: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_keys_share_no_beginnings() -> None:
    """Timing tells nobody another's prompt: not under another key, nor of another user of the same key."""
    with serving(Rules(keys=("one", "two"))) as server:
        assert cached(server, "one") == 0 < cached(server, "one") and cached(server, "two") == 0 < cached(server, "two")
        assert cached(server, "one", user="a") == 0 < cached(server, "one", user="a") and cached(server, "two", user="a") == 0
        assert cached(server, "one", cache_salt="b") == 0 and cached(server, "one", user="b") > 0  # one name, whichever field says it


def test_eight_streams_share_the_steps_fairly(server: Serving) -> None:
    """Nobody starves: of eight equal answers that begin together, none is far behind another."""
    with serving(parallel=8) as crowd:
        with crowd.paused():
            streams = [crowd.begin({**LONG, "max_tokens": 200, "seed": i}) for i in range(8)]
            within(lambda: sum(crowd.engine.counts) == 8)
        until = time.monotonic() + 30
        while all(len(g.ids) < 100 for g in crowd.engine.live()) and time.monotonic() < until:
            time.sleep(0.001)
        made = [len(g.ids) for g in crowd.engine.live()]
        assert len(made) == 8 and max(made) - min(made) <= 8, made  # they began within some steps of each other
        for stream in streams:
            stream.close()
        crowd.quiet()


def test_bodies_that_come_in_pieces(server: Serving) -> None:
    raw = json.dumps({"prompt": "Hello", "max_tokens": 2}).encode()
    with server.socket() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(raw))
        for byte in raw:
            connection.sendall(bytes([byte]))
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
