"""Options that several commands share, and how text comes in."""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import FileError
from . import debug_option

if TYPE_CHECKING:
    from ..model import Model
    from .progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])


def _all(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator out of several; options appear in the order given."""
    def decorate(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function
    return decorate


model_argument = click.argument("model", default="demo", metavar="[MODEL]")

run_options = _all(
    click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: one for each physical core]"),
    click.option("--context", type=int, metavar="N", help="Most tokens of prompt and answer.  [default: as trained, at most 4096]"),
    click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
    debug_option,
)

sampling_options = _all(
    click.option("--temperature", type=float, default=0.8, show_default=True, metavar="T", help="0 takes the most likely token always."),
    click.option("--top-k", type=int, default=40, show_default=True, metavar="K", help="Draw among the K most likely tokens; 0: all."),
    click.option("--top-p", type=float, default=0.95, show_default=True, metavar="P",
                 help="Draw among the fewest tokens whose probabilities add up to P; 1: all."),
    click.option("--min-p", type=float, default=0.0, show_default=True, metavar="P", help="Drop tokens less likely than P times the most likely one."),
    click.option("--repeat-penalty", type=float, default=1.0, show_default=True, metavar="X", help="Above 1: make recent tokens less likely."),
    click.option("--repeat-last-n", type=int, default=64, show_default=True, metavar="N", help="How many recent tokens that is; -1: all."),
    click.option("--seed", type=int, metavar="N", help="Repeat an answer exactly.  [default: random, told at the end]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be given several times."),
    click.option("--ignore-eos", is_flag=True, help="Go on where the model would end."),
)


def open_model(name: str, threads: int | None, context: int | None, progress: Progress) -> Model:
    """`load`, with progress on stderr, and a line if compiled code can't be kept."""
    from ...kernels import compile_cache
    from ..model import load
    model = load(name, threads=threads, context=context, progress=progress.loading)
    progress.note(compile_cache.cache_note())
    return model


def check_sampling(options: dict[str, Any]) -> None:
    """OptionError for a wrong option, before a large file is loaded for nothing."""
    from ..generation import check_stop
    from ..sampling import SamplingOptions
    names = (field.name for field in fields(SamplingOptions))
    SamplingOptions(**{name: options[name] for name in names})
    check_stop(options["stop"])


def read_stdin() -> str:
    """All of standard input."""
    return _decode(sys.stdin.buffer.read(), "standard input")


def read_text(path: str) -> str:
    """A file's text, or standard input's for "-". FileError."""
    if path == "-":
        return read_stdin()
    try:
        return _decode(Path(path).read_bytes(), path)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise FileError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02X}): convert it first") from None


def ending_newline() -> str:
    """What ends an answer: a newline on a terminal, nothing in a pipe, which gets the model's text and not a byte more."""
    return "\n" if sys.stdout.isatty() else ""
