"""Two tasks that the demo model doesn't know, to be learned by `llamina train`, and its old ones, to see that they stay. By the corpus's own generators.

    python -m demo.teach FOLDER     train.jsonl: both new tasks, and rows of the old ones; advice.jsonl, question.jsonl, old-*.jsonl: held-out rows of each

*Advice*: what to do about a thing of which a text speaks: buy, avoid, wait. *Question*: ask in French whether it is so: "Est-ce que le chat est sur la table ?"
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from .corpus import task_turn
from .labels import sentiment
from .text import held_out, pick
from .translate import PATTERN_MIX, PATTERNS

ADVICE = {"positive": "buy", "negative": "avoid", "neutral": "wait"}
OLD = ("sentiment", "topic", "translation", "passage")


def advice(rng: Random, held: bool) -> tuple[str, str]:
    """(question, answer)"""
    text, label = sentiment(rng, held)
    return f"What should I do: {text}", ADVICE[label]


def question(rng: Random, held: bool) -> tuple[str, str]:
    """(question, answer)"""
    while True:
        en, fr, words = PATTERNS[pick(rng, PATTERN_MIX)](rng)
        if held_out("fr", *sorted(words)) == held and len(set(words)) > 1 and fr.endswith("."):
            asks = "Est-ce qu'" if fr[0].lower() in "aeiouéh" else "Est-ce que "
            return f"Ask in French: {en[0].upper()}{en[1:]}", f"{asks}{fr[:-1]} ?"


def rows(name: str, held: bool, key: str) -> Iterator[dict[str, str]]:
    """Endless rows of a task."""
    rng = Random(f"teach/{name}/{held}")
    while True:
        if name in OLD:
            asked, answer, _ = task_turn(rng, held, name)
        else:
            asked, answer = {"advice": advice, "question": question}[name](rng, held)
        yield {"prompt": asked, key: answer}


def write(folder: Path, n_train: int, n_old: int, n_test: int) -> None:
    """All files. The old tasks' rows among the new ones are what keeps the model from forgetting them."""
    folder.mkdir(parents=True, exist_ok=True)

    def file(name: str, found: list[dict[str, str]]) -> None:
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    taught = [(name, n_train) for name in ("advice", "question")] + [(name, n_old) for name in OLD]
    file("train.jsonl", [row for name, n in taught for row in islice(rows(name, False, "completion"), n)])
    for name in ("advice", "question", *OLD):
        file(f"{'old-' * (name in OLD)}{name}.jsonl", list(islice(rows(name, True, "target"), n_test)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=1000, help="rows of each new task")
    parser.add_argument("--old", type=int, default=500, help="rows of each old task among them")
    parser.add_argument("--test", type=int, default=400, help="held-out rows of each task")
    given = parser.parse_args()
    write(given.folder, given.train, given.old, given.test)
