"""Finding block scales that minimise the weighted squared error, for the encoders (encode.py, encode_k.py). Compiled, on vectors of 16 columns.

A candidate scale rounds the block to integers; the best real scale (and minimum) for these integers follows by least squares; the candidate with the least
error wins. Same idea as ggml-quants.c's make_qx_quants and make_qkx2_quants, with more candidates, and the error that is compared is always the true one.
All sums run in one fixed order (simd.py), so the same input gives the same bytes on every CPU.

x: address of float32 columns; w: address of float32 weights >= 0 of the squared errors; n: vectors of 16 columns.
"""
from __future__ import annotations

import numpy as np

from ..matmul import jit
from ..simd import fma, load_f32x16, splat_f32, vmax, vmax_across, vmin, vsum
from ..vecmath import ROUND

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@jit
def rounded(v, low, high):
    """Lanes clamped to [low, high] and rounded to the nearest integer, ties to even; as floats."""
    v = vmin(vmax(v, splat_f32(low)), splat_f32(high))
    return (v + splat_f32(ROUND)) - splat_f32(ROUND)


@jit
def extremes(x, n):
    """-> (least, greatest) of 16 n columns."""
    low = high = load_f32x16(x)
    for i in range(1, n):
        v = load_f32x16(x + 64 * i)
        low, high = vmin(low, v), vmax(high, v)
    return -vmax_across(splat_f32(0.0) - low), vmax_across(high)


@jit
def _fit_scale(x, w, n, inverse, low, high):
    """With q = rounded(x * inverse): -> (sum w x q, sum w q q)."""
    xq = qq = splat_f32(0.0)
    c = splat_f32(inverse)
    for i in range(n):
        v, weight = load_f32x16(x + 64 * i), load_f32x16(w + 64 * i)
        q = rounded(v * c, low, high)
        wq = weight * q
        xq, qq = fma(wq, v, xq), fma(wq, q, qq)
    return vsum(xq), vsum(qq)


@jit
def scale_error(x, w, n, scale, low, high):
    """Weighted squared error of x against scale * rounded(x / scale)."""
    e = splat_f32(0.0)
    inverse = _ZERO
    if scale != _ZERO:
        inverse = _ONE / scale
    for i in range(n):
        v = load_f32x16(x + 64 * i)
        r = v - splat_f32(scale) * rounded(v * splat_f32(inverse), low, high)
        e = fma(load_f32x16(w + 64 * i) * r, r, e)
    return vsum(e)


@jit
def step_of(levels):
    """Distance of the candidates for the code of a block's extreme: fine enough (a quarter of a code) to find the codes of data that had been quantised."""
    return max(np.float32(0.1), levels * np.float32(0.0085))


@jit
def symmetric_scale(x, w, n, low, high):
    """The scale d (of either sign) for x ~ d q, q integers in [low, high] with low = -high - 1 or -high; 0 for a zero block."""
    least, greatest = extremes(x, n)
    extreme = greatest
    if -least > greatest:
        extreme = least
    if extreme == _ZERO:
        return _ZERO
    best, score = _ZERO, np.float32(-1.0)
    levels = np.float32(-low)
    for side in range(2):
        for k in range(-20, 5):
            target = levels + step_of(levels) * np.float32(k)
            if target < np.float32(0.5):
                continue
            inverse = target / extreme
            if side == 0:
                inverse = -inverse
            xq, qq = _fit_scale(x, w, n, inverse, low, high)
            if qq > _ZERO and xq * xq > score * qq:
                best, score = xq / qq, xq * xq / qq
    for _ in range(2):  # round by the fitted scale, fit again
        if best != _ZERO:
            xq, qq = _fit_scale(x, w, n, _ONE / best, low, high)
            if qq > _ZERO and xq * xq > score * qq:
                best, score = xq / qq, xq * xq / qq
    return best


@jit
def affine_error(x, w, n, scale, minimum, high):
    """Weighted squared error of x against scale * q + minimum, q = rounded((x - minimum) / scale) in [0, high]."""
    e, inverse = splat_f32(0.0), _ZERO
    if scale != _ZERO:
        inverse = _ONE / scale
    for i in range(n):
        v = load_f32x16(x + 64 * i)
        q = rounded((v - splat_f32(minimum)) * splat_f32(inverse), _ZERO, high)
        r = v - fma(splat_f32(scale), q, splat_f32(minimum))
        e = fma(load_f32x16(w + 64 * i) * r, r, e)
    return vsum(e)


@jit
def _fit_affine(x, w, n, inverse, minimum, high):
    """With q = rounded((x - minimum) * inverse): -> sums of w, w x, w q, w q q, w x q."""
    sw = sx = sq = qq = xq = splat_f32(0.0)
    for i in range(n):
        v, weight = load_f32x16(x + 64 * i), load_f32x16(w + 64 * i)
        q = rounded((v - splat_f32(minimum)) * splat_f32(inverse), _ZERO, high)
        wq = weight * q
        sw, sx, sq = sw + weight, fma(weight, v, sx), sq + wq
        qq, xq = fma(wq, q, qq), fma(wq, v, xq)
    return vsum(sw), vsum(sx), vsum(sq), vsum(qq), vsum(xq)


@jit
def affine_scale(x, w, n, high, below_zero):
    """(scale >= 0, minimum) for x ~ scale q + minimum, q integers in [0, high]; minimum <= 0 if below_zero (K-quants store it so)."""
    least, greatest = extremes(x, n)
    if below_zero and least > _ZERO:
        least = _ZERO
    if greatest <= least:
        return _ZERO, least
    best_scale, best_minimum = (greatest - least) / high, least
    best = affine_error(x, w, n, best_scale, best_minimum, high)
    for k in range(-20, 5):
        scale, minimum = _ZERO, least
        inverse = (high + step_of(high) * np.float32(k)) / (greatest - least)
        for _ in range(2):
            sw, sx, sq, qq, xq = _fit_affine(x, w, n, inverse, minimum, high)
            determinant = sw * qq - sq * sq
            if determinant <= _ZERO:
                break
            scale, minimum = (sw * xq - sx * sq) / determinant, (qq * sx - sq * xq) / determinant
            if below_zero and minimum > _ZERO:
                minimum = _ZERO
                if qq > _ZERO:
                    scale = xq / qq
            if scale <= _ZERO:
                break
            error = affine_error(x, w, n, scale, minimum, high)
            if error < best:
                best, best_scale, best_minimum = error, scale, minimum
            inverse = _ONE / scale
    return best_scale, best_minimum
