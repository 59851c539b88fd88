"""Filters: which candidates stay. Each takes logits or scores (logits minus the greatest), float [n], and returns indices, ascending.

Candidates always stand in the order of their ids, so a sum over them depends only on which they are, not on how they were found. Wherever
candidates are ranked, the most likely comes first and the lowest id among equals. At least one candidate stays.
"""
from __future__ import annotations

import math

import numpy as np

from .arithmetic import LN2, exp, log, power, running_sum, total

NEARLY = 1e-6
"""More than exp and log are off: a score less than log(w) - NEARLY has a weight below w."""


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k greatest logits, ascending; of equal ones at the border the lowest ids. k = 0: all. No full sort."""
    n = len(logits)
    if not 0 < k < n:
        return np.arange(n)
    rows = n // max(256, 4 * k)
    if rows < 4:
        return _top_k(logits, k)
    columns = n // rows  # the k-th greatest of the columns' maxima is at most the k-th greatest of all
    maxima = logits[:rows * columns].reshape(rows, columns).max(axis=0)
    some = np.flatnonzero(logits >= np.partition(maxima, columns - k)[columns - k])
    return some[_top_k(logits[some], k)]


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    n = len(logits)
    if k >= n:
        return np.arange(n)
    kth = np.partition(logits, n - k)[n - k]  # a value, hence the same whichever algorithm found it
    ids = np.flatnonzero(logits >= kth)
    surplus = len(ids) - k
    if surplus:
        ids = np.delete(ids, np.flatnonzero(logits[ids] == kth)[-surplus:])
    return ids


def top_p(scores: np.ndarray, p: float) -> np.ndarray:
    """The fewest candidates, most likely first, whose probabilities add up to at least p (Holtzman et al., 2019).

    Sorts no more of a large vocabulary than it needs.
    """
    n = len(scores)
    if p >= 1:
        return np.arange(n)
    weights = exp(scores)
    target = p * running_sum(weights)[-1]
    k = min(n, 256)
    while True:
        best = top_k(scores, k)
        best = best[np.argsort(-scores[best], kind="stable")]
        sums = running_sum(weights[best])
        if sums[-1] >= target or k == n:
            return np.sort(best[:np.searchsorted(sums, target) + 1])
        k = min(n, 8 * k)


def min_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Candidates at least p times as likely as the first (Nguyen et al., 2024)."""
    if p <= 0:
        return np.arange(len(scores))
    near = np.flatnonzero(scores >= log(p) - NEARLY)
    return near[exp(scores[near]) >= p]


def typical(scores: np.ndarray, p: float) -> np.ndarray:
    """The fewest candidates whose probabilities add up to at least p, those first whose surprise -ln q is nearest to the entropy (Meister et al., 2022)."""
    weights = exp(scores)
    whole = total(weights)
    surprise = log(whole) - scores
    order = np.argsort(np.abs(surprise - total(weights * surprise) / whole), kind="stable")
    return np.sort(order[:np.searchsorted(running_sum(weights[order]), p * whole) + 1])


def top_n_sigma(scores: np.ndarray, n: float) -> np.ndarray:
    """Candidates whose logits are at most n standard deviations (of the candidates' logits) below the greatest (Tang et al., 2024)."""
    off_mean = scores - total(scores) / len(scores)
    sigma = math.sqrt(total(off_mean * off_mean) / len(scores))
    return np.flatnonzero(scores >= -n * sigma)


def xtc(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Exclude top choices: without all candidates of probability `threshold` or more but the last of them (p-e-w, text-generation-webui, 2024).

    Whether the stage acts at all is drawn before, with the probability asked for.
    """
    weights = exp(scores)
    above = np.flatnonzero(weights >= threshold * total(weights))
    return np.delete(np.arange(len(scores)), all_but_last(above, scores[above]))


def all_but_last(above: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Indices without that of the least score, the last one among equals; none if there is but one."""
    return above[above != above[len(above) - 1 - np.argmin(scores[::-1])]] if len(above) else above


def surprise_at_most(scores: np.ndarray, mu: float) -> np.ndarray:
    """Candidates whose surprise -log2 q is at most mu, or the most likely alone (mirostat 2: Basu et al., 2020)."""
    kept = np.flatnonzero(log(total(exp(scores))) - scores <= mu * LN2)
    return kept if len(kept) else np.array([np.argmax(scores)])


def spread(scores: np.ndarray) -> float:
    """How even the probabilities are: entropy / greatest possible entropy; 0 for a single candidate."""
    if len(scores) < 2:
        return 0.0
    weights = exp(scores)
    whole = total(weights)
    return total(weights * (log(whole) - scores)) / whole / log(float(len(scores)))


def dynamic_temperature(scores: np.ndarray, temperature: float, range: float, exponent: float) -> float:
    """From temperature - range (at least 0), where the model is sure, to temperature + range, where all candidates are equally likely: low +
    (high - low) * (entropy / greatest entropy) ** exponent (kalomaze's, as in llama.cpp). Above 0."""
    return heat(spread(scores), temperature, range, exponent)


def heat(spread: float, temperature: float, range: float, exponent: float) -> float:
    """The same, of a `spread`."""
    low, high = max(0.0, temperature - range), temperature + range
    return max(low + (high - low) * power(min(max(spread, 0.0), 1.0), exponent), 1e-300)
