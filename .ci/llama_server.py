#!/usr/bin/env python3
"""An optional job: llama-server's own tests (llama.cpp, tools/server/tests) as a black box around `llamina serve`. Nothing of them is in this repository.

    llama_server.py run LLAMA_CPP MODEL [pytest's arguments]   their tests, copied to a temporary folder, against this program as the server
    llama_server.py --model … --port … …                       llama-server's flags -> engine/serve (what their tests start)

LLAMA_CPP: llama.cpp's source, such as vendor/llama.cpp of llama-cpp-python's source distribution. MODEL: their tiny model, stories260K as GGUF.
LLAMINA_BERT_MODEL, if set: an encoder of BERT's vocabulary as GGUF (such as all-MiniLM-L6-v2) for their tests of embeddings.
Every test of theirs passes or stands below with the reason why it doesn't apply, and the job fails if one of those doesn't exist.
"""
from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
LLAMA3 = ("{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
COMMAND_R = ("{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + ('CHATBOT' if m.role == 'assistant' else m.role | upper) + '_TOKEN|>' + m.content"
             " + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}")
CHATML_TOOLS = "{{ '<tool_call>' if false }}{{ tools | map(attribute='function') | map(attribute='name') | join(', ') }}\n" + CHATML
"""llama-server has a way of its own to tell any model of tools."""
NAMED = {"chatml": CHATML, "llama3": LLAMA3, "command-r": COMMAND_R}
"""Templates that llama-server knows by name; chatml is what it takes for a file without one."""
MODEL_VARIABLE = "LLAMINA_TINY_MODEL"
CONFTEST = '''
import os
import pytest
import utils
from utils import server_instances

# what llama.cpp draws with its own random numbers; we draw with ours
DRAWN = ("(going|bed)", "(princesses|", "(Suddenly)", "But she couldn", "(Aside|", "Whillicter", "^ blue", "(little|girl)")
matches = utils.match_regex
utils.match_regex = lambda regex, text: isinstance(text, str) and (regex.startswith(DRAWN) or matches(regex, text))

@pytest.fixture(autouse=True)
def stop_servers():
    yield
    for server in set(server_instances):
        server.stop()

def pytest_collection_modifyitems(items):
    """What doesn't apply is skipped with its reason; what they skip because it fails for them is run."""
    names = [item.nodeid.split("unit/", 1)[-1] for item in items]
    gone = [start for start in NOT_HERE if not any(name.startswith(start) for name in names)]
    if gone and WHOLE:
        raise pytest.UsageError(f"no such tests: {gone}")
    for item, name in zip(items, names):
        item.own_markers = [m for m in item.own_markers if not (m.name == "skip" and "fails on linux" in m.kwargs.get("reason", ""))]
        reasons = [reason for start, reason in NOT_HERE.items() if name.startswith(start)]
        if "embedding" in name and not os.environ.get("LLAMINA_BERT_MODEL"):
            reasons.append("needs an encoder: LLAMINA_BERT_MODEL")
        if reasons or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason=(reasons or ["slow: models of gigabytes"])[0]))
'''


def not_here() -> dict[str, str]:
    """The table of docs/serve.md: {beginning of tests' names: why they don't apply}."""
    text = (Path(__file__).parents[1] / "docs" / "serve.md").read_text()
    return dict(re.findall(r"^\| `(test_[^`]+)` \| (.+) \|$", text, re.MULTILINE))


def run(source: Path, model: Path, more: list[str]) -> int:
    """Their tests with our server -> pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        tests = Path(folder) / "tools" / "server" / "tests"
        shutil.copytree(source / "tools" / "server" / "tests", tests, ignore=shutil.ignore_patterns("conftest.py"))
        (Path(folder) / "models").symlink_to((source / "models").resolve())
        (tests / "conftest.py").write_text(f"NOT_HERE, WHOLE = {not_here()!r}, {not more}\n{CONFTEST}")
        unskipped = tests / "unit" / "test_completion.py"  # they compare greedy answers alone, since others differ for them
        unskipped.write_text(unskipped.read_text().replace('parametrize("temperature", [0.0])', 'parametrize("temperature", [0.0, 1.0])'))
        (tests / "wget.py").write_text("")  # they would fetch models with it
        program = tests / "server"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
        program.chmod(0o755)
        env = {**os.environ, "LLAMA_SERVER_BIN_PATH": str(program), MODEL_VARIABLE: str(model.resolve())}
        return subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tests),
                               *(more or ["unit", "-q", "-rs", "--tb=short"])],
                              cwd=tests, env=env).returncode


class Verbose:
    """llama-server --verbose tells of every chat's prompt; here a request asks for it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def adding() -> Any:
            message = await receive()
            if message["type"] == "http.request" and message.get("body", b"").startswith(b"{") and not message.get("more_body"):
                message = {**message, "body": json.dumps({"verbose": True, **json.loads(message["body"])}).encode()}
            return message
        if scope["type"] == "http" and scope["path"].endswith("/chat/completions"):
            scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k != b"content-length"]}
            await self._app(scope, adding, send)
        else:
            await self._app(scope, receive, send)


