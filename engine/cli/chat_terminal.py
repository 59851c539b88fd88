"""A conversation on a terminal: lines come in with editing and history, answers stream out as Markdown.

    Lines (prompt_toolkit, else input()) -> text;  show(pieces) -> Markdown blocks (markdown.py and rich, else the text as it is)

A finished block of Markdown (paragraph, list, code) is printed for good and scrolls away like any output; only the block that is being written is
redrawn, and of one taller than the window its end.
"""
from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .markdown import Page, fence_of, shown

REDRAW_SECONDS = 0.08


def history_place() -> Path | None:
    """Where questions are remembered: $LLAMINA_HISTORY (empty: nowhere), else the user's state folder."""
    name = os.environ.get("LLAMINA_HISTORY")
    if name == "":
        return None
    base = os.environ.get("XDG_STATE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None) or Path.home() / ".local" / "state"
    return Path(name).expanduser() if name else Path(base) / "llamina" / "history"


def history_file() -> Path | None:
    """That file, made if it wasn't there. None if it can't be."""
    try:
        path = history_place()
        if path is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))  # what people ask is theirs alone
    except (OSError, RuntimeError, ValueError):
        return None
    return path


class Lines:
    """Asks for the user's lines: with prompt_toolkit's editing, or by input() if `plain`, on a dumb terminal, or without prompt_toolkit."""

    def __init__(self, commands: Iterable[str], plain: bool = False) -> None:
        self._session: Any = None
        if not plain and os.environ.get("TERM") not in (None, "", "dumb", "unknown"):
            with contextlib.suppress(ImportError):
                self._session = _session(list(commands))
        if self._session is None:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() history and editing

    def __iter__(self) -> Iterator[str]:
        """What the user sends, without blank ends, until Ctrl-D."""
        while True:
            try:
                text = (self._session.prompt() if self._session else input("> "))
            except KeyboardInterrupt:
                print("" if self._session else "\n", "(Ctrl-D leaves)", sep="", file=sys.stderr)
                continue
            except EOFError:
                print()
                return
            if text.strip():
                yield text.rstrip() if text[0] in " \t" else text.strip()


def _session(commands: list[str]) -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    path = history_file()
    return PromptSession("> ", multiline=True, key_bindings=keys, prompt_continuation="  ", complete_while_typing=False,
                         completer=WordCompleter(commands, sentence=True), history=FileHistory(str(path)) if path else InMemoryHistory(),
                         enable_suspend=True)


def show(pieces: Iterable[str], plain: bool = False) -> None:
    """Print an answer as it comes, ending the line. What was shown stays if `pieces` raises, KeyboardInterrupt too."""
    if plain or os.environ.get("TERM") in (None, "", "dumb", "unknown"):
        show_plain(pieces)
        return
    try:
        from rich.console import Console
    except ImportError:
        show_plain(pieces)
        return
    with _no_echo():
        _show_markdown(pieces, Console(file=sys.stdout, highlight=False))


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """What is typed while an answer is drawn would be drawn into it; the next prompt gets it instead."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        old = termios.tcgetattr(0)
        termios.tcsetattr(0, termios.TCSADRAIN, [*old[:3], old[3] & ~termios.ECHO, *old[4:]])
    except termios.error:  # standard input is no terminal
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal went away
            termios.tcsetattr(0, termios.TCSADRAIN, old)


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C acts after what is done here, or a half-drawn block would stay on the screen."""
    asked: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def show_plain(pieces: Iterable[str]) -> None:
    """The text as it is, without blanks at its beginning (SentencePiece models begin with a space), and a line end."""
    begun = False
    try:
        for piece in pieces:
            piece = piece if begun else piece.lstrip()
            begun = begun or bool(piece)
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _show_markdown(pieces: Iterable[str], console: Any) -> None:
    from rich.live import Live
    rest, drawn = "", 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            for piece in pieces:
                rest = (rest + piece).lstrip("\n") if rest else piece.lstrip()
                done, rest = finished_blocks(rest)
                if not done and time.monotonic() - drawn <= REDRAW_SECONDS:
                    continue
                with _whole():
                    if done:
                        live.update("")
                        console.print(Page(done.rstrip("\n")))
                        console.print()
                    live.update(_Tail(rest), refresh=True)
                drawn = time.monotonic()
        finally:
            with _whole():
                live.update("", refresh=True)
                if rest.strip():
                    console.print(Page(rest.rstrip()))


class _Tail:
    """As many last lines of a block as fit the window."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import SegmentLines
        lines = console.render_lines(Page(self.text), options, pad=False)
        yield SegmentLines(lines[-max(1, options.size.height - 2):], new_lines=True)


def finished_blocks(text: str) -> tuple[str, str]:
    """(the blocks that no further text can change, the rest): cut after the last blank line outside code, before a line that begins a new block.

    A line of a list or an indented one may continue the block before it, so there is no cut before those.
    """
    fence, cut, blank, at = "", 0, False, 0
    for line in text.splitlines(keepends=True):
        if blank and not fence and line.strip() and line[0] not in " \t-*+0123456789|>":
            cut = at
        mark = fence_of(line)
        if mark:
            fence = "" if mark == fence else fence or mark
        blank = not line.strip() and line.endswith("\n")
        at += len(line)
    return text[:cut], text[cut:]
