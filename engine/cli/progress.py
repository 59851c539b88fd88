"""What goes to stderr besides errors: progress while a model loads and compiles (on a terminal only), and the closing line."""
from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..answers.generation import Stats


def tell(text: str, indent: int = 2) -> None:
    """Lines on stderr, control characters escaped; on a terminal broken between words, later lines of each indented."""
    text = "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)
    if sys.stderr.isatty():
        width = max(20, shutil.get_terminal_size().columns - 1)
        text = "\n".join(textwrap.fill(line, width, subsequent_indent=" " * min(indent, width // 2), break_on_hyphens=False) for line in text.split("\n"))
    print(text, file=sys.stderr)


class Progress:
    """A context manager that keeps one line on the terminal up to date; `clear` before the answer begins. Silent in pipes and if quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
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
        now = time.monotonic()
        if what != self._what:
            self._what, self._begun, self._first = what, now, done
        if self.shows and (done >= total or now - self._last > 0.1):
            speed = (done - self._first) / (now - self._begun) if now - self._begun > 2 else 0.0
            left = f", {size(speed)}/s, {(total - done) / speed:.0f} s left" if speed and done < total else ""
            self._show(f"{what} {100 * done // max(1, total)} % of {size(total)}{left}")

    def working(self, text: Callable[[], str]) -> None:
        """A line of the caller's, made when it is time for another."""
        if self.shows and time.monotonic() - self._last > 0.1:
            self._show(text())

    def stage(self, text: str) -> None:
        """Something begins that tells nothing until it ends."""
        if self.shows:
            self._show(text)

    def counting(self, what: str, done: int, total: int) -> None:
        """Progress through `total` things."""
        if self.shows and (done >= total or time.monotonic() - self._last > 0.1):
            self._show(f"{what}: {done} of {total}")

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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.clear()
        if self._unsubscribe:
            self._unsubscribe()


def size(n_bytes: float) -> str:
    """1234567 -> "1.2 MB"."""
    for unit in "B", "kB", "MB", "GB":
        if n_bytes < 1000 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if n_bytes >= 100 or unit == "B" else f"{n_bytes:.1f} {unit}"


def context_note(s: Stats) -> str | None:
    """A line if the context was full."""
    if s.context_shifts:
        times = "once" if s.context_shifts == 1 else f"{s.context_shifts} times"
        return f"the context was full {times}: the oldest {s.dropped_tokens} tokens were dropped, and the rest was computed afresh"
    if s.finish_reason == "context":
        return "the context is full: the answer ends here (--context N for a larger one, --context-shift to go on without the oldest tokens)"
    return None


def closing_line(s: Stats) -> str:
    """Load time, speeds, memory, and what it takes to repeat the answer."""
    def speed(tokens_per_second: float | None) -> str:
        return f" ({tokens_per_second:.{1 if tokens_per_second < 100 else 0}f} tokens/s)" if tokens_per_second else ""
    compiled = f" + compile {s.compile_seconds:.1f} s" if s.compile_seconds >= 0.05 else ""
    reused = f", {s.reused_tokens} reused" if s.reused_tokens else ""
    drafted = f", {s.accepted_tokens} of {s.drafted_tokens} guessed" if s.drafted_tokens else ""
    memory = f"; memory {size(s.peak_memory_bytes)}" if s.peak_memory_bytes else ""
    return (f"[load {s.load_seconds:.2f} s{compiled}; prompt {s.prompt_tokens} tokens{reused}{speed(s.prompt_tokens_per_second)}; "
            f"generated {s.generated_tokens}{drafted}{speed(s.generated_tokens_per_second)}{memory}; "
            f"{s.threads} thread{'' if s.threads == 1 else 's'}; seed {s.seed}; end: {s.finish_reason}]")