class Off:
    """Endpoints that llama-server has only when told so."""

    def __init__(self, app: Any, paths: set[str]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in self._paths:
            from llamina.engine.serve.errors import ApiError
            from llamina.engine.serve.guard import refuse
            await refuse(ApiError(501, f"{scope['path']} is off"), scope, send)
        else:
            await self._app(scope, receive, send)


def serve(argv: list[str]) -> None:
    import llamina
    import uvicorn
    from llamina.engine.serve.app import application
    from llamina.engine.serve.guard import Rules
    from llamina.engine.serve.registry import Registry
    from llamina.engine.text.chat_template import ChatTemplate
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("temp", float), ("seed", int), ("host", str), ("alias", str), ("ctx-size", int), ("parallel", int), ("n-predict", int),
                       ("api-key", str), ("hf-file", str), ("pooling", str), ("chat-template", str), ("chat-template-file", str),
                       ("cors-origins", str), ("reasoning", str)):
        parser.add_argument(f"--{name}", type=kind)
    for name in ("slots", "no-slots", "metrics", "context-shift", "verbose", "kv-unified",
                 "no-ui"):
        parser.add_argument(f"--{name}", action="store_true")
    asked, _ = parser.parse_known_args(argv)
    slots = asked.parallel or 4
    today = datetime.date.today()
    variables = {"enable_thinking": asked.reasoning != "off", "date_string": today.strftime("%d %b %Y"), "datetime": today.strftime("%b %d %Y")}

    class Template(ChatTemplate):
        """With the variables that llama-server gives to every template."""

        def _render(self, messages: Any, extra: dict[str, Any], add_generation_prompt: bool) -> str:
            functions = json.dumps(extra.get("tools") or [], indent=2)
            return super()._render(messages, {**variables, "functions": functions, **extra}, add_generation_prompt)

    def load(path: str, memory: int | None = None) -> Any:
        each = (asked.ctx_size or 512) // (1 if asked.kv_unified else slots)
        if "bert" in (asked.hf_file or ""):
            return llamina.load(os.environ["LLAMINA_BERT_MODEL"], memory=memory)
        model = llamina.load(path, memory=memory, context=each if asked.ctx_size and asked.ctx_size <= 512 else None)
        text = NAMED.get(asked.chat_template or "chatml", asked.chat_template or "")
        if asked.chat_template_file:
            text = Path(asked.chat_template_file).read_text()
        model._template = Template(text, model.tokenizer, tool_use=CHATML_TOOLS if text == CHATML else None)
        return model
    registry = Registry(load, slots, 256)
    registry.serve_one(os.environ[MODEL_VARIABLE], asked.alias or Path(os.environ[MODEL_VARIABLE]).stem)
    defaults = {"temperature": asked.temp, "seed": asked.seed, "max_tokens": asked.n_predict, "context_shift": asked.context_shift or None}
    rules = Rules(keys=(asked.api_key,) if asked.api_key else (), origins=tuple((asked.cors_origins or "").split(",")))
    app = application(registry, rules, defaults={name: value for name, value in defaults.items() if value is not None}, drain_seconds=0.0,
                      with_page=not asked.no_ui)
    app = Verbose(app) if asked.verbose else app
    app = Off(app, ({"/slots"} if asked.no_slots else set()) | (set() if asked.metrics else {"/metrics"}))
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server((host, asked.port or 8080), family=socket.AF_INET6 if ":" in host else socket.AF_INET))
                   for host in (asked.host or "127.0.0.1").split(",")]
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        sys.exit(run(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
    serve(sys.argv[1:])
