"""Encoders of the 256-column formats: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS. Same signature as encode.py's.

Three steps: the best real scale (and minimum) of every sub-block; the block's d (and dmin) with integer sub-block scales; then, for every sub-block, the
integers around the rounded ones that really give the least error, and least squares for d (and dmin) once more, kept if the whole block gets better.
Sums run in one fixed order, so the bytes don't depend on the CPU.
"""
from __future__ import annotations

import numpy as np

from ..matmul import jit
from ..simd import load_f32, load_f32x16, load_u32, splat_f32, stack_vectors, store_f32, store_f32x16, store_u8, store_u16
from .encode import inverse_of, iq4_scale, nearest_iq4, pack_nibbles, store_codes, store_half, store_iq4_codes
from .search import affine_error, affine_scale, rounded, scale_error, symmetric_scale

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@jit
def _at(address, i):
    return load_f32(address + 4 * i)


@jit
def _put(address, i, value):
    store_f32(address + 4 * i, value)


@jit
def _nearest(x, low, high):
    """Scalar rounding to the nearest integer, ties to even, clamped."""
    x = min(max(x, low), high)
    return (x + np.float32(12582912.0)) - np.float32(12582912.0)


# -- scale and minimum per sub-block: Q4_K, Q5_K (32 columns, 6 bits), Q2_K (16 columns, 4 bits) ----------------------------------------------

@jit
def _fit_block(x, w, n, subs, high, sc, mn, top, d, dmin, numbers, reach):
    """Choose sc and mn (0..top) of every sub-block for given d, dmin, up to `reach` from the rounded ones. -> total error;
    `numbers`: 5 sums for the least squares of d and dmin."""
    total = aa = ab = bb = ax = bx = _ZERO
    for s in range(subs):
        xs, ws = x + 64 * n * s, w + 64 * n * s
        sc0, mn0 = _nearest(_at(sc, s) * inverse_of(d), _ZERO, top), _nearest(_at(mn, s) * inverse_of(dmin), _ZERO, top)
        best, best_sc, best_mn = np.float32(np.inf), sc0, mn0
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                a, b = sc0 + np.float32(i), mn0 + np.float32(j)
                if a < _ZERO or a > top or b < _ZERO or b > top:
                    continue
                e = affine_error(xs, ws, n, d * a, -(dmin * b), high)
                if e < best:
                    best, best_sc, best_mn = e, a, b
        _put(numbers, 8 + s, best_sc)
        _put(numbers, 8 + subs + s, best_mn)
        total += best
        inverse, least = splat_f32(inverse_of(d * best_sc)), splat_f32(-(dmin * best_mn))
        sqq = sq = sw = sxq = sx = splat_f32(0.0)
        for i in range(n):
            v, weight = load_f32x16(xs + 64 * i), load_f32x16(ws + 64 * i)
            q = rounded((v - least) * inverse, _ZERO, high)
            wq = weight * q
            sqq, sq, sw, sxq, sx = sqq + wq * q, sq + wq, sw + weight, sxq + wq * v, sx + weight * v
        a, b = best_sc, best_mn
        aa += a * a * _across(sqq)
        ab += a * b * _across(sq)
        bb += b * b * _across(sw)
        ax += a * _across(sxq)
        bx += b * _across(sx)
    _put(numbers, 0, aa)
    _put(numbers, 1, ab)
    _put(numbers, 2, bb)
    _put(numbers, 3, ax)
    _put(numbers, 4, bx)
    return total


@jit
def _across(v):
    scratch = stack_vectors(1)
    store_f32x16(scratch, v)
    total = _ZERO
    for i in range(16):
        total += load_f32(scratch + 4 * i)
    return total


