"""Numbers that say how good answers are: from lists of right answers, given ones and probabilities to means with their errors.

Sums go through math.fsum, so that no order and no CPU shows; there is no exp or log here that isn't likelihood.py's. Every number is a plain Python float,
None where there is nothing to measure.
"""
from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from .likelihood import mean

BINS = 10
"""Of the calibration error: confidences of equal width."""


def share(flags: Iterable[bool]) -> dict[str, Any]:
    """{"value": share of the true ones, "stderr": its standard error (of a sample: n - 1), None for fewer than two}."""
    return average([1.0 if flag else 0.0 for flag in flags])


def average(values: Sequence[float]) -> dict[str, Any]:
    """{"value": mean, "stderr": its standard error}."""
    n = len(values)
    if not n:
        return {"value": None, "stderr": None}
    middle = mean(values)
    if n < 2:
        return {"value": middle, "stderr": None}
    return {"value": middle, "stderr": math.sqrt(math.fsum((v - middle) * (v - middle) for v in values) / (n - 1) / n)}


def confusion(gold: Sequence[Hashable], given: Sequence[Hashable], labels: Sequence[Hashable]) -> list[list[int]]:
    """[right label][given label] -> how many; whoever was given none of the labels is counted nowhere."""
    place = {label: i for i, label in enumerate(labels)}
    found = [[0] * len(labels) for _ in labels]
    for right, said in zip(gold, given):
        if right in place and said in place:
            found[place[right]][place[said]] += 1
    return found


def macro_f1(gold: Sequence[Hashable], given: Sequence[Hashable], labels: Sequence[Hashable]) -> float | None:
    """The mean F1 of the labels that occur among the right or the given ones, as scikit-learn's f1_score(average="macro")."""
    scores = []
    for label in labels:
        both = sum(g == label and s == label for g, s in zip(gold, given))
        either = sum(g == label for g in gold) + sum(s == label for s in given)
        if either:
            scores.append(2 * both / either)
    return mean(scores) if scores else None


def matthews(gold: Sequence[Hashable], given: Sequence[Hashable], labels: Sequence[Hashable]) -> float | None:
    """Matthews' correlation coefficient for any number of classes (Gorodkin 2004), 0 if one side is constant, as scikit-learn's."""
    n = len(gold)
    if not n:
        return None
    right = sum(g == s for g, s in zip(gold, given))
    of_gold = [sum(g == label for g in gold) for label in labels]
    of_given = [sum(s == label for s in given) for label in labels]
    covered = right * n - sum(a * b for a, b in zip(of_gold, of_given))
    spread = (n * n - sum(b * b for b in of_given)) * (n * n - sum(a * a for a in of_gold))
    return covered / math.sqrt(spread) if spread else 0.0


def brier(probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> dict[str, Any]:
    """Mean over rows of the squared distance between probabilities and what is right (summed over classes: 0 to 2)."""
    return average([math.fsum((p - (i == answer)) * (p - (i == answer)) for i, p in enumerate(row)) for row, answer in zip(probabilities, right)])


def calibration(confidences: Sequence[float], correct: Sequence[bool]) -> tuple[float | None, list[dict[str, Any]]]:
    """(expected calibration error, the bins {"from", "to", "count", "confidence", "accuracy"}): how far the answers' probabilities are from how often they are
    right."""
    inside: list[list[int]] = [[] for _ in range(BINS)]
    for i, p in enumerate(confidences):
        inside[min(BINS - 1, int(p * BINS))].append(i)
    bins: list[dict[str, Any]] = [{"from": b / BINS, "to": (b + 1) / BINS, "count": len(those),
             "confidence": mean(confidences[i] for i in those) if those else None,
             "accuracy": mean(1.0 if correct[i] else 0.0 for i in those) if those else None} for b, those in enumerate(inside)]
    if not confidences:
        return None, bins
    return math.fsum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins if b["count"]) / len(confidences), bins


def of_labels(gold: Sequence[Hashable], given: Sequence[Hashable], labels: Sequence[Hashable]) -> dict[str, Any]:
    """What classification is measured by; `given` may hold None for rows that got no label, which are wrong."""
    return {"accuracy": share(g == s for g, s in zip(gold, given)), "macro_f1": macro_f1(gold, given, labels),
            "matthews": matthews(gold, given, labels), "confusion": {"labels": list(labels), "counts": confusion(gold, given, labels)}}
