"""One request on its way: body -> model -> answers made (checked whole, in a worker thread) -> ticket -> the answer, streamed or whole -> all given back."""
from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import ContextFullError
from .engine import Ticket
from .errors import ApiError, of
from .fields import Fields, parse_json
from .journal import record
from .sse import Stream, whole

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from .app import Server
    from .registry import Served


LARGE = 1 << 16
"""Bytes of a body from which on it is parsed in a worker thread: others' events go out meanwhile."""


class Call:
    """`async with Call(request) as call: …; return call.stream(…)`, or `await call.whole(…)`. What it holds is given back at the end."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.server: Server = request.app.state.server
        self.served: Served | None = None
        self.ticket: Ticket | None = None
        self.ignored: list[str] = []
        self._handed = False
        self._late: asyncio.TimerHandle | None = None
        self._body: Any = None

    async def __aenter__(self) -> Call:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._handed:
            self._end()

    def _end(self) -> None:
        if self._late is not None:
            self._late.cancel()
        if self.ticket is not None:
            self.ticket.cancel()
            if self.server.journal is not None and self.served is not None:
                self.server.journal.write(record(self.request.url.path, self._body, self.served, self.server.defaults, self.ticket))
        if self.served is not None:
            served, self.served = self.served, None
            self.server.registry.release(served)

    async def body(self) -> Fields:
        raw = await self.request.body()
        self._body = parse_json(raw or b"{}") if len(raw) < LARGE else await self.make(lambda: parse_json(raw))
        return Fields(self._body)

    async def entries(self, most: int) -> list[Any]:
        """A body that is a list."""
        raw = await self.request.body()
        found = parse_json(raw) if len(raw) < LARGE else None
        if not isinstance(found, list) or len(found) > most:
            raise ApiError(400, f"the body must be a JSON array of at most {most} entries")
        return found

    async def model(self, name: Any) -> Served:
        self.served = await self.server.registry.acquire(name)
        return self.served

    def defaults(self) -> dict[str, Any]:
        """Sampling options of a request that says nothing of them: what the file recommends, and what the server was told."""
        assert self.served is not None
        return {**self.served.loaded[0].sampling_defaults, **self.server.defaults}

    async def make(self, work: Callable[[], Any]) -> Any:
        """`work()` in a worker thread, few at a time; its errors as the client's."""
        async with self.server.workers:
            try:
                return await asyncio.to_thread(work)
            except Exception as error:
                raise of(error) from error

    def salt(self, name: str) -> bytes:
        """Whose prefix cache it is: a name under one key is another under the next."""
        key = getattr(self.request.state, "key", "")
        return hashlib.sha256(repr((key, name)).encode()).digest()[:16] if key or name else b""

    async def start(self, work: Callable[[], list[Generation]], salt: str = "") -> Ticket:
        """The answers that `work` makes, handed to the engine. salt: whose prefix cache they share."""
        assert self.served is not None
        context = self.served.loaded[0].context

        def made() -> list[Generation]:
            found = work()
            try:
                for generation in found:
                    fits(generation, context)
            except BaseException:
                for generation in found:
                    generation.close()
                raise
            return found
        generations = await self.make(made)
        for generation in generations:
            generation.cache_salt = self.salt(salt)
        ticket = Ticket(generations, asyncio.get_running_loop())
        try:
            self.served.loaded[1].submit(ticket)
        except BaseException:
            for generation in generations:
                generation.close()
            raise
        self.ticket = ticket
        seconds = self.server.limits.total_seconds
        late = ApiError(408, f"the answer took longer than {seconds:g} seconds and was given up", code="timeout")
        self._late = asyncio.get_running_loop().call_later(seconds, ticket.give_up, late)
        return ticket

    @property
    def headers(self) -> dict[str, str]:
        """What was not looked at is said."""
        return {"x-llamina-ignored": ", ".join(self.ignored)} if self.ignored else {}

    def stream(self, pieces: AsyncIterator[str], **more: Any) -> Response:
        assert self.ticket is not None
        self._handed = True
        return Stream(self.ticket, pieces, self._end, self.headers, **more)

    async def whole(self, collect: Callable[[Ticket], Awaitable[Any]]) -> Response:
        """`collect(ticket)` as JSON."""
        assert self.ticket is not None
        found = await whole(self.request, self.ticket, collect)
        return Response(status_code=499) if found is None else self.json(found)

    def json(self, value: Any) -> Response:
        return JSONResponse(value, headers=self.headers)


def fits(generation: Generation, context: int) -> None:
    """Prompt and answer share the context, as with every server; a prompt that leaves no room for a token that is asked for is refused. ContextFullError."""
    generation.most = context
    if not generation.has_room:
        n = len(generation.window)
        raise ContextFullError.of(f"the prompt has {n} tokens, and fills the context", n, context)
