"""Before a command begins: no file that it would write is another one that it writes, or one that it reads.

    check_files("output", "samples", output=[journal_of, …])      by the options of the command that runs; the rest that names files is what it reads
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from ..errors import OptionError
from .adapters import asked_for

_READ = ("FILE", "PATH", "MODEL", "INPUT", "TASK", "DATA", "TEXT_FILE", "PROMPTS", "REFERENCE")
"""What the metavar of an option or argument that names a file begins with."""


def journal_of(output: Path) -> Path:
    """Where what is done so far is kept (answers/batch_journal.py)."""
    return output.with_name(output.name + ".journal")


def check_files(*outputs: str, **beside: Iterable[Callable[[Path], Path]]) -> None:
    """OptionError names the option and what it would overwrite. outputs: names of the command's options; beside: of an output, what else comes with it."""
    context, given, extra = click.get_current_context(), [], []
    for parameter in context.command.params:
        file = context.params.get(str(parameter.name))
        if parameter.name in outputs and file not in (None, "", "-"):
            given.append((_option(parameter), str(file)))
            extra += [(_option(parameter), str(file), str(at(Path(file)))) for at in beside.get(str(parameter.name), ()) if Path(file).name not in ("", "..")]
    for i, (option, name) in enumerate(given):
        for other, taken in given[:i]:
            if _clash(name, taken):
                raise OptionError(f"{option} {name}: is what {other} writes: choose another name")
        for other, main, taken in extra:
            if _clash(name, taken):
                raise OptionError(f"{option} {name}: is what {other} {main} writes beside it ({taken}): choose another name")
    for what, read in _inputs(context, outputs):
        for _, name in given:
            if _same(name, read):
                raise OptionError(f"{name}: is {what}: choose another name")
        for _, main, taken in extra:
            if _same(taken, read):
                raise OptionError(f"{main}: {taken}, which is written beside it, is {what}: choose another name")


def _inputs(context: click.Context, outputs: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(what it is, file) of all that the command reads."""
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        if name in outputs or not isinstance(value, str) or value == "-" or not (name == "model" or (parameter.metavar or "").startswith(_READ)):
            continue
        yield "the model" if name == "model" else "the input" if isinstance(parameter, click.Argument) else f"what {_option(parameter)} reads", value
    extras = asked_for()
    for option, files in ("--lora", extras.lora), ("--control-vector", extras.control):
        for file, _ in files:
            yield f"what {option} reads", file


def _option(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len)


def _clash(a: str, b: str) -> bool:
    """Whether they are one file, or one is in a folder that the other would be."""
    try:
        first, second = os.path.realpath(a), os.path.realpath(b)
    except ValueError:  # no path at all, as the command will find
        return False
    return first == second or _same(a, b) or first.startswith(second + os.sep) or second.startswith(first + os.sep)


def _same(a: str, b: str) -> bool:
    """Both are there, under whatever names, and are one."""
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False
