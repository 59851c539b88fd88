"""`llamina train`: teach a model by examples, into an adapter, or all of its weights."""
from __future__ import annotations

import contextlib
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, escaped
from . import debug_option
from .help import Command
from .options import complete_model, open_model, system_message, use_template
from .progress import Progress, duration, tell
from .train_begin import begun, is_config

if TYPE_CHECKING:
    from ..model import Model
    from ..train.data import Reading
    from ..train.loop import Progress as State
    from ..train.run import Run

_COLOURED, _PLAIN = ("\x1b[30;42m", "\x1b[0m"), ("\u27e6", "\u27e7")


@click.command("train", cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.argument("data", metavar="DATA")
@click.option("-o", "--output", metavar="PATH",
              help="Where the adapter (--full: the model) goes, as GGUF. Beside it, until it is done, PATH.training keeps checkpoints.")
@click.option("--valid", metavar="FILE", help="Rows that are not learned: their loss and accuracy are told.")
@click.option("--show", type=int, metavar="N", help="Print the first N examples as the model reads them, with what is learned marked, and train nothing.")
@click.option("--loss", type=click.Choice(["assistant", "completion", "all"]),
              help="What is learned: every turn of the assistant's, the completion (the last turn), all.  [default: as the rows have it]")
@click.option("--long", type=click.Choice(["refuse", "cut", "skip"]), default="refuse", show_default=True,
              help="What becomes of rows with more tokens than --context.")
@click.option("--template", metavar="TEXT", help=r"How a row is asked, its keys in braces; \n is a newline.  [default: {prompt}, {text} or {source}]")
@click.option("--delimiter", metavar="TEXT", help="Between a row and its answer, unless the row ends in white space.  [default: a space, or none]")
@click.option("--labels", metavar="A,B,…", help="Of rows with labels: NAME=TEXT where another text stands for one.")
@click.option("--chat", is_flag=True, help="Prompts are questions to a chat model.")
@click.option("--system", metavar="TEXT", help="Instructions before conversations that have none.")
@click.option("--system-file", metavar="FILE", help="Read them from a file.")
@click.option("--chat-template", metavar="FILE", help="A chat template (Jinja) instead of the model's own.")
@click.option("--full", is_flag=True, help="Train all weights of a model in F32, or of a new one by its config.json, not an adapter: -o is the model then.")
@click.option("--tokenizer", metavar="FILE", help="Of a new model: tokenizer.model, tokenizer.json, or a GGUF model that has one.  [default: the folder's]")
@click.option("--rank", type=int, default=16, show_default=True, metavar="N", help="Of each pair of matrices: how much can be learned.")
@click.option("--alpha", type=float, default=32.0, show_default=True, metavar="X", help="A pair counts alpha / rank times.")
@click.option("--targets", default="all-linear", show_default=True, metavar="NAMES", help="Which matrices, with commas: attn_q,attn_v,ffn_down, …")
@click.option("--layers", "last_layers", type=int, metavar="N", help="The last N layers only.  [default: all]")
@click.option("--dropout", type=float, default=0.0, show_default=True, metavar="P", help="Share of a pair's inputs that each token leaves out.")
@click.option("--rslora", is_flag=True, help="A pair counts alpha / sqrt(rank) times.")
@click.option("--backward", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True,
              help="What the way back through quantised matrices rounds its factors to; sums are float32.")
@click.option("--epochs", type=int, default=1, show_default=True, metavar="N", help="How often each row is met.")
@click.option("--steps", type=int, metavar="N", help="So many steps instead.")
@click.option("--batch", type=int, default=8, show_default=True, metavar="N", help="Rows of a step.")
@click.option("--micro-batch", type=int, metavar="N", help="Rows computed at once; the result is the same.  [default: by memory]")
@click.option("--lr", type=float, default=2e-4, show_default=True, metavar="X", help="The greatest learning rate.")
@click.option("--schedule", type=click.Choice(["cosine", "linear", "constant"]), default="cosine", show_default=True, help="How it falls.")
@click.option("--warmup", type=float, default=0.03, show_default=True, metavar="X", help="How long it rises: a share of the steps, or from 1 on, steps.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, metavar="X", help="How fast weights shrink.")
@click.option("--clip", type=float, default=1.0, show_default=True, metavar="X", help="Greatest norm of all gradients; 0: any.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True, help="Whose steps.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the first weights, the order of rows, dropout.")
@click.option("--eval-every", type=int, metavar="N", help="Steps between validations.  [default: an epoch]")
@click.option("--save-every", type=int, metavar="N", help="Steps between checkpoints.  [default: a minute]")
@click.option("--log", metavar="PATH", help="Where each step's loss, rate and norm go, a line of JSON each.")
@click.option("--plot", metavar="PATH", help="Draw the loss curve (.png, .svg, .pdf; needs the extra plot).")
@click.option("--context", type=int, default=512, show_default=True, metavar="N", help="Most tokens of a row.")
@click.option("--memory", metavar="SIZE", help="Most memory that training takes beside the model, such as 2GB.")
@click.option("--keep", metavar="SIZE", help="Of it, for layers that are then not computed a second time; 0: none; the result is the same.  "
              "[default: up to 900MB of what is free]")
@click.option("--kv", metavar="TYPE", help="What keys and values are kept as: f16, f32.  [default: f16; f32 for F32 files]")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: measured once]")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Tell everything.")
@debug_option
def command(model: str, data: str, output: str | None, valid: str | None, show: int | None, loss: str | None, long: str, template: str | None,
            delimiter: str | None, labels: str | None, chat: bool, system: str | None, system_file: str | None, chat_template: str | None,
            log: str | None, plot: str | None, context: int, memory: str | None, keep: str | None, kv: str | None, threads: int | None, quiet: bool,
            verbose: bool, tokenizer: str | None, **training: Any) -> None:
    """Teach MODEL what the rows of DATA say, into a small adapter, or all of its weights (--full); the model's file stays as it is.

    DATA is a .jsonl (or .csv, .tsv, .txt) file whose rows say by their keys what they are: {"messages", "tools"}, {"prompt", "completion"}, {"text"}, or rows
    of `llamina eval`. The adapter has the same bytes on every machine, on any number of threads. Interrupted, even by kill -9, the same command goes on
    where it was. See docs/train.md.

    \b
    Examples:
      llamina train model.gguf data.jsonl --show 3
      llamina train model.gguf data.jsonl -o adapter.gguf --valid valid.jsonl --epochs 3
      llamina generate model.gguf --lora adapter.gguf -p "Hello"
      llamina train model.f32.gguf data.jsonl --full -o new.gguf --lr 1e-4
      llamina train config.json stories.txt --full --tokenizer demo -o new.gguf --lr 1e-3
    """
    from ..score.template import unescaped
    from ..train.checkpoint import folder_of
    from ..train.data import Reading
    from ..train.options import Options
    from .outputs import check_files
    from .scoring import check_names, labels_of
    check_names(*filter(None, (data, valid, output, log, plot)))
    check_files("output", "log", "plot", output=[folder_of])
    options = Options(layers=training.pop("last_layers"), **training)
    system = system_message(system, system_file)
    reading = Reading(context, loss, long, None if template is None else unescaped(template), None if delimiter is None else unescaped(delimiter),
                      labels_of(labels) if labels else None, chat, system)
    if show is None and output is None:
        raise OptionError(f"where does the {'model' if options.full else 'adapter'} go? Give its name with -o, or look at the data with --show 3")
    if output == "-" or data == "-" or valid == "-":
        raise OptionError("what is trained and the data are files: give their names")
    if show is not None and show < 1:
        raise OptionError(f"show must be a whole number above 0, found {show}")
    if plot is not None:
        from ..score.plot import need_matplotlib
        need_matplotlib(plot)
    if tokenizer is not None and not is_config(model):
        raise OptionError(f"--tokenizer is for new models, by a config.json: {model} has its own")
    try:
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(Progress(quiet, verbose))
            if is_config(model):
                model = stack.enter_context(begun(model, tokenizer, options.seed, options.full, None if show else output, progress))
            loaded = stack.enter_context(open_model(model, threads, context, progress, kv=kv))
            loaded.scheduler.reading = None
            use_template(loaded, chat_template)
            if show is not None:
                return _show(loaded, data, reading, show, progress)
            _train(loaded, data, valid, output, reading, options, log, plot, memory, keep, threads, progress)
    except KeyboardInterrupt:  # not between the first step and the last, which `_train` tells of
        if not quiet:
            tell("[interrupted: the same command begins again, or goes on where checkpoints are]")
        raise click.exceptions.Exit(130) from None


def _show(model: Model, data: str, reading: Reading, most: int, progress: Progress) -> None:
    """Examples on standard output, what is learned in colour, or in brackets where there are none."""
    from ..train.data import open_data, shown
    found = open_data(model, data, reading, seen=lambda n: progress.working(lambda: f"reading {data}: {n} rows"))
    progress.clear()
    begin, end = _COLOURED if sys.stdout.isatty() else _PLAIN
    for number, example in enumerate(found.examples[:most]):
        runs = [(escaped(text, "\n"), target) for text, target in shown(model, example)]
        print(f"-- {found.row_name(number)}: {len(example.ids)} tokens, {int(example.mask.sum())} of them learned")
        print("".join(f"{begin}{text}{end}" if target else text for text, target in runs))
    progress.note(found.note())
    progress.note(f"{data}: {len(found.examples)} examples, {found.tokens} tokens, {found.targets} of them learned")


def _train(model: Model, data: str, valid: str | None, output: str | None, reading: Reading, options: Any, log: str | None, plot: str | None,
           memory: str | None, keep: str | None, threads: int | None, progress: Progress) -> None:
    from ..train.run import Run
    with Run(model, data, output, reading, options, valid=valid, log=log, memory=memory, keep=keep, threads=threads,
             seen=lambda state: progress.working(lambda: line(state)), reads=lambda n: progress.working(lambda: f"reading data: {n} rows")) as run:
        for found in filter(None, (run.data, run.valid)):
            progress.note(found.note())
        if run.checkpoints is not None:
            progress.note(run.checkpoints.note)
        if run.loop.resumed:
            progress.note(f"going on after step {run.loop.resumed} of {run.loop.steps}")
        if not progress.quiet:
            progress.stage("measuring a step")
            for said in run.plan().lines():
                progress.note(said)
        try:
            for record in run.records():
                if "valid_loss" in record:
                    progress.note(f"step {record['step']}: validation loss {record['valid_loss']:.4f}, accuracy {100 * record['valid_accuracy']:.1f} %")
        except (KeyboardInterrupt, SystemExit) as stop:
            progress.clear()
            if not progress.quiet:
                tell(f"[stopped after step {run.loop.kept} of {run.loop.steps}: the same command goes on from there]")
            if isinstance(stop, SystemExit):
                raise
            raise click.exceptions.Exit(130) from None
        progress.clear()
        trained = run.finish()
        if plot is not None:
            trained.plot(plot)
        if not progress.quiet:
            tell(summary(run))


def line(state: State) -> str:
    """How far a run is: on a terminal, in one line."""
    from ..train.curve import losses, sparkline
    if state.doing != "training":
        return f"{state.doing}: {100 * state.part:.0f} %"
    training, validation = losses(state.history)
    parts = [f"step {min(state.step + 1, state.steps)} of {state.steps}"]
    if training:
        values, width = [loss for _, loss in training], 12 if shutil.get_terminal_size().columns < 100 else 24
        parts.append(f"loss {sum(values[-20:]) / len(values[-20:]):.3f} {sparkline(values, width)}")
    if validation:
        parts.append(f"validation {validation[-1][1]:.3f}")
    if state.speed:
        left = (state.steps - state.step - state.part) * state.tokens / max(1, state.step - state.begun) / state.speed
        parts.append(f"{state.speed:.0f} tokens/s, {duration(left)} left")
    return ", ".join(parts)


def summary(run: Run) -> str:
    """The closing line."""
    from ..train.curve import losses
    training, validation = losses(run.loop.history)
    state = run.loop.progress
    parts = [f"{run.loop.steps} step{'' if run.loop.steps == 1 else 's'} in {duration(state.seconds)} ({state.speed:.0f} tokens/s)"]
    for name, points in ("loss", training), ("validation loss", validation):
        if points:
            parts.append(f"{name} {points[0][1]:.4f} to {points[-1][1]:.4f}")
    return f"[{'; '.join(parts)}; {run.output}]"
