"""A server on a free loopback port, in a thread, for the tests of engine/serve: the shipped demo, and the same weights with a template that takes tools."""
from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for needed in ("starlette", "uvicorn", "httpx"):
    pytest.importorskip(needed, reason=f"serving needs {needed}: pip install 'llamina[serve,test]'")

TEMPLATE = """{% if tools %}Tools, to be called as <tool_call>{"name": ..., "arguments": ...}</tool_call>:{{ "\\n" }}
{%- for tool in tools %}{{ tool | tojson }}{{ "\\n" }}{% endfor %}{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{{ "\\n" }}{% endfor %}
{%- if add_generation_prompt %}assistant:{% if thinking %} <think>{% endif %}{% endif %}"""
"""One as small models have it, with what tests need: tools, and thoughts when asked for."""


class Server:
    """url: without /v1. registry: of the models served."""

    def __init__(self, url: str, registry: Any) -> None:
        import httpx
        self.url, self.registry = url, registry
        self.http = httpx.Client(base_url=url, timeout=60)

    @property
    def model(self) -> Any:
        return self.registry.find(None).model

    @property
    def engine(self) -> Any:
        return self.registry.find(None).engine

    def post(self, path: str, /, **body: Any) -> Any:
        return self.http.post(path, json=body)

    def ok(self, path: str, /, **body: Any) -> Any:
        answer = self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path: str, /, **body: Any) -> list[dict[str, Any]]:
        """The data of a streamed answer's events, without [DONE]."""
        answer = self.post(path, stream=True, **body)
        assert answer.status_code == 200, answer.text
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def settled(self) -> bool:
        """No answer is under way any more, and no sequence holds pages."""
        for _ in range(200):
            if self.engine.counts == (0, 0) and not sum(self.model.runtime.kv_pages()[:2]):
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def serving(template: str | None = None, parallel: int = 16, queue: int = 64, path: str | Path | None = "demo", rules: Any = None, memory: int | None = None,
            **load: Any) -> Iterator[Server]:
    """path None: everything in the models folder."""
    import llamina
    import uvicorn
    from llamina.engine.serve.app import application
    from llamina.engine.serve.registry import Registry
    from llamina.engine.text.chat_template import ChatTemplate

    def loaded(path: str, memory: int | None = None) -> Any:
        model = llamina.load(path, memory=memory, **load)
        if template is not None:
            model._template = ChatTemplate(template, model.tokenizer)
        return model
    registry = Registry(loaded, parallel, queue, memory, load)
    if path is not None:
        registry.serve_one(str(path), "demo")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(registry, rules, drain_seconds=0.5), log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server has not started"
            time.sleep(0.01)
        try:
            yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", registry)
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server does not stop"
