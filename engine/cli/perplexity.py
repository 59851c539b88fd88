"""`llamina perplexity`: how well a model predicts a text, and how far it is from a reference."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(model: str, text: str, context: int, against: str | None, windows: int | None, special: bool, threads: int | None, kv: str | None,
            as_json: bool, quiet: bool) -> None:
    """Print the perplexity of MODEL on a text file ("-": standard input), in windows as llama.cpp cuts them. Ctrl-C ends it with the numbers of the windows
    that are done.

    \b
    Examples:
      llamina perplexity model.q4_k_m.gguf wiki.test.raw
      llamina perplexity model.q4_k_m.gguf wiki.test.raw --against model.f16.gguf --windows 20
      llamina perplexity model.gguf wiki.test.raw --kv q8_0 --against model.gguf
    """
    from ..score.perplexity import running_divergence, running_perplexity
    body = read_text(text)
    steps: Iterator[Running[Any]]
    with Progress(quiet) as progress:
        ours = open_model(model, threads, context, progress, kv=kv)
        if against is None:
            steps = running_perplexity(ours, body, context, windows, special)
        else:
            steps = running_divergence(ours, open_model(against, threads, context, progress), body, context, windows, special)
        last, interrupted = _measure(steps, progress)
    if last is None:
        raise KeyboardInterrupt
    result = last.result()
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        print("\n".join(_lines(result)))
    if interrupted:
        progress.note(f"stopped after {last.done} of {last.total} windows: the numbers are of those")
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
