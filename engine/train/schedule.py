"""The learning rate of each step: a warm-up, then as it is, a line to zero, or half a cosine.

    step s of n, w of them warm-up:   s < w: (s + 1) / (w + 1)      then x = (s - w) / (n - w):  1    1 - x    (1 + cos(pi x)) / 2

The cosine is computed with `decimal` to 50 digits and rounded once, since libm's changes with the machine.
"""
from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

SCHEDULES = ("cosine", "linear", "constant")
_DIGITS = Context(prec=50, rounding=ROUND_HALF_EVEN)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582")


def warmup_steps(warmup: float, steps: int) -> int:
    """warmup: a share of all steps below 1, or a number of steps."""
    return min(steps, int(warmup) if warmup >= 1 else -(-Fraction(str(warmup)) * steps // 1))  # rounded up


def rate(schedule: str, peak: float, step: int, steps: int, warm: int) -> float:
    """Of step `step`, from 0 on."""
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    x = Fraction(step - warm, max(1, steps - warm))
    if schedule == "cosine":
        return peak * half_cosine(x)
    return peak * float(1 - x) if schedule == "linear" else peak


def half_cosine(x: Fraction) -> float:
    """(1 + cos(pi x)) / 2 for 0 <= x <= 1, rounded once. By cos(a)² = (1 + cos(2a)) / 2, whose a is at most pi / 2."""
    a = _DIGITS.divide(_DIGITS.multiply(_PI, Decimal(x.numerator)), Decimal(2 * x.denominator))
    square, term, total, k = _DIGITS.multiply(a, a), Decimal(1), Decimal(1), 0
    while abs(term) > Decimal("1e-48"):
        k += 2
        term = _DIGITS.divide(_DIGITS.multiply(-term, square), Decimal(k * (k - 1)))
        total = _DIGITS.add(total, term)
    return float(_DIGITS.multiply(total, total))
