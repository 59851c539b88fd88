"""`llamina perplexity`: how well a model predicts a text, and how far it is from a reference."""
from __future__ import annotations

import json
from dataclasses import asdict

import click

from .options import debug_option, open_model, read_text
from .progress import Progress


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
    """Print the perplexity of MODEL on a text file ("-": standard input), in windows as llama.cpp cuts them.

    \b
    Examples:
      llamina perplexity model.q4_k_m.gguf wiki.test.raw
      llamina perplexity model.q4_k_m.gguf wiki.test.raw --against model.f16.gguf --windows 20
      llamina perplexity model.gguf wiki.test.raw --kv q8_0 --against model.gguf
    """
    from ..score.perplexity import divergence, perplexity
    body = read_text(text)
    with Progress(quiet) as progress:
        ours = open_model(model, threads, context, progress, kv=kv)
        if against is None:
            result = perplexity(ours, body, context, progress.counting, windows, special)
            progress.clear()
            if as_json:
                print(json.dumps(asdict(result)))
            else:
                print(f"perplexity {result.perplexity:.4f} +/- {result.error:.4f}  ({result.tokens} tokens in {result.windows} windows of {result.context})")
            return
        compared = divergence(ours, open_model(against, threads, context, progress), body, context, progress.counting, windows, special)
    if as_json:
        print(json.dumps(asdict(compared)))
        return
    print(f"perplexity            {compared.model.perplexity:.4f} +/- {compared.model.error:.4f}")
    print(f"reference             {compared.reference.perplexity:.4f} +/- {compared.reference.error:.4f}")
    print(f"mean KL divergence    {compared.mean_kl:.6f} +/- {compared.kl_error:.6f} nats a token")
    print("KL percentiles        " + "  ".join(f"{k}%: {v:.6f}" for k, v in compared.percentiles.items()))
    print(f"same first choice     {100 * compared.top1_agreement:.2f} %  ({compared.model.tokens} tokens in {compared.model.windows} windows)")
