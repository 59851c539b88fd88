"""`llamina chat`: a conversation on the terminal or through a pipe."""
from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ContextFullError, FileError, LlaminaError, OptionError, TokenizerError
from . import one_line
from .options import (
    check_sampling,
    grammar_options,
    memory_options,
    model_argument,
    open_model,
    pop_grammar,
    run_options,
    sampling_options,
    speculation_options,
    with_models_own,
)
from .progress import Progress, closing_line, context_note, tell

if TYPE_CHECKING:
    from ..answers.chat import Chat
    from ..answers.generation import Generation

OFTEN_BYTES = 256 << 20
"""A session with so much in the KV cache is written after every turn."""


@click.command("chat")
@model_argument
@click.option("--system", metavar="TEXT", help="Instructions that stand before the conversation.")
@click.option("-n", "--max-tokens", type=int, default=-1, show_default=True, metavar="N", help="Most tokens of an answer; -1: until the context is full.")
@click.option("--plain", is_flag=True, help="On a terminal: answers as the model writes them, not as Markdown; no line editor.")
@click.option("--session", metavar="FILE", help="Go on with the conversation in this file, if it exists, and keep it there.")
@sampling_options
@grammar_options
@speculation_options
@memory_options
@run_options
def command(model: str, system: str | None, max_tokens: int, plain: bool, session: str | None, draft: str | None, no_speculation: bool, memory: str | None,
            context_shift: bool, threads: int | None, context: int | None, kv: str | None, quiet: bool, **sampling: Any) -> None:
    """Talk with a model that was trained for it, in the way its file asks for (Llama 2's own way if the file asks for none).

    MODEL is a .gguf file, or demo, the small model that comes with the package. On a terminal answers are shown as Markdown; Ctrl-C stops one,
    Ctrl-D leaves, /help lists commands. In a pipe every line of standard input is a turn, and standard output gets the answers, a line end
    after each.

    \b
    Examples:
      llamina chat model.gguf --system "Answer in one sentence."
      echo "Tell me a story about a fox." | llamina chat --seed 7
    """
    from ..answers.chat import Chat
    from ..answers.generation import check_max_tokens
    from ..text.template_service import warm
    obey = pop_grammar(sampling)
    check_sampling(sampling)
    check_max_tokens(max_tokens)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    warm()
    with (Progress(quiet) as progress, open_model(model, threads, context, progress, draft, no_speculation, memory, kv) as loaded,
          Chat(loaded, system) as chat):
        keeper = Keeper(chat, session, progress) if session else None
        progress.clear()
        options = {"max_tokens": max_tokens, "context_shift": context_shift, **with_models_own(loaded, sampling), **obey}
        if terminal:
            if not quiet:
                tell(f"{one_line(loaded.config.name or model)}: Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands.")
            _talk(chat, options, progress, plain, keeper)
        else:
            _pipe(chat, options, progress, keeper)


class Keeper:
    """Keeps a conversation in a file: loads it, and writes it after each turn (a large one, whose writing would be felt, at the end and now and then)."""

    def __init__(self, chat: Chat, file: str, progress: Progress) -> None:
        self._chat, self._file = chat, Path(file).expanduser()
        self._saved = 0.0
        if self._file.exists():
            progress.note(chat.load(self._file))
            progress.note(f"{self._file}: going on after {len(chat.messages)} messages")
        self.save()  # a place that can't be written is told now

    def turn(self) -> None:
        """After a turn."""
        if self._chat.kv_bytes <= OFTEN_BYTES or time.monotonic() - self._saved > 60:
            try:
                self.save()
            except FileError as error:  # the talk goes on; at its end that is an error
                print(f"llamina: {one_line(str(error))}", file=sys.stderr)

    def save(self) -> None:
        self._chat.save(self._file)
        self._saved = time.monotonic()


def _talk(chat: Chat, options: dict[str, Any], progress: Progress, plain: bool, keeper: Keeper | None) -> None:
    """Question and answer until the user leaves; errors end a turn, not the talk."""
    from .chat_commands import Commands
    from .chat_terminal import Lines, show
    commands = Commands(chat, options)
    for text in Lines(commands.names(), plain):
        answer: Generation | None = None
        try:
            answer = commands.run(text) if text.startswith("/") else commands.ask(text.strip())
            if answer is None:
                continue
            show(_clearing(answer, progress), plain)
        except KeyboardInterrupt:  # in a step, or while printing
            if answer is not None:
                answer.close()
        except (ContextFullError, TokenizerError, OptionError) as error:
            tell(f"llamina: {one_line(str(error))}; /reset starts afresh")
            continue
        except LlaminaError as error:
            tell(f"llamina: {one_line(str(error))}")
            continue
        if answer is not None:
            _report(answer, progress, chat)
        if keeper:
            keeper.turn()
    if keeper:
        keeper.save()


def _pipe(chat: Chat, options: dict[str, Any], progress: Progress, keeper: Keeper | None) -> None:
    from .chat_terminal import show_plain
    for text in _piped_turns():
        answer = chat.ask(text, **options)
        try:
            show_plain(_clearing(answer, progress))
        except KeyboardInterrupt:
            answer.close()
            if keeper:
                keeper.save()
            raise
        _report(answer, progress, chat)
        if keeper:
            keeper.turn()
    if keeper:
        keeper.save()


def _report(answer: Generation, progress: Progress, chat: Chat) -> None:
    progress.note(context_note(answer.stats))
    if chat.left_out:
        progress.note(f"the context was full: the oldest {chat.left_out} messages are left out")
    if not progress.quiet:
        tell(closing_line(answer.stats))


def _clearing(answer: Generation, progress: Progress) -> Iterator[str]:
    """The pieces; the progress line (kernels being compiled) goes before each."""
    for piece in answer:
        progress.clear()
        yield piece


def _piped_turns() -> Iterator[str]:
    """The lines of standard input that are not blank."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # the tokenizer refuses what is not UTF-8
    for number, line in enumerate(sys.stdin):
        text = (line.removeprefix("\ufeff") if number == 0 else line).strip()
        if text:
            yield text