@jit
def _scales_and_minimums(x, w, n, subs, high, top, dst_d, dst_dmin, chosen):
    """-> f16 d and dmin stored, and in `chosen`: float sc[subs], mn[subs]. n: vectors of a sub-block."""
    sc, mn, numbers = stack_vectors(1), stack_vectors(1), stack_vectors(3)
    best_sc = best_mn = _ZERO
    for s in range(subs):
        a, b = affine_scale(x + 64 * n * s, w + 64 * n * s, n, high, True)
        _put(sc, s, a)
        _put(mn, s, -b)
        best_sc, best_mn = max(best_sc, a), max(best_mn, -b)
    scratch = stack_vectors(1)
    d, dmin = store_half(dst_d, best_sc / top), store_half(dst_dmin, best_mn / top)
    error = _fit_block(x, w, n, subs, high, sc, mn, top, d, dmin, numbers, 0)
    for side in range(2):  # the largest scale, or minimum, need not get the largest integer
        for k in range(1, 3):
            new_d, new_dmin = d, dmin
            if side == 0:
                new_d = store_half(scratch, best_sc / (top - np.float32(k)))
            else:
                new_dmin = store_half(scratch, best_mn / (top - np.float32(k)))
            e = _fit_block(x, w, n, subs, high, sc, mn, top, new_d, new_dmin, numbers, 0)
            if e < error:
                error = e
                d, dmin = store_half(dst_d, new_d), store_half(dst_dmin, new_dmin)
    error = _fit_block(x, w, n, subs, high, sc, mn, top, d, dmin, numbers, 1)
    for i in range(2 * subs):
        _put(chosen, i, _at(numbers, 8 + i))
    for _ in range(2):
        aa, ab, bb, ax, bx = _at(numbers, 0), _at(numbers, 1), _at(numbers, 2), _at(numbers, 3), _at(numbers, 4)
        # minimise sum w (x - d sc q + dmin mn)^2 over (d, dmin)
        determinant = aa * bb - ab * ab
        new_d, new_dmin = d, dmin
        if determinant > np.float32(1e-6) * aa * bb:
            new_d, new_dmin = (ax * bb - ab * bx) / determinant, (ax * ab - bx * aa) / determinant
        elif aa > _ZERO:
            new_d = ax / aa
        if not (new_d > _ZERO) or not (new_dmin >= _ZERO):
            break
        new_d, new_dmin = store_half(scratch, new_d), store_half(scratch + 4, new_dmin)
        e = _fit_block(x, w, n, subs, high, sc, mn, top, new_d, new_dmin, numbers, 1)
        if not (e < error):
            break
        error, d, dmin = e, new_d, new_dmin
        store_half(dst_d, d)
        store_half(dst_dmin, dmin)
        for i in range(2 * subs):
            _put(chosen, i, _at(numbers, 8 + i))
    return d, dmin


@jit
def _pack_scales_and_minimums(chosen, dst):
    """Eight (sc, mn) of 6 bits into 12 bytes (layout: kquants.py)."""
    for i in range(4):
        s0, m0 = np.int64(_at(chosen, i)), np.int64(_at(chosen, 8 + i))
        s1, m1 = np.int64(_at(chosen, 4 + i)), np.int64(_at(chosen, 12 + i))
        store_u8(dst + i, s0 | (s1 >> 4) << 6)
        store_u8(dst + 4 + i, m0 | (m1 >> 4) << 6)
        store_u8(dst + 8 + i, (s1 & 15) | (m1 & 15) << 4)


@jit
def _code(codes, i):
    return np.int64(load_u32(codes + i)) & 255


@jit
def _codes_with_minimum(x, n, subs, high, d, dmin, chosen, codes):
    for s in range(subs):
        store_codes(x + 64 * n * s, n, d * _at(chosen, s), -(dmin * _at(chosen, subs + s)), _ZERO, high, codes + 16 * n * s)


@jit
def _pack_paired_nibbles(codes, dst):
    """256 codes of 4 bits -> 128 bytes: sub-blocks 2i and 2i + 1 in the low and high nibbles of 32 bytes."""
    for pair in range(4):
        for i in range(32):
            store_u8(dst + 32 * pair + i, (_code(codes, 64 * pair + i) & 15) | (_code(codes, 64 * pair + 32 + i) & 15) << 4)


@jit
def _pack_two_bits(codes, dst):
    """256 codes -> 64 bytes: column 128 h + 32 k + l at bits 2k of byte 32 h + l."""
    for h in range(2):
        for i in range(32):
            byte = 0
            for k in range(4):
                byte |= (_code(codes, 128 * h + 32 * k + i) & 3) << (2 * k)
            store_u8(dst + 32 * h + i, byte)


@jit
def encode_q4_k(x, w, dst):
    chosen, codes = stack_vectors(2), stack_vectors(5)
    d, dmin = _scales_and_minimums(x, w, 2, 8, np.float32(15.0), np.float32(63.0), dst, dst + 2, chosen)
    _codes_with_minimum(x, 2, 8, np.float32(15.0), d, dmin, chosen, codes)
    _pack_scales_and_minimums(chosen, dst + 4)
    _pack_paired_nibbles(codes, dst + 16)


