"""`llamina serve`: HTTP for every client that speaks OpenAI's, Anthropic's, llama-server's or ollama's language."""
from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from ..errors import FileError, OptionError, UnsupportedError
from .adapters import asked_for, steer
from .options import complete_model, run_options
from .outputs import check_files
from .progress import Progress, tell

KEY_VARIABLE = "LLAMINA_API_KEY"
DRAIN_SECONDS = 20.0
"""How long running answers may go on when the server is told to stop."""


@click.command("serve", short_help="Serve a model, or the models folder, over HTTP.")
@click.argument("model", required=False, metavar="[MODEL]", shell_complete=complete_model)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at. Another than a loopback one needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one, which is told.")
@click.option("--api-key-file", metavar="FILE", help=f"Keys that clients must have, a line each.  [default: ${KEY_VARIABLE}, if set]")
@click.option("--parallel", type=click.IntRange(1, 256), default=16, show_default=True, help="Most answers under way at once; memory may allow fewer.")
@click.option("--queue", type=click.IntRange(0, 100000), default=256, show_default=True, help="Most requests that wait; more are told to try later (429).")
@click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache of all models, such as 4GB.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name that clients may call this server by.")
@click.option("--allow-origin", multiple=True, metavar="ORIGIN", help="A web site whose pages may use this server, such as https://example.org.")
@click.option("--log", metavar="FILE", help="Write requests and answers to FILE, for `llamina replay`.  [default: they are written nowhere]")
@click.option("--no-page", is_flag=True, help="Serve no page to talk on at /.")
@run_options
def command(model: str | None, host: str, port: int, api_key_file: str | None, parallel: int, queue: int, memory: str | None, allow_host: tuple[str, ...],
            allow_origin: tuple[str, ...], log: str | None, no_page: bool, threads: int | None, context: int | None, kv: str | None, quiet: bool,
            verbose: bool) -> None:
    """Serve MODEL (default: everything in the models folder, loaded when asked for) at http://127.0.0.1:8080/v1, with a page to talk on at
    http://127.0.0.1:8080. Needs the extra serve (pip install 'llamina[serve]'). See docs/serve.md.

    \b
    Examples:
      llamina serve demo
      llamina serve model.gguf --port 9000 --context 8192 --log requests.jsonl
      llamina serve --memory 8GB --api-key-file keys.txt --host 0.0.0.0
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(f"serving needs the extra 'serve' ({error.name} is missing): pip install 'llamina[serve]'") from None
    from ..model import load, parse_memory
    from ..serve.app import application
    from ..serve.guard import Rules
    from ..serve.journal import Journal
    from ..serve.protocol import Deadlines, HttpServer, config
    from ..serve.registry import Registry
    check_files("log")
    keys = read_keys(api_key_file)
    local = host in ("127.0.0.1", "localhost", "::1") or host.startswith("127.")
    if not local and not keys:
        raise OptionError(f"--host {host} can be reached by other machines: give a key with --api-key-file FILE (or ${KEY_VARIABLE})")

    adapters = asked_for()
    if adapters and model is None:
        raise OptionError("--lora and --control-vector go with one model: name it")

    def make(path: str, memory: int | None) -> Any:
        loaded = load(path, threads=threads, context=context, kv=kv, memory=memory, progress=progress.loading, adapters=adapters.lora)
        steer(loaded, adapters)
        return loaded
    with Progress(quiet, verbose) as progress:
        registry = Registry(make, parallel, queue, parse_memory(memory), {"context": context, "kv": kv})
        if model is not None:
            registry.serve_one(model, "demo" if model == "demo" else Path(model).stem)
        progress.clear()
    rules = Rules(None if not local else (host, *allow_host), allow_origin, tuple(keys))

    def told(address: str, port: int) -> None:
        if not quiet:
            tell(f"llamina serves {model or 'the models folder'} at http://{address if ':' not in address else f'[{address}]'}:{port}/v1 (Ctrl-C stops it)")
    with contextlib.closing(Journal(log)) if log is not None else contextlib.nullcontext() as journal:
        app = application(registry, rules, drain_seconds=0.0, journal=journal, with_page=not no_page)
        server = HttpServer(config(app, host, port, Deadlines(), DRAIN_SECONDS), told, lambda: registry.close(DRAIN_SECONDS))
        with contextlib.suppress(SystemExit):  # uvicorn's way to say that it cannot listen
            server.run()
    if not server.started:
        raise FileError(f"cannot listen at {host}, port {port}: it is in use, or not an address of this machine; try another --port")


def read_keys(path: str | None) -> list[str]:
    """From the file, else from the environment. Lines that are empty or begin with # don't count."""
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return [key] if key else []
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read as a file of keys: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise OptionError(f"{path}: holds no key: write one on a line of its own")
    return keys
