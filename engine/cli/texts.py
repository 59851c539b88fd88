"""What `embed` and `rerank` share: where the texts come from, a look at all of them before any is computed, the run, its closing lines."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import FormatError
from .progress import Progress, tell

if TYPE_CHECKING:
    from ..model import Model
    from ..score.embed_work import EmbedWork
    from ..score.rerank_work import RerankWork


def spooled_source(stack: contextlib.ExitStack, source: str) -> tuple[Path, str]:
    """The input as a file, and what it is called in errors."""
    from .batch import spooled
    if source == "-":
        return stack.enter_context(spooled("texts")), "standard input"
    return Path(source), source


def run_texts(work: EmbedWork | RerankWork, output: str, progress: Progress, open_model: Callable[[], Model], kv: str | None) -> None:
    """Compute what the journal lacks, write the output, say how it went. FormatError names a text that the model does not take; click.exceptions.Exit(1):
    every row was an error."""
    from ..answers.batch_job import fingerprint
    from ..score.job import ScoreJob
    from .scoring import journal_for, run_job, shown, summary, tell_resumed
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(journal_for(output))
        loaded = stack.enter_context(open_model())
        loaded.scheduler.reading = None
        left = (row for row in work.rows() if row.number not in journal.done)
        for n, (_, record) in enumerate(work.look().records(loaded, left), 1):
            if "error" in record:
                raise FormatError(f"{work.name}, {record['error']}")
            looked_at = n
            progress.working(lambda: f"looking at the texts: {looked_at} of {work.count}")  # noqa: B023 - called at once
        progress.clear()
        job = ScoreJob(work, journal, {"model": fingerprint(loaded.path), "context": loaded.context, "kv": kv})
        tell_resumed(job, progress, "texts")
        seconds = run_job(job, progress, output != "-", lambda rows: work.records(loaded, rows), what="texts")
        job.finish(lambda file: work.write(file, job.records))
        if output == "-":
            shown(journal.output)
    if not progress.quiet:
        tell(summary(job, seconds, "texts"))
        if n := work.found["cut"]:
            tell(f"llamina: {n} of {work.count} texts {'was' if n == 1 else 'were'} longer than the model takes, and cut")
    if job.progress.errors == job.total:
        tell(f"llamina: every text is an error: see {'the first one' if output == '-' else output}")
        raise click.exceptions.Exit(1)
