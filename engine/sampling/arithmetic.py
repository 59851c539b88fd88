"""What samplers compute with: exp, log, sums and random numbers whose bits are the same on every CPU.

Between the logits and the token stand only + - * / and comparisons in a fixed order: NumPy's exp and pairwise sums change their bits with the CPU, so exp
and log are our own and every sum is a running one (`np.add.accumulate` adds one after the other).
"""
from __future__ import annotations

import math

import numpy as np

LN2 = 6.93147180559945309417e-01


def relative(logits: np.ndarray) -> np.ndarray:
    """Logits, float [n] -> scores, float64 [n]: minus the greatest, exact but for one rounding."""
    return logits.astype(np.float64) - float(logits.max())


def temper(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores divided by a temperature above 0; what overflows becomes -inf, that is, probability 0."""
    with np.errstate(over="ignore"):
        return scores / temperature


def running_sum(values: np.ndarray) -> np.ndarray:
    """Partial sums, added one after the other; np.sum would add in an order that depends on the CPU."""
    return np.add.accumulate(values)


def total(values: np.ndarray) -> float:
    """The last partial sum of at least one value."""
    return float(running_sum(values)[-1])


def draw(weights: np.ndarray, u: float) -> int:
    """Index i with probability weights[i] / sum; u in [0, 1). weights: float64 [n], at least one positive. One of weight 0 is never drawn."""
    sums = running_sum(weights)
    return int(np.searchsorted(sums, u * sums[-1], side="right"))  # u < 1 - 2**-54, so the product rounds below the last sum


def uniform(seed: int, sample_index: int, position: int, stream: int = 0) -> float:
    """A multiple of 2**-53 in [0, 1) from the top bits of one Philox4x64-10 output (Salmon et al., 2011), key (seed, sample_index), counter
    (position, stream): a stage that needs a number of its own has its own stream."""
    key = np.array([seed, sample_index], np.uint64)
    counter = np.array([position, stream, 0, 0], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw()
    return (int(raw) >> 11) * 2.0**-53


MANY = 2048
"""Values from which on compiled code is worth its call (and, once, its compilation)."""
_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in a double's low bits, ties to even
_MAGIC_BITS = 0x4338000000000000
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # n * _LN2_HIGH is exact for |n| < 2**20
_P = (1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05, -1.65339022054652515390e-06, 4.13813679705723846039e-08)
_L = (6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01, 1.818357216161805012e-01,
      1.531383769920937332e-01, 1.479819860511658591e-01)


def exp(x: np.ndarray) -> np.ndarray:
    """e**x of float64 x <= 0, within 1 ulp; 0 below -700. From + - * / and integer shifts alone, hence the same bits on every CPU.

    x = n ln 2 + r, |r| <= ln 2 / 2; e**r by fdlibm's rational form (e_exp.c), 2**n by adding to the exponent bits. Many at once go through
    kernels/sampling.py, which does the same operations.
    """
    if len(x) >= MANY:
        from ...kernels import sampling
        x, out = np.ascontiguousarray(x, np.float64), np.empty(-(-len(x) // 8) * 8)
        sampling.exp.ctypes(x.ctypes.data, out.ctypes.data, len(x))
        return out[:len(x)]
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


def log(x: float) -> float:
    """ln x of a finite x > 0, within 1 ulp; -inf for 0. One Python float operation after the other, by fdlibm's polynomial (e_log.c)."""
    if x == 0:
        return -math.inf
    m, k = math.frexp(x)
    if m < 0.70710678118654752440:
        m, k = 2 * m, k - 1
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    r = z * (_L[0] + w * (_L[2] + w * (_L[4] + w * _L[6]))) + w * (_L[1] + w * (_L[3] + w * _L[5]))
    half = 0.5 * f * f
    return k * _LN2_HIGH - ((half - (s * (half + r) + k * _LN2_LOW)) - f)


def power(x: float, y: float) -> float:
    """x ** y of x in [0, 1] and y >= 0; 0 ** 0 is 1."""
    if y == 0 or x >= 1:
        return 1.0
    return float(exp(np.array([y * log(x)]))[0]) if x > 0 else 0.0


def log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, float]:
    """-> (scores float64 [n], s): scores - s are the natural logarithms of the softmax of all logits."""
    scores = relative(logits)
    return scores, log(total(exp(scores)))
