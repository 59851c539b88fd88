"""Who may use a server, and how much of it: hosts, origins, keys, sizes, deadlines."""
from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")

from llamina.engine.serve.app import Limits
from llamina.engine.serve.errors import ApiError
from llamina.engine.serve.fields import MAX_DEPTH, parse_json
from llamina.engine.serve.guard import Rules
from llamina.engine.serve.protocol import Deadlines
from sockets import CHAT, LONG, Serving, read_all, serving, within

KEY, OTHER = "schlüssel-1", "key-2"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    rules = Rules(hosts=("box.local",), origins=("https://app.example",), max_body=100_000, body_seconds=1.0)
    with serving(rules, Limits(total_seconds=300), Deadlines(header_seconds=1.0, body_seconds=1.0, write_seconds=1.0, idle_seconds=2)) as found:
        yield found


@pytest.fixture(scope="module")
def locked() -> Iterator[Serving]:
    with serving(Rules(hosts=None, keys=(KEY, OTHER)), parallel=1, queue=1) as found:
        yield found


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1:8080", 200), ("[::1]:8080", 200), ("[::1]", 200), ("box.local:9", 200),
    ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example:8080", 421), ("", 421), ("[::1].evil", 421), ("localhost:1:evil", 421)])
def test_hosts(server: Serving, host: str, status: int) -> None:
    """A name that an attacker's DNS points at this machine is no name of this server."""
    assert server.get("/health", Host=host).status == status


@pytest.mark.parametrize("headers, status", [
    ({}, 200), ({"Origin": "http://localhost:8080", "Host": "localhost:8080"}, 200), ({"Origin": "https://app.example"}, 200),
    ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://localhost:3000", "Host": "localhost:8080"}, 403),
    ({"Origin": "https://app.example.evil"}, 403), ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200)])
def test_origins(server: Serving, headers: dict[str, str], status: int) -> None:
    reply = server.request("GET", "/v1/models", None, headers)
    assert reply.status == status
    allowed = headers.get("Origin") if headers.get("Origin") == "https://app.example" else None
    assert reply.headers.get("access-control-allow-origin") == allowed and "access-control-allow-credentials" not in reply.headers
    assert reply.headers["x-content-type-options"] == "nosniff" and reply.headers["x-frame-options"] == "DENY"


def test_preflight(server: Serving) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    good = server.request("OPTIONS", "/v1/chat/completions", None, {"Origin": "https://app.example", **ask})
    assert good.status == 200 and "content-type" in good.headers["access-control-allow-headers"]
    for origin in ("https://evil.example", "http://localhost:3000", "null"):  # the answer says nothing of it: its browser sends no request
        refused = server.request("OPTIONS", "/v1/chat/completions", None, {"Origin": origin, **ask})
        assert refused.status == 200 and not [name for name in refused.headers if name.startswith("access-control")] and not refused.body
    assert server.request("OPTIONS", "/v1/chat/completions", None, {"Origin": "https://evil.example"}).status == 403
    assert server.request("OPTIONS", "/v1/chat/completions").status == 405


def test_pages_of_this_machine() -> None:
    """--allow-origin localhost: whatever it serves, at any port; nothing that only looks like it."""
    with serving(Rules(origins=("localhost",))) as server:
        for origin in ("http://localhost", "http://localhost:3000", "https://127.0.0.1:1", "http://[::1]", "http://[::1]:3000"):
            reply = server.get("/v1/models", Origin=origin)
            assert reply.status == 200 and reply.headers["access-control-allow-origin"] == origin and reply.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in reply.headers
        for origin in ("http://notlocalhost", "http://localhost.evil.com", "http://evil.com:80", "file://localhost", "http://localhost:80:evil", "http://localhost:x",
                       "http://[::1].evil", "localhost", "null", "http://127.0.0.1.evil.com:80"):
            assert server.get("/v1/models", Origin=origin).status == 403, origin


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_a_form_of_another_site_is_no_request(server: Serving, kind: str) -> None:
    """Without a preflight a page may send these kinds alone."""
    assert server.post("/v1/chat/completions", CHAT, Content_Type=kind).status == 415


def test_compressed_bodies_are_refused(server: Serving) -> None:
    assert server.post("/v1/chat/completions", CHAT, Content_Encoding="gzip").status == 415


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/nothing", "/v1/models/../models", "//health", "/health/", "/v1/messages"])
def test_every_route_asks_for_a_key(locked: Serving, path: str, capfd: pytest.CaptureFixture[str]) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": KEY.encode().decode("latin-1")},
                    {"X-Api-Key": "key"},
                    {"Authorization": f"Basic {OTHER}"}):
        for method, body in (("GET", None), ("POST", b"{}"), ("DELETE", None)):
            reply = locked.request(method, path, body, headers)
            assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer", (method, headers)
    assert KEY not in capfd.readouterr().err


def test_keys_that_open(locked: Serving) -> None:
    raw = KEY.encode().decode("latin-1")
    for headers in ({"Authorization": f"Bearer {raw}"}, {"authorization": f"bearer {OTHER}"}, {"X-Api-Key": OTHER}, {"x-api-key": raw}):
        assert locked.request("GET", "/v1/models", None, headers).status == 200
    assert locked.get("/health").status == 200


def test_too_large(server: Serving) -> None:
    for body in (b" " * 100_001, b'{"prompt": "' + b"x" * 3_000_000 + b'"}'):
        reply = server.post("/v1/completions", body)
        assert reply.status == 413 and reply.error["type"] == "request_too_large" and reply.headers["connection"] == "close"


def chunked(server: Serving, sizes: list[int]) -> bytes:
    with server.socket() as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for size in sizes:
            s.sendall(b"%x\r\n%s\r\n" % (size, b" " * size))
        return read_all(s)


