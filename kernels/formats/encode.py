"""Encoders of the float and 32-column formats: float32 rows to blocks, with error-minimising scale search (search.py).

    encode(name, x, importance) -> uint8 rows          any format with an encoder, all threads

Each encoder is one compiled function on one file block: (x, w, dst), x: address of its float32 columns, w: of as many float32 error weights, dst: of the block.
Where the scale is stored as f16, codes are rounded by the stored value, not by the one before rounding.
"""
from __future__ import annotations

import numpy as np

from ..half import load_f16, store_f16x16
from ..matmul import jit
from ..simd import bits_of, load_f32, load_f32x16, load_u32, splat_f32, stack_vectors, store_f32x16, store_i8x16, store_u8, store_u16, store_u32
from .search import affine_scale, extremes, rounded, symmetric_scale

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_F16_MAX = np.float32(65504.0)


@jit
def store_half(address, value):
    """Round a float32 to f16 (to nearest even; clamped to the finite range), store it, and return what was stored."""
    scratch = stack_vectors(1)
    value = min(max(value, -_F16_MAX), _F16_MAX)
    store_f16x16(scratch, splat_f32(value))
    store_u16(address, load_u32(scratch) & np.uint32(0xFFFF))
    return load_f16(address)


@jit
def inverse_of(scale):
    """1 / scale, 0 for 0."""
    if scale == _ZERO:
        return _ZERO
    return _ONE / scale


@jit
def store_codes(x, n, scale, minimum, low, high, codes):
    """int8 codes of 16 n columns: rounded((x - minimum) / scale) in [low, high]."""
    c, m = splat_f32(inverse_of(scale)), splat_f32(minimum)
    for i in range(n):
        q = rounded((load_f32x16(x + 64 * i) - m) * c, low, high)
        # q + 1.5 * 2**23 has the integer in its low byte
        store_i8x16(codes + 16 * i, bits_of(q + splat_f32(np.float32(12582912.0))))


@jit
def _code(codes, i):
    return load_u32(codes + i) & np.uint32(255)


@jit
def pack_nibbles(codes, offset, dst):
    """32 int8 codes + offset -> 16 bytes: column i low, 16 + i high."""
    for i in range(16):
        low, high = (_code(codes, i) + np.uint32(offset)) & np.uint32(15), (_code(codes, 16 + i) + np.uint32(offset)) & np.uint32(15)
        store_u8(dst + i, low | high << np.uint32(4))


@jit
def _pack_fifth_bits(codes, offset, dst):
    word = np.uint32(0)
    for i in range(32):
        word |= (((_code(codes, i) + np.uint32(offset)) >> np.uint32(4)) & np.uint32(1)) << np.uint32(i)
    store_u32(dst, word)


@jit
def encode_f32(x, w, dst):
    store_u32(dst, load_u32(x))


@jit
def encode_f16(x, w, dst):
    scratch = stack_vectors(1)
    store_f16x16(scratch, splat_f32(load_f32(x)))
    store_u16(dst, load_u32(scratch) & np.uint32(0xFFFF))


