"""Who may ask, and how much: the outermost ring of the application. Host and Origin (a page of another site must not reach a local server), the key, JSON
bodies of bounded size, read within a time.

Plain ASGI, so that nothing is read of a request that is refused.
"""
from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError

LOCAL = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/health", "/v1/health")
"""Paths for which no key is asked; the page's own files are added."""
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin"}


@dataclass(frozen=True)
class Rules:
    """hosts: names beside the loopback ones that Host may have, without port; None: any (a server that was bound to a public address on purpose, with a key).
    origins: pages of other sites that may ask."""

    hosts: Collection[str] | None = ()
    origins: Collection[str] = ()
    keys: tuple[str, ...] = ()
    max_body: int = 8 << 20
    body_seconds: float = 30.0
    open_paths: Collection[str] = field(default_factory=lambda: set(OPEN))


class Guard:
    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        extra = dict(SAFE)
        if origin is not None and origin in self._rules.origins:
            extra |= {"access-control-allow-origin": origin, "vary": "origin", "access-control-allow-headers": "authorization, content-type, x-api-key",
                      "access-control-allow-methods": "GET, POST", "access-control-expose-headers": "x-llamina-ignored"}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]}
            await send(message)
        try:
            self._check(scope, headers, origin)
            if scope["method"] == "OPTIONS":
                await sending({"type": "http.response.start", "status": 204 if "access-control-allow-origin" in extra else 405, "headers": []})
                await sending({"type": "http.response.body", "body": b""})
                return
            if scope["method"] == "POST":
                scope = {**scope, "state": {**scope.get("state", {}), "key": self._key(headers)}}
                body = await self._body(headers, receive)
                receive = _once(body, receive)
            else:
                scope = {**scope, "state": {**scope.get("state", {}), "key": self._key(headers)}}
            await self._app(scope, receive, sending)
        except ApiError as error:
            await refuse(error, scope, sending)

    def _check(self, scope: Scope, headers: dict[str, str], origin: str | None) -> None:
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._rules.hosts is not None and name.lower() not in (*LOCAL, *self._rules.hosts):
            raise ApiError(421, f"this server does not answer for the host {name[:80]!r} (--host and --allow-host say for which)", code="wrong_host")
        if origin is not None and origin not in self._rules.origins:
            own = origin.split("://", 1)[-1]
            if own != host:
                raise ApiError(403, "pages of other sites may not use this server (--allow-origin names those that may)", code="wrong_origin")
        if scope["method"] == "OPTIONS" or scope["path"] in self._rules.open_paths:
            return
        if self._rules.keys:
            given = self._key(headers)
            matches = [hmac.compare_digest(given.encode(), key.encode()) for key in self._rules.keys]  # all, so that time tells nothing
            if not any(matches):
                raise ApiError(401, "a key is asked for: Authorization: Bearer KEY, or X-Api-Key: KEY", code="invalid_api_key",
                               headers={"WWW-Authenticate": "Bearer"})

    @staticmethod
    def _key(headers: dict[str, str]) -> str:
        kind, _, key = headers.get("authorization", "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        length = headers.get("content-length")
        if kind != "application/json" and length != "0":
            raise ApiError(415, "the body must be JSON: Content-Type: application/json")
        if "content-encoding" in headers and headers["content-encoding"].lower() != "identity":
            raise ApiError(415, "compressed bodies are not taken")
        if length is not None and length.isdigit() and int(length) > self._rules.max_body:
            raise self._too_large()
        parts, size, end = [], 0, asyncio.get_running_loop().time() + self._rules.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - asyncio.get_running_loop().time()))
            except asyncio.TimeoutError:
                raise ApiError(408, f"the body did not come within {self._rules.body_seconds:g} seconds", headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the client left before its request was whole")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._rules.max_body:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._rules.max_body >> 10} KiB", headers={"Connection": "close"})


def _once(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has the whole body already."""
    told = False

    async def given() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}
    return given


def shape_of(path: str, error: ApiError) -> dict[str, object]:
    """An error in the form that a path's clients know."""
    if path.startswith("/v1/messages"):
        return error.anthropic()
    return error.ollama() if path.startswith("/api/") else error.openai()


async def refuse(error: ApiError, scope: Scope, send: Send) -> None:
    body = json.dumps(shape_of(scope["path"], error), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **{k.lower(): v for k, v in error.headers.items()}}
    await send({"type": "http.response.start", "status": error.status, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": body})
