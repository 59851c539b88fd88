"""`llamina list`: what the models folder holds."""
from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..units import count, size
from . import one_line
from .options import debug_option
from .progress import Progress

if TYPE_CHECKING:
    from ..home.library import Entry


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
@debug_option
def command(as_json: bool) -> None:
    """List the models in the models folder, by the short names that every command takes for MODEL, and whether they run: with how much memory, or why not.

    The folder is $LLAMINA_HOME, else llamina/models in the user's data folder (`llamina inspect --settings` says where). Put .gguf files there, or
    fetch them with `llamina pull`. demo, the model that comes with the package, is always there.

    \b
    Examples:
      llamina list
      llamina list --json
    """
    from ..home.library import describe, entries, models_folder
    from ..home.resolve import DEMO
    with Progress() as progress:
        progress.stage("reading the models' headers")
        found = [*entries(), describe(DEMO, "demo")]
    if as_json:
        print(json.dumps([{**asdict(entry), "path": str(entry.path)} for entry in found], ensure_ascii=False))
        return
    for line in _table(found):
        print(line)
    if len(found) == 1:
        print(f"no models in {models_folder()} yet: put .gguf files there, or fetch one: llamina pull org/repo:Q4_K_M", file=sys.stderr)


def _table(found: list[Entry]) -> list[str]:
    """A line for each model; on a terminal, why one doesn't run stands below it, broken between words."""
    rows = [(one_line(e.name), size(e.bytes), count(e.parameters) if e.parameters else "", e.formats or "",
             "runs in " + size(e.memory or 0) + (", chats" if e.chat == "own" else "") if e.problem is None else "doesn't run") for e in found]
    rows = [("NAME", "FILE", "WEIGHTS", "FORMAT", "HERE"), *rows]
    widths = [min(60, max(len(row[i]) for row in rows)) for i in range(4)]
    lines = []
    width = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    for row, entry in zip(rows, [None, *found]):
        name, file, weights, kind, here = row
        line = f"{name:{widths[0]}}  {file:>{widths[1]}}  {weights:>{widths[2]}}  {kind:{widths[3]}}  {here}"
        why = one_line(entry.problem) if entry and entry.problem else ""
        if why and width:
            lines += [line, textwrap.fill(why, max(30, width), initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)]
        else:
            lines.append(line + (f": {why}" if why else ""))
    return lines
