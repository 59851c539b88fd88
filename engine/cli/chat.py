"""`llamina chat`: a conversation on the terminal or through a pipe."""
from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import ContextFullError, TokenizerError
from . import one_line
from .options import check_sampling, model_argument, open_model, run_options, sampling_options
from .progress import Progress, closing_line

if TYPE_CHECKING:
    from ..generation import Generation


@click.command("chat")
@model_argument
@click.option("--system", metavar="TEXT", help="Instructions that stand before the conversation.")
@click.option("-n", "--max-tokens", type=int, default=-1, show_default=True, metavar="N", help="Most tokens of an answer; -1: until the context is full.")
@sampling_options
@run_options
def command(model: str, system: str | None, max_tokens: int, threads: int | None, context: int | None, quiet: bool, **sampling: Any) -> None:
    """Talk with a model that was trained for it, in the way its file asks for (Llama 2's own way if the file asks for none).

    MODEL is a .gguf file, or demo, the small model that comes with the package. Ctrl-C stops an answer, Ctrl-D leaves, /clear starts afresh.
    In a pipe every line of standard input is a turn, and standard output gets the answers, a line end after each.

    \b
    Examples:
      llamina chat model.gguf --system "Answer in one sentence."
      echo "Tell me a story about a fox." | llamina chat --seed 7
    """
    from ..chat import Chat
    from ..generation import check_max_tokens
    check_sampling(sampling)
    check_max_tokens(max_tokens)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with (Progress(quiet) as progress, open_model(model, threads, context, progress) as loaded,
          Chat(loaded, system) as chat):
        progress.clear()
        if terminal and not quiet:
            print(f"{one_line(loaded.config.name or model)}: Ctrl-C stops an answer, Ctrl-D leaves, /clear starts afresh.", file=sys.stderr)
        for text in _terminal_turns() if terminal else _piped_turns():
            if terminal and text == "/clear":
                chat.clear()
                continue
            try:
                answer = chat.ask(text, max_tokens=max_tokens, **sampling)
                _print_answer(answer, progress, terminal)
            except KeyboardInterrupt:  # before or after an answer
                if not terminal:
                    raise
            except (ContextFullError, TokenizerError) as error:
                if not terminal:
                    raise
                print(f"llamina: {one_line(str(error))}; /clear starts afresh", file=sys.stderr)
            else:
                if not quiet:
                    print(closing_line(answer.stats), file=sys.stderr)


def _print_answer(answer: Generation, progress: Progress, terminal: bool) -> None:
    """Stream an answer and a line end; on a terminal Ctrl-C ends it, and the conversation goes on."""
    begun = False
    try:
        for piece in answer:
            progress.clear()
            piece = piece if begun else piece.lstrip()  # SentencePiece models begin with a space
            begun = begun or bool(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:  # in a step, or while printing
        answer.close()
        if not terminal:
            raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    if answer.finish_reason == "context":
        progress.note("the context is full: the answer ends here")


def _terminal_turns() -> Iterator[str]:
    """What the user types, line by line, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() history and editing
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)", file=sys.stderr)
            continue
        except EOFError:
            print()
            return
        if text:
            yield text


def _piped_turns() -> Iterator[str]:
    """The lines of standard input that are not blank."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # the tokenizer refuses what is not UTF-8
    for line in sys.stdin:
        if line.strip():
            yield line.strip()
