"""What the commands that work through a file's rows share: labels and templates as options, the line that tells how far they are, where results go."""
from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import FileError, OptionError, quoted
from .progress import Progress, duration, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..answers.batch_journal import Journal
    from ..score.job import Progress as State
    from ..score.job import Records, ScoreJob
    from ..score.table import Row


def labels_of(text: str) -> dict[str, str]:
    """--labels: names with commas between them, or NAME=TEXT where another text stands for a label. OptionError."""
    from ..score.classify import check_labels
    from ..score.template import unescaped
    found: dict[str, str] = {}
    for part in text.split(","):
        name, has_text, words = part.partition("=")
        name = name.strip()
        if name in found:
            raise OptionError(f"--labels: {quoted(name)} is given twice")
        found[name] = unescaped(words) if has_text else name
    return check_labels(found)


def check_names(*names: str) -> None:
    """FileError for a path that can't be one, before it is taken for something else."""
    for name in names:
        if "\0" in name:
            raise FileError(f"{name!r}: cannot be read: no path holds a zero byte")


def check_places(*outputs: str | None) -> None:
    """FileError if an output can't be where it is to be: told before anything is computed for it."""
    for name in outputs:
        if name is not None and Path(name).is_dir():
            raise FileError(f"{name}: is a directory: expected a file's name")
        if name is not None and not Path(name).parent.is_dir():
            raise FileError(f"{name}: cannot be written (the folder does not exist)")


@contextlib.contextmanager
def journal_for(output: str | None) -> Iterator[Journal]:
    """Of a file; without one (None, "-") what is done is kept only as long as the command runs."""
    from ..answers.batch_journal import Journal
    if output not in (None, "-"):
        with Journal(Path(str(output))) as journal:
            yield journal
        return
    with tempfile.TemporaryDirectory(prefix="llamina-") as folder, Journal(Path(folder) / "output") as journal:
        yield journal


def shown(path: Path) -> None:
    """A finished file to standard output."""
    sys.stdout.flush()
    with open(path, "rb") as file:
        while piece := file.read(1 << 16):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def run_job(job: ScoreJob, progress: Progress, kept: bool, records: Callable[[Iterable[Row]], Records], part: int = 0, what: str = "rows") -> float:
    """Run a part to its end, telling how far it is -> seconds. kept: whether an interrupted run can go on."""
    start, begun = time.monotonic(), job.progress.done
    try:
        for state in job.run(records, part):
            seen = state
            progress.working(lambda: _line(seen, begun, time.monotonic() - start, what))  # noqa: B023 - called at once
    except KeyboardInterrupt:
        progress.clear()
        if not progress.quiet:
            tell(f"[stopped after {job.progress.done} of {job.total} {what}{': the same command goes on from there' if kept else ''}]")
        raise click.exceptions.Exit(130) from None
    finally:
        progress.clear()
    return time.monotonic() - start


def _line(state: State, begun: int, seconds: float, what: str) -> str:
    new = state.done - begun
    left = f", {duration(seconds / new * (state.total - state.done))} left" if new and seconds > 1 else ""
    errors = f" ({state.errors} errors)" if state.errors else ""
    return f"{state.done} of {state.total} {what}{errors}, {new / max(seconds, 1e-9):.1f} {what}/s{left}"


def summary(job: ScoreJob, seconds: float, what: str = "rows") -> str:
    """The closing line."""
    state = job.progress
    new = state.done - state.resumed
    errors = f", {state.errors} of them errors" if state.errors else ""
    return f"[{state.total} {what}{errors}; {new} in {duration(seconds)} ({new / max(seconds, 1e-9):.1f} {what}/s)]"


def tell_resumed(job: ScoreJob, progress: Progress, what: str = "rows") -> None:
    """A line if an earlier run began it."""
    if job.resumed:
        progress.note(f"going on after {job.resumed} of {job.total} {what}")
