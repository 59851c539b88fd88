"""`llamina eval`: how good a model is at a task."""
from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .adapters import bound
from .cluster import place_for, ray_option
from .help import Command
from .options import as_json_line, complete_model, run_options, system_message
from .progress import Progress, tell

if TYPE_CHECKING:
    from ..score.job import ScoreJob


@click.command("eval", cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.argument("source", metavar="TASK")
@click.option("-o", "--output", metavar="PATH", help="Where the results go, as JSON: every number, digests of model and task; the same bytes on every machine.")
@click.option("--samples", metavar="PATH", help="Where each row goes with its prompt's ids, scores and answer, a line of JSON each.")
@click.option("--shots", type=int, default=0, show_default=True, metavar="N", help="Rows that are shown with their answers before each row.")
@click.option("--shots-from", metavar="FILE", help="Where they are drawn from.  [default: the task's other rows]")
@click.option("--template", metavar="TEXT",
              help=r"How a row is asked, its keys in braces; \n is a newline.  [default: {context}, {text}, {prompt} or {source}]")
@click.option("--delimiter", default=" ", metavar="TEXT", help="Between a row and its answer, unless the row ends in white space.  [default: a space]")
@click.option("--labels", metavar="A,B,…", help="Labels to choose from; NAME=TEXT where another text stands for one.  [default: those in the file]")
@click.option("--calibrate", type=click.Choice(["none", "contextual", "pmi"]), default="none", show_default=True,
              help="Of labels: numbers with and without what the model thinks of them without a text.")
@click.option("--match", type=click.Choice(["exact", "contains", "numeric", "regex", "json"]), default="exact", show_default=True,
              help='How generated answers are compared with "target".')
@click.option("--chat", is_flag=True, help="Rows are questions to a chat model, shots its earlier answers.")
@click.option("--system", metavar="TEXT", help="Instructions that stand before everything.")
@click.option("--system-file", metavar="FILE", help="Read them from a file.")
@click.option("--chat-template", metavar="FILE", help="A chat template (Jinja) instead of the model's own; implies --chat.")
@click.option("-n", "--max-tokens", type=int, default=256, show_default=True, metavar="N", help="Most tokens of a generated answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help=r"Ends a generated answer; may be given several times.  [default: a blank line, unless --chat]")
@click.option("--limit", type=int, metavar="N", help="The first N rows only.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Which rows are shown as shots.")
@click.option("--against", metavar="MODEL2", help="A model to compare with: whose answers flip, how far choices' probabilities are apart (KL).")
@click.option("--plot", metavar="PATH", help="Draw the confusion matrix and the calibration (.png, .svg, .pdf; needs the extra plot).")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache, such as 4GB.")
@ray_option
@run_options
def command(model: str, source: str, output: str | None, samples: str | None, shots: int, shots_from: str | None, template: str | None, delimiter: str,
            labels: str | None, calibrate: str, match: str, chat: bool, system: str | None, system_file: str | None, chat_template: str | None,
            max_tokens: int, stop: tuple[str, ...], limit: int | None, seed: int, against: str | None, plot: str | None, as_json: bool,
            memory: str | None, ray: str | None, threads: int | None, context: int | None, kv: str | None, quiet: bool, verbose: bool) -> None:
    """Measure how good MODEL is at TASK, a .jsonl (or .csv, .tsv) file whose rows say by their keys what is asked.

    {"context", "choices", "answer"}: one of some choices, by likelihood. {"text", "label"}: a label, by likelihood. {"prompt", "target"}: a generated answer,
    compared as --match says. {"source", "reference"}: a translation, scored by sacrebleu (extra eval). Interrupted with -o, even by kill -9, the same command
    goes on where it was, and the results are the same bytes. Times and versions go to environment.json beside them. Exit code 1 if a row could not be
    computed. See docs/eval.md.

    \b
    Examples:
      llamina eval model.gguf task.jsonl
      llamina eval model.gguf sst2.tsv --labels 0=negative,1=positive --template '{text_a}\\nSentiment:' --calibrate contextual
      llamina eval model.q4_0.gguf task.jsonl --shots 5 --against model.f16.gguf -o results.json --samples samples.jsonl
    """
    from ..answers.batch_job import fingerprint
    from ..checks import check_max_tokens
    from ..files import NewFile, write_file, writing
    from ..home.resolve import resolve
    from ..score import results as found
    from ..score.eval_work import EvalWork
    from ..score.job import ScoreJob
    from ..score.prompts import Prompts
    from ..score.template import unescaped
    from .outputs import check_files, journal_of
    from .scoring import check_names, check_places, journal_for, labels_of, run_job, summary, tell_resumed
    check_names(source, *filter(None, (output, samples, shots_from, plot)))
    check_files("output", "samples", "plot", output=[journal_of, _environment_of])
    check_places(output, samples, plot)
    if output == "-" or samples == "-":
        raise OptionError("results and samples go to files: for standard output give --json")
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be a whole number above 0, found {limit}")
    check_max_tokens(max_tokens)
    system, chat = system_message(system, system_file), chat or chat_template is not None
    draw = _plotter(plot)
    if source == "-":
        raise OptionError("a task comes from a file, which is read several times")
    prompts = Prompts.open(source, shots=shots, shots_from=shots_from, seed=seed, chat=chat, system=system, delimiter=unescaped(delimiter),
                           template=None if template is None else unescaped(template), labels=labels_of(labels) if labels else None, match=match, limit=limit)
    if prompts.task.kind == "translation":
        found.need_sacrebleu()
    if calibrate != "none" and prompts.task.kind != "label":
        raise OptionError(f"{source}: --calibrate is for labels, these rows have {'choices of their own' if prompts.task.kind == 'choices' else 'none'}")
    ends = [unescaped(text) for text in stop] or ([] if chat else ["\n\n"])
    work = EvalWork(prompts, max_tokens, ends, calibrate, samples is not None)
    names = [model, *([against] if against else [])]
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet, verbose))
        journal = stack.enter_context(journal_for(output))
        prints = [fingerprint(Path(resolve(name, progress.loading))) for name in names]
        own = {"chat_template": fingerprint(Path(chat_template))} if chat_template and Path(chat_template).is_file() else {}  # a pipe can be read once only
        job = ScoreJob(work, journal, {"models": prints, "context": context, "kv": kv, **own, **bound()}, len(names))
        tell_resumed(job, progress)
        models, seconds = [], 0.0
        for part, name in enumerate(names):
            with place_for(ray, name, threads, context, progress, memory=memory, kv=kv, template=chat_template, expected=prints[part],
                           adapters=part == 0) as place:
                seconds += run_job(job, progress, output is not None, lambda rows: place.records(work, rows, work.count), part)
                models.append({"name": place.facts.name, "sha256": place.digest(), "kv": place.facts.kv})
        parts = [_part(job, part) for part in range(len(names))]
        result = found.results_of(work, models, parts)
        if samples is not None:
            with writing(samples), NewFile(Path(samples)) as new:
                new.file.writelines(json.dumps(s, ensure_ascii=False).encode(errors="backslashreplace") + b"\n" for s in found.samples(work, parts[0]()))
        text = found.text_of(result)
        job.finish(lambda file: file.write(text.encode(errors="backslashreplace")))
        if output is not None:
            write_file(_environment_of(Path(output)), json.dumps(found.environment(seconds), indent=1) + "\n")
        if draw is not None and plot is not None:
            draw(result, plot)
    print(as_json_line(result) if as_json else "\n".join(lines(result)))
    if not quiet:
        tell(summary(job, seconds))
    if problems := result["metrics"].get("first_errors"):
        n = result["metrics"]["errors"]
        tell(f"llamina: {n} row{'' if n == 1 else 's'} could not be computed, the first: {source}, {problems[0]}")
        raise click.exceptions.Exit(1)


def _environment_of(output: Path) -> Path:
    """Where times and versions go."""
    return output.with_name("environment.json" if output.stem == "results" else f"{output.stem}.environment.json")


def _part(job: ScoreJob, part: int) -> Any:
    return lambda: job.records(part)


def _plotter(path: str | None) -> Any:
    """What draws, looked for before anything is computed. UnsupportedError."""
    if path is None:
        return None
    from ..score.plot import draw, need_matplotlib
    need_matplotlib(path)
    return draw


def lines(result: dict[str, Any]) -> list[str]:
    """For people."""
    from ..score.report import eval_lines
    return eval_lines(result)
