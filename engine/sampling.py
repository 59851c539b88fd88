"""From logits to a token, exactly: the same seed and logits give the same token on every CPU.

    penalties -> top-k -> top-p -> min-p -> temperature -> draw        (llama.cpp's order: the filters see probabilities at temperature 1)

Every stage is one small function here. Between the logits and the token stand only + - * / and comparisons in a fixed order: NumPy's exp and pairwise
sums change their bits with the CPU, so `exp` is our own and every sum is a running one (`np.add.accumulate` adds one after the other). Randomness
is Philox's raw output keyed by (seed, sample index, position); no state is kept, so a draw can be repeated out of order. Ties go to the lowest id.
"""
from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .errors import NumericError, OptionError

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen; checked when made (OptionError names the option).

    temperature: >= 0; 0 takes the most likely token (greedy), whatever the filters say. top_k: keep the k most likely tokens, 0 keeps all.
    top_p: in (0, 1]: keep the fewest most likely tokens whose probabilities add up to it. min_p: in [0, 1]: drop tokens less likely than min_p times
    the most likely one. repeat_penalty: > 0, 1 is none: weakens tokens among the last `repeat_last_n` (-1: all, 0: none) of prompt and answer.
    seed: 0 to 2**64 - 1, or None for a random one, which `Generation.stats` reports.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seed" and value is None:
                continue
            convert = _integer if field.name in ("top_k", "repeat_last_n", "seed") else _number
            object.__setattr__(self, field.name, convert(field.name, value))
        _require("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (off)")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 (off) to 1")
        _require("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0, "above 0 (1 is off)")
        _require("repeat_last_n", self.repeat_last_n, self.repeat_last_n >= -1, "-1 (all), 0 (off) or more")
        _require("seed", self.seed, self.seed is None or 0 <= self.seed <= MAX_SEED, "from 0 to 2**64 - 1")


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise OptionError(f"{name} must be {expected}, found {value}")


def _integer(name: str, value: Any) -> int:
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise OptionError(f"{name} must be a whole number, found {value!r}")


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, (bool, np.bool_, str)):
            number = float(value)
            if math.isfinite(number):
                return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{name} must be a finite number, found {value!r}")


class Sampler:
    """Chooses tokens by `options`. `sample_index` tells apart several answers drawn with one seed. `seed` is the one in use."""

    def __init__(self, options: SamplingOptions, sample_index: int = 0) -> None:
        self.options = options
        self.seed: int = secrets.randbits(32) if options.seed is None else options.seed
        self.sample_index = sample_index

    def sample(self, logits: np.ndarray, position: int, history: Sequence[int]) -> int:
        """The id to follow at `position`, given float32 logits [n_vocab] (left unchanged) and all ids before it. Pure: equal arguments, equal
        id. NumericError if a logit is not finite."""
        o = self.options
        logits = penalize(logits, recent(history, o.repeat_last_n), o.repeat_penalty)
        if not np.isfinite(logits).all():
            bad = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise NumericError(f"logits at position {position}: token {bad} has {logits[bad]}, expected finite numbers: the weights may be damaged")
        if o.temperature == 0 or o.top_k == 1:
            return int(np.argmax(logits))  # the first of equals
        ids = top_k(logits, o.top_k)
        ids = ids[top_p(_relative(logits[ids]), o.top_p)]
        ids = ids[min_p(_relative(logits[ids]), o.min_p)]
        weights = exp(temper(_relative(logits[ids]), o.temperature))
        return int(ids[draw(weights, uniform(self.seed, self.sample_index, position))])


# ---------------------------------------------------------------------------------------------------------------- the stages
# Candidates always stand in the order of their ids, so a sum over them depends only on which they are, not on how they were found.

def recent(history: Sequence[int], last_n: int) -> Sequence[int]:
    """The last `last_n` ids; all for -1."""
    return history if last_n < 0 else history[max(0, len(history) - last_n):]


