"""Options that several commands share, and how text comes in."""
from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from ..errors import FileError, OptionError
from ..files import bounded, read_stream, reason, shown
from . import debug_option
from .adapters import adapter_options, asked_for, steer
from .sampling_options import combine, grammar_options, sampling_options, speculation_options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ..model import Model
    from .progress import Progress

__all__ = ["chat_options", "check_model_name", "check_sampling", "ending_newline", "grammar_options", "memory_options", "model_argument", "open_model",
           "read_stdin", "read_text", "run_options", "sampling_options", "speculation_options", "system_message", "use_template", "with_models_own"]

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
    adapter_options,
    click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
    click.option("-v", "--verbose", is_flag=True, help="Tell everything: memory plan, load time, speeds, what was guessed ahead."),
    debug_option,
)

chat_options = combine(
    click.option("--system", metavar="TEXT", help="Instructions that stand before the conversation."),
    click.option("--system-file", metavar="FILE", help="Read them from a file."),
    click.option("--template", metavar="FILE", help="A chat template (Jinja) to write conversations with, instead of the model's own."),
)

memory_options = combine(
    click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache, such as 4GB.  [default: half of what is free beside the weights]"),
    click.option("--context-shift/--no-context-shift", default=None, help="When the context is full, go on without the older half of the text; the beginning "
                 "stays.  [default: only in a chat on a terminal]"),
)


def open_model(name: str, threads: int | None, context: int | None, progress: Progress, draft: str | None = None, no_speculation: bool = False,
               memory: str | None = None, kv: str | None = None, adapters: bool = True) -> Model:
    """`load`, with progress on stderr while it loads and while prompts are read, and lines about what a user should know: compiled code that can't be kept, a
    context beyond the trained one. The memory plan is told if memory was asked for, or with --verbose. adapters: whether it has those of --lora."""
    from ...kernels import compile_cache
    from ..home.library import is_hub_name
    from ..model import load
    if is_hub_name(name):
        from ..home.hub_peek import check_before_download
        progress.stage("asking the hub")
        check_before_download(name)
    note = progress.note if progress.verbose or memory else None
    model = load(name, threads=threads, context=context, draft=draft, memory=memory, kv=kv, progress=progress.loading, note=note,
                 adapters=asked_for().lora if adapters else ())
    if adapters:
        steer(model, asked_for())
    model.speculate = not no_speculation
    model.scheduler.reading = progress.reading if progress.shows else None
    progress.note(compile_cache.cache_note())
    if context is not None and context > model.config.context_length:
        progress.note(f"--context {context} is more than the {model.config.context_length} tokens that this model was trained with: beyond them its "
                      "answers get worse")
    return model


def check_model_name(name: str, instead: str) -> None:
    """OptionError if a text stands where the model belongs. instead: how the text is given."""
    if any(c.isspace() for c in name.strip()) and not {"/", "\\", "\0"} & set(name) and not name.endswith(".gguf") and not os.path.exists(name):
        shown = name if len(name) <= 40 else name[:40] + "…"
        raise OptionError(f"{shown!r} is no model: {instead}")


def system_message(system: str | None, system_file: str | None) -> str | None:
    """What --system or --system-file says. FileError, OptionError."""
    if system is not None and system_file is not None:
        raise OptionError("give the instructions with --system or with --system-file, not with both")
    return read_text(system_file).rstrip("\r\n") if system_file is not None else system


def use_template(model: Model, path: str | None) -> None:
    """Have conversations written by the chat template in a file. FileError, FormatError, UnsupportedError."""
    if path is not None:
        from ..text.chat_template import ChatTemplate
        model._template = ChatTemplate(read_text(path), model.tokenizer, path=path)


def check_sampling(options: dict[str, Any]) -> None:
    """OptionError for a wrong option, before a large file is loaded for nothing."""
    from ..answers.generation import check_stop
    from ..sampling.sampler import SamplingOptions
    names = (field.name for field in fields(SamplingOptions))
    SamplingOptions(**{name: options[name] for name in names if name in options})
    check_stop(options["stop"])


def with_models_own(own: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Options with what the model's file recommends (`Model.sampling_defaults`), where nobody said anything else."""
    from click.core import ParameterSource
    context = click.get_current_context()
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
    return _decode(bounded(sys.stdin.buffer, "standard input"), "standard input", exact)


def read_text(path: str) -> str:
    """A file's text, or standard input's for "-". FileError."""
    if path == "-":
        return read_stdin()
    try:
        return _decode(read_stream(path), path)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise FileError(f"{shown(path)}: cannot be read ({reason(error)})") from None


def _decode(raw: bytes, name: str, exact: bool = False) -> str:
    """Text as editors mean it: without a byte order mark, lines ended by a newline alone."""
    try:
        return raw.decode() if exact else raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02X}): convert it first") from None


def ending_newline() -> str:
    """What ends an answer: a newline on a terminal, nothing in a pipe, which gets the model's text and not a byte more."""
    return "\n" if sys.stdout.isatty() else ""
