"""`llamina replay`: the requests of a server's log once more, and whether the answers are the same bits."""
from __future__ import annotations

import asyncio
from typing import Any

import click

from ..errors import LlaminaError, UnsupportedError
from .adapters import adapter_options, asked_for, steer
from .options import complete_model
from .progress import Progress

NAMES = ("model", "context", "kv")


@click.command("replay", short_help="Run a server's log again: the same bits?")
@click.argument("file", metavar="FILE")
@click.argument("model", required=False, metavar="[MODEL]", shell_complete=complete_model)
@click.option("--threads", type=int, metavar="N", help="Threads to compute with; the answers don't depend on it.  [default: measured once]")
@adapter_options
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
def command(file: str, model: str | None, threads: int | None, quiet: bool) -> None:
    """Run the requests that `llamina serve --log FILE` wrote, one by one, and compare text, token ids and log-probabilities bit by bit.
    MODEL: the model's file, if it is not where it was. Exit code 1: something differs.

    \b
    Examples:
      llamina serve demo --log served.jsonl
      llamina replay served.jsonl
    """
    try:
        import starlette  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(f"replaying needs the extra 'serve' ({error.name} is missing): pip install 'llamina[serve]'") from None
    from ..model import load
    from ..serve import journal
    groups: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = {}
    for n, kept in journal.read(file):
        groups.setdefault(tuple(kept[name] for name in NAMES), []).append((n, kept))
    same = differ = 0
    with Progress(quiet) as progress:
        for (_, context, kv), records in groups.items():
            path = model or journal.model_path(records[0][1])
            loaded = load(path, context=context, kv=kv, threads=threads, progress=progress.loading, adapters=asked_for().lora)
            steer(loaded, asked_for())
            progress.clear()
            for n, kept, found in asyncio.run(_replay(loaded, records)):
                if found:
                    differ += 1
                    click.echo(f"line {n}, {kept['path']}: " + "; ".join(found))
                else:
                    same += 1
    click.echo(f"{same} of {same + differ} requests have the same bits")
    if differ:
        click.get_current_context().exit(1)


async def _replay(model: Any, records: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any], list[str]]]:
    """(line, record, what differs) of each."""
    from ..serve.app import application, running
    from ..serve.journal import Memory, again, differences
    from ..serve.registry import Registry
    registry = Registry(lambda path, memory: model, 16, 256)
    served = registry.serve_one(str(model.path), "replayed")
    app, found = application(registry, journal=Memory(), with_page=False, drain_seconds=0.0), []
    async with running(app) as server:
        for n, kept in records:
            try:
                changed = differences(kept, await again(app, server, kept))
            except (RuntimeError, LlaminaError) as error:
                changed = [f"is refused now ({error})"]
            if changed and kept["fingerprint"] != served.fingerprint:
                changed.insert(0, f"the log is of {kept['fingerprint']}, this is {served.fingerprint} (another model, arithmetic version or KV type)")
            found.append((n, kept, changed))
    return found
