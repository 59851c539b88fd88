"""Texts that the demo model knows how to go on with, made by its own generator: held out from its training, or of the kind it was trained on.

    text(60_000) -> what perplexity is measured on;  text(60_000, held=False, seed=2) -> what importance is measured on
"""
from __future__ import annotations

from random import Random

from ..engine.errors import FileError


def text(characters: int, held: bool = True, seed: int = 1) -> str:
    """Stories and chats, one after the other, a line each. FileError outside a checkout: demo/ is not part of the wheel."""
    try:
        from ..demo.corpus import MIXES, document
    except ImportError:
        raise FileError("demo/corpus.py is missing: it comes with the repository, not with the wheel; give a text file instead") from None
    rng, lines, size = Random(f"bench/{seed}"), [], 0
    while size < characters:
        d = document(rng, held, mix=MIXES["recall"])
        line = d.text or "\n".join(f"[INST] {user} [/INST] {answer}" for user, answer in d.turns)
        lines.append(line)
        size += len(line) + 1
    return "\n".join(lines) + "\n"
