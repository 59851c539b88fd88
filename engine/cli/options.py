"""Options that several commands share, and how text comes in."""
from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FileError
from . import debug_option
from .sampling_options import combine, grammar_options, sampling_options, speculation_options

if TYPE_CHECKING:
    from ..model import Model
    from .progress import Progress

__all__ = ["check_sampling", "ending_newline", "model_argument", "open_model", "read_stdin", "read_text", "run_options", "sampling_options",
           "speculation_options", "grammar_options"]

model_argument = click.argument("model", default="demo", metavar="[MODEL]")

run_options = combine(
    click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: one for each physical core]"),
    click.option("--context", type=int, metavar="N", help="Most tokens of prompt and answer.  [default: as trained, at most 4096]"),
    click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
    debug_option,
)


def open_model(name: str, threads: int | None, context: int | None, progress: Progress, draft: str | None = None, no_speculation: bool = False) -> Model:
    """`load`, with progress on stderr, and a line if compiled code can't be kept."""
    from ...kernels import compile_cache
    from ..model import load
    model = load(name, threads=threads, context=context, draft=draft, progress=progress.loading)
    model.speculate = not no_speculation
    progress.note(compile_cache.cache_note())
    return model


def check_sampling(options: dict[str, Any]) -> None:
    """OptionError for a wrong option, before a large file is loaded for nothing."""
    from ..generation import check_stop
    from ..sampling import SamplingOptions
    names = (field.name for field in fields(SamplingOptions))
    SamplingOptions(**{name: options[name] for name in names if name in options})
    check_stop(options["stop"])


def pop_grammar(options: dict[str, Any]) -> dict[str, Any]:
    """Take --json-schema, --regex, --grammar and --choice out of the options -> arguments of `Model.generate`, files read."""
    texts = {name: options.pop(name) for name in ("json_schema", "regex", "grammar")}
    for name, text in texts.items():
        if text is not None and name != "regex" and "\n" not in text and not text.lstrip().startswith("{") and "start:" not in text:
            texts[name] = read_text(text)
    given = {**texts, "choices": list(options.pop("choices")) or None}
    return {name: value for name, value in given.items() if value is not None}


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
