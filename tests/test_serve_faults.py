"""What clients, the machine and our own mistakes do to a server: it goes on, nothing is left held, and nobody else notices."""
from __future__ import annotations

import gc
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="needs the extra 'serve'")

from llamina.engine.answers.generation import Generation
from llamina.engine.serve import openai_completions
from sockets import CHAT, LONG, Serving, read_all, serving, within

SHORT: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 12, "seed": 5, "logprobs": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(parallel=8, queue=300) as found:
        yield found


@pytest.fixture(scope="module")
def expected(server: Serving) -> Any:
    return server.post("/v1/completions", SHORT).json()["choices"]


@pytest.fixture(autouse=True)
def unharmed(server: Serving, expected: Any) -> Iterator[None]:
    """After each test: nothing is held, and an answer has the same bits as before."""
    yield
    server.quiet()
    assert server.get("/health").status == 200
    assert server.post("/v1/completions", SHORT).json()["choices"] == expected


def reset(connection: socket.socket) -> None:
    """Leave without a word, as a killed process does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_killed_clients(server: Serving) -> None:
    """Queued, in the prompt, streaming and not: a hundred leave, some with a reset; one that stays gets its answer whole."""
    long = "word " * 80
    stays = server.begin({**LONG, "max_tokens": 60})
    bodies = [LONG, {**LONG, "stream": False}, {**LONG, "prompt": long}, {**LONG, "n": 4}]
    for round in range(5):
        connections = [server.begin(bodies[i % 4]) for i in range(20)]
        if round % 2:
            time.sleep(0.02)
        for i, connection in enumerate(connections):
            reset(connection) if i % 3 else connection.close()
    got = b""
    while b"[DONE]" not in got:
        got += (piece := stays.recv(65536))
        assert piece, got[-300:]
    stays.close()


def test_a_client_that_leaves_before_its_answer_begins(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """It left while the request was checked: the answers that were made are given up, unread."""
    make, at = openai_completions.make, threading.Event()

    def slow(*args: Any) -> Any:
        at.set()
        time.sleep(0.1)
        return make(*args)
    monkeypatch.setattr(openai_completions, "make", slow)
    for stream in (True, False):
        at.clear()
        connection = server.begin({**LONG, "stream": stream})
        assert at.wait(10)
        reset(connection)
        within(lambda: not server.server.server_state.tasks)


def test_half_sent(server: Serving) -> None:
    raw = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    for n in (0, 1, len(head) // 2, len(head) - 1, len(head), len(head) + 1, len(head) + len(raw) - 1):
        connection = server.socket()
        connection.sendall((head + raw)[:n])
        connection.close()


def test_a_hundred_megabytes(server: Serving) -> None:
    """Refused at the head, though the client goes on sending; and no memory for it."""
    with server.socket() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n")
        piece = b" " * (1 << 20)
        for _ in range(100):
            connection.sendall(piece)
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("raw", [
    b"", b"{", b"null", b"[]", b"1", b'"x"', b"{}{}", b"\xff\xfe{}", b'{"prompt": "\xff"}', b'{"prompt": "\xc3"}', b'{"prompt": "\\ud800"}', b'{"\\udfff": 1}',
    b'{"prompt": NaN}', b'{"temperature": Infinity}', b'{"temperature": -Infinity}', b'{"temperature": 1e400}', b'{"seed": 1e400}', b'{"max_tokens": -1e400}',
    b'{"seed": ' + b"9" * 5000 + b"}", b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "a\x00b"}', b'{"prompt": ["a", 1]}', b'{"prompt": [[]]}',
    b'{"prompt": [true]}',
    b'{"prompt": [99999999]}', b'{"prompt": [-1]}', b'{"prompt": [1e30]}', b'{"prompt": [184467440737095516160]}', b"{'prompt': 'x'}", b"<xml/>",
    b'{"prompt": "x", "stop": [[]]}', b'{"prompt": "x", "logit_bias": {"x": 1}}', b'{"prompt": "x", "logit_bias": [[1]]}'])
def test_bad_bodies(server: Serving, raw: bytes) -> None:
    """400 with a sentence, in OpenAI's form. An empty body, and no prompt, are requests for an answer to nothing; they may have one."""
    for path in ("/v1/chat/completions", "/v1/completions"):
        reply = server.post(path, raw)
        if raw and "chat" not in path or raw == b"":
            assert reply.status in (200, 400)
        else:
            assert reply.status == 400
        if reply.status == 400:
            assert 10 < len(reply.error["message"]) < 400


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from([-1, 0, 1, 2, 1e308, 2**31, 2**63, "auto", "\0", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "name", "content", "role", "function", "schema", "json_schema", "0", "5"]), inner, max_size=3), max_leaves=6)
CHAT_FIELDS = ["model", "messages", "n", "seed", "stop", "temperature", "top_p", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty",
               "logit_bias", "logprobs", "top_logprobs", "stream", "stream_options", "response_format", "tools", "tool_choice", "parallel_tool_calls", "user",
               "chat_template_kwargs", "top_k", "min_p", "typical_p", "top_n_sigma", "repeat_penalty", "repeat_last_n", "dry_multiplier", "dry_base",
               "dry_allowed_length", "dry_last_n", "dry_sequence_breakers", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent",
               "mirostat",
               "mirostat_tau", "mirostat_eta", "samplers", "json_schema", "regex", "lark", "choices", "cache_salt", "metadata", "no_such_field"]
