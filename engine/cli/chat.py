"""`llamina chat`: a conversation on the terminal or through a pipe, or one question."""
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
from .help import Command
from .options import (
    chat_options,
    check_model_name,
    check_sampling,
    grammar_options,
    memory_options,
    model_argument,
    open_model,
    pop_grammar,
    read_text,
    run_options,
    sampling_options,
    speculation_options,
    system_message,
    use_template,
    with_models_own,
)
from .progress import Progress, context_note, tell

if TYPE_CHECKING:
    from ..answers.chat import Chat, ChatTurn
    from ..answers.generation import Generation

OFTEN_BYTES = 256 << 20
"""A session with so much in the KV cache is written after every turn."""


@click.command("chat", cls=Command)
@model_argument
@click.argument("question", required=False, metavar="[QUESTION]")
@click.option("-p", "--prompt", metavar="TEXT", help="One question, as QUESTION is: its answer is printed, and that is all.")
@click.option("-f", "--file", metavar="FILE", help="A text to ask about, after the question; or the question itself; - for standard input.")
@chat_options
@click.option("-n", "--max-tokens", type=int, default=-1, show_default=True, metavar="N", help="Most tokens of an answer; -1: until the context is full.")
@click.option("--plain", is_flag=True, help="On a terminal: answers as the model writes them, not as Markdown; no line editor.")
@click.option("--session", metavar="FILE", help="Go on with the conversation in this file, if it exists, and keep it there.")
@sampling_options
@grammar_options
@speculation_options
@memory_options
@run_options
def command(model: str, question: str | None, prompt: str | None, file: str | None, system: str | None, system_file: str | None, template: str | None,
            max_tokens: int, plain: bool, session: str | None, draft: str | None, no_speculation: bool, memory: str | None, context_shift: bool | None,
            threads: int | None, context: int | None, kv: str | None, quiet: bool, verbose: bool, **sampling: Any) -> None:
    """Talk with a model that was trained for it, in the way its file asks for; with QUESTION, ask it that and nothing more.

    MODEL is a .gguf file, a name that llamina list shows, or demo, the small model that comes with the package. On a terminal answers are shown as Markdown;
    Ctrl-C stops one, Ctrl-D leaves, /help lists commands. In a pipe every line of standard input is a turn, and standard output gets the answers, a
    line end after each.

    \b
    Examples:
      llamina chat model.gguf --system "Answer in one sentence."
      llamina chat model.gguf "What is the capital of France?"
      llamina chat model.gguf "Summarise this text:" -f article.txt
      echo "Tell me a story about a fox." | llamina chat --seed 7
    """
    from ..answers.chat import Chat
    from ..checks import check_max_tokens
    from ..text.template_service import warm
    check_model_name(model, "give the model first, as in: llamina chat demo \"Tell me a story\"")
    obey = pop_grammar(sampling)
    check_sampling(sampling)
    check_max_tokens(max_tokens)
    asked = _question(question, prompt, file)
    system = system_message(system, system_file)
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and asked is None
    warm()
    with Progress(quiet, verbose) as progress, open_model(model, threads, context, progress, draft, no_speculation, memory, kv) as loaded:
        use_template(loaded, template)
        with Chat(loaded, system) as chat:
            keeper = Keeper(chat, session, progress) if session else None
            progress.clear()
            if chat.template.built_in:
                progress.note("the model's file has no chat template, so it may not be trained to chat: Llama 2's form is used (--template FILE for another)")
            shift = terminal if context_shift is None else context_shift
            if shift and context_shift is None and max_tokens == -1:
                max_tokens = loaded.context  # or an answer that never ends would not end
            options = {"max_tokens": max_tokens, "context_shift": shift, **with_models_own(loaded.sampling_defaults, sampling), **obey}
            if asked is not None:
                _once(chat, asked, options, progress, plain, keeper)
            elif terminal:
                if not quiet:
                    tell(f"{one_line(loaded.config.name or model)}, context {loaded.context}: /help for commands, Ctrl-D leaves")
                _talk(chat, options, progress, plain, keeper)
            else:
                _pipe(chat, options, progress, keeper)


def _question(question: str | None, prompt: str | None, file: str | None) -> str | None:
    """The one question that the command line asks, if it does."""
    if question is not None and prompt is not None:
        raise OptionError("give the question after the model or with -p, not both")
    parts = [text for text in (question, prompt, read_text(file).rstrip("\r\n") if file is not None else None) if text is not None]
    if parts and not "".join(parts).strip():
        raise OptionError("the question is empty")
    return "\n\n".join(parts) if parts else None


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
    from ..answers.chat import thinking_of
    from ..text.thoughts import apart
    from .chat_commands import Commands, Leave
    from .chat_terminal import Lines, show
    commands = Commands(chat, options, verbose=progress.verbose)
    for text in Lines(commands.names(), plain):
        answer: ChatTurn | None = None
        left_out = chat.left_out
        try:
            answer = commands.run(text) if text.startswith("/") else commands.ask(text.strip())
            if answer is None:
                continue
            show(apart(_clearing(answer, progress), thinking_of(chat, answer)), plain)
        except Leave:
            break
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
            _report(answer, progress, chat, left_out)
        if keeper:
            keeper.turn()
    if keeper:
        keeper.save()


def _pipe(chat: Chat, options: dict[str, Any], progress: Progress, keeper: Keeper | None) -> None:
    from .chat_terminal import show_plain
    for text in _piped_turns():
        left_out = chat.left_out
        answer = chat.ask(text, **options)
        try:
            show_plain(_clearing(answer, progress))
        except KeyboardInterrupt:
            answer.close()
            if keeper:
                keeper.save()
            raise
        _report(answer, progress, chat, left_out)
        if keeper:
            keeper.turn()
    if keeper:
        keeper.save()


def _once(chat: Chat, text: str, options: dict[str, Any], progress: Progress, plain: bool, keeper: Keeper | None) -> None:
    """One question, one answer."""
    from ..answers.chat import thinking_of
    from ..text.thoughts import apart
    from .chat_terminal import show, show_plain
    answer = chat.ask(text, **options)
    interrupted = False
    try:
        pieces = _clearing(answer, progress)
        if sys.stdout.isatty():
            show(apart(pieces, thinking_of(chat, answer)), plain)
        else:
            show_plain(pieces)
    except KeyboardInterrupt:
        answer.close()
        interrupted = True
    _report(answer, progress, chat)
    if keeper:
        keeper.save()
    if interrupted:
        raise click.exceptions.Exit(130)


def _report(answer: Generation, progress: Progress, chat: Chat, left_out: int = 0) -> None:
    """left_out: messages that were left out before this turn, and told then."""
    progress.note(context_note(answer.stats))
    if chat.left_out > left_out:
        n = chat.left_out
        progress.note(f"the context is full: the model no longer sees the oldest {n} message{'' if n == 1 else 's'} "
                      f"(--context N for a larger one, /reset to begin afresh)")
    if answer.finish_reason == "length" and len(answer.ids) >= chat.model.context:  # nobody asked for that limit
        progress.note(f"stopped after {len(answer.ids)} tokens, which is the whole context (-n N or /set max_tokens N for more)")
    progress.answered(answer.stats)


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
