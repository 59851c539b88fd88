"""What `embed` and `rerank` share: where the texts come from, a look at all of them before any is computed, the run, its closing lines."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import FormatError
from .progress import Progress, tell

if TYPE_CHECKING:
    from ..score.embed_work import EmbedWork
    from ..score.rerank_work import RerankWork
    from .cluster import Place


def spooled_source(stack: contextlib.ExitStack, source: str) -> tuple[Path, str]:
    """The input as a file, and what it is called in errors."""
    from .batch import spooled
    if source == "-":
        return stack.enter_context(spooled("texts")), "standard input"
    return Path(source), source


def run_texts(work: EmbedWork | RerankWork, output: str, progress: Progress, open_place: Callable[[str | None], AbstractContextManager[Place]],
              kv: str | None) -> None:
    """Compute what the journal lacks, write the output, say how it went. FormatError names a text that the model does not take; click.exceptions.Exit(1):
    every row was an error. open_place: given the fingerprint of an interrupted run's model."""
    from ..score.job import ScoreJob
    from .scoring import journal_for, run_job, shown, summary, tell_resumed
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(journal_for(output))
        place = stack.enter_context(open_place((journal.header or {}).get("model")))
        left = (row for row in work.rows() if row.number not in journal.done)
        for n, (_, record) in enumerate(place.records(work.look(), left, work.count), 1):
            if "error" in record:
                raise FormatError(f"{work.name}, {record['error']}")
            looked_at = n
            progress.working(lambda: f"looking at the texts: {looked_at} of {work.count}")  # noqa: B023 - called at once
        progress.clear()
        job = ScoreJob(work, journal, {**place.facts.bound(), "kv": kv})
        tell_resumed(job, progress, "texts")
        seconds = run_job(job, progress, output != "-", lambda rows: place.records(work, rows, work.count), what="texts")
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
