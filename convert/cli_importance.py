"""`llamina importance`: measure which columns of a model's matrices matter, for `llamina convert --importance`."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..engine.cli.options import debug_option, open_model, read_text
from ..engine.cli.progress import Progress

if TYPE_CHECKING:
    from .importance import Columns


@click.command("importance")
@click.argument("model")
@click.argument("text", metavar="TEXT_FILE")
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to write the importance matrix (GGUF, as llama.cpp's imatrix).")
@click.option("--context", type=int, default=512, show_default=True, metavar="N", help="Tokens of a window.")
@click.option("--windows", type=int, metavar="N", help="At most so many windows.  [default: the whole text]")
@click.option("--special", is_flag=True, help="Special tokens written in the text (</s>, <|eot_id|>) are those tokens, not text.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: measured once]")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(model: str, text: str, output: str, context: int, windows: int | None, special: bool, overwrite: bool, threads: int | None,
            quiet: bool) -> None:
    """Run MODEL (best unquantised) over a text file and write the mean squared activation of every column of every matrix. Ctrl-C ends it early and writes
    what was measured.

    \b
    Example:
      llamina importance model.f16.gguf wiki.train.raw -o imatrix.gguf --windows 100
      llamina convert model.f16.gguf model.q4_k_m.gguf --type q4_k_m --importance imatrix.gguf
    """
    from ..engine.cli.outputs import check_files
    from ..engine.home.library import is_hub_name
    from ..engine.home.resolve import resolve
    from .importance import collecting, write
    from .writer import check_target
    check_files("output")
    body = read_text(text)
    check_target(Path(output), [] if is_hub_name(model) else [resolve(model), Path(text)], overwrite)
    with Progress(quiet) as progress, open_model(model, threads, context, progress) as opened:
        last: tuple[int, int, dict[str, Columns]] | None = None
        interrupted = False
        try:
            for last in collecting(opened, body, context, windows, special):
                progress.counting("windows", *last[:2])
        except KeyboardInterrupt:
            interrupted = True
        if last is None:  # a text has at least one window
            raise KeyboardInterrupt
        done, total, columns = last
        write(Path(output), columns, Path(text).name, context, overwrite)
        count = max(c.most for c in columns.values() if isinstance(c.count, int))
        progress.note(f"{output}: importance of {len(columns)} matrices, measured on {count} tokens"
                      + (f": stopped after {done} of {total} windows, whose measurement is kept" if interrupted else ""))
        if interrupted:
            raise click.exceptions.Exit(130)
