"""Options that several commands share, and how text comes in."""
from __future__ import annotations

import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FileError
from . import debug_option
from .sampling_options import combine, grammar_options, sampling_options, speculation_options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ..model import Model
    from .progress import Progress

__all__ = ["check_sampling", "ending_newline", "model_argument", "open_model", "read_stdin", "read_text", "run_options", "sampling_options",
           "speculation_options", "grammar_options", "memory_options", "with_models_own"]

def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the shell: names from the models folder, and files."""
    from click.shell_completion import CompletionItem

    from ..home.library import model_files, models_folder, short_name
    folder = models_folder()
    found = ["demo", *(short_name(path, folder) for path in model_files(folder))]
    return [CompletionItem(name) for name in found if name.startswith(incomplete)] or [CompletionItem(incomplete, type="file")]


model_argument = click.argument("model", default="demo", metavar="[MODEL]", shell_complete=complete_model)

run_options = combine(
    click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: measured once]"),
    click.option("--context", type=int, metavar="N", help="Most tokens of prompt and answer.  [default: as trained, at most 4096]"),
    click.option("--kv", metavar="TYPE", help="What keys and values are kept as: f16, q8_0 (half the memory), f32.  [default: f16; f32 for F32 files]"),
    click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
    debug_option,
)

memory_options = combine(
    click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache, such as 4GB.  [default: half of what is free beside the weights]"),
    click.option("--context-shift", is_flag=True, help="When the context is full, go on without the older half of the text; the beginning stays."),
)


def open_model(name: str, threads: int | None, context: int | None, progress: Progress, draft: str | None = None, no_speculation: bool = False,
               memory: str | None = None, kv: str | None = None) -> Model:
    """`load`, with progress on stderr, and a line if compiled code can't be kept. The memory plan is told on a terminal, or if memory was asked for."""
    from ...kernels import compile_cache
    from ..model import load
    note = progress.note if progress.shows or memory else None
    model = load(name, threads=threads, context=context, draft=draft, memory=memory, kv=kv, progress=progress.loading, note=note)
    model.speculate = not no_speculation
    progress.note(compile_cache.cache_note())
    return model


def check_sampling(options: dict[str, Any]) -> None:
    """OptionError for a wrong option, before a large file is loaded for nothing."""
    from ..answers.generation import check_stop
    from ..sampling.sampler import SamplingOptions
    names = (field.name for field in fields(SamplingOptions))
    SamplingOptions(**{name: options[name] for name in names if name in options})
    check_stop(options["stop"])


def with_models_own(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """Options with what the model's file recommends, where nobody said anything else."""
    from click.core import ParameterSource
    context = click.get_current_context()
    own = model.sampling_defaults
    return {name: own[name] if name in own and context.get_parameter_source(name) is ParameterSource.DEFAULT else value for name, value in options.items()}


def pop_grammar(options: dict[str, Any]) -> dict[str, Any]:
    """Take --json-schema, --regex, --grammar and --choice out of the options -> arguments of `Model.generate`, files read."""
    texts = {name: options.pop(name) for name in ("json_schema", "regex", "grammar")}
    for name, text in texts.items():
        if text is not None and name != "regex" and "\n" not in text and not text.lstrip().startswith("{") and "start:" not in text:
            texts[name] = read_text(text)
    given = {**texts, "choices": list(options.pop("choices")) or None}
    return {name: value for name, value in given.items() if value is not None}


def as_json_line(value: Any) -> str:
    """JSON as it is written on standard output: readable, and without control characters, which could drive a terminal."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def read_stdin(exact: bool = False) -> str:
    """All of standard input; exact: with its byte order mark and carriage returns."""
    return _decode(sys.stdin.buffer.read(), "standard input", exact)


def read_text(path: str) -> str:
    """A file's text, or standard input's for "-". FileError."""
    if path == "-":
        return read_stdin()
    try:
        return _decode(Path(path).read_bytes(), path)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise FileError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _decode(raw: bytes, name: str, exact: bool = False) -> str:
    """Text as editors mean it: without a byte order mark, lines ended by a newline alone."""
    try:
        return raw.decode() if exact else raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02X}): convert it first") from None


def ending_newline() -> str:
    """What ends an answer: a newline on a terminal, nothing in a pipe, which gets the model's text and not a byte more."""
    return "\n" if sys.stdout.isatty() else ""