@jit
def encode_bf16(x, w, dst):
    """Round to nearest even; NaN stays NaN."""
    bits = load_u32(x)
    if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        store_u16(dst, (bits >> np.uint32(16)) | np.uint32(64))
    else:
        store_u16(dst, (np.uint64(bits) + np.uint64(0x7FFF) + np.uint64((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16))


@jit
def encode_q8_0(x, w, dst):
    least, greatest = extremes(x, 2)
    d = store_half(dst, max(greatest, -least) / np.float32(127.0))
    store_codes(x, 2, d, _ZERO, np.float32(-127.0), np.float32(127.0), dst + 2)


@jit
def encode_q4_0(x, w, dst):
    codes = stack_vectors(1)
    d = store_half(dst, symmetric_scale(x, w, 2, np.float32(-8.0), np.float32(7.0)))
    store_codes(x, 2, d, _ZERO, np.float32(-8.0), np.float32(7.0), codes)
    pack_nibbles(codes, 8, dst + 2)


@jit
def encode_q5_0(x, w, dst):
    codes = stack_vectors(1)
    d = store_half(dst, symmetric_scale(x, w, 2, np.float32(-16.0), np.float32(15.0)))
    store_codes(x, 2, d, _ZERO, np.float32(-16.0), np.float32(15.0), codes)
    _pack_fifth_bits(codes, 16, dst + 2)
    pack_nibbles(codes, 16, dst + 6)


@jit
def encode_q4_1(x, w, dst):
    codes = stack_vectors(1)
    scale, minimum = affine_scale(x, w, 2, np.float32(15.0), False)
    d, m = store_half(dst, scale), store_half(dst + 2, minimum)
    store_codes(x, 2, d, m, _ZERO, np.float32(15.0), codes)
    pack_nibbles(codes, 0, dst + 4)


@jit
def encode_q5_1(x, w, dst):
    codes = stack_vectors(1)
    scale, minimum = affine_scale(x, w, 2, np.float32(31.0), False)
    d, m = store_half(dst, scale), store_half(dst + 2, minimum)
    store_codes(x, 2, d, m, _ZERO, np.float32(31.0), codes)
    _pack_fifth_bits(codes, 0, dst + 4)
    pack_nibbles(codes, 0, dst + 8)


# -- nonlinear codes: the nearest of 16 table values ------------------------------------------------------------------------------------------

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@jit
def nearest_iq4(v):
    """-> the table value nearest to each lane, as a float."""
    value = splat_f32(IQ4[0])
    for k in range(15):
        value = value + step_above(v, (IQ4[k] + IQ4[k + 1]) * np.float32(0.5), IQ4[k + 1] - IQ4[k])
    return value


@jit
def step_above(v, threshold, step):
    """step where v > threshold, else 0; by clamping, as there is no comparison of vectors."""
    big = (v - splat_f32(threshold)) * splat_f32(np.float32(1e30))
    return vclamp01(big) * splat_f32(step)


@jit
def vclamp01(v):
    return rounded(v, _ZERO, _ONE)


@jit
def fit_iq4(x, w, n, inverse):
    """With t = nearest table value to x * inverse: -> (sum w x t, sum w t t)."""
    from_x = from_t = splat_f32(0.0)
    for i in range(n):
        v, weight = load_f32x16(x + 64 * i), load_f32x16(w + 64 * i)
        t = nearest_iq4(v * splat_f32(inverse))
        from_x, from_t = from_x + weight * t * v, from_t + weight * t * t
    return _sum(from_x), _sum(from_t)


@jit
def _sum(v):
    scratch, total = stack_vectors(1), _ZERO
    store_f32x16(scratch, v)
    for i in range(16):
        total += load_f32(scratch + 4 * i)
    return total


@jit
def iq4_scale(x, w, n):
    """The scale d for x ~ d * table."""
    least, greatest = extremes(x, n)
    extreme = greatest
    if -least > greatest:
        extreme = least
    if extreme == _ZERO:
        return _ZERO
    best, score = _ZERO, np.float32(-1.0)
    for side in range(2):
        for k in range(-10, 11):
            end = np.float32(127.0)
            if side == 1:
                end = np.float32(113.0)
            inverse = end * (_ONE + np.float32(0.02) * np.float32(k)) / extreme
            if side == 0:
                inverse = -inverse
            a, b = fit_iq4(x, w, n, inverse)
            if b > _ZERO and a * a > score * b:
                best, score = a / b, a * a / b
    if best != _ZERO:
        a, b = fit_iq4(x, w, n, _ONE / best)
        if b > _ZERO and a * a > score * b:
            best = a / b
    return best


@jit
def store_iq4_codes(x, n, scale, codes):
    """Table indices (bytes) of 16 n columns."""
    c = splat_f32(inverse_of(scale))
    for i in range(n):
        v, index = load_f32x16(x + 64 * i) * c, splat_f32(0.0)
        for k in range(15):
            index = index + step_above(v, (IQ4[k] + IQ4[k + 1]) * np.float32(0.5), _ONE)
        store_i8x16(codes + 16 * i, bits_of(index + splat_f32(np.float32(12582912.0))))


@jit
def encode_iq4_nl(x, w, dst):
    codes = stack_vectors(1)
    d = store_half(dst, iq4_scale(x, w, 2))
    store_iq4_codes(x, 2, d, codes)
    pack_nibbles(codes, 0, dst + 2)
