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
        c.keep_within(Cut(n * c.many.deviation()))
    else:
        c.keep(filters.top_n_sigma(relative(c.logits), n))


def typical(c: Candidates, p: float) -> None:
    if c.many:
        whole = c.weigh()
        log_whole = log(whole)
        cut = c.many.cut(p * whole, c.room.array("cut", 2 * len(c), np.float64), log_whole, c.many.surprise(log_whole) / whole)
        if cut:
            c.keep_within(cut)
            return
    c.keep(filters.typical(relative(c.logits), p))


def top_p(c: Candidates, p: float) -> None:
    if c.many:
        cut = c.many.cut(p * c.weigh(), c.room.array("cut", 2 * len(c), np.float64))
        if cut:
            c.keep_within(cut)
            return
    c.keep(filters.top_p(relative(c.logits), p))


def xtc(c: Candidates, threshold: float) -> None:
    if c.many and threshold > 0:
        least = threshold * c.many.weigh()
        places, scores = c.within(Cut(filters.NEARLY - log(least)))
        above = exp(scores) >= least
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
    elif not c.keep_within(Cut(mu * LN2, log_whole=log(c.many.weigh()))):
        c.keep(np.array([np.argmax(c.logits)]))


def draw(c: Candidates, u: float) -> tuple[int, float]:
    """-> (index, surprise in bits) of one of them; u in [0, 1)."""
    scores = c.many
    if scores:
        whole = scores.weigh()
        index = scores.draw(u)
        return index, (log(whole) - scores[index]) / LN2
    few = relative(c.logits)
    weights = exp(few)
    index = arithmetic.draw(weights, u)
    return index, (log(arithmetic.total(weights)) - float(few[index])) / LN2
