"""What goes to stderr besides errors: progress while a model loads and compiles (on a terminal only), and the closing line."""
from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import escaped
from ..units import duration, size

if TYPE_CHECKING:
    from ..answers.generation import Stats

__all__ = ["Progress", "closing_line", "context_note", "duration", "short_line", "size", "tell", "wrapped"]


def tell(text: str, indent: int = 2) -> None:
    """Lines on stderr; on a terminal broken between words, later lines of each indented. A path may hold anything: what can't be printed is escaped."""
    print(wrapped(escaped(text, "\n"), indent), file=sys.stderr)


def wrapped(text: str, indent: int = 2) -> str:
    """Lines for stderr: on a terminal broken between words and never within one (a path can be copied), later lines of each indented."""
    if not sys.stderr.isatty():
        return text
    width = max(20, shutil.get_terminal_size().columns - 1)
    return "\n".join(textwrap.fill(line, width, subsequent_indent=" " * min(indent, width // 2), break_on_hyphens=False, break_long_words=False)
                     for line in text.split("\n"))


class Progress:
    """A context manager that keeps one line on the terminal up to date; `clear` before the answer begins. Silent in pipes and if quiet."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        """verbose: notes and closing lines tell everything."""
        self.quiet, self.verbose = quiet, verbose and not quiet
        self.shows = not quiet and sys.stderr.isatty()
        self._last = 0.0
        self._what, self._begun, self._first = "", 0.0, 0
        self._written = False
        self._compiled = 0
        self._unsubscribe: Callable[[], None] | None = None

    def __enter__(self) -> Progress:
        if self.shows:
            from ...kernels import compile_cache
            self._unsubscribe = compile_cache.on_compile(self._compiling)
        return self

    def loading(self, what: str, done: int, total: int) -> None:
        """The `progress` of `load`, in bytes. What takes a while is given its speed and the time left."""
        if what.startswith("compiling"):  # `_compiling` shows that
            return
        speed = self._speed(what, done)
        if self.shows and (done >= total or self._due()):
            left = f", {size(speed)}/s, {duration((total - done) / speed)} left" if speed and done < total else ""
            self._show(f"{what} {100 * done // max(1, total)} % of {size(total)}{left}")

    def reading(self, done: int, total: int) -> None:
        """How far a prompt has been read, in tokens. A short one is not worth a line."""
        speed = self._speed(f"prompt of {total}", done)
        if self.shows and done < total and self._due():
            left = f", {duration((total - done) / speed)} left" if speed else ""
            self._show(f"reading prompt {100 * done // max(1, total)} % of {total} tokens{left}")

    def _speed(self, what: str, done: int) -> float:
        """Of what is counted, a second, since it began; 0 in its first two seconds."""
        now = time.monotonic()
        if what != self._what or done < self._first:
            self._what, self._begun, self._first = what, now, done
        return (done - self._first) / (now - self._begun) if now - self._begun > 2 else 0.0

    def _due(self) -> bool:
        return time.monotonic() - self._last > 0.1

    def working(self, text: Callable[[], str]) -> None:
        """A line of the caller's, made when it is time for another."""
        if self.shows and time.monotonic() - self._last > 0.1:
            self._show(text())

    def stage(self, text: str) -> None:
        """Something begins that tells nothing until it ends."""
        if self.shows:
            self._show(text)

    def counting(self, what: str, done: int, total: int, value: str = "") -> None:
        """Progress through `total` things, with the time left, and what they come to so far."""
        speed = self._speed(what, done)
        if self.shows and (done >= total or self._due()):
            left = f", {duration((total - done) / speed)} left" if speed and done < total else ""
            self._show(f"{what}: {done} of {total}{left}{f'; {value}' if value else ''}")

    def _compiling(self, name: str) -> None:
        self._compiled += 1
        self._show(f"compiling for this CPU, once: {self._compiled} ({name})")

    def _show(self, text: str) -> None:
        self._last = time.monotonic()
        self._written = True
        sys.stderr.write(f"\r\x1b[K{text[:min(100, shutil.get_terminal_size().columns - 1)]}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._written:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._written = False

    def note(self, text: str | None) -> None:
        """A line that stays, unless quiet."""
        if text and not self.quiet:
            self.clear()
            tell(f"llamina: {text}")

    def answered(self, s: Stats) -> None:
        """The closing line of an answer, unless quiet."""
        if not self.quiet:
            self.clear()
            tell(closing_line(s) if self.verbose else short_line(s))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.clear()
        if self._unsubscribe:
            self._unsubscribe()


def context_note(s: Stats) -> str | None:
    """A line if the context was full."""
    if s.context_shifts:
        times = "once" if s.context_shifts == 1 else f"{s.context_shifts} times"
        return f"the context was full {times}: the oldest {s.dropped_tokens} tokens were dropped, and the rest was computed afresh"
    if s.finish_reason == "context":
        return "the context is full: the answer ends here (--context N for a larger one, --context-shift to go on without the oldest tokens)"
    return None


def short_line(s: Stats) -> str:
    """What an answer took, for everyday: tokens, speed, the seed that repeats it, and why it ended."""
    n, speed = s.generated_tokens, s.generated_tokens_per_second
    return (f"[{n} token{'' if n == 1 else 's'}{f', {speed:.{1 if speed < 100 else 0}f} a second' if speed else ''}; seed {s.seed}; end: {s.finish_reason}]")


def closing_line(s: Stats) -> str:
    """With --verbose: load time, speeds, memory, and what it takes to repeat the answer."""
    def speed(tokens_per_second: float | None) -> str:
        return f" ({tokens_per_second:.{1 if tokens_per_second < 100 else 0}f} tokens/s)" if tokens_per_second else ""
    compiled = f" + compile {s.compile_seconds:.1f} s" if s.compile_seconds >= 0.05 else ""
    reused = f", {s.reused_tokens} reused" if s.reused_tokens else ""
    drafted = f", {s.accepted_tokens} of {s.drafted_tokens} guessed" if s.drafted_tokens else ""
    memory = f"; memory {size(s.peak_memory_bytes)}" if s.peak_memory_bytes else ""
    experts = f"; experts read {s.experts_read} times of {s.experts_wanted}" if s.experts_wanted else ""
    return (f"[load {s.load_seconds:.2f} s{compiled}; prompt {s.prompt_tokens} tokens{reused}{speed(s.prompt_tokens_per_second)}; "
            f"generated {s.generated_tokens}{drafted}{speed(s.generated_tokens_per_second)}{memory}{experts}; "
            f"{s.threads} thread{'' if s.threads == 1 else 's'}; seed {s.seed}; end: {s.finish_reason}]")
