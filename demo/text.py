"""Small tools of the corpus generator: templates, seeded choices, the train/held-out split.

A template holds alternatives `[a|b|c]` (they nest; an empty one is allowed) and slots `{name}`. `expand` chooses, fills and tidies:
"a apple" becomes "an apple", sentences begin with a capital.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")
INNERMOST = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
SENTENCE = re.compile(r"(^|[.!?] |\.\" |\n)([a-zé])")


def pick(rng: Random, items: Sequence[T]) -> T:
    return items[rng.randrange(len(items))]


def expand(rng: Random, template: str, slots: Mapping[str, Any]) -> str:
    """Choose one of each group of alternatives, then fill the slots (their text may hold alternatives too)."""
    for _ in range(2):
        while group := INNERMOST.search(template):
            template = template[: group.start()] + pick(rng, group[1].split("|")) + template[group.end() :]
        template = template.format_map(slots)
    return tidy(template)


def tidy(text: str) -> str:
    text = re.sub(r" +", " ", text).replace(" .", ".").replace(" ,", ",").strip()
    return SENTENCE.sub(lambda m: m[1] + m[2].upper(), ARTICLE.sub(r"\1n ", text))


def held_out(*key: object) -> bool:
    """Whether a combination belongs to the held-out split: one in sixteen, by a hash that no seed changes."""
    return hashlib.sha256("|".join(map(str, key)).encode()).digest()[0] < 16
