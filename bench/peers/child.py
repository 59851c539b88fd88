"""An engine in a process of its own: one JSON request a line to its standard input, one JSON answer a line back.

    with Child([python, script], "llama.cpp") as engine:
        engine.ask("load", model="m.gguf", threads=2) -> {...}

A request is {"do": name, ...}; an answer is the result, or {"failed": text}. `serve` is the child's side; this module imports nothing but the standard library,
so that any Python environment can run it.
"""
from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound="Child")


class PeerError(Exception):
    """The child could not be started, died, or answered with an error."""


class Child:
    """The parent's side: starts `command`, which ends when this is closed."""

    def __init__(self, command: list[str], name: str, environment: dict[str, str] | None = None):
        self.name = name
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
        except OSError as error:
            raise PeerError(f"cannot start {name} ({command[0]}): {error}") from None

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send one request and wait for its answer. PeerError."""
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise PeerError(f"{self.name} died (exit code {self.process.wait()}) when asked to {do}")
        result = json.loads(answer)
        if isinstance(result, dict) and "failed" in result:
            raise PeerError(f"{self.name} cannot {do}: {result['failed']}")
        return result

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(OSError):  # it died, and did not read our last words
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(actions: dict[str, Callable[..., Any]]) -> None:
    """The child's side: answer requests with `actions` until standard input ends. What else is printed goes to standard error."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)  # native code that prints
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = actions[request.pop("do")](**request)
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)


def peak_memory() -> int | None:
    """Highest resident memory of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
