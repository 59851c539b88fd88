"""`llamina tokenize`: text to token ids and back."""
from __future__ import annotations

import json
import sys

import click

from ..errors import OptionError
from .markdown import shown
from .options import debug_option, ending_newline, read_stdin
from .progress import Progress


@click.command("tokenize")
@click.argument("model")
@click.argument("text", required=False)
@click.option("--decode", is_flag=True, help="The other way: TEXT is a JSON list of ids; prints the text.")
@click.option("--special", is_flag=True, help="Special tokens written in the text (</s>, <|eot_id|>) are those tokens, not text.")
@click.option("--bos/--no-bos", default=None, help="Begin with the beginning-of-sequence token or not.  [default: as the file says]")
@debug_option
def command(model: str, text: str | None, decode: bool, special: bool, bos: bool | None) -> None:
    """Print the token ids of a text as a JSON list, by the vocabulary of MODEL (a .gguf file, vocabulary-only ones too, or demo).

    Without TEXT, standard input is read, as it is.

    \b
    Examples:
      llamina tokenize model.gguf "Once upon a time"
      llamina tokenize model.gguf --decode "[1, 9038, 2501]"
      llamina tokenize model.gguf < story.txt | llamina tokenize model.gguf --decode
    """
    from ..model import load_vocabulary
    if text is None:
        if sys.stdin.isatty():
            raise OptionError("there is no text: give it after MODEL or on standard input")
        text = read_stdin(exact=True)
    with Progress() as progress:
        tokenizer = load_vocabulary(model, progress.loading)
    if decode:
        sys.stdout.write(shown(tokenizer.decode(_ids(text))) + ending_newline())
    else:
        print(json.dumps(tokenizer.encode(text, bos=bos, parse_special=special)))


def _ids(text: str) -> list[int]:
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise OptionError(f"--decode wants a JSON list of whole numbers such as [1, 9038, 2501], found {text[:60]!r}")
    return ids
