"""`llamina embed`: vectors of a file's texts."""
from __future__ import annotations

import contextlib
from pathlib import Path

import click

from ..errors import OptionError
from .cluster import place_for, ray_option
from .help import Command
from .options import complete_model, run_options
from .progress import Progress


@click.command("embed", cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", metavar="PATH", default="-", show_default=True,
              help="Where the vectors go: .npy (float32, a row a text) or .jsonl (the rows with \"embedding\"); - for standard output, as .jsonl.")
@click.option("--kind", metavar="NAME", help="query, document, or another prompt of the file: what the model wants put before such a text.  [default: nothing]")
@click.option("--prompt", metavar="TEXT", help="This text before each instead.")
@click.option("--pooling", type=click.Choice(["mean", "cls", "last", "none"]),
              help="Of a text's rows to one; none: all of them (.jsonl).  [default: as the file says, else mean for encoders, last for others]")
@click.option("--truncate", type=int, metavar="N", help="The first N numbers of a vector alone (Matryoshka), before its length is made 1.")
@click.option("--no-normalize", is_flag=True, help="Leave vectors as long as they come.")
@click.option("--cut", is_flag=True, help="Cut texts that are too long, and count them; else the first is an error that names its line.")
@click.option("--max-tokens", type=int, metavar="N", help="Most tokens of a text.  [default: as the file says, else the context]")
@click.option("--text-column", metavar="NAME", help="The column, or JSON key, that holds the text.  [default: text, or the only one]")
@click.option("--format", "asked", type=click.Choice(["csv", "tsv", "jsonl", "lines"]), help="What INPUT is.  [default: by its name; lines of text for -]")
@click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache, such as 4GB.")
@ray_option
@run_options
def command(model: str, source: str, output: str, kind: str | None, prompt: str | None, pooling: str | None, truncate: int | None, no_normalize: bool,
            cut: bool, max_tokens: int | None, text_column: str | None, asked: str | None, memory: str | None, ray: str | None, threads: int | None,
            context: int | None, kv: str | None, quiet: bool, verbose: bool) -> None:
    """Turn each text of a file into a vector: texts that mean the like get vectors that point the like way.

    INPUT is a file of lines (every line is a text, an empty one too), or .jsonl, .csv or .tsv; - reads standard input. Row i of the output is text i.
    Interrupted, even by kill -9, the same command goes on where it was, and the file comes out as if nothing had happened: its bytes are the same on every
    CPU, with any number of threads. See docs/embed.md.

    \b
    Examples:
      llamina embed all-minilm.gguf passages.txt -o passages.npy --kind document
      llamina embed model.gguf articles.jsonl -o vectors.jsonl --text-column body --cut
      echo "where is the cat?" | llamina embed model.gguf - --kind query
    """
    from ..score.embed_work import FORMATS, EmbedWork
    from ..score.table import format_of
    from .outputs import check_files, journal_of
    from .scoring import check_names
    from .texts import run_texts, spooled_source
    check_names(source, output)
    check_files("output", output=[journal_of])
    out_format = "jsonl" if output == "-" else Path(output).suffix.lower().lstrip(".")
    if out_format not in FORMATS:
        raise OptionError(f"{output}: vectors are written as .npy or .jsonl: choose such a name")
    with contextlib.ExitStack() as stack:
        path, name = spooled_source(stack, source)
        work = EmbedWork(path, name, format_of(source, asked), out_format, text_column, cut, kind=kind, prompt=prompt, pooling=pooling,
                         truncate_dim=truncate, normalize=not no_normalize, max_tokens=max_tokens)
        work.prepare()
        progress = stack.enter_context(Progress(quiet, verbose))
        run_texts(work, output, progress, lambda expected: place_for(ray, model, threads, context, progress, memory=memory, kv=kv, expected=expected), kv)
