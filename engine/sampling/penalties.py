"""Stages that change logits: repetition, presence and frequency penalties, DRY, biases.

logits: float32 (or float64, after a temperature) [n], left unchanged; ids: int64 [n], ascending, which tokens they belong to, or None for the whole
vocabulary. What is computed in float64 is rounded once to the type of the logits.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRY_MOST = 1e30
"""The greatest penalty of DRY, which grows exponentially: less than any other token's logit, and finite."""


def recent(history: Sequence[int], last_n: int) -> Sequence[int]:
    """The last `last_n` ids; all for -1."""
    return history if last_n < 0 else history[max(0, len(history) - last_n):]


def places(ids: np.ndarray | None, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of ascending `tokens`: (where they stand among the candidates, which of them do: an index into `tokens`)."""
    if ids is None:
        return tokens, np.arange(len(tokens))
    at = np.minimum(np.searchsorted(ids, tokens), len(ids) - 1)
    found = np.flatnonzero(ids[at] == tokens)
    return at[found], found


def penalize(logits: np.ndarray, tokens: Sequence[int], penalty: float, presence: float = 0.0, frequency: float = 0.0,
             ids: np.ndarray | None = None) -> np.ndarray:
    """Logits of `tokens` divided by `penalty` if positive, multiplied by it if not; then less `presence` and less `frequency` for each time they occur.

    The formula of CTRL (Keskar et al., 2019) and those of OpenAI, as llama.cpp applies them.
    """
    if (penalty, presence, frequency) == (1, 0, 0) or not len(tokens):
        return logits
    chosen, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
    at, found = places(ids, chosen)
    out, old = logits.copy(), logits[at].astype(np.float64)
    with np.errstate(over="ignore"):  # beyond float32: infinite, which `sample` reports
        out[at] = np.where(old > 0, old / penalty, old * penalty) - counts[found] * frequency - presence
    return out


def dry_penalties(history: np.ndarray, multiplier: float, base: float, allowed: int, breakers: np.ndarray | None = None) -> dict[int, float]:
    """"Don't repeat yourself" (p-e-w, text-generation-webui, 2024): {token: penalty}.

    history: int64 [n]; breakers: bool [n_vocab], tokens across which no repetition is seen. If the last m tokens of the history stood before at some
    place, m >= allowed, the token that followed there gets multiplier * base ** (m - allowed), for the greatest m; at most DRY_MOST.
    """
    n = len(history)
    longest, penalty = allowed, multiplier  # the match length beyond which the penalty grows no more
    while base > 1 and penalty < DRY_MOST and longest < n:
        longest, penalty = longest + 1, penalty * base
    ends = np.flatnonzero(history[:-1] == history[-1]) if n > 1 else np.zeros(0, np.int64)
    if breakers is not None and n and breakers[history[-1]]:
        ends = ends[:0]
    matches: dict[int, int] = {}
    m = 1
    while len(ends):  # ends: where earlier occurrences of the last m tokens end
        if m >= allowed:
            matches.update((int(token), m) for token in np.unique(history[ends + 1]))
        if m >= longest or m >= n or breakers is not None and breakers[history[n - 1 - m]]:
            break
        ends = ends[ends >= m]
        ends = ends[history[ends - m] == history[n - 1 - m]]
        m += 1
    found = {}
    for token, m in matches.items():
        penalty = multiplier
        for _ in range(m - allowed if base != 1 else 0):  # a fixed sequence of products; pow would change its bits with the libm
            penalty *= base
        found[token] = min(penalty, DRY_MOST)
    return found


def add(logits: np.ndarray, changes: dict[int, float], ids: np.ndarray | None = None) -> np.ndarray:
    """Logits plus `changes` of some tokens."""
    if not changes:
        return logits
    tokens = np.array(sorted(changes), np.int64)
    at, found = places(ids, tokens)
    out = logits.copy()
    with np.errstate(over="ignore"):
        out[at] = logits[at].astype(np.float64) + np.array([changes[int(t)] for t in tokens])[found]
    return out
