"""Server-sent events and how an answer goes out: pieces as they come, comments while nothing comes, and the end of the answer when the client has left."""
from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .engine import Ticket
from .errors import of, shape_of

KEEP_ALIVE = 5.0
"""Seconds of silence after which a comment shows that the server is alive."""


def event(data: Any, name: str | None = None) -> str:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


def line(data: Any) -> str:
    """One of Ollama's: JSON, a line each."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"


class Stream(Response):
    """Sends what `pieces` yields. When the client leaves, the ticket is cancelled and the generator closed. comment: sent in silences."""

    def __init__(self, ticket: Ticket, pieces: AsyncIterator[str], end: Callable[[], None], headers: dict[str, str] | None = None,
                 comment: str = ": keep-alive\n\n", media_type: str = "text/event-stream") -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._ticket, self._pieces, self._end, self._comment = ticket, pieces, end, comment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
        watch = asyncio.ensure_future(left())
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, watch, scope["path"])
        except OSError:
            pass  # the client's end of the connection is gone
        finally:
            watch.cancel()
            self._ticket.cancel()
            self._end()

    async def _send(self, send: Send, watch: asyncio.Future[None], path: str) -> None:
        pieces, waiting = aiter(self._pieces), None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(pieces, None))
                awaited: set[asyncio.Future[Any]] = {waiting, watch}
                done, _ = await asyncio.wait(awaited, timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
                if watch in done:
                    return
                if waiting in done:
                    try:
                        piece, waiting = waiting.result(), None
                    except Exception as error:  # our own fault, in the middle of an answer: the status is sent, so the stream must say it
                        traceback.print_exception(error, file=sys.stderr)
                        await send({"type": "http.response.body", "body": self._failed(path, error).encode()})
                        return
                    if piece is None:
                        await send({"type": "http.response.body", "body": b""})
                        return
                elif self._comment:
                    piece = self._comment
                else:
                    continue
                await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        finally:
            if waiting is not None and not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting

    def _failed(self, path: str, error: Exception) -> str:
        told = shape_of(path, of(error))
        if self.media_type != "text/event-stream":
            return line(told)
        return event(told, "error" if told.get("type") == "error" else None)


async def whole(request: Request, ticket: Ticket, collect: Callable[[Ticket], Awaitable[Any]]) -> Any:
    """`collect(ticket)`, given up when the client leaves meanwhile; then None."""
    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    watch, work = asyncio.ensure_future(left()), asyncio.ensure_future(collect(ticket))
    try:
        await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        return None
    finally:
        watch.cancel()
        if not work.done():
            work.cancel()
        ticket.cancel()
