"""Merging for short texts, in Python, so that a program's first prompt does not wait for the tokenizers library to take in a large vocabulary.

The library copies every token and merge into tables of its own: 0.3 s for 150,000 of each, which is what a warm start takes altogether. A prompt of a few
thousand characters needs some hundred look-ups, and the words of many texts are mostly the same. bpe.py uses this for those and the library for all else; tests
hold the two equal.
"""
from __future__ import annotations

from collections.abc import Iterable

MOST_TEXT = 6000  # characters of a text: beyond, the library is quicker even counting what it takes to make it
MOST_WORD = 400  # characters of a word: merging takes the square of it here
MOST_KNOWN, MOST_KNOWN_WORD = 20000, 30  # words whose ids are remembered, and their characters: some megabytes
NEVER = 1 << 60


def merge(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """The pair of neighbours that comes first in the merges is joined, the leftmost of equals, until no pair is in them. `ranks`: "left right" -> place."""
    places = [ranks.get(f"{left} {right}", NEVER) for left, right in zip(symbols, symbols[1:])]
    while places and (least := min(places)) < NEVER:
        at = places.index(least)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        del places[at]
        if at:
            places[at - 1] = ranks.get(f"{symbols[at - 1]} {symbols[at]}", NEVER)
        if at < len(places):
            places[at] = ranks.get(f"{symbols[at]} {symbols[at + 1]}", NEVER)
    return symbols


def merged_ids(words: Iterable[str], ids: dict[str, int], ranks: dict[str, int], whole: bool, known: dict[str, list[int]]) -> list[int] | None:
    """Ids of `words`, whose characters without a token are dropped; `whole`: a word that is a token is taken as it is. known: ids of words seen before, kept
    for the next text. None: ask the library."""
    found: list[int] = []
    for word in words:
        if (own := known.get(word)) is None:
            if whole and word in ids:
                own = [ids[word]]
            elif len(word) > MOST_WORD:
                return None
            else:
                own = [ids[text] for text in merge([char for char in word if char in ids], ranks)]
            if len(word) <= MOST_KNOWN_WORD:
                if len(known) >= MOST_KNOWN:
                    known.clear()
                known[word] = own
        found += own
    return found
