"""Who may ask, and how much: the outermost ring of the application. Host and Origin (a page of another site must not reach a local server), the key,
JSON bodies of bounded size, read within a time.

Plain ASGI, so that nothing is made of a request that is refused. protocol.py bounds what comes before: the head, and how long a connection is held.
"""
from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, shape_of

LOCAL = ("localhost", "127.0.0.1", "[::1]")
LOCAL_ORIGINS = "localhost"
"""Among `origins`: any page that this machine serves, at any port."""
OPEN = ("/health", "/v1/health")
"""Paths for which no key is asked; the page's own files are added."""
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin",
        "x-frame-options": "DENY"}
LINGER, PAUSE = 5.0, 0.5
"""Seconds for which the body of a refused request is still read, and of silence that end this: a connection cut while the client sends loses the refusal."""


@dataclass(frozen=True)
class Rules:
    """hosts: names beside the loopback ones that Host may have, without port; None: any (a server that was bound to a public address on purpose, with a key).
    origins: pages of other sites that may ask."""

    hosts: Collection[str] | None = ()
    origins: Collection[str] = ()
    keys: tuple[str, ...] = ()
    max_head: int = 32 << 10
    max_fields: int = 100
    max_body: int = 8 << 20
    body_seconds: float = 30.0
    open_paths: Collection[str] = field(default_factory=lambda: set(OPEN))


class Guard:
    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.inner, self._rules = app, rules
        self._keys = [_digest(key.encode()) for key in rules.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        extra = dict(SAFE)
        if self._rules.origins:
            extra["Vary"] = "Origin"
        if origin is not None and self._may(origin):
            extra |= {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Headers": "authorization, content-type, x-api-key, anthropic-version",
                      "Access-Control-Allow-Methods": "GET, POST", "Access-Control-Expose-Headers": "x-llamina-ignored",
                      "cross-origin-resource-policy": "cross-origin"}
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]}
            await send(message)
        whole = scope["method"] in ("GET", "HEAD", "OPTIONS") and "content-length" not in headers and "transfer-encoding" not in headers
        try:
            self._check(scope, headers, None if asks else origin)  # a page that may not is told so by what the answer lacks
            scope = {**scope, "state": {**scope.get("state", {}), "key": self._key(headers)}}
            if scope["method"] == "OPTIONS":
                await sending({"type": "http.response.start", "status": 200 if asks else 405, "headers": [(b"content-length", b"0")]})
                await sending({"type": "http.response.body", "body": b""})
                return
            if scope["method"] == "POST":
                body = await self._body(headers, receive)
                whole, receive = True, _once(body, receive)
            await self.inner(scope, receive, sending)
        except ApiError as error:
            await refuse(error, scope, sending, None if whole else receive)

    def _check(self, scope: Scope, headers: dict[str, str], origin: str | None) -> None:
        fields = scope["headers"]
        if len(fields) > self._rules.max_fields or sum(len(k) + len(v) + 4 for k, v in fields) + len(scope.get("raw_path", b"")) + len(
                scope["query_string"]) > self._rules.max_head:
            raise ApiError(431, f"the request's head is larger than {self._rules.max_head >> 10} KiB or has more than {self._rules.max_fields} fields")
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._rules.hosts is not None and name.lower() not in (*LOCAL, *self._rules.hosts):
            raise ApiError(421, f"this server does not answer for the host {name[:80]!r} (--host and --allow-host say for which)", code="wrong_host")
        own = origin is None or self._may(origin) or origin.split("://", 1)[-1] == host
        if headers.get("sec-fetch-site") == "cross-site" and origin is None and headers.get("sec-fetch-mode") != "navigate":
            own = False  # a picture or script of another site: no Origin comes with it
        if not own:
            raise ApiError(403, "pages of other sites may not use this server (--allow-origin names those that may)", code="wrong_origin")
        if scope["method"] == "OPTIONS" or scope["path"] in self._rules.open_paths:
            return
        if self._keys:
            given = _digest(self._key(headers).encode("latin-1"))
            matches = [hmac.compare_digest(given, key) for key in self._keys]  # all, so that time tells nothing
            if not any(matches):
                raise ApiError(401, "a key is asked for: Authorization: Bearer KEY, or X-Api-Key: KEY", code="invalid_api_key",
                               headers={"WWW-Authenticate": "Bearer"})

    def _may(self, origin: str) -> bool:
        """Whether a page of this origin may use the server."""
        if origin in self._rules.origins and origin != LOCAL_ORIGINS:
            return True
        kind, _, place = origin.partition("://")
        name, _, port = (place, "", "") if place.endswith("]") else place.rpartition(":") if ":" in place else (place, "", "")
        return LOCAL_ORIGINS in self._rules.origins and kind in ("http", "https") and name in LOCAL and (not port or port.isdigit())

    @staticmethod
    def _key(headers: dict[str, str]) -> str:
        kind, _, key = headers.get("authorization", "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        if "content-length" in headers and "transfer-encoding" in headers:
            raise ApiError(400, "Content-Length and Transfer-Encoding contradict each other")
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
                raise ApiError(408, f"the body did not come within {self._rules.body_seconds:g} seconds") from None
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the client left before its request was whole")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._rules.max_body:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._rules.max_body >> 10} KiB")


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


async def refuse(error: ApiError, scope: Scope, send: Send, receive: Receive | None = None) -> None:
    """Send an error. receive: what is left of the body; it is read and thrown away for some seconds, then the connection closes."""
    body = json.dumps(shape_of(scope["path"], error), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **{k.lower(): v for k, v in error.headers.items()}}
    if receive is not None:
        headers["connection"] = "close"
    await send({"type": "http.response.start", "status": error.status, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": body, "more_body": receive is not None})
    if receive is not None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_throw_away(receive), LINGER)
        await send({"type": "http.response.body", "body": b""})


async def _throw_away(receive: Receive) -> None:
    while (message := await asyncio.wait_for(receive(), PAUSE))["type"] == "http.request" and message.get("more_body"):
        pass


def _digest(key: bytes) -> bytes:
    """Of one length, so that comparing takes one time."""
    return hashlib.sha256(key).digest()