def test_too_large_without_a_length(server: Serving) -> None:
    assert chunked(server, [50_000] * 3).startswith(b"HTTP/1.1 413 ")


def test_heads(server: Serving) -> None:
    many = server.request("GET", "/health", None, {f"x-{i}": "1" for i in range(120)})
    assert many.status == 431
    assert server.request("GET", "/health", None, {"x-long": "y" * 40_000}).status == 431
    assert server.request("GET", "/health?" + "y" * 40_000).status == 431


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_slow_heads(server: Serving, sent: bytes) -> None:
    """Slowloris: a byte now and then keeps nothing open."""
    with server.socket() as s:
        since, got = time.monotonic(), b""
        s.settimeout(0.2)
        s.sendall(sent)
        while time.monotonic() - since < 30:
            try:
                got += (piece := s.recv(1000))
                if not piece:
                    break
            except TimeoutError:
                if sent:
                    s.sendall(b"x")
            except ConnectionError:
                break
        assert 0.8 < time.monotonic() - since < 20
        assert got.startswith(b"HTTP/1.1 408 ") if sent else got == b""


def test_slow_bodies(server: Serving) -> None:
    with server.socket() as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{")
        since = time.monotonic()
        assert s.recv(1000).startswith(b"HTTP/1.1 408 ") and 0.8 < time.monotonic() - since < 20


def test_not_http(server: Serving) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                 b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"):
        with server.socket() as s:
            s.sendall(sent)
            head, _, body = read_all(s).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["message"], sent


def test_smuggled_second_request(server: Serving) -> None:
    """Both lengths at once: one request, or none; never two."""
    with server.socket() as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\n"
                  b"Transfer-Encoding: chunked\r\n\r\n"
                  b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        answers = read_all(s)
        assert b"200 OK" not in answers


def test_an_unread_answer_holds_nothing(server: Serving) -> None:
    """A client that never reads is cut off: its connection, its answer, its pages."""
    s = server.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps({"prompt": "Once upon", "max_tokens": 480, "n": 2, "logprobs": 20, "stream": True, "ignore_eos": True}).encode()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    within(lambda: server.server.server_state.tasks)
    server.quiet(60)
    s.close()


def nested(depth: int, text: str = "") -> bytes:
    return b'{"x":' + b"[" * (depth - 1) + json.dumps(text).encode() + b"]" * (depth - 1) + b"}"


def test_depth() -> None:
    """Brackets in strings are no depth."""
    for text in ("", "[" * 5000, '"' + "{[" * 999, "\\" * 7 + "[" * 300):
        parse_json(nested(MAX_DEPTH, text))
        with pytest.raises(ApiError, match="nested too deeply"):
            parse_json(nested(MAX_DEPTH + 1, text))
    for deep in (1000, 100_000, 1_000_000):
        for raw in (nested(deep), b"[" * deep, b'{"a":' * deep):
            with pytest.raises(ApiError) as caught:
                parse_json(raw)
            assert caught.value.status == 400


def test_queue_full(locked: Serving) -> None:
    """parallel 1, queue 1: a third gets 429 and a time; more at once than there can ever be, 400."""
    locked._key = OTHER
    with locked.paused():
        held = [locked.begin(LONG), locked.begin(LONG)]
        within(lambda: sum(locked.engine.counts) == 2)
        reply = locked.post("/v1/chat/completions", CHAT)
        assert reply.status == 429 and reply.error["code"] == "queue_full" and int(reply.headers["retry-after"]) >= 1
        for s in held:
            s.close()
    locked.quiet()
    assert locked.post("/v1/chat/completions", {**CHAT, "n": 3}).status == 400
    locked._key = None


def test_total_time() -> None:
    """Streamed or not, an answer ends in time, with an error in the client's form."""
    with serving(limits=Limits(total_seconds=0.05)) as server:
        whole = server.post("/v1/completions", {**LONG, "stream": False})
        assert whole.status == 408 and whole.error["code"] == "timeout"
        streamed = server.post("/v1/completions", LONG)
        assert streamed.status == 200 and streamed.events()[-1]["error"]["code"] == "timeout"
        server.quiet()


@pytest.mark.parametrize("field", ["chat_template", "model_path", "session", "slot_save_path", "lora", "image_url", "file", "template", "grammar_file"])
def test_requests_name_no_files(server: Serving, field: str) -> None:
    reply = server.post("/v1/chat/completions", {**CHAT, field: "/etc/passwd"})
    assert reply.status == 400 and field in reply.error["message"]


@pytest.mark.parametrize("option", ["chat_template", "messages", "template", "tools", "bos_token", "raise_exception", "__class__"])
def test_template_options_replace_nothing(server: Serving, option: str) -> None:
    """What the template is given by us cannot be given by a request."""
    plain: Any = server.post("/v1/chat/completions", CHAT)
    reply = server.post("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {option: "x"}})
    assert reply.status in (200, 400) and (reply.status == 400 or option not in ("messages", "tools", "bos_token")), reply.body
    if reply.status == 200:
        assert reply.json()["usage"]["prompt_tokens"] == plain.json()["usage"]["prompt_tokens"]


def test_limits(server: Serving) -> None:
    for field, value in (("n", 17), ("top_logprobs", 21), ("stop", ["x"] * 17), ("stop", "x" * 401), ("logit_bias", {str(i): 1 for i in range(1025)}),
                         ("messages", [{"role": "user", "content": "x"}] * 2049), ("tools", [{}] * 257), ("logit_bias", [[1e400, 1]])):
        raw = json.dumps({**CHAT, "logprobs": True, field: value}).replace("Infinity", "1e400").encode()
        reply = server.post("/v1/chat/completions", raw)
        assert reply.status == 400 and field in reply.error["message"], (field, reply.body)
    server.quiet()
