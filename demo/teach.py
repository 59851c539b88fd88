"""Two tasks that the demo model doesn't know, to be learned by `llamina train`, and its old ones, to see that they stay. By the corpus's own generators.

    python -m demo.teach FOLDER

    train.jsonl                           conversations of both new tasks and of the old ones
    valid.jsonl                           held-out conversations of the new tasks
    advice.jsonl question.jsonl old-*     held-out questions with their answers, a file a task, for `llamina eval`
    labels-*.jsonl                        held-out texts with their labels

*Advice*: what to do about a thing of which a text speaks: buy, avoid, wait. *Question*: ask in French whether it is so: "Est-ce que le chat est sur la table ?"
What is held out are combinations that training has never seen (text.py), of the new tasks as of the old ones.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from .corpus import Document, document, task_turn
from .labels import sentiment, topic
from .text import held_out, pick
from .translate import PATTERN_MIX, PATTERNS

ADVICE = {"positive": "buy", "negative": "avoid", "neutral": "wait"}
TASKS = ("sentiment", "topic", "translation", "passage")
"""Old tasks that ask one thing and have one right answer."""
OLD = (*TASKS, "chat", "memory", "request")


def advice(rng: Random, held: bool) -> tuple[str, str]:
    """(question, answer)"""
    text, label = sentiment(rng, held)
    return f"What should I do: {text}", ADVICE[label]


def question(rng: Random, held: bool) -> tuple[str, str]:
    """(question, answer). "que" loses its e before il, elle, un; "huit" begins with no vowel, and nothing else that a sentence here begins with has an h."""
    while True:
        en, fr, words = PATTERNS[pick(rng, PATTERN_MIX)](rng)
        if held_out("fr", *sorted(words)) == held and len(set(words)) > 1 and fr.endswith("."):
            asks = "Est-ce qu'" if fr[0] in "aeiou" else "Est-ce que "
            return f"Ask in French: {en[0].upper()}{en[1:]}", f"{asks}{fr[:-1]} ?"


NEW = {"advice": advice, "question": question}


LABELLED = {"sentiment": sentiment, "topic": topic}


def conversation(found: Document) -> list[dict[str, str]]:
    """A chat's messages, the last one the answer."""
    messages = [{"role": "system", "content": found.system}] if found.system else []
    for asked, answer in found.turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages


def lessons(name: str, held: bool = False) -> Iterator[dict[str, Any]]:
    """Endless conversations of one task, to learn from, or to see what was learned; old ones are documents of the corpus."""
    rng = Random(f"teach/{name}" + "/valid" * held)
    while True:
        found = Document(name, turns=[NEW[name](rng, held)]) if name in NEW else document(rng, held, name)
        yield {"messages": conversation(found)}


def exam(name: str) -> Iterator[dict[str, str]]:
    """Endless held-out questions of one task, with their answers."""
    rng = Random(f"teach/{name}/held")
    while True:
        asked, answer = NEW[name](rng, True) if name in NEW else task_turn(rng, True, name)[:2]
        yield {"prompt": asked, "target": answer}


def write(folder: Path, n_train: int, n_old: int, n_test: int) -> None:
    """All files. The old tasks' conversations among the new ones are what keeps the model from forgetting them."""
    folder.mkdir(parents=True, exist_ok=True)

    def file(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    taught = [(name, n_train) for name in NEW] + [(name, n_old // 4 if name == "request" else n_old) for name in OLD]      # a story is six times as long
    file("train.jsonl", [row for name, n in taught for row in islice(lessons(name), n)])
    file("valid.jsonl", [row for name in NEW for row in islice(lessons(name, True), n_test // 2)])
    for name in (*NEW, *TASKS):
        file(f"{'old-' * (name in OLD)}{name}.jsonl", list(islice(exam(name), n_test)))
    for name, draw in LABELLED.items():
        rng = Random(f"labels/{name}")
        file(f"labels-{name}.jsonl", [dict(zip(("text", "label"), draw(rng, True), strict=True)) for _ in range(n_test)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="conversations of each new task")
    parser.add_argument("--old", type=int, default=1000, help="conversations of each old task among them (a quarter as many with a story)")
    parser.add_argument("--test", type=int, default=500, help="held-out questions of each task")
    given = parser.parse_args()
    write(given.folder, given.train, given.old, given.test)
