"""Keys and values kept in 8 bits: half of f16's memory, and integer dot products for both scores and weighted values.

    a layer's page, for each kv head:  K int8 [dim / 4][64][4 dims] | dk f16 [dim / 32][64] | V int8 [64 / 4][v_dim][4 positions] | dv f16 [64]

Codes are stored as code + 128, four of a lane's side by side, as the byte dot product wants them: one lane per position for scores, one per column for values.
A key has a scale for each 32 dims (RoPE leaves some dims much larger than others), a value one for its whole row; d = absmax / 127 rounded to f16 (to nearest
even), code = round(x * (1 / d)), ties to even, within -127..127. A query is quantised like activations: int8 per 32 dims, dq = absmax / 127 in float32.

    dot[b, p]  = sum over the 32 dims of block b of qq[d] * K[d, p]                                    int32, exact
    s[p]       = chain over b = 0, 1, ...: s = fma(float(dot[b, p]), dk[b, p] * dq[b], s), from 0;  score[p] = s[p] * scale
    m, e[p], l = as for f16 (attention.py)
    w[p]       = e[p] * dv[p];  W = max w;  c[p] = round(w[p] * (32639 / W)), 0..32639 (all 0 where W < 1e-30)
    o[d]       = float(sum over p of c[p] * V[p, d]) * (W / 32639)                                      int32, exact: below 2**31

c[p] = 256 hi + lo in two bytes, so 16 bits of a weight count. Positions a query doesn't see have weights of integer zero.
"""
from __future__ import annotations

import numpy as np

from .activations import BLOCK, INFINITY_BITS, quantize_block
from .attention import PART_HEADER, TOGETHER, KVType, softmax, v_dim
from .dot import dot_any
from .elementwise import PAGE, jit
from .half import load_f16, load_f16x16, store_f16x16
from .simd import (
    and_i32,
    bits_of,
    fma,
    get_f32,
    get_i32,
    keep_first,
    load_f32x16,
    load_i8x64,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    prefetch,
    put_f32,
    put_i32,
    sar_i32,
    shl_i32,
    splat_f32,
    splat_i32,
    splat_load_f32,
    splat_load_i32,
    stack_vectors,
    store_f32,
    store_f32x16,
    store_i8x16,
    store_i32,
    store_u8,
    store_u16,
    store_u32,
    to_f32,
    vmax,
    vmax_across,
    vmax_across_i32,
    vmax_i32,
    vmin,
    vsum_i32,
)
from .vecmath import round_to_bits

_TINY, _127 = np.float32(1e-30), np.float32(127.0)
_STEPS = np.float32(32639.0)  # 127 * 256 + 127
_LIMIT_BITS = int(np.array(65520.0 * 127, np.float32).view(np.int32))  # from here on, d rounds to infinity
_QUERY, _DQ, _ZERO = 64, 32, 36  # bytes of a query's block of 32 dims: the codes, dq (float32), -128 * their sum (int32)
_WEIGHTS, _STEP, _SHIFT = 192, 128, 132  # bytes of a query's weights: hi[64], lo[64], W / 32639 (float32), -128 * sum of c (int32)


