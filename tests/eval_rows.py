"""Rows that tests of `llamina eval` and `classify` measure: choices, and reviews with a label."""
from __future__ import annotations

import csv
import json
from pathlib import Path

WORDS = ["the", "cat", "dog", "bird", "saw", "liked", "ate", "a", "red", "big", "small", "house", "tree", "and", "then", "was", "happy", "sad", "very"]


def sentence(i: int, n: int) -> str:
    return " ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(n))


def write_choices(path: Path) -> Path:
    """40 rows of choices, of one and of many tokens."""
    rows = [{"id": i, "context": sentence(i, 4 + i % 9).capitalize(), "choices": [WORDS[i % 19], sentence(i + 1, 3), WORDS[(i + 5) % 19]], "answer": i % 3}
            for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_reviews(path: Path) -> Path:
    """24 rows, some of whose texts have quotes and line breaks."""
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["n", "text", "gold"])
        out.writerows([i, sentence(i, 5 + i % 4) + (',\n"quoted"' if i % 4 == 0 else ""), ("good", "bad")[i % 2]] for i in range(24))
    return path
