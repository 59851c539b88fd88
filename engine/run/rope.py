"""RoPE frequencies and tables: linear, YaRN and Llama 3 scaling; the same bits on every machine.

The frequencies (one per pair) are computed with `decimal` at 40 digits and rounded once to float64; the table's sines and cosines by our own kernel
(kernels/vecmath.py), in float64, rounded once to float32. No libm or NumPy transcendental is involved.
"""
from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np

from ...kernels.compile_cache import compiled
from ...kernels.elementwise import fill_rope_halves, fill_rope_table
from ..architectures.spec import Rope, RopeScaling

_40 = Context(prec=40, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999, clamp=0)
_28 = Context(prec=28, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999, clamp=0)
"""What operators compute in, whatever context the caller's thread has."""
_PI = Decimal("3.141592653589793238462643383279502884197")
_ROWS = 256
"""Positions the table grows by."""


def frequencies(rope: Rope, factors: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """-> (float64 [dims / 2] radians per position, scale of the cosines and sines).

    base ** (-2i / dims), divided by Llama 3's `factors` (tensor rope_freqs.weight), then scaled: linear divides by the factor; YaRN (Peng et al.
    2023, as llama.cpp's rope_yarn) blends the scaled and the unscaled frequency by a ramp over the pairs and scales attention.
    """
    with localcontext(_28):
        return _frequencies(rope, factors)


def _frequencies(rope: Rope, factors: np.ndarray | None) -> tuple[np.ndarray, float]:
    n, s = rope.dims, rope.scaling
    log_base = _40.ln(Decimal(rope.base))
    result, scale = [], Decimal(s.attn_factor)
    low = high = Decimal(0)
    if s.kind == "yarn":
        low, high = _yarn_range(s, n, log_base)
        scale *= 1 + Decimal("0.1") * _40.ln(Decimal(s.factor))
        if s.log_multiplier:
            scale = _40.divide(scale, 1 + Decimal("0.1") * Decimal(s.log_multiplier) * _40.ln(Decimal(s.factor)))
    for i in range(n // 2):
        f = _40.exp(_40.divide(_40.multiply(Decimal(-2 * i), log_base), Decimal(n)))
        if factors is not None:
            f = _40.divide(f, Decimal(float(factors[i])))
        if s.kind == "linear":
            f = _40.divide(f, Decimal(s.factor))
        elif s.kind == "yarn":
            ramp = (Decimal(i) - low) / max(Decimal("0.001"), high - low)
            extrapolated = 1 - min(Decimal(1), max(Decimal(0), ramp))
            f = _40.add(_40.multiply(_40.divide(f, Decimal(s.factor)), 1 - extrapolated), _40.multiply(f, extrapolated))
        result.append(float(f))
    return np.array(result), float(scale)


def _yarn_range(s: RopeScaling, n: int, log_base: Decimal) -> tuple[Decimal, Decimal]:
    """Pairs between which YaRN's ramp runs: those that turn beta_fast and beta_slow times within the original context."""
    def pair(rotations: float) -> Decimal:
        turns = Decimal(s.original_context) / (Decimal(rotations) * 2 * _PI)
        return Decimal(n) * _40.ln(turns) / (2 * log_base)
    low, high = pair(s.beta_fast), pair(s.beta_slow)
    if s.rounded:
        low, high = low.to_integral_value(ROUND_FLOOR), high.to_integral_value(ROUND_CEILING)
    return max(Decimal(0), low), min(Decimal(n - 1), high)


class RopeTable:
    """cos and sin for every position up to `context`, made as positions are first needed.

    `.rows`: float32 [context, dims / 2, 2], for halves [context, 2, dims / 2]; rows past `.filled` are untouched memory.
    """

    def __init__(self, rope: Rope, context: int, factors: np.ndarray | None = None):
        self.frequencies, self.scale = frequencies(rope, factors)
        self.rows = np.empty((context, rope.dims // 2, 2), np.float32)
        self.filled = 0
        self._fill = _fill_halves if rope.kind == "halves" else _fill

    def fill(self, positions: int) -> None:
        """Make sure that the first `positions` rows (at most the context) are there."""
        if positions > self.filled:
            last = min(len(self.rows), -(-positions // _ROWS) * _ROWS)
            self._fill.ctypes(self.frequencies.ctypes.data, len(self.frequencies), self.rows.ctypes.data, self.filled, last, self.scale)
            self.filled = last


@compiled("int64(int64, int64, int64, int64, int64, float64)")
def _fill(frequencies, pairs, rows, first, last, scale):
    fill_rope_table(frequencies, pairs, rows, first, last, scale)
    return 0


@compiled("int64(int64, int64, int64, int64, int64, float64)")
def _fill_halves(frequencies, pairs, rows, first, last, scale):
    fill_rope_halves(frequencies, pairs, rows, first, last, scale)
    return 0


def query_scales(beta: float, length: int, context: int) -> np.ndarray:
    """What queries are multiplied by at each position: 1 + beta * ln(1 + floor(position / length)) -> float32 [context]; 40 digits, rounded once."""
    steps = [np.float32(float(1 + Decimal(beta) * _40.ln(Decimal(1 + i)))) for i in range(-(-context // length))]
    return np.repeat(np.array(steps, np.float32), length)[:context].copy()
