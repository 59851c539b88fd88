"""The stages that choose candidates, on `Candidates`: filters.py's if they are few, the same through compiled code if they are many. (top-k and min-p
look closely at few anyhow.)

Nothing here sorts a vocabulary, or visits it more often than a stage's sums demand.
"""
from __future__ import annotations

import numpy as np

from . import arithmetic, filters
from .arithmetic import LN2, exp, log, relative
from .candidates import Candidates, Cut


def top_n_sigma(c: Candidates, n: float) -> None:
    if c.many:
        limit = n * c.many.estimated_deviation()
        if c.keep_within(Cut(limit), 1e-9 * limit) is None:
            c.keep_within(Cut(n * c.many.deviation()))
    else:
        c.keep(filters.top_n_sigma(relative(c.logits), n))


def _needless(c: Candidates, p: float, whole: float) -> float:
    """A score; all weights of candidates below it add up to less than 1 - p of the whole."""
    return log((1 - p) * whole / len(c))


def typical(c: Candidates, p: float) -> None:
    if c.many:
        whole = c.weigh()
        log_whole = log(whole)
        entropy = c.many.surprise(log_whole) / whole
        farthest = max(entropy - log_whole, log_whole - _needless(c, p, whole) - entropy) + filters.NEARLY
        cut = c.many.cut(p * whole, c.room_to_cut(), log_whole, entropy, farthest)
        if cut:
            c.keep_within(cut)
            return
    c.keep(filters.typical(relative(c.logits), p))


def top_p(c: Candidates, p: float) -> None:
    if c.many:
        for weigh in c.estimate, c.weigh:
            whole = weigh()
            cut = c.many.cut(p * whole, c.room_to_cut(), farthest=filters.NEARLY - _needless(c, p, whole))
            if cut:
                c.keep_within(cut)
                return
    c.keep(filters.top_p(relative(c.logits), p))


def xtc(c: Candidates, threshold: float) -> None:
    if c.many and threshold > 0:
        least = threshold * c.many.estimate()
        places, scores = c.within(Cut(filters.NEARLY - log(least)))
        weights = exp(scores)
        if (abs(weights - least) <= 2 * c.many.doubt * least).any():
            least = threshold * c.many.weigh()
        above = weights >= least
        c.drop(filters.all_but_last(places[above], scores[above]))
    else:
        c.keep(filters.xtc(relative(c.logits), threshold))


def temperature(c: Candidates, t: float, range: float = 0.0, exponent: float = 1.0) -> None:
    if not range:
        c.temper(t)
    elif c.many:
        whole = c.weigh()
        spread = c.many.surprise(log(whole)) / whole / log(float(len(c)))
        c.temper(filters.heat(spread, t, range, exponent))
    else:
        c.temper(filters.dynamic_temperature(relative(c.logits), t, range, exponent))


def mirostat(c: Candidates, mu: float) -> None:
    if not c.many:
        c.keep(filters.surprise_at_most(relative(c.logits), mu))
        return
    limit = mu * LN2
    count = c.keep_within(Cut(limit, log_whole=log(c.many.estimate())), 2 * c.many.doubt)
    if count is None:
        count = c.keep_within(Cut(limit, log_whole=log(c.many.weigh())))
    if not count:
        c.keep(np.array([np.argmax(c.logits)]))


def draw(c: Candidates, u: float) -> int:
    """The index of one of them; u in [0, 1)."""
    return c.many.draw(u) if c.many else arithmetic.draw(exp(relative(c.logits)), u)


def surprise(c: Candidates, index: int) -> float:
    """Of one of them, in bits."""
    if c.many:
        return (log(c.many.weigh()) - c.many[index]) / LN2
    scores = relative(c.logits)
    return (log(arithmetic.total(exp(scores))) - float(scores[index])) / LN2
