"""`llamina generate`: continue a prompt."""
from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .markdown import shown
from .options import (
    as_json_line,
    check_sampling,
    ending_newline,
    grammar_options,
    memory_options,
    model_argument,
    open_model,
    pop_grammar,
    read_text,
    run_options,
    sampling_options,
    speculation_options,
    with_models_own,
)
from .progress import Progress, closing_line, context_note, tell

if TYPE_CHECKING:
    from ..answers.batch import Batch, Result
    from ..answers.generation import Generation


@click.command("generate")
@model_argument
@click.option("-p", "--prompt", metavar="TEXT", help="The text to continue; may be empty.")
@click.option("-f", "--file", metavar="PATH", help="Read it from a file, - for standard input; one newline at its end is dropped.")
@click.option("-n", "--max-tokens", type=int, default=256, show_default=True, metavar="N", help="Most tokens to generate; -1: until the context is full.")
@sampling_options
@grammar_options
@speculation_options
@memory_options
@click.option("--keep", type=int, metavar="N", help="With --context-shift: how many tokens of the prompt's beginning stay.  [default: BOS]")
@click.option("--samples", type=int, default=1, show_default=True, metavar="N", help="Different answers to the prompt; they share its computation.")
@click.option("--logprobs", type=int, metavar="N", help="With --json: log-probabilities of prompt and answer, and of the N likeliest tokens at each place.")
@click.option("--special", is_flag=True, help="Special tokens written in the prompt (</s>, <|eot_id|>) are those tokens, not text.")
@click.option("--no-bos", is_flag=True, help="Don't put the beginning-of-sequence token before the prompt.")
@click.option("--echo", is_flag=True, help="Print the prompt, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end: text, ids, statistics.")
@run_options
def command(model: str, prompt: str | None, file: str | None, max_tokens: int, special: bool, no_bos: bool, echo: bool, as_json: bool,
            draft: str | None, no_speculation: bool, memory: str | None, context_shift: bool, keep: int | None, samples: int, logprobs: int | None,
            threads: int | None, context: int | None, kv: str | None, quiet: bool, **sampling: Any) -> None:
    """Continue a prompt and print the continuation as it comes.

    MODEL is a .gguf file (the first shard of a split one), or demo, the small model that comes with the package. Without -p and -f the prompt
    is read from standard input, unless that is a terminal. The same model, prompt, options and seed give the same text on every machine.

    \b
    Examples:
      llamina generate -p "Once upon a time"
      llamina generate model.gguf -p "The capital of France is" -n 20 --temperature 0
      llamina generate model.gguf -f story.txt --seed 7 --stop "The end" --json
    """
    from ..answers.batch import check_samples
    from ..answers.generation import check_logprobs, check_max_tokens
    if prompt is not None and file is not None:
        raise OptionError("give the prompt with -p or with -f, not with both")
    obey = pop_grammar(sampling)
    check_sampling(sampling)
    check_max_tokens(max_tokens)
    check_samples(samples)
    if check_logprobs(logprobs) is not None and not as_json:
        raise OptionError("--logprobs needs --json")
    text = prompt if prompt is not None else _from_file(file)
    with Progress(quiet or as_json) as progress, open_model(model, threads, context, progress, draft, no_speculation, memory, kv) as loaded:
        sampling = with_models_own(loaded, sampling)
        ids = loaded.prompt_ids(text, bos=False if no_bos else None, special=special)
        options = {"max_tokens": max_tokens, "logprobs": logprobs, "context_shift": context_shift, "keep": keep, **obey, **sampling}
        asked: dict[str, Any] = {"model": model, "prompt": text, "prompt_ids": ids}
        if logprobs is not None:
            asked["prompt_logprobs"] = [entry._asdict() for entry in loaded.logprobs(ids, logprobs)]
        if samples > 1:
            _several(loaded.generate_many([ids], samples=samples, ordered=True, **options), asked if as_json else None, progress)
            return
        generation = loaded.generate(ids, **options)
        if as_json:
            generation.text()
            print(as_json_line({**asked, **_as_dict(generation)}))
            return
        try:
            for piece in chain([text] if echo else [], generation):
                progress.clear()
                sys.stdout.write(shown(piece))
                sys.stdout.flush()
        except KeyboardInterrupt:  # in a step, or while printing
            generation.close()
            interrupted = True
        else:
            interrupted = False
        progress.clear()
        sys.stdout.write(ending_newline())
        sys.stdout.flush()
        progress.note(context_note(generation.stats))
        if not quiet:
            tell(closing_line(generation.stats))
        if interrupted:
            raise click.exceptions.Exit(130)


def _as_dict(answer: Generation | Result) -> dict[str, Any]:
    assert answer.stats is not None
    logprobs = {"logprobs": [entry._asdict() for entry in answer.logprobs]} if answer.logprobs else {}
    return {"text": answer.text if isinstance(answer.text, str) else answer.so_far, "ids": answer.ids, **logprobs, **answer.stats.as_dict()}


def _several(results: Batch, asked: dict[str, Any] | None, progress: Progress) -> None:
    """Print numbered answers as they come in order, or all as one JSON object."""
    found = []
    for result in results:
        if result.error is not None:
            raise result.error
        assert result.stats is not None
        found.append({"sample": result.sample, **_as_dict(result)})
        if asked is None:
            progress.clear()
            print(f"=== {result.sample + 1} ===\n{shown(result.text)}", flush=True)
            progress.note(context_note(result.stats))
            if not progress.quiet:
                print(closing_line(result.stats), file=sys.stderr)
    if asked is not None:
        print(as_json_line({**asked, "samples": found}))


def _from_file(path: str | None) -> str:
    if path is None and sys.stdin.isatty():
        raise OptionError("there is no prompt: give it with -p TEXT, -f PATH or on standard input")
    text = read_text(path or "-")
    return text[:-1] if text.endswith("\n") else text
