"""What the demo model can, with and without an adapter, by llamina itself: new tasks and old ones on held-out combinations, greedy.

    python -m demo.exam [--lora new.gguf] [--n 500]

An answer counts as right when the whole of it is the expected one. Stories: perplexity per token. The tasks are those of evaluate.py (which asks the
dequantised weights in PyTorch), and those of teach.py.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from math import exp
from typing import Any

from .corpus import Document, documents
from .teach import NEW, OLD, conversation, exam

EXACT = (*NEW, *(name for name in OLD if name != "request"))


def asked(name: str, n: int) -> list[tuple[list[dict[str, str]], str]]:
    """Held-out (messages, right answer) of a task."""
    found = [Document(name, turns=[(row["prompt"], row["target"])]) for row in islice(exam(name), n)] if name in NEW else \
        list(islice(documents(0, True, name), n))
    return [(conversation(doc)[:-1], doc.turns[-1][1]) for doc in found]


def exact(model: Any, name: str, n: int) -> float:
    """Share of right answers."""
    rows = asked(name, n)
    answers = model.generate_many([{"messages": messages} for messages, _ in rows], ordered=True, max_tokens=80, temperature=0.0)
    return sum(answer.text.strip() == right for answer, (_, right) in zip(answers, rows, strict=True)) / n


def perplexity(model: Any, n: int) -> float:
    """Of held-out stories, per token, the end of the text left out."""
    texts = [doc.text for doc in islice(documents(0, True, "story"), n)]
    scores = [found.scores[0] for found in model.score_many([("", [text]) for text in texts])]
    return exp(-sum(score.logprob for score in scores) / sum(len(score.logprobs) for score in scores))


def examine(model: Any, n: int, names: Sequence[str] = EXACT) -> dict[str, float]:
    """Task -> share of right answers; "story" -> perplexity."""
    return {**{name: exact(model, name, n) for name in names}, "story": perplexity(model, n // 2)}


def table(n: int, found: Sequence[Mapping[str, float]]) -> str:
    """A row a task, a column a model."""
    lines = []
    for name in found[0]:
        measure = (f"{n // 2} | perplexity", "{:.3f}") if name == "story" else (f"{n} | exact", "{:.1%}")
        lines.append(f"| {name} | {measure[0]} | " + " | ".join(measure[1].format(numbers[name]) for numbers in found) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    from llamina import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--lora", help="an adapter: the model is asked without it, then with it")
    parser.add_argument("--n", type=int, default=500, help="held-out rows of each task (half as many stories)")
    given = parser.parse_args()
    results = []
    for adapter in [None, given.lora][: 1 + bool(given.lora)]:
        with load(given.model) as loaded:
            if adapter:
                loaded.add_adapter(adapter)
            results.append(examine(loaded, given.n))
    print(table(given.n, results))
