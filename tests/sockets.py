"""A server in this process for tests of what goes wrong on the wire (serving.py is for the rest): the demo behind real sockets,
with its registry, engine and pages at hand.

    with serving() as server:
        server.post("/v1/completions", {"prompt": "x"}) -> Reply(status, headers, body)
        server.socket() -> a connection for bytes of any kind
"""
from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")
pytest.importorskip("uvicorn", reason="needs the extra 'serve'")

from llamina import load
from llamina.engine.serve.app import Limits, application
from llamina.engine.serve.engine import Engine
from llamina.engine.serve.guard import Rules
from llamina.engine.serve.protocol import Deadlines, HttpServer, config
from llamina.engine.serve.registry import Registry
from pool_check import check_pool

Socket = socket.socket  # within the class the name is a method

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "seed": 1}
LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 400, "seed": 1, "stream": True, "ignore_eos": True}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found = self.json()["error"]
        assert set(found) >= {"message", "type", "param", "code"}, found
        return found

    def events(self) -> list[Any]:
        """The data of server-sent events, without [DONE]."""
        return [json.loads(line[6:]) for line in self.body.decode().splitlines() if line.startswith("data: ") and line != "data: [DONE]"]


class Serving:
    def __init__(self, registry: Registry, server: HttpServer, port: int, key: str | None) -> None:
        self.registry, self.server, self.port, self._key = registry, server, port, key

    @property
    def engine(self) -> Engine:
        return self.registry.engines()[0]

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            own = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            connection.request(method, path, body, {**own, **({"Content-Type": "application/json"} if body is not None else {}), **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, {k.replace("_", "-"): v for k, v in headers.items()})

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, raw, {k.replace("_", "-"): v for k, v in headers.items()})

    def socket(self) -> Socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def begin(self, body: Any, path: str = "/v1/completions") -> Socket:
        """Send a request, read nothing."""
        raw = json.dumps(body).encode()
        connection = self.socket()
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Api-Key: {self._key or ''}\r\n"
                           f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        return connection

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No step is computed meanwhile: what was sent stays under way."""
        with self.registry._turn:
            yield

    def quiet(self, seconds: float = 20.0) -> None:
        """Wait until nothing is under way; then no answer, page or connection may be left over."""
        within(lambda: self.engine.counts == (0, 0) and not self.server.server_state.tasks, seconds)
        model = self.engine.model
        pool = model.runtime._pool
        check_pool(pool)
        count = pool.census()
        assert count.owned == count.shared == 0 and pool._promised == 0, count
        assert all(served.users == 0 for served in self.registry.all())


def within(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} seconds"
        time.sleep(0.01)
    return found


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            found += piece
    return found


@contextlib.contextmanager
def serving(rules: Rules | None = None, limits: Limits | None = None, deadlines: Deadlines | None = None, parallel: int = 4, queue: int = 64,
            key: str | None = None, page: bool = True, **more: Any) -> Iterator[Serving]:
    registry = Registry(lambda path, memory: load(path, threads=1), parallel, queue)
    registry.serve_one("demo", "demo")
    ports: list[int] = []
    server = HttpServer(config(application(registry, rules, limits, **more), "127.0.0.1", 0, deadlines or Deadlines(), 5.0),
                        lambda address, port: ports.append(port), lambda: registry.close(5.0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        within(lambda: ports)
        yield Serving(registry, server, ports[0], key)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"
