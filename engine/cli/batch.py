"""`llamina batch`: answers to many prompts, offline, at the speed of many at once."""
from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FileError, OptionError
from .cluster import place_for, ray_option
from .help import Command
from .options import (
    chat_options,
    check_sampling,
    complete_model,
    grammar_options,
    memory_options,
    pop_grammar,
    run_options,
    sampling_options,
    speculation_options,
    system_message,
    with_models_own,
)
from .progress import Progress, duration, tell

if TYPE_CHECKING:
    from ..answers.batch_job import Progress as State


@click.command("batch", cls=Command)
@click.argument("prompts", metavar="PROMPTS.jsonl")
@click.option("-o", "--output", required=True, metavar="PATH", help="Where the answers go, a line of JSON each, in the prompts' order; - for standard output.")
@click.option("-m", "--model", default="demo", show_default=True, metavar="MODEL", shell_complete=complete_model, help="A .gguf file, a short name, or demo.")
@click.option("-n", "--max-tokens", type=int, default=256, show_default=True, metavar="N", help="Most tokens of an answer; -1: until the context is full.")
@click.option("--chat", is_flag=True, help="Texts are questions to a chat model, not texts to continue.")
@chat_options
@click.option("--parallel", type=int, metavar="N", help="Most answers under way at once.  [default: 16]")
@sampling_options
@grammar_options
@speculation_options
@memory_options
@ray_option
@run_options
def command(prompts: str, output: str, model: str, max_tokens: int, chat: bool, system: str | None, system_file: str | None,
            template: str | None, parallel: int | None, draft: str | None, no_speculation: bool,
            memory: str | None, context_shift: bool | None, ray: str | None, threads: int | None, context: int | None, kv: str | None, quiet: bool,
            verbose: bool, **sampling: Any) -> None:
    """Answer many prompts: a line of JSON in, a line of JSON out, in the same order.

    A line is a text, or an object: "prompt" (a text or token ids) or "messages" (a conversation, with "tools" if wanted), an "id" of your own, and
    options for this answer alone, by the names of this command's options with _ for -: max_tokens, temperature, seed, stop, json_schema, … What is
    wrong with a line becomes an error record with its number, not a stop. Interrupted, even by kill -9, the same command goes on where it was, and the
    file comes out as if nothing had happened. With -o - the answers go to standard output as they come, in order, and nothing is kept of an interrupted
    job; then PROMPTS may be -, too. --system, --system-file and --template imply --chat. Exit code 1 if every line was an error. See docs/batch.md.

    \b
    Examples:
      llamina batch prompts.jsonl -o results.jsonl
      llamina batch questions.jsonl -o answers.jsonl -m model.gguf --chat --temperature 0 -n 200
      llamina batch reviews.jsonl -o labels.jsonl --choice good --choice bad
      llamina batch prompts.jsonl -o - -n 50 | head -1
    """
    from ..answers.batch_job import BatchJob, count_lines
    from ..answers.batch_journal import Journal
    from ..answers.batch_stream import RecordStream
    from ..checks import check_max_tokens, count
    from .outputs import check_files, journal_of
    obey = pop_grammar(sampling)
    check_sampling(sampling)
    check_max_tokens(max_tokens)
    count("parallel", parallel)
    system = system_message(system, system_file)
    to_stream = output == "-"
    for name in prompts, output:
        if "\0" in name:
            raise FileError(f"{name!r}: cannot be read: no path holds a zero byte")
    if prompts == "-" and not to_stream:
        raise OptionError("prompts come from a file, so that an interrupted job can go on: write them to one, or give -o -, too")
    check_files("output", output=[journal_of])
    target = Path(output)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(spooled()) if prompts == "-" else Path(prompts)
        lines, digest = count_lines(source)
        journal: Journal | RecordStream = RecordStream(sys.stdout) if to_stream else Journal(target)
        stack.enter_context(journal)
        progress = stack.enter_context(Progress(quiet, verbose))
        place = stack.enter_context(place_for(ray, model, threads, context, progress, memory=memory, kv=kv, draft=draft, no_speculation=no_speculation,
                                              template=template, expected=(journal.header or {}).get("model")))
        options = {"max_tokens": max_tokens, "context_shift": bool(context_shift), **with_models_own(place.facts.sampling, sampling), **obey}
        seed = options.pop("seed")
        job = BatchJob(None, source, journal, lines, digest, options, seed=seed, kv=kv, chat=chat or system is not None or template is not None,
                       system=system, parallel=parallel, template=place.facts.template, bound=place.facts.bound())
        if job.resumed:
            progress.note(f"going on after {job.resumed} of {lines} records")
        start = time.monotonic()
        state = job.progress
        try:
            for state in job.run(lambda rows: place.records(job.work, rows, lines)):
                seen = state
                progress.working(lambda: _line(seen, time.monotonic() - start))  # noqa: B023 - called at once
        except KeyboardInterrupt:
            progress.clear()
            raise _stopped(job.progress, quiet, to_stream) from None
        progress.clear()
    if not quiet:
        tell(_summary(state, time.monotonic() - start))
    if state.lines and state.errors == state.lines:
        if not quiet:
            tell(f"llamina: every record is an error: see {'the first one' if to_stream else output}")
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def spooled(what: str = "prompts") -> Iterator[Path]:
    """Standard input as a file, since the job reads it twice."""
    handle, name = tempfile.mkstemp(prefix=f"llamina-{what}-", suffix=".jsonl")
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield Path(name)
    finally:
        os.unlink(name)


def _stopped(state: State, quiet: bool, to_stream: bool) -> click.exceptions.Exit:
    if not quiet:
        tell(f"[stopped after {state.done} of {state.lines} records{'' if to_stream else ': the same command goes on from there'}]")
    return click.exceptions.Exit(130)


def _line(state: State, seconds: float) -> str:
    new = state.done - state.resumed
    left = seconds / new * (state.lines - state.done) if new else 0.0
    errors = f" ({state.errors} errors)" if state.errors else ""
    return f"{state.done} of {state.lines}{errors}, {state.tokens / max(seconds, 1e-9):.1f} tokens/s, {duration(left)} left"


def _summary(state: State, seconds: float) -> str:
    errors = f", {state.errors} of them errors" if state.errors else ""
    records, speed = f"{state.lines} record{'' if state.lines == 1 else 's'}{errors}", state.tokens / max(seconds, 1e-9)
    return f"[{records}; generated {state.tokens} tokens in {duration(seconds)} ({speed:.1f} tokens/s)]"
