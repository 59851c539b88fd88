"""`llamina batch`: answers to many prompts, offline, at the speed of many at once."""
from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FileError, OptionError
from .options import (
    check_sampling,
    complete_model,
    grammar_options,
    memory_options,
    open_model,
    pop_grammar,
    run_options,
    sampling_options,
    speculation_options,
    with_models_own,
)
from .progress import Progress, tell

if TYPE_CHECKING:
    from ..answers.batch_job import Progress as State


@click.command("batch")
@click.argument("prompts", metavar="PROMPTS.jsonl")
@click.option("-o", "--output", required=True, metavar="PATH", help="Where the answers go, a line of JSON each, in the prompts' order.")
@click.option("-m", "--model", default="demo", show_default=True, metavar="MODEL", shell_complete=complete_model, help="A .gguf file, a short name, or demo.")
@click.option("-n", "--max-tokens", type=int, default=256, show_default=True, metavar="N", help="Most tokens of an answer; -1: until the context is full.")
@click.option("--chat", is_flag=True, help="Texts are questions to a chat model, not texts to continue.")
@click.option("--system", metavar="TEXT", help="Instructions before every conversation that has none; implies --chat.")
@click.option("--parallel", type=int, metavar="N", help="Most answers under way at once.  [default: 16]")
@sampling_options
@grammar_options
@speculation_options
@memory_options
@run_options
def command(prompts: str, output: str, model: str, max_tokens: int, chat: bool, system: str | None, parallel: int | None, draft: str | None,
            no_speculation: bool, memory: str | None, context_shift: bool, threads: int | None, context: int | None, kv: str | None, quiet: bool,
            **sampling: Any) -> None:
    """Answer many prompts: a line of JSON in, a line of JSON out, in the same order.

    A line is a text, or an object: "prompt" (a text or token ids) or "messages" (a conversation, with "tools" if wanted), an "id" of your own, and
    options for this answer alone, by the names of this command's options with _ for -: max_tokens, temperature, seed, stop, json_schema, … What is
    wrong with a line becomes an error record with its number, not a stop. Interrupted, even by kill -9, the same command goes on where it was, and the
    file comes out as if nothing had happened. See docs/batch.md.

    \b
    Examples:
      llamina batch prompts.jsonl -o results.jsonl
      llamina batch questions.jsonl -o answers.jsonl -m model.gguf --chat --temperature 0 -n 200
      llamina batch reviews.jsonl -o labels.jsonl --choice good --choice bad
    """
    from ..answers.batch_job import BatchJob, count_lines
    from ..answers.batch_journal import Journal
    from ..answers.generation import check_max_tokens
    from ..model import count
    obey = pop_grammar(sampling)
    check_sampling(sampling)
    check_max_tokens(max_tokens)
    count("parallel", parallel)
    for name in prompts, output:
        if "\0" in name:
            raise FileError(f"{name!r}: cannot be read: no path holds a zero byte")
    source, target = Path(prompts), Path(output)
    if prompts == "-":
        raise OptionError("prompts come from a file, so that an interrupted job can go on: write them to one")
    if target.exists() and source.exists() and target.samefile(source):
        raise OptionError(f"{output}: is the prompts' file: choose another name")
    lines, digest = count_lines(source)
    with Journal(target) as journal, Progress(quiet) as progress, open_model(model, threads, context, progress, draft, no_speculation, memory, kv) as loaded:
        options = {"max_tokens": max_tokens, "context_shift": context_shift, **with_models_own(loaded, sampling), **obey}
        seed = options.pop("seed")
        job = BatchJob(loaded, source, journal, lines, digest, options, seed=seed, kv=kv, chat=chat or system is not None, system=system,
                       parallel=parallel)
        if job.resumed:
            progress.note(f"going on after {job.resumed} of {lines} records")
        start = time.monotonic()
        state = job.progress
        try:
            for state in job.run():
                seen = state
                progress.working(lambda: _line(seen, time.monotonic() - start))  # noqa: B023 - called at once
        except KeyboardInterrupt:
            progress.clear()
            raise _stopped(job.progress, quiet) from None
        progress.clear()
    if not quiet:
        tell(_summary(state, time.monotonic() - start))


def _stopped(state: State, quiet: bool) -> click.exceptions.Exit:
    if not quiet:
        tell(f"[stopped after {state.done} of {state.lines} records: the same command goes on from there]")
    return click.exceptions.Exit(130)


def _line(state: State, seconds: float) -> str:
    new = state.done - state.resumed
    left = seconds / new * (state.lines - state.done) if new else 0.0
    errors = f" ({state.errors} errors)" if state.errors else ""
    return f"{state.done} of {state.lines}{errors}, {state.tokens / max(seconds, 1e-9):.1f} tokens/s, {duration(left)} left"


def _summary(state: State, seconds: float) -> str:
    errors = f", {state.errors} of them errors" if state.errors else ""
    return f"[{state.lines} records{errors}; generated {state.tokens} tokens in {duration(seconds)} ({state.tokens / max(seconds, 1e-9):.1f} tokens/s)]"


def duration(seconds: float) -> str:
    """130 -> "2 min 10 s"."""
    n = round(seconds)
    return f"{seconds:.1f} s" if seconds < 10 else f"{n} s" if n < 60 else f"{n // 60} min {n % 60} s" if n < 3600 else f"{n // 3600} h {n % 3600 // 60} min"
