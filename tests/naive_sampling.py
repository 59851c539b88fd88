"""The sampler as NumPy on whole arrays, by sorting everything, with the bits that kernels/sampling.py must have: its twin at any size.

One float64 operation after the other, in the order of docs/sampling.md; every sum is np.add.accumulate's.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from llamina.engine.sampling.arithmetic import LN2, log, power, uniform
from llamina.engine.sampling.options import SamplingOptions

Array = np.ndarray[Any, Any]


def relative(logits: Array) -> Array:
    return logits.astype(np.float64) - float(logits.max())


def exp(x: Array) -> Array:
    magic = 6755399441055744.0
    clamped = np.maximum(x, -700.0)
    shifted = clamped * 1.44269504088896338700 + magic
    n = shifted - magic
    high, low = clamped - n * 6.93147180369123816490e-01, n * 1.90821492927058770002e-10
    r = high - low
    t = r * r
    c = r - t * (1.66666666666666019037e-01 + t * (-2.77777777770155933842e-03 + t * (
        6.61375632143793436117e-05 + t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08))))
    y = 1.0 - ((low - (r * c) / (2.0 - c)) - high)
    scale = (shifted.view(np.int64) - (0x4338000000000000 - 1023)) << 52
    return np.where(x < -700.0, 0.0, y * scale.view(np.float64))


def total(values: Array) -> float:
    return float(np.add.accumulate(values)[-1])


def smallest(keys: Array, weights: Array, target: float) -> Array:
    """Indices, ascending, of the fewest by ascending key whose weights add up to the target."""
    order = np.argsort(keys, kind="stable")
    return np.sort(order[:np.searchsorted(np.add.accumulate(weights[order]), target) + 1])


def top_p(scores: Array, p: float) -> Array:
    weights = exp(scores)
    return smallest(-scores, weights, p * total(weights))


def typical(scores: Array, p: float) -> Array:
    weights = exp(scores)
    whole = total(weights)
    surprise = log(whole) - scores
    return smallest(np.abs(surprise - total(weights * surprise) / whole), weights, p * whole)


def top_n_sigma(scores: Array, n: float) -> Array:
    off_mean = scores - total(scores) / len(scores)
    return np.flatnonzero(scores >= -n * math.sqrt(total(off_mean * off_mean) / len(scores)))


def min_p(scores: Array, p: float) -> Array:
    return np.flatnonzero((exp(scores) >= p) & (scores >= log(p) - 1e-6))


def xtc(scores: Array, threshold: float) -> Array:
    weights = exp(scores)
    above = np.flatnonzero(weights >= threshold * total(weights))
    if len(above) < 2:
        return np.arange(len(scores))
    last = above[len(above) - 1 - np.argmin(scores[above][::-1])]
    return np.delete(np.arange(len(scores)), above[above != last])


def mirostat(scores: Array, mu: float) -> Array:
    kept = np.flatnonzero(log(total(exp(scores))) - scores <= mu * LN2)
    return kept if len(kept) else np.array([np.argmax(scores)])


def top_k(scores: Array, k: int) -> Array:
    return np.sort(np.argsort(-scores, kind="stable")[:k])


def temperature(scores: Array, o: SamplingOptions) -> Array:
    t = o.temperature
    if o.dynatemp_range:
        low, high, share = max(0.0, t - o.dynatemp_range), t + o.dynatemp_range, 0.0
        if len(scores) > 1:
            weights = exp(scores)
            whole = total(weights)
            share = total(weights * (log(whole) - scores)) / whole / log(float(len(scores)))
        t = max(low + (high - low) * power(min(max(share, 0.0), 1.0), o.dynatemp_exponent), 1e-300)
    with np.errstate(over="ignore"):
        return scores / t


def candidates(logits: Array, o: SamplingOptions, mu: float, ids: Array | None = None) -> tuple[Array, Array]:
    """Finite logits -> (ids, logits) after the stages from top_n_sigma on that `o` asks for; xtc always acts."""
    ids = np.arange(len(logits)) if ids is None else ids
    asked = {"top_n_sigma": o.top_n_sigma > 0, "top_k": o.top_k > 0, "typical": o.typical_p < 1, "top_p": o.top_p < 1, "min_p": o.min_p > 0,
             "xtc": o.xtc_probability > 0, "mirostat": o.mirostat == 2}
    functions: dict[str, tuple[Any, Any]] = {
        "top_n_sigma": (top_n_sigma, o.top_n_sigma), "top_k": (top_k, o.top_k), "typical": (typical, o.typical_p), "top_p": (top_p, o.top_p),
        "min_p": (min_p, o.min_p), "xtc": (xtc, o.xtc_threshold), "mirostat": (mirostat, mu)}
    for stage in o.stages:
        scores = relative(logits)
        if stage == "temperature":
            logits = temperature(scores, o)
            kept = np.flatnonzero(np.isfinite(logits))
        elif asked.get(stage):
            function, argument = functions[stage]
            kept = function(logits if stage == "top_k" else scores, argument)
        else:
            continue
        logits, ids = logits[kept], ids[kept]
    return ids, logits


def choose(logits: Array, o: SamplingOptions, position: int, mu: float, ids: Array | None = None) -> tuple[int, float]:
    """-> (id, mirostat's mu for the next position)."""
    ids, logits = candidates(logits, o, mu, ids)
    scores = relative(logits)
    weights = exp(scores)
    sums = np.add.accumulate(weights)
    index = int(np.searchsorted(sums, uniform(o.seed or 0, 0, position) * sums[-1], side="right"))
    return int(ids[index]), mu - o.mirostat_eta * ((log(float(sums[-1])) - float(scores[index])) / LN2 - o.mirostat_tau)
