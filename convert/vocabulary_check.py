"""Is the vocabulary that the result will hold the source's? Cheap, so it runs before any weight is written, however large the model.

    source.metadata -> load_tokenizer -> ids of hard strings  ==  ids by the library of source.vocabulary.path (sources/tokenizer_check.py)
"""
from __future__ import annotations

from dataclasses import dataclass, field

from ..engine.errors import LlaminaError, TokenizerError, UnsupportedError
from ..engine.text.tokenizer import load_tokenizer
from .sources import Source
from .sources.tokenizer_check import HARD_STRINGS, comparable, reference


@dataclass
class VocabularyCheck:
    """problems: one line each. strings: compared with the library of `reference`, a file's name. unknown: why llamina can't use the vocabulary itself."""

    problems: list[str] = field(default_factory=list)
    strings: int = 0
    reference: str | None = None
    unknown: str | None = None


def check_vocabulary(source: Source) -> VocabularyCheck:
    """A vocabulary that llamina doesn't know, in a GGUF file that is only requantised, is no problem: it is copied, and `unknown` says so.
    Errors of the tokenizer file's library are problems, too."""
    result = VocabularyCheck()
    try:
        ours = load_tokenizer(source.metadata, source.path)
    except (UnsupportedError, TokenizerError) as error:
        if source.vocabulary is not None:
            result.problems.append(str(error))
        else:
            result.unknown = str(error)
        return result
    vocab = source.vocabulary
    if vocab is None:
        return result
    try:
        theirs = reference(vocab)
        if theirs is None:
            return result
        result.reference = vocab.path.name
        for text in comparable(vocab, iter(HARD_STRINGS)):
            result.strings += 1
            ids, expected = ours.encode(text, bos=False), theirs(text)
            if ids != expected:
                result.problems.append(f"{text[:20]!r} becomes {ids[:12]}, by {result.reference} it is {expected[:12]}")
    except LlaminaError as error:
        result.problems.append(str(error))
    return result
