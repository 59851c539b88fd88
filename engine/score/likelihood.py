"""Rows of logits -> log-probabilities whose bits are the same on every CPU.

    logits float32 [n_vocab] ──► greatest, ln sum exp(logit - greatest) ──► ln p(token) = (logit - greatest) - that

exp and log are the sampler's (engine/sampling/arithmetic.py), sums run in one order, in float64: NumPy's own change their bits with the CPU.
Means over many tokens go through math.fsum, which rounds once, whatever the order.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ...kernels.float_env import in_default_floats
from ..sampling.arithmetic import MANY, exp, log, relative, total
from ..sampling.candidates import Scores

_LOWEST = -1e300
"""Below every score: its weight is 0."""


class Row(NamedTuple):
    """What scoring keeps of a row of logits."""

    greatest: float
    log_sum: float
    """ln of the sum of exp(logit - greatest)."""
    best: int
    """The token that greedy sampling says: the first of the most likely ones."""

    @in_default_floats
    def log_probability(self, logit: float) -> float:
        """Of a token with this logit."""
        return (float(logit) - self.greatest) - self.log_sum


@in_default_floats
def row_of(logits: np.ndarray) -> Row:
    """logits: float32 [n_vocab], finite."""
    best = int(np.argmax(logits))
    greatest = float(logits[best])
    whole = Scores(logits, greatest=greatest).weigh() if len(logits) >= MANY else total(exp(relative(logits)))
    return Row(greatest, log(whole), best)


@in_default_floats
def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [n, n_vocab] -> float64 log-probabilities."""
    rows = [row_of(row) for row in logits]
    return np.stack([(row.astype(np.float64) - r.greatest) - r.log_sum for row, r in zip(logits, rows)])


@in_default_floats
def probabilities(log_weights: Sequence[float]) -> list[float]:
    """Softmax of some numbers, of which -inf has probability 0; all alike if all are -inf."""
    x = np.array(log_weights, np.float64)
    top = float(x.max())
    if top == -math.inf:
        return [1 / len(x)] * len(x)
    weights = exp(np.maximum(x - top, _LOWEST))
    return [float(w) for w in weights / total(weights)]


@in_default_floats
def log_probabilities_of(log_weights: Sequence[float]) -> list[float]:
    """`probabilities`, as natural logarithms."""
    x = np.array(log_weights, np.float64)
    top = float(x.max())
    whole = log(total(exp(np.maximum(x - top, _LOWEST))))
    return [(float(v) - top) - whole for v in x]


@in_default_floats
def divergence(reference: Sequence[float], model: Sequence[float]) -> float:
    """KL(reference || model) in nats, of two distributions given as log-probabilities."""
    q = np.array(reference, np.float64)
    return math.fsum(float(w) * (a - b) for w, a, b in zip(exp(np.maximum(q, _LOWEST)), reference, model))


@in_default_floats
def divergence_of_rows(reference: np.ndarray, model: np.ndarray) -> float:
    """KL(reference || model) in nats, of two rows of logits, float32 [n_vocab]."""
    q, p = log_softmax(np.stack([reference, model]))
    return total(exp(np.maximum(q, _LOWEST)) * (q - p))


@in_default_floats
def mean(values: Iterable[float]) -> float:
    """Of at least one number, rounded twice, whatever their order."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


@in_default_floats
def deviation(values: Sequence[float]) -> float:
    """The standard deviation of some numbers (divided by how many there are)."""
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) * (v - middle) for v in values) / len(values))


@in_default_floats
def exponential(x: float) -> float:
    """e**x, with the same bits everywhere; inf where that is too large."""
    down = float(exp(np.array([-abs(x)]))[0])
    return down if x <= 0 else 1 / down if down > 0 else math.inf
