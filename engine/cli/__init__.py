"""The command line: `llamina COMMAND`, one file per command, imported when it is used.

    main(argv) -> click parses -> the command's function -> exit code; every error becomes one line on stderr

stdout carries answers only; progress, statistics and errors go to stderr. Exit codes: 0, 1 (the model, a file, a failed check), 2 (usage), 130 (Ctrl-C),
128 + its number (a
signal that ends: 143 for SIGTERM).
"""
from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import shutil
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from ... import __version__
from ..errors import NO_MEMORY, LlaminaError, is_memory, one_line

COMMANDS = {
    "generate": ".generate", "chat": ".chat", "batch": ".batch", "inspect": ".inspect", "tokenize": ".tokenize", "perplexity": ".perplexity",
    "look": ".look",
    "embed": ".embed", "rerank": ".rerank",
    "classify": ".classify", "eval": ".eval", "lm-eval": ".lm_eval", "train": ".train",
    "convert": "...convert.cli", "importance": "...convert.cli_importance", "list": ".list_models", "pull": ".pull", "rm": ".rm", "serve": ".serve",
    "replay": ".replay",
    "selftest": ".selftest", "bench": "...bench.cli",
}
"""Command -> module, by its name only: commands of the packages above the engine are found here without being imported."""


class LazyGroup(click.Group):
    """Imports a command's module, whose function there is called `command`, only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[cmd_name], __name__).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from .help import format_commands
        format_commands(self, ctx, formatter)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Here the command is known and not yet parsed: what the environment and the settings file say becomes its defaults."""
        from ..home.settings import COMMANDS as WITH_SETTINGS
        from ..home.settings import Settings
        name, command, rest = super().resolve_command(ctx, args)
        if name in WITH_SETTINGS and command is not None and not ctx.resilient_parsing and not {"-h", "--help"} & set(rest):
            settings = ctx.find_root().obj["settings"] = Settings()
            found = {p.name: settings.get(name, p.name) for p in command.params if p.name}
            ctx.default_map = {name: {key: setting.value for key, setting in found.items() if setting is not None}}
        return name, command, rest


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj["debug"] = True


debug_option = click.option("--debug", is_flag=True, expose_value=False, callback=_debug,
                            help="On an error, print where it came from (or set LLAMINA_DEBUG=1).")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="llamina", message="%(prog)s %(version)s")
@debug_option
def llamina() -> None:
    """Run language models from GGUF files on this CPU: offline, and exact to the bit.

    \b
    Examples:
      llamina generate -p "Once upon a time"
      llamina pull TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M
      llamina chat tinyllama
      llamina chat tinyllama "Why is the sky blue?"
    """


OVERVIEW = """\
llamina runs language models on this CPU, offline and exact.
  llamina generate -p "Once upon a time"      continue a text (the demo model)
  llamina chat MODEL                          talk with a model
  llamina chat MODEL "Why is the sky blue?"   ask it one question
  llamina pull org/repo:Q4_K_M                fetch a model; list shows them
  llamina inspect MODEL                       whether it runs, with what memory
  llamina batch in.jsonl -o out.jsonl         many prompts at once, resumable
  llamina convert FOLDER m.gguf --type q4_0   make a GGUF file of a checkpoint
  llamina bench MODEL                         how fast it is on this machine
MODEL: a .gguf file, a name, or demo.         More: llamina COMMAND --help
"""
"""What `llamina` alone says."""


def _tell(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """A warning as a line of ours, without where in the source it was raised."""
    sys.stderr.write(_wrapped(f"llamina: {message}\n"))


def main(argv: list[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's) -> exit code. Prints errors as one line; raises nothing but SystemExit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    state = {"debug": os.environ.get("LLAMINA_DEBUG", "") not in ("", "0")}
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:  # closed by whoever started us (2>&-)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in sys.stdout, sys.stderr:  # the same bytes wherever it runs
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        instruction = os.environ.get("_LLAMINA_COMPLETE")
        if instruction:
            from click.shell_completion import shell_complete
            return shell_complete(llamina, {"obj": state}, "llamina", "_LLAMINA_COMPLETE", instruction)
        if not argv:
            sys.stdout.write(_wrapped(OVERVIEW))
            sys.stdout.flush()
            return 0
        with _leaving_when_told(), warnings.catch_warnings(), llamina.make_context("llamina", argv, obj=state) as ctx:
            warnings.showwarning = _tell
            code = llamina.invoke(ctx)
            sys.stdout.flush()
            return code or 0
    except click.exceptions.Exit as stop:  # --help, --version
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:  # the reader of our answer went away; nothing to tell it
        _drop_output()
        return 141
    except click.ClickException as error:
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message() + hint, error.exit_code, state["debug"])
    except LlaminaError as error:
        return _fail(str(error), error.exit_code, state["debug"])
    except Exception as error:
        if is_memory(error):
            return _fail(f"out of memory: {NO_MEMORY}", 1, state["debug"])
        from ..files import is_path_error, reason, shown
        if is_path_error(error):
            path = getattr(error, "filename", None)
            return _fail(f"{shown(path) if path is not None else 'a path'}: cannot be used ({reason(error)})", 1, state["debug"])
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            _drop_output()
            return _fail(f"standard output: cannot be written ({error.strerror})", 1, state["debug"])
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return _fail(f"{what} (this is a bug in llamina: please report it with the output of the same command with --debug)", 1, state["debug"])


ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF")
          if hasattr(signal, name)]
"""What ends a process if nobody catches it, can be caught, and says nothing about the process's own state."""


@contextlib.contextmanager
def _leaving_when_told() -> Iterator[None]:
    """Signals that would end the process end it as an exception does: what it was writing is taken away. Once: `timeout` sends two, and the second would meet
    the tidying. One that is ignored (nohup) or handled already stays so."""
    def leave(number: int, frame: Any) -> NoReturn:
        for other in ours:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)
    ours: list[signal.Signals] = []
    try:
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                ours.append(number)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is leave:  # else the process is about to end
                signal.signal(number, signal.SIG_DFL)


def _drop_output() -> None:
    """Nothing more can be written: or the interpreter complains when it flushes at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wrapped(text: str) -> str:
    """The overview for a narrow terminal: what a command does stands below it."""
    width = shutil.get_terminal_size((160, 24)).columns
    if all(len(line) <= width for line in text.splitlines()):
        return text
    out = []
    for line in text.splitlines():
        example, _, what = line.strip().partition("  ") if line.startswith("  ") else ("", "", line)
        out += [f"  {example}"] * bool(example)
        out.append(textwrap.fill(what.strip(), max(20, width - 1), initial_indent="      " * bool(example), subsequent_indent="      " * bool(example)))
    return "\n".join(out) + "\n"


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = f"llamina: error: {LlaminaError(one_line(message))}"
    if sys.stderr.isatty():
        from .progress import wrapped
        line = wrapped(line)
    print(line, file=sys.stderr)
    return code

