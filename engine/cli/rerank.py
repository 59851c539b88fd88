"""`llamina rerank`: how well each text of a file answers a query."""
from __future__ import annotations

import contextlib

import click

from ..checks import count
from .cluster import place_for, ray_option
from .help import Command
from .options import complete_model, run_options
from .progress import Progress


@click.command("rerank", cls=Command)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.argument("query", metavar="QUERY")
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", metavar="PATH", default="-", show_default=True,
              help="Where the rows go, with their scores: .csv, .tsv or .jsonl; - for standard output.")
@click.option("--top", type=int, metavar="N", help="The N best rows alone, the best first.  [default: all, in their order]")
@click.option("--judge", metavar="YES,NO", help="Ask a chat model for one of two words; the share of the first is the score. For models without a rank head.")
@click.option("--instruction", metavar="TEXT", help="What makes a text fit, for rerankers and judges that write.  [default: a web search's]")
@click.option("--cut", is_flag=True, help="Cut texts that don't fit into the context with the query, and count them; else the first is an error.")
@click.option("--text-column", metavar="NAME", help="The column, or JSON key, that holds the text.  [default: text, or the only one]")
@click.option("--format", "asked", type=click.Choice(["csv", "tsv", "jsonl", "lines"]), help="What INPUT is.  [default: by its name; lines of text for -]")
@click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache, such as 4GB.")
@ray_option
@run_options
def command(model: str, query: str, source: str, output: str, top: int | None, judge: str | None, instruction: str | None, cut: bool,
            text_column: str | None, asked: str | None, memory: str | None, ray: str | None, threads: int | None, context: int | None, kv: str | None,
            quiet: bool, verbose: bool) -> None:
    """Score each text of a file by how well it answers QUERY: the higher the better.

    Models with a rank head (bge-reranker, Qwen 3's rerankers) give its score; another is refused, unless --judge names two words to choose from. INPUT is a
    file of lines, or .jsonl, .csv or .tsv; - reads standard input. Interrupted, even by kill -9, the same command goes on where it was. See docs/embed.md.

    \b
    Examples:
      llamina rerank bge-reranker.gguf "what is a panda?" passages.txt -o scores.jsonl
      llamina rerank bge-reranker.gguf "what is a panda?" passages.txt --top 3
      llamina rerank model.gguf "what is a panda?" passages.csv -o scores.csv --judge yes,no
    """
    from ..score.rerank_work import RerankWork
    from ..score.table import format_of
    from .outputs import check_files, journal_of
    from .scoring import check_names
    from .texts import run_texts, spooled_source
    check_names(source, output)
    check_files("output", output=[journal_of])
    count("top", top)
    format = format_of(source, asked)
    out_format = format_of(output)
    if out_format == "lines":
        out_format = "jsonl" if format == "lines" else format
    with contextlib.ExitStack() as stack:
        path, name = spooled_source(stack, source)
        work = RerankWork(path, name, format, out_format, text_column, cut, query=query, judge=None if judge is None else judge.split(","),
                          instruction=instruction, top=top)
        work.prepare()
        progress = stack.enter_context(Progress(quiet, verbose))
        run_texts(work, output, progress, lambda expected: place_for(ray, model, threads, context, progress, memory=memory, kv=kv, expected=expected), kv)