def penalize(logits: np.ndarray, ids: Sequence[int], penalty: float) -> np.ndarray:
    """float32 [n_vocab] -> a copy in which the logits of `ids` are divided by `penalty` if positive, multiplied by it if not; once each.

    The formula of CTRL (Keskar et al., 2019) as llama.cpp and Hugging Face apply it; rounded to float32.
    """
    if penalty == 1 or not len(ids):
        return logits
    logits = logits.copy()
    chosen = np.unique(np.asarray(ids, np.int64))
    old = logits[chosen].astype(np.float64)
    with np.errstate(over="ignore"):  # beyond float32: infinite, which `sample` reports
        logits[chosen] = np.where(old > 0, old / penalty, old * penalty)
    return logits


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k greatest logits, ascending; of equal ones at the border the lowest ids. k = 0: all. No full sort."""
    n = len(logits)
    if not 0 < k < n:
        return np.arange(n)
    kth = np.partition(logits, n - k)[n - k]  # a value, hence the same whichever algorithm found it
    ids = np.flatnonzero(logits >= kth)
    surplus = len(ids) - k
    if surplus:
        ids = np.delete(ids, np.flatnonzero(logits[ids] == kth)[-surplus:])
    return ids


def top_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Indices, ascending, of the fewest candidates (most likely first, lowest id among equals) whose probabilities add up to at least p.

    scores: float64 [n], logits minus the greatest. Sorts no more of a large vocabulary than it needs.
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
    """Indices, ascending, of candidates at least p times as likely as the first. scores: float64 [n], logits minus the greatest."""
    return np.flatnonzero(exp(scores) >= p) if p > 0 else np.arange(len(scores))


def temper(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores divided by a temperature above 0; what overflows becomes -inf, that is, probability 0."""
    with np.errstate(over="ignore"):
        return scores / temperature


def draw(weights: np.ndarray, u: float) -> int:
    """Index i with probability weights[i] / sum; u in [0, 1). weights: float64 [n], at least one positive. One of weight 0 is never drawn."""
    sums = running_sum(weights)
    return int(np.searchsorted(sums, u * sums[-1], side="right"))  # u < 1 - 2**-54, so the product rounds below the last sum


def uniform(seed: int, sample_index: int, position: int) -> float:
    """A multiple of 2**-53 in [0, 1) from the top bits of one Philox4x64-10 output (Salmon et al., 2011), key (seed, sample_index)."""
    key = np.array([seed, sample_index], np.uint64)
    counter = np.array([position, 0, 0, 0], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw()
    return (int(raw) >> 11) * 2.0**-53


# ---------------------------------------------------------------------------------------------------------------- arithmetic

def _relative(logits: np.ndarray) -> np.ndarray:
    """float32 [n] -> float64 [n], minus the greatest: exact but for one rounding."""
    return logits.astype(np.float64) - float(logits.max())


def running_sum(values: np.ndarray) -> np.ndarray:
    """Partial sums, added one after the other; np.sum would add in an order that depends on the CPU."""
    return np.add.accumulate(values)


_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in a double's low bits, ties to even
_MAGIC_BITS = 0x4338000000000000
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # n * _LN2_HIGH is exact for |n| < 2**20
_P = (1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05, -1.65339022054652515390e-06, 4.13813679705723846039e-08)


def exp(x: np.ndarray) -> np.ndarray:
    """e**x of float64 x <= 0, within 1 ulp; 0 below -700. From + - * / and integer shifts alone, hence the same bits on every CPU.

    x = n ln 2 + r, |r| <= ln 2 / 2; e**r by fdlibm's rational form (e_exp.c), 2**n by adding to the exponent bits.
    """
    clamped = np.maximum(x, -700.0)
    shifted = clamped * 1.44269504088896338700 + _MAGIC
    n = shifted - _MAGIC
    high = clamped - n * _LN2_HIGH
    low = n * _LN2_LOW
    r = high - low
    t = r * r
    c = r - t * (_P[0] + t * (_P[1] + t * (_P[2] + t * (_P[3] + t * _P[4]))))
    y = 1.0 - ((low - (r * c) / (2.0 - c)) - high)
    scale = (shifted.view(np.int64) - (_MAGIC_BITS - 1023)) << 52
    return np.where(x < -700.0, 0.0, y * scale.view(np.float64))
