"""exp, sin and cos from + - * / fma and integer operations only: the same bits on every CPU.

NumPy's and libm's own change with the CPU, so none of them may stand between file and token. exp (f32x16) serves softmax and SiLU; sin and cos
(float64 scalars) make the RoPE tables; the sampler has its own float64 exp (sampling.py, engine/sampling/arithmetic.py).
"""
from __future__ import annotations

import numpy as np

from .deferred import jit
from .simd import and_i32, bits_of, f64_bits, fma, fma64, from_bits, shl_i32, splat_f32, splat_i32, vmax, vmin

ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it leaves a float's nearest integer in the low bits, ties to even


@jit
def vexp(x):
    """exp of f32x16, clamped to [-87, 88]; relative error < 2e-7. 2**n * p(r) with x = n ln 2 + r (Cephes expf's polynomial).

    Below -87 the result is exp(-87) = 1.6e-38, not zero: callers that mask do so by selection.
    """
    x = vmin(vmax(x, splat_f32(-87.0)), splat_f32(88.0))
    shifted = fma(x, splat_f32(1.44269504088896341), splat_f32(ROUND))
    n = shifted - splat_f32(ROUND)
    r = fma(n, splat_f32(2.12194440e-4), fma(n, splat_f32(-0.693359375), x))
    p = splat_f32(1.9875691500e-4)
    p = fma(p, r, splat_f32(1.3981999507e-3))
    p = fma(p, r, splat_f32(8.3334519073e-3))
    p = fma(p, r, splat_f32(4.1665795894e-2))
    p = fma(p, r, splat_f32(1.6666665459e-1))
    p = fma(p, r, splat_f32(5.0000001201e-1))
    p = fma(r * r, p, r + splat_f32(1.0))
    exponent = bits_of(shifted) - splat_i32(0x4B400000 - 127)
    return p * from_bits(shl_i32(exponent, 23))


@jit
def vabs(x):
    """|x| of f32x16."""
    return from_bits(and_i32(bits_of(x), 0x7FFFFFFF))


@jit
def verfc(z):
    """erfc of f32x16 with z >= 0; relative error < 2e-6, most of it the rounding of z * z.

    Numerical Recipes' erfcc: t * exp(-z * z + P(t)) with t = 1 / (1 + z / 2).
    """
    t = splat_f32(1.0) / fma(z, splat_f32(0.5), splat_f32(1.0))
    p = splat_f32(0.17087277)
    p = fma(p, t, splat_f32(-0.82215223))
    p = fma(p, t, splat_f32(1.48851587))
    p = fma(p, t, splat_f32(-1.13520398))
    p = fma(p, t, splat_f32(0.27886807))
    p = fma(p, t, splat_f32(-0.18628806))
    p = fma(p, t, splat_f32(0.09678418))
    p = fma(p, t, splat_f32(0.37409196))
    p = fma(p, t, splat_f32(1.00002368))
    p = fma(p, t, splat_f32(-1.26551223))
    return t * vexp(fma(splat_f32(0.0) - z, z, p))


@jit
def soft_cap(x, cap):
    """cap * tanh(x / cap) of f32x16, as cap * (1 - 2 / (exp(x * (2 / cap)) + 1)); absolute error < 2e-7 * cap."""
    one = splat_f32(1.0)
    return splat_f32(cap) * (one - splat_f32(2.0) / (vexp(x * splat_f32(np.float32(2.0) / cap)) + one))


@jit
def round_to_bits(x):
    """Nearest integers (ties to even) of f32x16 with |x| < 2**22, as i32x16."""
    return bits_of(x + splat_f32(ROUND)) - splat_i32(0x4B400000)


# pi/2 in three parts of 33 bits or fewer, so that n * part is exact for |n| < 2**20 (fdlibm's e_rem_pio2)
_PIO2_1, _PIO2_2, _PIO2_3, _PIO2_3T = 1.57079632673412561417e+00, 6.07710050630396597660e-11, 2.02226624871116645580e-21, 8.47842766036889956997e-32


@jit
def sin_cos(x):
    """(sin x, cos x) of a float64, error below 1e-15 for 0 <= x < 1.6e6 (a position times a frequency <= 1).

    Reduction by multiples of pi/2 in three parts; fdlibm's kernel polynomials (k_sin.c, k_cos.c).
    """
    n = np.int64(x * 0.636619772367581343 + 0.5)
    f = np.float64(n)
    r = fma64(-f, _PIO2_3T, fma64(-f, _PIO2_3, fma64(-f, _PIO2_2, fma64(-f, _PIO2_1, x))))
    z = r * r
    s = fma64(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08)
    s = fma64(z, s, 2.75573137070700676789e-06)
    s = fma64(z, s, -1.98412698298579493134e-04)
    s = fma64(z, s, 8.33333333332248946124e-03)
    s = fma64(z, s, -1.66666666666666324348e-01)
    sine = fma64(z * r, s, r)
    c = fma64(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09)
    c = fma64(z, c, -2.75573143513906633035e-07)
    c = fma64(z, c, 2.48015872894767294178e-05)
    c = fma64(z, c, -1.38888888888741095749e-03)
    c = fma64(z, c, 4.16666666666666019037e-02)
    cosine = fma64(z * z, c, fma64(z, -0.5, 1.0))
    quadrant = n & 3
    if quadrant & 1:
        sine, cosine = cosine, sine
    if quadrant & 2:
        sine = -sine
    if (quadrant + 1) & 2:
        cosine = -cosine
    return sine, cosine


@jit
def is_finite64(x):
    """Neither NaN nor infinite."""
    return (f64_bits(x) >> 52) & 0x7FF != 0x7FF
