"""Write the pages that are made from the code: docs/formats.md from the format and kernel tables, docs/cli.md from the command line.

    python docs/generate.py            write them        (tests/test_docs.py checks that they are current)
"""
from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from llamina.engine.cli import llamina as group
from llamina.engine.cli.help import sections
from llamina.kernels.formats.floats import FloatPacking
from llamina.kernels.formats.registry import packing as packing_of
from llamina.kernels.formats.table import FORMATS, REMOVED, RUNNABLE, BlockFormat
from llamina.kernels.matmul import ROWS

DOCS = Path(__file__).resolve().parent

FORMATS_HEAD = f"""\
# Weight formats

<!-- Made by docs/generate.py from kernels/formats/: edit there. -->

A matrix row in a GGUF file is a whole number of *blocks*, one after the other; a format says how many columns a block holds and in how many bytes. At
load every matrix is *retiled*: a **tile** is {ROWS} rows x one block of columns, lane = row, so that one vector holds the same columns of {ROWS} rows and no
kernel ever sums across lanes. The token embedding stays in the file; its rows are decoded as tokens need them.

## Formats that run

- *overhead*: bytes of a tile beyond those of its {ROWS} blocks in the file: what is widened so that nothing needs unpicking while weights stream.
- *input*: what the kernel multiplies with: float32 activations as they are, rounded to bfloat16, or quantised to int8 per 32 columns (kernels/activations.py).
- *zero*: the zero point of the unsigned codes in a tile, folded in exactly through the integer sum of the activations.
- *scale*, *minimum*: how many columns one multiplies in the kernel. "int": an integer that multiplies an exact integer sum before anything becomes a float;
  the others are floats.

| format | ggml id | columns | bytes | bits per weight | tile bytes | overhead | input | zero | scale | minimum |
|---|---:|---:|---:|---:|---:|---:|---|---:|---|---|
"""
KNOWN_HEAD = """
## Formats that are known, but have no kernel

A file that holds a weight matrix in one of these can be opened and inspected; running it is refused, by the tensor's and the format's name.

| format | ggml id | columns | bytes | bits per weight |
|---|---:|---:|---:|---:|
"""


def _runnable_row(f: BlockFormat) -> str:
    packing = packing_of(f.name)
    if isinstance(packing, FloatPacking):
        tile, rest = ROWS * f.bytes, ["bfloat16" if f.name == "BF16" else "float32", "", "", ""]
        size = f"{tile} a column"
    else:
        tile = packing.tile_bytes
        size = str(tile)
        minimum = "int per 16" if packing.half_minimums else "per 32" if packing.minimum else ""
        rest = ["int8", str(packing.zero), "int per 16" if packing.half_scales else "per 32", minimum]
    overhead = f"{100 * (tile / (ROWS * f.bytes) - 1):.1f} %"
    return "| " + " | ".join([f.name, str(f.ggml_id), str(f.columns), str(f.bytes), f"{f.bits_per_weight:g}", size, overhead, *rest]) + " |\n"


def formats_page() -> str:
    page = FORMATS_HEAD + "".join(_runnable_row(f) for f in FORMATS.values() if f.name in RUNNABLE)
    page += KNOWN_HEAD
    page += "".join(f"| {f.name} | {f.ggml_id} | {f.columns} | {f.bytes} | {f.bits_per_weight:.4g} |\n" for f in FORMATS.values() if f.name not in RUNNABLE)
    page += "\nNumbers that llama.cpp once used and took back are refused by name: " + ", ".join(f"{name} ({id})" for id, name in REMOVED.items()) + ".\n"
    modules = dict.fromkeys(sys.modules[packing_of(name).decode.__module__] for name in FORMATS if name in RUNNABLE)
    for module in modules:
        page += f"\n## kernels/formats/{Path(inspect.getfile(module)).name}\n\n```text\n{inspect.getdoc(module)}\n```\n"
    return page


def _paragraphs(text: str) -> Iterator[str]:
    """A command's help as Markdown: what click prints as it stands (after a backspace character) becomes a code block."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield "```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```"
        else:
            yield paragraph


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _parameters(command: click.Command) -> Iterator[str]:
    """Rows of the table of options, in their groups. Not click's own layout, which changes with its version."""
    for title, options in sections(command):
        if title:
            yield f"| **{title}** | |\n"
        yield from map(_parameter, options)


def _parameter(p: click.Option) -> str:
    names = ", ".join(p.opts) + (" / " + ", ".join(p.secondary_opts) if p.secondary_opts else "")
    value = "" if p.is_flag else f" {p.metavar or p.type.name.upper()}"
    default = f" [default: {p.default}]" if p.show_default is True else ""
    return f"| `{names}{value}` | {_cell((p.help or '') + default)} |\n"


def _command(name: str, command: click.Command) -> str:
    arguments = [p.metavar or (p.name or "").upper() if p.required else p.metavar or f"[{(p.name or '').upper()}]"
                 for p in command.params if isinstance(p, click.Argument)]
    text = f"\n## {name}\n\n```sh\n{' '.join([name, '[OPTIONS]', *arguments])}\n```\n\n" + "\n\n".join(_paragraphs(command.help or "")) + "\n"
    rows = "".join(_parameters(command))
    return text + (f"\n| option | |\n|---|---|\n{rows}" if rows else "")


def cli_page() -> str:
    context = click.Context(group, info_name="llamina")
    page = "# The command line\n\n<!-- Made by docs/generate.py from engine/cli/: edit there. -->\n\n" + "\n\n".join(_paragraphs(group.help or "")) + "\n"
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        page += _command(f"llamina {name}", command)
    return page


def pages() -> dict[Path, str]:
    """File -> what it should hold."""
    return {DOCS / "formats.md": formats_page(), DOCS / "cli.md": cli_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.name, len(text.splitlines()), "lines")
