"""Normally distributed numbers for a new model's weights: of Philox's words, by the inverse of the distribution, with the same bits everywhere.

    (seed, tensor), row, column -> w, 32 bits (philox.py) -> p = (w + ½) × 2⁻³² -> Φ⁻¹(p) × std, float64, rounded once

Φ⁻¹ is Wichura's algorithm AS 241 (Applied Statistics 37, 1988), by + - * / and square roots alone; the logarithm of its tails is fdlibm's polynomial.
"""
from __future__ import annotations

import numpy as np

from .philox import rows_of_words

_CENTRE = (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457, 13731.693765509461125, 1971.5909503065514427,
           133.14166789178437745, 3.387132872796366608)
_CENTRE_BY = (5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867, 5394.1960214247511077, 687.1870074920579083,
              42.313330701600911252, 1.0)
_TAIL = (7.7454501427834140764e-4, 2.27238449892691845833e-2, 2.4178072517745061177e-1, 1.27045825245236838258, 3.64784832476320460504,
         5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734)
_TAIL_BY = (1.05075007164441684324e-9, 5.475938084995344946e-4, 1.51986665636164571966e-2, 1.4810397642748007459e-1, 6.8976733498510000455e-1,
            1.6763848301838038494, 2.05319162663775882187, 1.0)
_LN2 = 0.69314718055994530942
_L = (6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01, 1.818357216161805012e-01,
      1.531383769920937332e-01, 1.479819860511658591e-01)


def normal(seed: int, site: str, first: int, rows: int, columns: int, std: float) -> np.ndarray:
    """Rows [first, first + rows) of a tensor: float32 [rows, columns]."""
    p = (rows_of_words(seed, 0, site, first, rows, columns).astype(np.float64) + 0.5) * 2.0**-32
    return (inverse(p) * std).astype(np.float32)


def inverse(p: np.ndarray) -> np.ndarray:
    """Φ⁻¹ of float64 from 2⁻³³ to 1 - 2⁻³³, where the third of AS 241's pieces would begin."""
    q = p - 0.5
    r = 0.180625 - q * q
    found = _polynomial(_CENTRE, r) * q / _polynomial(_CENTRE_BY, r)
    far = np.abs(q) > 0.425
    tail = q[far]
    r = np.sqrt(0.0 - _log(np.where(tail < 0, p[far], 1.0 - p[far]))) - 1.6
    x = _polynomial(_TAIL, r) / _polynomial(_TAIL_BY, r)
    found[far] = np.where(tail < 0, 0.0 - x, x)
    return found


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    found = np.full(x.shape, coefficients[0])
    for c in coefficients[1:]:
        found = found * x + c
    return found


def _log(x: np.ndarray) -> np.ndarray:
    """ln of positive numbers, to some units in the last place."""
    m, k = np.frexp(x)
    small = m < 0.70710678118654752440
    m, k = np.where(small, 2 * m, m), np.where(small, k - 1, k)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    total = np.zeros(x.shape)
    for c in reversed(_L):
        total = (total + c) * z
    half = f * f * 0.5
    return k * _LN2 + (f - (half - s * (half + total)))
