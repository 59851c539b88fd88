"""`llamina generate`: continue a prompt, or with --chat answer a question."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from ..errors import LlaminaError, OptionError
from .help import Command
from .markdown import shown
from .options import (
    as_json_line,
    chat_options,
    check_model_name,
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
    system_message,
    use_template,
    with_models_own,
)
from .progress import Progress, context_note

if TYPE_CHECKING:
    from ..answers.batch import Batch, Result
    from ..answers.generation import Generation
    from ..model import Model


@click.command("generate", cls=Command)
@model_argument
@click.option("-p", "--prompt", metavar="TEXT", help="The text to continue, or with --chat the question; may be empty.")
@click.option("-f", "--file", metavar="PATH", help="Read it from a file, - for standard input; one newline at its end is dropped.")
@click.option("--chat", is_flag=True, help="The prompt is a question to a model that was trained to chat.")
@chat_options
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
            draft: str | None, no_speculation: bool, memory: str | None, context_shift: bool | None, keep: int | None, samples: int, logprobs: int | None,
            threads: int | None, context: int | None, kv: str | None, quiet: bool, verbose: bool, chat: bool, system: str | None, system_file: str | None,
            template: str | None, **sampling: Any) -> None:
    """Continue a prompt and print the continuation as it comes; with --chat, answer a question.

    MODEL is a .gguf file (the first shard of a split one), a name that llamina list shows, or demo, the small model that comes with the package. Without
    -p and -f the prompt is read from standard input, unless that is a terminal. The same model, prompt, options and seed give the same text on every machine.

    \b
    Examples:
      llamina generate -p "Once upon a time"
      llamina generate model.gguf -p "The capital of France is" -n 20 --temperature 0
      llamina generate model.gguf --chat -p "What is the capital of France?" --json
      llamina generate model.gguf -f story.txt --seed 7 --stop "The end"
    """
    from ..answers.batch import check_samples
    from ..answers.generation import check_logprobs, check_max_tokens
    check_model_name(model, "give the text to continue with -p, after the model's name if you mean another one than demo")
    if prompt is not None and file is not None:
        raise OptionError("give the prompt with -p or with -f, not with both")
    system = system_message(system, system_file)
    chat = chat or system is not None or template is not None
    for name, given in ("--special", special), ("--no-bos", no_bos):
        if chat and given:
            raise OptionError(f"{name} is for texts to continue: in a chat the template says where special tokens stand")
    obey = pop_grammar(sampling)
    check_sampling(sampling)
    check_max_tokens(max_tokens)
    check_samples(samples)
    if check_logprobs(logprobs) is not None and not as_json:
        raise OptionError("--logprobs needs --json")
    text = prompt if prompt is not None else _from_file(file)
    with (Progress(quiet or as_json, verbose) as progress,
          open_model(model, threads, context, progress, draft, no_speculation, memory, kv) as loaded):
        use_template(loaded, template)
        sampling = with_models_own(loaded.sampling_defaults, sampling)
        ids = _question(loaded, text, system) if chat else loaded.prompt_ids(text, bos=False if no_bos else None, special=special)
        options = {"max_tokens": max_tokens, "logprobs": logprobs, "context_shift": bool(context_shift), "keep": keep, **obey, **sampling}
        asked: dict[str, Any] = {"model": model, "prompt": text, "prompt_ids": ids}
        if logprobs is not None:
            asked["prompt_logprobs"] = [entry.as_dict() for entry in loaded.logprobs(ids, logprobs)]
        if samples > 1:
            _several(loaded.generate_many([ids], samples=samples, ordered=True, **options), asked if as_json else None, progress)
            return
        generation = loaded.generate(ids, **options)
        if as_json:
            generation.text()
            print(as_json_line({**asked, **_as_dict(generation)}))
            return
        try:
            for piece in chain([text] if echo else [], _trimmed(generation) if chat else generation):
                progress.clear()
                sys.stdout.write(shown(piece))
                sys.stdout.flush()
        except KeyboardInterrupt:  # in a step, or while printing
            generation.close()
            interrupted = True
        else:
            interrupted = False
        progress.clear()
        sys.stdout.write("\n" if chat else ending_newline())
        sys.stdout.flush()
        progress.note(context_note(generation.stats))
        progress.note(_nothing_said(loaded, generation, chat))
        progress.answered(generation.stats)
        if interrupted:
            raise click.exceptions.Exit(130)


def _question(model: Model, text: str, system: str | None) -> list[int]:
    """The prompt of a conversation of one question."""
    from ..answers.chat_answer import chat_prompt
    return chat_prompt(model, [*([{"role": "system", "content": system}] if system is not None else []), {"role": "user", "content": text}])[0]


def _trimmed(pieces: Iterator[str]) -> Iterator[str]:
    """Without blanks at the beginning: SentencePiece models begin an answer with a space."""
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        if piece:
            yield piece


def _nothing_said(model: Model, answer: Generation, chat: bool) -> str | None:
    """A line if the model ended at once: to be told that without a reason helps nobody."""
    if answer.finish_reason != "eos" or answer.so_far.strip():
        return None
    try:
        for_chats = not chat and not model.chat_template.built_in
    except LlaminaError:
        for_chats = False
    if for_chats:
        return "the model ended at once. It was trained to answer questions, not to continue texts: try --chat, or llamina chat"
    return "the model ended at once and said nothing (--ignore-eos goes on)"


def _as_dict(answer: Generation | Result) -> dict[str, Any]:
    assert answer.stats is not None
    logprobs = {"logprobs": [entry.as_dict() for entry in answer.logprobs]} if answer.logprobs else {}
    return {"text": str(answer), "ids": answer.ids, **logprobs, **answer.stats.as_dict()}


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
            progress.answered(result.stats)
    if asked is not None:
        print(as_json_line({**asked, "samples": found}))


def _from_file(path: str | None) -> str:
    if path is None and sys.stdin.isatty():
        raise OptionError("there is no prompt: give it with -p TEXT, -f PATH or on standard input")
    text = read_text(path or "-")
    return text[:-1] if text.endswith("\n") else text
