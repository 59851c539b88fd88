"""`llamina list`: what the models folder holds."""
from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from . import one_line
from .options import debug_option
from .progress import size


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
@debug_option
def command(as_json: bool) -> None:
    """List the models in the models folder, by the short names that every command takes for MODEL.

    The folder is $LLAMINA_HOME, else llamina/models in the user's data folder (`llamina inspect --settings` says where). Put .gguf files there, or
    fetch them with `llamina pull`. demo, the model that comes with the package, is always there.

    \b
    Examples:
      llamina list
      llamina list --json
    """
    from ..home.library import describe, entries, models_folder
    from ..model import DEMO
    found = [*entries(), describe(DEMO, "demo")]
    if as_json:
        print(json.dumps([{**asdict(entry), "path": str(entry.path)} for entry in found], ensure_ascii=False))
        return
    width = min(60, max(len(one_line(entry.name)) for entry in found))
    for entry in found:
        what = one_line(entry.problem) if entry.problem else f"{entry.formats}, {_millions(entry.parameters or 0)} parameters"
        print(f"{one_line(entry.name):{width}}  {size(entry.bytes):>7}  {what}")
    if len(found) == 1:
        print(f"no models in {models_folder()} yet: put .gguf files there, or fetch one: llamina pull hf:org/repo:Q4_K_M", file=sys.stderr)


def _millions(n: int) -> str:
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M" if n >= 1e5 else f"{n / 1e3:.0f}K"
