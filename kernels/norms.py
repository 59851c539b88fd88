"""Norms other than the plain RMSNorm of whole rows (elementwise.py): of heads and of whole projections in place, and LayerNorm.

Sums use the 16 partial accumulators and the tree of elementwise.py's rms_norm.
"""
from __future__ import annotations

import numpy as np

from .deferred import jit
from .elementwise import not_finite
from .simd import fma, keep_first, load_f32, load_f32x16, splat_f32, store_f32, store_f32x16, vsum


@jit
def head_norm(x, gain, n, eps):
    """x = x / sqrt(mean(x^2) + eps) [* gain] in place, over n columns of any number (a head's, or a whole projection's); gain: address, or 0 for none.

    At most 15 floats after x's last are read, and never used. -> True if x is not finite. (Query-key norms: Henry et al. 2020; Qwen 3, Gemma 3, OLMo 2.)
    """
    squares = splat_f32(0.0)
    for d in range(0, n, 16):
        v = keep_first(load_f32x16(x + 4 * d), n - d, np.float32(0.0))
        squares = fma(v, v, squares)
    total = vsum(squares)
    scale = np.float32(1.0) / np.sqrt(total / np.float32(n) + eps)
    r, d = splat_f32(scale), 0
    while d + 16 <= n:
        v = load_f32x16(x + 4 * d) * r
        if gain != 0:
            v = v * load_f32x16(gain + 4 * d)
        store_f32x16(x + 4 * d, v)
        d += 16
    while d < n:
        w = load_f32(x + 4 * d) * scale
        if gain != 0:
            w = w * load_f32(gain + 4 * d)
        store_f32(x + 4 * d, w)
        d += 1
    return not_finite(total)


@jit
def sum_of(x, n):
    """Tree of the sums of lanes of n numbers, lanes past the end left out."""
    sums = splat_f32(0.0)
    for d in range(0, n, 16):
        sums = sums + keep_first(load_f32x16(x + 4 * d), n - d, np.float32(0.0))
    return vsum(sums)


@jit
def squares_about(x, mean, n):
    """Tree of lanes of fma(x - mean, x - mean, .) of n numbers, lanes past the end left out. mean: in all lanes."""
    squares = splat_f32(0.0)
    for d in range(0, n, 16):
        v = keep_first(load_f32x16(x + 4 * d) - mean, n - d, np.float32(0.0))
        squares = fma(v, v, squares)
    return vsum(squares)


@jit
def layer_norm(x, gain, bias, n, columns, eps, out):
    """out = fma((x - mean) * (1 / sqrt(variance + eps)), gain, bias) over n columns, rows padded with zeros to `columns`; bias: address, or 0 for none.

    mean = tree(sums of lanes) / n; variance = tree(lanes of fma(x - mean, x - mean, .)) / n, padding left out. gain and bias are padded with zeros.
    -> True if x is not finite. (Ba, Kiros and Hinton 2016.)
    """
    sums = splat_f32(0.0)
    for i in range(0, 4 * columns, 64):
        sums = sums + load_f32x16(x + i)
    m = splat_f32(vsum(sums) / np.float32(n))
    total = squares_about(x, m, n)
    r = splat_f32(np.float32(1.0) / np.sqrt(total / np.float32(n) + eps))
    for i in range(0, 4 * columns, 64):
        v = (load_f32x16(x + i) - m) * r
        if bias != 0:
            store_f32x16(out + i, fma(v, load_f32x16(gain + i), load_f32x16(bias + i)))
        else:
            store_f32x16(out + i, v * load_f32x16(gain + i))
    return not_finite(total)


@jit
def head_layer_norm(x, gain, n, eps):
    """x = ((x - mean) * (1 / sqrt(variance + eps))) * gain in place, over n columns of any number; sums as of layer_norm, lanes past the end left out.

    At most 15 floats after x's last are read, and never used. -> True if x is not finite. (StableLM 2 12B, Command R+.)
    """
    mean = sum_of(x, n) / np.float32(n)
    m = splat_f32(mean)
    total = squares_about(x, m, n)
    scale = np.float32(1.0) / np.sqrt(total / np.float32(n) + eps)
    r, d = splat_f32(scale), 0
    while d + 16 <= n:
        store_f32x16(x + 4 * d, ((load_f32x16(x + 4 * d) - m) * r) * load_f32x16(gain + 4 * d))
        d += 16
    while d < n:
        store_f32(x + 4 * d, ((load_f32(x + 4 * d) - mean) * scale) * load_f32(gain + 4 * d))
        d += 1
    return not_finite(total)


@jit
def scale_row(x, factor, columns):
    """x = x * factor in place: embedding and residual scales."""
    f = splat_f32(factor)
    for i in range(0, 4 * columns, 64):
        store_f32x16(x + i, load_f32x16(x + i) * f)


@jit
def add_scaled(x, y, factor, columns):
    """x = fma(y, factor, x): a sublayer's output joins the residual stream by Granite's and MiniCPM's residual scale."""
    f = splat_f32(factor)
    for i in range(0, 4 * columns, 64):
        store_f32x16(x + i, fma(load_f32x16(y + i), f, load_f32x16(x + i)))