TEXT_FIELDS = ["prompt", "echo", "suffix", "best_of", "logprobs", "ignore_eos", "n_predict", *(f for f in CHAT_FIELDS if f not in ("messages", "tools"))]


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(chat=st.booleans(), data=st.data())
def test_wrong_types_everywhere(server: Serving, chat: bool, data: st.DataObject) -> None:
    """Any value in any field: an answer or a 400 that says why; never a fault of ours."""
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
    names = data.draw(st.lists(st.sampled_from(CHAT_FIELDS if chat else TEXT_FIELDS), min_size=1, max_size=3, unique=True))
    body = {**base, "max_tokens": 2, **{name: data.draw(VALUES) for name in names}}
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] > 4 or body["max_tokens"] < 0:
        body.setdefault("stop", "e")
    reply = server.post("/v1/chat/completions" if chat else "/v1/completions", body)
    assert reply.status in (200, 400), (body, reply.body)
    if reply.status == 400:
        assert reply.error["message"]
    elif b"data: " in reply.body:
        assert all("error" not in event for event in reply.events()), (body, reply.body)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(message=st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "x"]), VALUES, max_size=4),
       tool=VALUES)
def test_wrong_messages(server: Serving, message: Any, tool: Any) -> None:
    reply = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}, message], "tools": [tool], "max_tokens": 1})
    assert reply.status in (200, 400), (message, tool, reply.body)


