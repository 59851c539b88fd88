"""`llamina classify`: a label for each text of a file."""
from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from .cluster import place_for, ray_option
from .help import Command
from .options import as_json_line, complete_model, run_options
from .progress import Progress, tell


@click.command("classify", cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", metavar="PATH", default="-", show_default=True,
              help="Where the rows go, with label and probabilities: .csv, .tsv or .jsonl; - for standard output.")
@click.option("--labels", required=True, metavar="A,B,…", help="Labels to choose from; NAME=TEXT where another text stands for one (0=negative,1=positive).")
@click.option("--template", default="{text}", show_default=True, metavar="TEXT",
              help=r"What the model reads before the label: {text}, or other columns' names in braces; \n is a newline.")
@click.option("--text-column", metavar="NAME", help="The column, or JSON key, that holds the text.  [default: text, or the only one]")
@click.option("--label-column", metavar="NAME", help="The one that holds the right label: accuracy and F1 are told.")
@click.option("--calibrate", type=click.Choice(["none", "contextual", "pmi"]), default="none", show_default=True,
              help="Take out what the model thinks of the labels without a text: contextual (after N/A and nothing), pmi (after the empty template).")
@click.option("--abstain", type=float, metavar="P", help="Give no label if the likeliest has a probability below P.")
@click.option("--delimiter", default=" ", metavar="TEXT", help="Between template and label, unless the template ends in white space.  [default: a space]")
@click.option("--format", "asked", type=click.Choice(["csv", "tsv", "jsonl", "lines"]), help="What INPUT is.  [default: by its name; lines of text for -]")
@click.option("--json", "as_json", is_flag=True, help="Tell accuracy and F1 as one JSON object.")
@click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache, such as 4GB.")
@ray_option
@run_options
def command(model: str, source: str, output: str, labels: str, template: str, text_column: str | None, label_column: str | None, calibrate: str,
            abstain: float | None, delimiter: str, asked: str | None, as_json: bool, memory: str | None, ray: str | None, threads: int | None,
            context: int | None, kv: str | None, quiet: bool, verbose: bool) -> None:
    """Give each text of a file the label that the model finds likeliest after it, with the probability of each label.

    INPUT is a .csv, .tsv or .jsonl file, or lines of text; - reads standard input. Its columns are kept, label and probabilities come behind them. Interrupted,
    even by kill -9, the same command goes on where it was, and the file comes out as if nothing had happened. With a label column, accuracy, F1 and the
    confusion matrix go to standard output (to standard error if the rows go there). Exit code 1 if every row was an error (as of `llamina batch`); with a
    label column, which measures, if any was (as of `llamina eval`). See docs/eval.md.

    \b
    Examples:
      llamina classify model.gguf reviews.csv -o labelled.csv --labels positive,negative --template '{text}\\nSentiment:'
      llamina classify model.gguf sst2.tsv -o out.tsv --labels 0=negative,1=positive --text-column text_a --label-column label
      echo "What a film!" | llamina classify model.gguf - --labels good,bad
    """
    from ..score.classify_work import ClassifyWork
    from ..score.job import ScoreJob
    from ..score.table import format_of
    from ..score.template import unescaped
    from .batch import spooled
    from .outputs import check_files, journal_of
    from .scoring import check_names, journal_for, labels_of, run_job, shown, summary, tell_resumed
    check_names(source, output)
    check_files("output", output=[journal_of])
    format = format_of(source, asked)
    out_format = format_of(output)
    if out_format == "lines":
        out_format = "jsonl" if format == "lines" else format
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(spooled("rows")) if source == "-" else Path(source)
        work = ClassifyWork(path, "standard input" if source == "-" else source, format, out_format, labels_of(labels), unescaped(template),
                            calibrate, abstain, unescaped(delimiter), text_column, label_column)
        work.prepare()
        journal = stack.enter_context(journal_for(output))
        progress = stack.enter_context(Progress(quiet, verbose))
        place = stack.enter_context(place_for(ray, model, threads, context, progress, memory=memory, kv=kv, expected=(journal.header or {}).get("model")))
        job = ScoreJob(work, journal, {**place.facts.bound(), "kv": kv})
        tell_resumed(job, progress)
        seconds = run_job(job, progress, output != "-", lambda rows: place.records(work, rows, work.count))
        job.finish(lambda file: work.write(file, job.records))
        if output == "-":
            shown(journal.output)
    if label_column is not None:
        lines = [as_json_line(work.found)] if as_json else table(work.found)
        print("\n".join(lines), file=sys.stderr if output == "-" else sys.stdout)
    if not quiet:
        tell(summary(job, seconds))
    errors, where = job.progress.errors, "the first one" if output == "-" else output
    if errors == job.total:
        tell(f"llamina: every row is an error: see {where}")
        raise click.exceptions.Exit(1)
    if label_column is not None and errors:  # a measurement of some rows only
        tell(f"llamina: {errors} row{'' if errors == 1 else 's'} could not be computed: see {'standard output' if output == '-' else output}")
        raise click.exceptions.Exit(1)


def table(measured: dict[str, Any]) -> list[str]:
    """Lines for people."""
    from ..score.report import confusion_lines, with_error
    lines = [f"accuracy           {with_error(measured['accuracy'])}  ({measured['rows']} rows)"]
    if measured["abstained"] or measured["errors"]:
        lines.append(f"  of those labelled {with_error(measured['accuracy_of_answered'])}  ({measured['abstained']} abstained, {measured['errors']} errors)")
    lines += [f"macro F1           {measured['macro_f1']:.4f}", f"Matthews           {measured['matthews']:.4f}"]
    if measured["calibration_error"] is not None:
        lines.append(f"calibration error  {measured['calibration_error']:.4f}")
    return lines + confusion_lines(measured["confusion"])