def head_bytes(head_dim: int, value_dim: int) -> int:
    """Bytes of one KV head in a layer's page."""
    return PAGE * (4 * -(-head_dim // 4) + 2 * -(-head_dim // BLOCK) + v_dim(value_dim) + 2)


@jit
def _places(page, kv_head, head_dim, v_dim):
    """Addresses of one head's K, dk, V, dv."""
    quads, blocks = (head_dim + 3) // 4, (head_dim + 31) // 32
    keys = page + kv_head * PAGE * (4 * quads + 2 * blocks + v_dim + 2)
    scales = keys + PAGE * 4 * quads
    values = scales + PAGE * 2 * blocks
    return keys, scales, values, values + PAGE * v_dim


@jit
def _lay_out(q, head_dim, query):
    zero, worst = np.float32(0.0), np.int32(0)
    for d in range(0, head_dim, BLOCK):
        v0, v1 = keep_first(load_f32x16(q + 4 * d), head_dim - d, zero), keep_first(load_f32x16(q + 4 * d + 64), head_dim - d - 16, zero)
        bits, scale, q0, q1 = quantize_block(v0, v1)
        worst = max(worst, bits)
        store_i8x16(query, q0)
        store_i8x16(query + 16, q1)
        store_f32(query + _DQ, scale)
        store_i32(query + _ZERO, -128 * vsum_i32(q0 + q1))
        query += _QUERY
    return worst >= INFINITY_BITS


def _page_kernel(R: int):
    """R queries against one page: KVType.one and .several; and the products alone, .dots."""
    R3, R4 = 3 * R, 4 * R

    @jit
    def scores(queries, query_bytes, keys, scales, delta, head_dim, s):
        acc = stack_vectors(R4)
        for i in range(R4):
            put_f32(s, i, splat_f32(0.0))
        for first in range(0, head_dim, BLOCK):
            for r in range(R):
                for i in range(4):
                    put_i32(acc, 4 * r + i, splat_load_i32(queries + r * query_bytes + _ZERO))
            q = queries
            for _ in range((min(BLOCK, head_dim - first) + 3) // 4):
                for i in range(4):
                    prefetch(keys + delta + 64 * i)
                    x = load_i8x64(keys + 64 * i)
                    for r in range(R):
                        put_i32(acc, 4 * r + i, dot_any(get_i32(acc, 4 * r + i), x, splat_load_i32(q + r * query_bytes)))
                keys += 4 * PAGE
                q += 4
            for i in range(4):
                d = load_f16x16(scales + 32 * i)
                for r in range(R):
                    both = d * splat_load_f32(queries + r * query_bytes + _DQ)
                    put_f32(s, 4 * r + i, fma(to_f32(get_i32(acc, 4 * r + i)), both, get_f32(s, 4 * r + i)))
            scales += 2 * PAGE
            queries += _QUERY

    def value_chunk(C):
        """C vectors of value columns at once, for R queries."""
        RC = R * C

        @jit
        def chunk(values, delta, row_bytes, groups, weights, part, part_bytes):
            high, low = stack_vectors(RC), stack_vectors(RC)
            for r in range(R):
                for c in range(C):
                    put_i32(high, r * C + c, splat_i32(0))
                    put_i32(low, r * C + c, splat_load_i32(weights + r * _WEIGHTS + _SHIFT))
            w = weights
            for _ in range(groups):
                for c in range(C):
                    prefetch(values + delta + 64 * c)
                    x = load_i8x64(values + 64 * c)
                    for r in range(R):
                        put_i32(high, r * C + c, dot_any(get_i32(high, r * C + c), x, splat_load_i32(w + r * _WEIGHTS)))
                        put_i32(low, r * C + c, dot_any(get_i32(low, r * C + c), x, splat_load_i32(w + r * _WEIGHTS + PAGE)))
                values += row_bytes
                w += 4
            for r in range(R):
                step = splat_load_f32(weights + r * _WEIGHTS + _STEP)
                for c in range(C):
                    store_f32x16(part + r * part_bytes + 64 * c, to_f32(shl_i32(get_i32(high, r * C + c), 8) + get_i32(low, r * C + c)) * step)
        return chunk

    two, one = value_chunk(2), value_chunk(1)

    @jit
    def page_kernel(queries, query_bytes, page, ahead, n_kv, kv_head, head_dim, v_dim, left, scale, cap, parts, part_bytes, n):
        s, weights = stack_vectors(R4), stack_vectors(R3)
        keys, scales, values, value_scales = _places(page, kv_head, head_dim, v_dim)
        scores(queries, query_bytes, keys, scales, ahead - page, head_dim, s)
        for r in range(n):  # not R: unrolled, this would take long to compile
            softmax(s + 256 * r, load_i64(left + 16 * r), load_i64(left + 16 * r + 8), scale, cap, parts + r * part_bytes)
            _weigh(s + 256 * r, value_scales, load_i64(left + 16 * r), weights + r * _WEIGHTS)
        groups, d = (load_i64(left + 16 * (n - 1)) + 3) // 4, 0
        while d < v_dim:
            if v_dim - d >= 32:
                two(values + 4 * d, ahead - page, 4 * v_dim, groups, weights, parts + PART_HEADER + 4 * d, part_bytes)
                d += 32
            else:
                one(values + 4 * d, ahead - page, 4 * v_dim, groups, weights, parts + PART_HEADER + 4 * d, part_bytes)
                d += 16

    @jit
    def dots(query, query_bytes, page, n_kv, kv_head, head_dim, v_dim, s):
        keys, scales, _, _ = _places(page, kv_head, head_dim, v_dim)
        scores(query, query_bytes, keys, scales, 0, head_dim, s)
    return page_kernel, dots


@jit
def _weigh(e, value_scales, left, weights):
    """e[p], 4 vectors, and the values' scales -> integer weights."""
    most, zero = splat_f32(0.0), np.float32(0.0)
    for i in range(4):
        w = keep_first(get_f32(e, i) * load_f16x16(value_scales + 32 * i), left - 16 * i, zero)
        put_f32(e, i, w)
        most = vmax(w, most)
    largest, inverse, step = vmax_across(most), zero, zero
    if largest >= _TINY:
        inverse, step = _STEPS / largest, largest / _STEPS
    total = splat_i32(0)
    for i in range(4):
        c = round_to_bits(get_f32(e, i) * splat_f32(inverse))
        high = sar_i32(c + splat_i32(128), 8)
        store_i8x16(weights + 16 * i, high)
        store_i8x16(weights + PAGE + 16 * i, c - shl_i32(high, 8))
        total = total + c
    store_f32(weights + _STEP, step)
    store_i32(weights + _SHIFT, -128 * vsum_i32(total))


@jit
def _codes(x, inverse):
    """Bytes code + 128 of 16 numbers, as int32 lanes. Clamped, because d was rounded."""
    q = vmin(vmax(x * splat_f32(inverse), splat_f32(-_127)), splat_f32(_127))
    return round_to_bits(q) + splat_i32(128)


@jit
def _scale(bits, small, target):
    """absmax (as float bits) -> d's f16 stored at target; 1 / d, or 0."""
    store_f16x16(small, splat_f32(np.int32(bits).view(np.float32) / _127))
    store_u16(target, load_u16(small))
    d = load_f16(small)
    return np.float32(1.0) / d if d > np.float32(0.0) else np.float32(0.0)


@jit
def _magnitude(v):
    return and_i32(bits_of(v), 0x7FFFFFFF)


@jit
def _append_key(x, n_kv, kv_head, head_dim, value_dim, v_dim, slot, page):
    small, zero, worst = stack_vectors(1), np.float32(0.0), np.int32(0)
    keys, scales, _, _ = _places(page, kv_head, head_dim, v_dim)
    for d in range(0, head_dim, BLOCK):
        x0, x1 = keep_first(load_f32x16(x + 4 * d), head_dim - d, zero), keep_first(load_f32x16(x + 4 * d + 64), head_dim - d - 16, zero)
        bits = vmax_across_i32(vmax_i32(_magnitude(x0), _magnitude(x1)))
        worst = max(worst, bits)
        inverse = _scale(bits, small, scales + 2 * (PAGE * (d // BLOCK) + slot))
        store_i8x16(small, _codes(x0, inverse))
        store_i8x16(small + 16, _codes(x1, inverse))
        for i in range((min(BLOCK, head_dim - d) + 3) // 4):
            store_u32(keys + 4 * PAGE * (d // 4 + i) + 4 * slot, load_u32(small + 4 * i))
    return worst >= _LIMIT_BITS


@jit
def _append_value(x, n_kv, kv_head, head_dim, value_dim, v_dim, slot, page):
    small, zero, magnitudes = stack_vectors(1), np.float32(0.0), splat_i32(0)
    _, _, values, scales = _places(page, kv_head, head_dim, v_dim)
    for d in range(0, value_dim, 16):
        magnitudes = vmax_i32(magnitudes, _magnitude(keep_first(load_f32x16(x + 4 * d), value_dim - d, zero)))
    bits = vmax_across_i32(magnitudes)
    inverse = _scale(bits, small, scales + 2 * slot)
    place = values + slot // 4 * 4 * v_dim + slot % 4
    for d in range(0, value_dim, 16):
        store_i8x16(small, _codes(load_f32x16(x + 4 * d), inverse))
        for i in range(16):  # lanes past value_dim: nothing reads their results
            store_u8(place + 4 * (d + i), load_u8(small + i))
    return bits >= _LIMIT_BITS


(_one, _dots), (_several, _) = _page_kernel(1), _page_kernel(TOGETHER)
Q8_0 = KVType("q8_0", lambda n_kv, head_dim, value_dim: -(-n_kv * head_bytes(head_dim, value_dim) // 64) * 64,
              lambda head_dim: -(-head_dim // BLOCK) * _QUERY, _lay_out,
              _one, _several, _append_key, _append_value, _dots)