def memory() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_hundreds_of_requests_leave_nothing(server: Serving) -> None:
    """Threads, tasks, pages and objects as before; memory too, but for what allocators keep. LLAMINA_SERVE_REQUESTS=10000: the long version."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def many(n: int) -> None:
        for i in range(n):
            body = [CHAT, SHORT, {**CHAT, "n": 99}, {**SHORT, "stream": True}, {**CHAT, "response_format": {"type": "json_object"}}][i % 5]
            path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            connection.getresponse().read()

    def left() -> tuple[int, int]:
        server.quiet()
        gc.collect()
        return threading.active_count(), sum(type(x) is Generation for x in gc.get_objects())
    many(60)
    before, held = left(), memory()
    many(int(os.environ.get("LLAMINA_SERVE_REQUESTS", "240")))
    after = left()
    connection.close()
    assert after[0] <= before[0] + 1 and after[1] <= before[1] and memory() - held < 24 << 20, (before, after, memory() - held)


def test_a_fault_of_the_engine(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a step ends the answers of that step with an error, streamed or whole, and none that come later."""
    scheduler = type(server.engine.model.scheduler)
    with server.paused():
        held = [server.begin(LONG), server.begin({**LONG, "stream": False})]
        within(lambda: sum(server.engine.counts) == 2)

        def broken(self: Any, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("a test's fault")
        monkeypatch.setattr(scheduler, "run", broken)
    within(lambda: server.engine.counts == (0, 0))
    monkeypatch.undo()
    streamed, whole = (http_end(s) for s in held)
    assert b" 200 " in streamed and b'"server_error"' in streamed
    assert whole.startswith(b"HTTP/1.1 500 ")


def http_end(connection: socket.socket) -> bytes:
    """What a connection that is kept alive has got."""
    connection.settimeout(1.0)
    got = b""
    with pytest.raises(TimeoutError):
        while piece := connection.recv(65536):
            got += piece
        raise TimeoutError
    connection.close()
    return got


def test_a_fault_of_ours_in_a_stream(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is sent already: the stream says that something is wrong, and the sequence is freed."""
    monkeypatch.setattr(openai_completions, "legacy_logprobs", lambda *args: 1 / 0)
    events = server.post("/v1/completions", {**LONG, "logprobs": 1}).events()
    monkeypatch.undo()
    assert events[-1]["error"]["type"] == "server_error" and "ZeroDivisionError" in events[-1]["error"]["message"]


def test_a_dead_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread itself dies: those who wait hear of it, those who come are refused, /health is no longer well."""
    with serving() as server:
        with server.paused():
            held = server.begin(LONG)
            within(lambda: server.engine.counts[0] == 1)
            monkeypatch.setattr(server.engine, "_drop_cancelled", lambda: 1 / 0)
        assert b"the engine has failed" in http_end(held)
        assert server.get("/health").status == 500
        assert server.post("/v1/completions", SHORT).status == 503


def child(*argv: str) -> tuple[subprocess.Popen[str], int]:
    """`llamina serve demo` as a program of its own -> (it, its port)."""
    process = subprocess.Popen([sys.executable, "-m", "llamina", "serve", "demo", "--threads", "1", "--port", "0", *argv], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "http://" in line:
            return process, int(line.split("http://127.0.0.1:")[1].split("/")[0])
    raise AssertionError("it does not start")


def ask(port: int, body: Any) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def test_the_program_ends_and_begins_again(expected: Any) -> None:
    """SIGTERM in the middle of 8 streams: each ends whole, nobody new comes in. kill -9: a new one answers at the same port at once, with the same bits."""
    process, port = child()
    streams = [ask(port, {**LONG, "logprobs": 5}) for _ in range(8)]
    process.send_signal(signal.SIGTERM)
    bodies = [stream.read() for stream in streams]
    assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies) and len({body.count(b"data: ") for body in bodies}) == 1
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert process.stderr is not None and "Traceback" not in process.stderr.read()
    with pytest.raises(ConnectionError):
        ask(port, SHORT)
    process, port = child("--port", str(port))
    open = ask(port, LONG)
    process.kill()
    process.wait()
    open.close()
    process, port = child("--port", str(port))
    try:
        assert json.loads(ask(port, SHORT).read())["choices"] == expected
    finally:
        process.kill()
        process.wait()


def test_stopping_with_answers_that_take_too_long() -> None:
    """The time to drain is over: an error event, not a cut line."""
    with serving(drain_seconds=0.0) as server:
        engine = server.engine
        with server.paused():
            held = [server.begin(LONG) for _ in range(3)]
            within(lambda: sum(server.engine.counts) == 3)
            threading.Thread(target=server.registry.close, args=(0.05,)).start()
            within(lambda: engine._stopping)
            assert server.post("/v1/completions", SHORT).status == 503
        for s in held:
            assert b'"code":"stopping"' in http_end(s)
