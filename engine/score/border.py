"""Where a continuation begins among the tokens of the whole text.

    "The sky is " + "blue" -> "The sky is" + " blue" -> ids of the whole text | first scored

The rule is lm-evaluation-harness's: spaces at the context's end belong to the continuation, and the tokens of context + continuation together are what counts,
since that is how the text is met in training. A token that spans the border is scored with the continuation, and told (`spans`); the harness would drop it.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..answers.core import common_prefix
from ..errors import ContextFullError, OptionError

if TYPE_CHECKING:
    from ..answers.core import Core

Text = str | Iterable[int]


@dataclass(frozen=True)
class Joined:
    """ids[first:] are the continuation, 1 <= first < len(ids); spans: the first of them begins in the context."""

    ids: list[int]
    first: int
    spans: bool = False


def join(model: Core, context: Text, continuation: Text, special: bool = False) -> Joined:
    """Both as texts or ids; ids are taken as they are. special: names of special tokens in a text are those tokens. OptionError (nothing to score),
    TokenizerError, ContextFullError."""
    whole = joined(model, context, continuation, special)
    if len(whole.ids) - 1 > model.context:
        raise ContextFullError(f"context and continuation have {len(whole.ids)} tokens, the model's context has {model.context}: "
                               "shorten the text or raise the context (--context)")
    return whole


def joined(model: Core, context: Text, continuation: Text, special: bool = False) -> Joined:
    """`join` for whatever length."""
    if not isinstance(context, str) or not isinstance(continuation, str):
        before = _ids(model, context, special, begins=True)
        after = _ids(model, continuation, special, begins=False)
        if not after:
            raise OptionError("the continuation is empty: there is nothing to score")
        before = before or [_beginning(model)]
        return Joined(before + after, len(before))
    if not continuation:
        raise OptionError("the continuation is empty: there is nothing to score")
    stripped = context.rstrip()
    text = context + continuation
    before, ids = (model.tokenizer.encode(t, eos=False, parse_special=special) for t in (stripped, text))
    first, spans = len(before), False
    if len(ids) <= first or ids[:first] != before:
        first, spans = _spanned(model, ids, before, stripped, text)
    if len(ids) <= first:
        raise OptionError("the continuation has no tokens of its own: there is nothing to score")
    if first == 0:
        ids, first = [_beginning(model), *ids], 1
    return Joined(ids, first, spans)


def _ids(model: Core, text: Text, special: bool, begins: bool) -> list[int]:
    if isinstance(text, str):
        return model.tokenizer.encode(text, bos=None if begins else False, eos=False, parse_special=special)
    return model._check_ids(text)


def _beginning(model: Core) -> int:
    """What stands before a text that begins with its continuation: BOS, also where the file puts none before texts; else the end of another text."""
    found = model.tokenizer.bos_id if model.tokenizer.bos_id is not None else model.tokenizer.eos_id
    if found is None:
        raise OptionError(f"{model.path}: the context is empty, and this model has no token to begin with: give some context")
    return found


def _spanned(model: Core, ids: list[int], before: list[int], context: str, text: str) -> tuple[int, bool]:
    """(the first token that reaches beyond the context, whether it begins within), by the tokens' bytes; where these aren't the text's, the first token that
    is another than of the context alone."""
    sizes = [len(model.tokenizer.token_bytes(id)) for id in ids]
    extra = sum(sizes) - len(text.encode())  # SentencePiece puts a space before a text
    border = len(context.encode()) + extra
    if extra not in (0, 1):
        return common_prefix(ids, before), True
    end = 0
    for i, size in enumerate(sizes):
        if end + size > border:
            return i, end < border
        end += size
    return len(ids), False