@jit
def encode_q5_k(x, w, dst):
    chosen, codes = stack_vectors(2), stack_vectors(5)
    d, dmin = _scales_and_minimums(x, w, 2, 8, np.float32(31.0), np.float32(63.0), dst, dst + 2, chosen)
    _codes_with_minimum(x, 2, 8, np.float32(31.0), d, dmin, chosen, codes)
    _pack_scales_and_minimums(chosen, dst + 4)
    for i in range(32):
        byte = 0
        for b in range(8):
            byte |= (_code(codes, 32 * b + i) >> 4 & 1) << b
        store_u8(dst + 16 + i, byte)
    _pack_paired_nibbles(codes, dst + 48)


@jit
def encode_q2_k(x, w, dst):
    chosen, codes = stack_vectors(2), stack_vectors(5)
    d, dmin = _scales_and_minimums(x, w, 1, 16, np.float32(3.0), np.float32(15.0), dst + 80, dst + 82, chosen)
    _codes_with_minimum(x, 1, 16, np.float32(3.0), d, dmin, chosen, codes)
    for s in range(16):
        store_u8(dst + s, np.int64(_at(chosen, s)) | np.int64(_at(chosen, 16 + s)) << 4)
    _pack_two_bits(codes, dst + 16)


# -- a signed scale per sub-block: Q6_K, Q3_K (16 columns), IQ4_XS (32) -----------------------------------------------------------------------

@jit
def _sub_error(x, w, n, scale, low, high, table):
    """Error of one sub-block at a real scale; `table`: codes stand for IQ4's values."""
    if not table:
        return scale_error(x, w, n, scale, low, high)
    e, c = splat_f32(0.0), splat_f32(inverse_of(scale))
    for i in range(n):
        v = load_f32x16(x + 64 * i)
        r = v - splat_f32(scale) * nearest_iq4(v * c)
        e = e + load_f32x16(w + 64 * i) * r * r
    return _across(e)


@jit
def _fit_signed(x, w, n, subs, low, high, least, top, d, sc, numbers, table, reach):
    """Choose integer scales in [least, top] of every sub-block for a given d. -> total error; numbers: 2 sums for the least squares of d, then scales."""
    total = aa = ax = _ZERO
    for s in range(subs):
        xs, ws = x + 64 * n * s, w + 64 * n * s
        sc0 = _nearest(_at(sc, s) * inverse_of(d), least, top)
        best, best_sc = np.float32(np.inf), sc0
        for i in range(-reach, reach + 1):
            a = sc0 + np.float32(i)
            if a < least or a > top:
                continue
            e = _sub_error(xs, ws, n, d * a, low, high, table)
            if e < best:
                best, best_sc = e, a
        total += best
        _put(numbers, 4 + s, best_sc)
        c, qq, xq = splat_f32(inverse_of(d * best_sc)), splat_f32(0.0), splat_f32(0.0)
        for i in range(n):
            v, weight = load_f32x16(xs + 64 * i), load_f32x16(ws + 64 * i)
            if table:
                q = nearest_iq4(v * c)
            else:
                q = rounded(v * c, low, high)
            qq, xq = qq + weight * q * q, xq + weight * q * v
        aa += best_sc * best_sc * _across(qq)
        ax += best_sc * _across(xq)
    _put(numbers, 0, aa)
    _put(numbers, 1, ax)
    return total


@jit
def _signed_scales(x, w, n, subs, low, high, least, top, dst_d, chosen, table):
    """-> d, stored as f16; `chosen`: float integer scales [subs]."""
    sc, numbers, scratch = stack_vectors(1), stack_vectors(2), stack_vectors(1)
    extreme = _ZERO
    for s in range(subs):
        if table:
            a = iq4_scale(x + 64 * n * s, w + 64 * n * s, n)
        else:
            a = symmetric_scale(x + 64 * n * s, w + 64 * n * s, n, low, high)
        _put(sc, s, a)
        if abs(a) > abs(extreme):
            extreme = a
    d = store_half(dst_d, extreme / least)
    error = _fit_signed(x, w, n, subs, low, high, least, top, d, sc, numbers, table, 0)
    for k in range(1, 3):  # the largest scale need not get the largest integer
        new_d = store_half(scratch, extreme / (least + np.float32(k)))
        e = _fit_signed(x, w, n, subs, low, high, least, top, new_d, sc, numbers, table, 0)
        if e < error:
            error, d = e, store_half(dst_d, new_d)
    error = _fit_signed(x, w, n, subs, low, high, least, top, d, sc, numbers, table, 1)
    for i in range(subs):
        _put(chosen, i, _at(numbers, 4 + i))
    for _ in range(2):
        if not (_at(numbers, 0) > _ZERO):
            break
        new_d = store_half(scratch, _at(numbers, 1) / _at(numbers, 0))
        e = _fit_signed(x, w, n, subs, low, high, least, top, new_d, sc, numbers, table, 1)
        if not (e < error):
            break
        error, d = e, new_d
        store_half(dst_d, d)
        for i in range(subs):
            _put(chosen, i, _at(numbers, 4 + i))
    return d


