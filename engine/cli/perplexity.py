"""`llamina perplexity`: how well a model predicts a text, and how far it is from a reference."""
from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .adapters import adapter_options, bound
from .options import debug_option, open_model, read_text
from .progress import Progress

if TYPE_CHECKING:
    from ..score.perplexity import Divergence, Perplexity, Running


@click.command("perplexity")
@click.argument("model")
@click.argument("text", metavar="TEXT_FILE")
@click.option("--context", type=int, default=512, show_default=True, metavar="N", help="Tokens of a window; the second half is scored.")
@click.option("--against", metavar="REFERENCE", help="A model to compare with, e.g. the unquantised one: KL divergence, same first choice.")
@click.option("--windows", type=int, metavar="N", help="At most so many windows.  [default: the whole text]")
@click.option("--special", is_flag=True, help="Special tokens written in the text (</s>, <|eot_id|>) are those tokens, not text.")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: measured once]")
@click.option("--kv", metavar="TYPE", help="What MODEL's keys and values are kept as: f16, q8_0, f32.  [default: f16; f32 for F32 files]")
@adapter_options
@click.option("-o", "--output", metavar="PATH", help="Where the numbers go, with those of every window, as JSON: interrupted, the same command goes on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every window.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(model: str, text: str, context: int, against: str | None, windows: int | None, special: bool, threads: int | None, kv: str | None,
            output: str | None, as_json: bool, quiet: bool) -> None:
    """Print the perplexity of MODEL on a text file ("-": standard input), in windows as llama.cpp cuts them. Ctrl-C ends it with the numbers of the windows
    that are done; with -o, the same command goes on from there.

    \b
    Examples:
      llamina perplexity model.q4_k_m.gguf wiki.test.raw
      llamina perplexity model.q4_k_m.gguf wiki.test.raw --against model.f16.gguf --windows 20
      llamina perplexity model.gguf wiki.test.raw --kv q8_0 --against model.gguf -o numbers.json
    """
    from ..answers.batch_job import fingerprint
    from ..score.perplexity import running_divergence, running_perplexity
    from .outputs import check_files, journal_of
    from .scoring import journal_for
    check_files("output", output=[journal_of])
    body = read_text(text)
    if output == "-":
        raise OptionError("numbers go to a file: for standard output give --json")
    steps: Iterator[Running[Any]]
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(journal_for(output))
        progress = stack.enter_context(Progress(quiet))
        ours = stack.enter_context(open_model(model, threads, context, progress, kv=kv))
        theirs = None if against is None else stack.enter_context(open_model(against, threads, context, progress, adapters=False))
        for loaded in filter(None, (ours, theirs)):
            loaded.scheduler.reading = None  # a window is soon read
        known = dict(zip(journal.done, journal.records()))
        journal.begin({"command": "perplexity", "input": hashlib.sha256(body.encode()).hexdigest(), "window": context, "windows": windows, "special": special,
                       "kv": kv, "models": [fingerprint(loaded.path) for loaded in (ours, theirs) if loaded is not None], **bound()})
        if known:
            progress.note(f"going on after {len(known)} windows")
        if theirs is None:
            steps = running_perplexity(ours, body, context, windows, special, known, journal.add)
        else:
            steps = running_divergence(ours, theirs, body, context, windows, special, known, journal.add)
        last, interrupted = _measure(steps, progress)
        if last is None:
            raise KeyboardInterrupt
        found = {**asdict(last.result()), "each": last.windows()}
        if not interrupted:
            written = json.dumps(found, indent=1) + "\n"
            journal.finish(last.total, lambda file: file.write(written.encode()))
    print(json.dumps(found) if as_json else "\n".join(_lines(last.result())))
    if interrupted:
        kept = ": the same command goes on from there" if output is not None else ""
        progress.note(f"stopped after {last.done} of {last.total} windows: the numbers are of those{kept}")
        raise click.exceptions.Exit(130)


def _measure(steps: Iterator[Running[Any]], progress: Progress) -> tuple[Running[Any] | None, bool]:
    """(what was measured last, whether Ctrl-C ended it): what is done is kept."""
    last = None
    try:
        for last in steps:
            progress.counting("windows", last.done, last.total, f"perplexity so far {last.perplexity:.4f}")
    except KeyboardInterrupt:
        return last, True
    finally:
        progress.clear()
    return last, False


def _lines(result: Perplexity | Divergence) -> list[str]:
    from ..score.perplexity import Perplexity
    if isinstance(result, Perplexity):
        return [f"perplexity {result.perplexity:.4f} +/- {result.error:.4f}  ({result.tokens} tokens in {result.windows} windows of {result.context})"]
    return [
        f"perplexity            {result.model.perplexity:.4f} +/- {result.model.error:.4f}",
        f"reference             {result.reference.perplexity:.4f} +/- {result.reference.error:.4f}",
        f"mean KL divergence    {result.mean_kl:.6f} +/- {result.kl_error:.6f} nats a token",
        "KL percentiles        " + "  ".join(f"{k}%: {v:.6f}" for k, v in result.percentiles.items()),
        f"same first choice     {100 * result.top1_agreement:.2f} %  ({result.model.tokens} tokens in {result.model.windows} windows)",
    ]
