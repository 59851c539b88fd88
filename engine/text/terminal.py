"""A model's text on a terminal: what would drive it is left out."""
from __future__ import annotations


def printable(text: str) -> str:
    """Without control characters, which could drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c <= "\x9f"))
