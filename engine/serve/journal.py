"""What a server was asked and what it answered, if its owner wants it kept (`--log FILE`), and the same again (`llamina replay FILE`).

    a request ─► its answers ─► record ─► a line of JSON ─► replayed: the same request to a server in this process ─► record ─► compared, bit by bit

A record holds the body and the answers: ids, text, log-probabilities where they were asked for. Keys stand in headers, which are never written.
"""
from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ..errors import FileError, one_line

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from ..answers.generation import Generation
    from .engine import Ticket
    from .registry import Served

ANSWER = ("finish_reason", "ids", "text", "logprobs")


def record(path: str, body: Any, served: Served, defaults: dict[str, Any], ticket: Ticket) -> dict[str, Any]:
    """All that decides an answer's bits, and the answer. An answer that was given up has finish_reason null and what there was of it."""
    model, _ = served.loaded
    return {"time": round(time.time(), 3), "version": __version__, "path": path, "body": body, "model": str(served.path), "name": served.name,
            "context": model.context, "kv": model.runtime.kv.name, "fingerprint": served.fingerprint, "defaults": defaults,
            "seed": ticket.generations[0].stats.seed, "answers": [_answer(g) for g in ticket.generations]}


def _answer(g: Generation) -> dict[str, Any]:
    whole = g.finish_reason not in (None, "interrupted")
    return {"finish_reason": g.finish_reason if whole else None, "ids": list(g.ids), "text": g.so_far,
            "logprobs": [[t.id, t.logprob, [[int(id), float(p)] for id, p in t.top]] for t in list(g.logprobs)]}


class Journal:
    """Appends to a file that only its owner can read. A line is written whole or, on a full disk, lost with a word on standard error: answers go on."""

    def __init__(self, path: str) -> None:
        self.path, self._told = path, False
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise FileError(f"{path}: cannot be written as a log: {error.strerror or error}") from None

    def write(self, found: dict[str, Any]) -> None:
        line = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("only a part of a line could be written")
        except OSError as error:
            if not self._told:
                self._told = True
                print(f"llamina: {self.path}: the log cannot be written ({one_line(str(error))}); answers go on", file=sys.stderr)

    def close(self) -> None:
        os.close(self._file)


def read(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of a log. FileError."""
    try:
        with open(path, encoding="utf-8") as file:
            for n, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                    if not {"path", "body", "answers", "seed", "model", "fingerprint", "context", "kv"} <= set(found):
                        raise ValueError
                except (ValueError, TypeError, RecursionError):
                    raise FileError(f"{path}, line {n}: is no record of `llamina serve --log`; a line that a crash cut off can be deleted") from None
                yield n, found
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read: {one_line(str(error))}") from None


class Memory:
    """A journal that keeps the last record."""

    last: dict[str, Any] | None = None

    def write(self, found: dict[str, Any]) -> None:
        self.last = json.loads(json.dumps(found))


async def again(app: ASGIApp, state: Any, kept: dict[str, Any]) -> dict[str, Any]:
    """A record's request to an application whose journal is a Memory (state: its Server) -> the new record. RuntimeError: it is refused now."""
    state.defaults = {**kept.get("defaults", {}), "seed": kept["seed"]}
    state.journal.last = None
    body, told, got, status = json.dumps(kept["body"]).encode(), False, b"", 0
    ended = asyncio.Event()

    async def receive() -> Message:
        nonlocal told
        if told:
            await ended.wait()
            return {"type": "http.disconnect"}
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal got, status
        status = message.get("status", status)
        got += message.get("body", b"")
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": kept["path"],
             "raw_path": kept["path"].encode(), "query_string": b"", "root_path": "", "headers": headers, "state": {}, "server": ("localhost", 80)}
    await app(scope, receive, send)
    ended.set()
    if state.journal.last is None:
        raise RuntimeError(f"status {status}: {got[:200].decode(errors='replace')}")
    found: dict[str, Any] = state.journal.last
    return found


def differences(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the same bits. Of an answer that was given up, what there was of it is compared."""
    found = []
    if len(kept["answers"]) != len(now["answers"]):
        return [f"{len(now['answers'])} answers instead of {len(kept['answers'])}"]
    for i, (old, new) in enumerate(zip(kept["answers"], now["answers"])):
        for name in ANSWER:
            a, b = old[name], new[name]
            if old["finish_reason"] is None:
                if name in ("finish_reason", "text"):
                    continue
                b = b[:len(a)]
            if a != b:
                at = next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))) if name != "finish_reason" else None
                where = f": {a}, now {b}" if at is None else f" from {'character' if name == 'text' else 'token'} {at} on"
                found.append(f"answer {i}: {name} differ{where}")
    return found


def model_path(kept: dict[str, Any]) -> str:
    return str(kept["model"]) if kept["model"] == "demo" else str(Path(kept["model"]).absolute())