@jit
def encode_q6_k(x, w, dst):
    chosen, codes = stack_vectors(1), stack_vectors(5)
    low, high = np.float32(-32.0), np.float32(31.0)
    d = _signed_scales(x, w, 1, 16, low, high, np.float32(-128.0), np.float32(127.0), dst + 208, chosen, False)
    for s in range(16):
        store_u8(dst + 192 + s, np.int64(_at(chosen, s)) & 255)
        store_codes(x + 64 * s, 1, d * _at(chosen, s), _ZERO, low, high, codes + 16 * s)
    for h in range(2):
        for i in range(32):
            q0, q1 = _code(codes, 128 * h + i) + 32 & 63, _code(codes, 128 * h + 32 + i) + 32 & 63
            q2, q3 = _code(codes, 128 * h + 64 + i) + 32 & 63, _code(codes, 128 * h + 96 + i) + 32 & 63
            store_u8(dst + 64 * h + i, (q0 & 15) | (q2 & 15) << 4)
            store_u8(dst + 64 * h + 32 + i, (q1 & 15) | (q3 & 15) << 4)
            store_u8(dst + 128 + 32 * h + i, q0 >> 4 | (q1 >> 4) << 2 | (q2 >> 4) << 4 | (q3 >> 4) << 6)


@jit
def encode_q3_k(x, w, dst):
    chosen, codes = stack_vectors(1), stack_vectors(5)
    low, high = np.float32(-4.0), np.float32(3.0)
    d = _signed_scales(x, w, 1, 16, low, high, np.float32(-32.0), np.float32(31.0), dst + 108, chosen, False)
    for i in range(256):
        store_u8(codes + i, 0)
    for s in range(16):
        store_codes(x + 64 * s, 1, d * _at(chosen, s), _ZERO, low, high, codes + 16 * s)
    for i in range(256):
        store_u8(codes + i, _code(codes, i) + 4 & 7)
    for i in range(32):
        byte = 0
        for b in range(8):
            byte |= (_code(codes, 32 * b + i) >> 2) << b
        store_u8(dst + i, byte)
    _pack_two_bits(codes, dst + 32)
    for i in range(8):
        v0, v1 = np.int64(_at(chosen, i)) + 32, np.int64(_at(chosen, 8 + i)) + 32
        store_u8(dst + 96 + i, (v0 & 15) | (v1 & 15) << 4)
    for i in range(4):
        upper = np.int64(0)
        for part in range(4):
            upper |= ((np.int64(_at(chosen, 4 * part + i)) + 32) >> 4) << (2 * part)
        store_u8(dst + 104 + i, upper)


@jit
def encode_iq4_xs(x, w, dst):
    chosen, codes = stack_vectors(1), stack_vectors(5)
    d = _signed_scales(x, w, 2, 8, _ZERO, _ZERO, np.float32(-32.0), np.float32(31.0), dst, chosen, True)
    upper = np.int64(0)
    for pair in range(4):
        s0, s1 = np.int64(_at(chosen, 2 * pair)) + 32, np.int64(_at(chosen, 2 * pair + 1)) + 32
        store_u8(dst + 4 + pair, (s0 & 15) | (s1 & 15) << 4)
        upper |= (s0 >> 4) << (4 * pair) | (s1 >> 4) << (4 * pair + 2)
    store_u16(dst + 2, upper)
    for b in range(8):
        store_iq4_codes(x + 128 * b, 2, d * _at(chosen, b), codes)
        pack_nibbles(codes, 0, dst + 8 + 16 * b)
