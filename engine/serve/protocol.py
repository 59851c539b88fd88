"""Deadlines of a connection, which uvicorn has not (only one for idle connections), and a server that lets running answers end.

    bytes ─► Deadlines (a head within header_seconds, a body within body_seconds, an answer read without a pause of write_seconds) ─► guard.py

A client that sends a byte now and then, or never reads, holds a connection for a bounded time, whatever the routes do.
"""
from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD = 32 << 10
"""Most bytes of a request line and header fields; guard.py counts again, as a head that comes in one piece is never incomplete."""
SEND_BUFFER = 128 << 10
"""Bytes that the system keeps for a client that doesn't read; by itself it would grow to megabytes for each."""
GRACE = 6.0
"""Seconds after the body's deadline until the connection is cut: meanwhile the guard says why."""


@dataclass(frozen=True)
class Deadlines:
    header_seconds: float = 15.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    idle_seconds: float = 75.0


def protocol(deadlines: Deadlines) -> type[H11Protocol]:
    """The protocol class for uvicorn's `http`."""

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _phase: Any = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self._enter("head")

        def connection_lost(self, exc: Exception | None) -> None:
            self._enter(None)
            self.resume_writing_timer()
            self._unset_keepalive_if_required()  # uvicorn forgets it after a reset
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def _look(self) -> None:
            """What is awaited of the client now."""
            state = self.conn.their_state
            if state is h11.SEND_BODY:
                self._enter("body", self.cycle)
            elif state is h11.IDLE and self.conn.trailing_data[0]:
                self._enter("head")
            else:
                self._enter(None)

        def _enter(self, phase: str | None, request: Any = None) -> None:
            if self._phase == (phase, request):
                return
            self._phase = (phase, request)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if phase == "head":
                self._timer = self.loop.call_later(deadlines.header_seconds, self._late_head)
            elif phase == "body":
                self._timer = self.loop.call_later(deadlines.body_seconds + GRACE, self.transport.abort)

        def _late_head(self) -> None:
            if not self.conn.trailing_data[0]:  # it never said a word
                self.transport.abort()
            elif not self.transport.is_closing():
                self._refuse(408, f"the request's head did not come within {deadlines.header_seconds:g} seconds")

        def send_400_response(self, msg: str) -> None:
            too_long = len(self.conn.trailing_data[0]) > MAX_HEAD
            if too_long:
                self._refuse(431, f"the request line and header are larger than {MAX_HEAD >> 10} KiB")
            else:
                self._refuse(400, "this is not HTTP/1.1: the request's head cannot be read")

        def _refuse(self, status: int, message: str) -> None:
            kind = {408: "timeout_error"}.get(status, "invalid_request_error")
            body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()
            if self.cycle is None or self.cycle.response_complete:  # else an answer is on its way, and this would stand in its middle
                phrase = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}[status]
                self.transport.write(f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                                     "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n".encode() + body)
            self.transport.close()

        def shutdown(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()
            else:
                self.cycle.keep_alive = False

        def timeout_keep_alive_handler(self) -> None:
            self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.resume_writing_timer()
            self._writing = self.loop.call_later(deadlines.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self.resume_writing_timer()
            super().resume_writing()

        def resume_writing_timer(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None
    return Protocol


def config(app: Any, host: str, port: int, deadlines: Deadlines, drain_seconds: float) -> uvicorn.Config:
    """uvicorn's configuration: our protocol, no web sockets, no log of requests, no name of the program to strangers."""
    return uvicorn.Config(app, host=host, port=port, http=protocol(deadlines), ws="none", lifespan="on", log_level="critical", access_log=False,
                          timeout_keep_alive=int(deadlines.idle_seconds), timeout_graceful_shutdown=int(drain_seconds) + 5, server_header=False,
                          limit_concurrency=2048, backlog=512, h11_max_incomplete_event_size=MAX_HEAD, proxy_headers=False)


class HttpServer(uvicorn.Server):
    """started(address, port) is called when it listens. stopping() is called, in a thread, when it has been told to stop: connections stay open until
    it returns, so that running answers end, or get their error. uvicorn itself would cut them."""

    def __init__(self, config: uvicorn.Config, told: Callable[[str, int], None] | None = None, stopping: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._told, self._stopping = told, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._told is not None:
            self._told(*self.servers[0].sockets[0].getsockname()[:2])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.ensure_future(asyncio.to_thread(self._stopping)) if self._stopping is not None else None
        await super().shutdown(sockets)
        if ending is not None:
            await ending
