"""The command line: `llamina COMMAND`, one file per command, imported when it is used.

    main(argv) -> click parses -> the command's function -> exit code; every error becomes one line on stderr

stdout carries answers only; progress, statistics and errors go to stderr. Exit codes: 0, 1 (the model, a file, a failed check), 2 (usage), 130 (Ctrl-C).
"""
from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import traceback

import click

from ... import __version__
from ..errors import LlaminaError

COMMANDS = {
    "generate": ".generate", "chat": ".chat", "inspect": ".inspect", "tokenize": ".tokenize", "perplexity": ".perplexity",
    "convert": "...convert.cli", "importance": "...convert.cli_importance", "selftest": ".selftest", "bench": "...bench.cli",
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


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj["debug"] = True


debug_option = click.option("--debug", is_flag=True, expose_value=False, callback=_debug,
                            help="On an error, print where it came from (or set LLAMINA_DEBUG=1).")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="llamina", message="%(prog)s %(version)s")
@debug_option
def llamina() -> None:
    """Run Llama-family language models from GGUF files on this CPU: offline, and exact to the bit.

    \b
    Examples:
      llamina generate -p "Once upon a time"          the demo model that comes with the package
      llamina generate model.gguf -p "Once" -n 200 --temperature 0.8 --seed 7
      llamina chat model.gguf
    """


def main(argv: list[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's) -> exit code. Prints errors as one line; raises nothing but SystemExit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    state = {"debug": os.environ.get("LLAMINA_DEBUG", "") not in ("", "0")}
    for stream in sys.stdout, sys.stderr:  # the same bytes wherever it runs
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with llamina.make_context("llamina", argv or ["--help"], obj=state) as ctx:
            code = llamina.invoke(ctx)
            sys.stdout.flush()
            return code or 0
    except click.exceptions.Exit as stop:  # --help, --version
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:  # the reader of our answer went away; nothing to tell it
        with contextlib.suppress(OSError, ValueError):  # or the interpreter complains when it flushes at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except click.ClickException as error:
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message() + hint, error.exit_code, state["debug"])
    except LlaminaError as error:
        return _fail(str(error), error.exit_code, state["debug"])
    except MemoryError:
        return _fail("out of memory: use a smaller context (--context) or a smaller quantisation", 1, state["debug"])
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return _fail(f"{what} (this is a bug in llamina: please report it with the output of the same command with --debug)", 1, state["debug"])


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print("llamina: error:", one_line(message), file=sys.stderr)
    return code


def one_line(text: str) -> str:
    """On one line and printable: a path or a file's key may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))

