"""Texts that the demo model knows how to go on with, made by its own generator: held out from its training, or of the kind it was trained on.

    text(60_000) -> what perplexity is measured on;  text(60_000, held=False, seed=2) -> what importance is measured on
    python -m llamina.bench.demo_text 60000 > text.txt        then: llamina perplexity demo text.txt --context 256 --special
"""
from __future__ import annotations

import sys
from random import Random

from ..engine.errors import FileError


def text(characters: int, held: bool = True, seed: int = 1, special: bool = True) -> str:
    """Stories and chats one after the other. special: with the names of the special tokens between them, as the model was trained; else lines of plain
    text. FileError outside a checkout: demo/ is not part of the wheel."""
    try:
        from ..demo.corpus import MIXES, document
    except ImportError:
        raise FileError("demo/corpus.py is missing: it comes with the repository, not with the wheel; give a text file instead") from None
    rng, parts, size = Random(f"bench/{seed}"), [], 0
    while size < characters:
        d = document(rng, held, mix=MIXES["recall"])
        parts.append(d.render() if special else (d.text or "\n".join(f"[INST] {user} [/INST] {answer}" for user, answer in d.turns)) + "\n")
        size += len(parts[-1])
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(text(int(sys.argv[1]) if sys.argv[1:] else 60_000))
