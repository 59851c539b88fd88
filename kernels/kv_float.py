"""Keys and values kept as f16 (rounded to nearest even) or float32.

    a layer's page:   keys [kv head][head_dim][64]  |  values [kv head][64][v_dim]            (v_dim: head_dim rounded up to 16)

so that scores run one lane per position and values one lane per column. The chains are those that attention.py writes down.
"""
from __future__ import annotations

import numpy as np

from .activations import INFINITY_BITS
from .attention import PART_HEADER, TOGETHER, KVType, softmax, v_dim
from .dots import FEW_REGISTERS
from .elementwise import PAGE, jit
from .half import load_f16x16, store_f16x16
from .simd import (
    and_i32,
    bits_of,
    fma,
    get_f32,
    keep_first,
    load_f32x16,
    load_i64,
    load_u16,
    load_u32,
    prefetch,
    put_f32,
    splat_f32,
    splat_i32,
    splat_load_f32,
    stack_vectors,
    store_f32x16,
    store_u16,
    store_u32,
    vmax_across_i32,
    vmax_i32,
)

_HALF_LIMIT_BITS = 0x477FF000  # 65520.0: from here on, rounding to f16 gives infinity


@jit
def _lay_out(q, head_dim, query):
    magnitudes = splat_i32(0)
    for d in range(0, head_dim, 16):
        x = keep_first(load_f32x16(q + 4 * d), head_dim - d, np.float32(0.0))
        magnitudes = vmax_i32(magnitudes, and_i32(bits_of(x), 0x7FFFFFFF))
        store_f32x16(query + 4 * d, x)
    return vmax_across_i32(magnitudes) >= INFINITY_BITS


def _page_kernel(R: int, load16, item: int):
    """R queries against one page whose elements are `item` bytes wide: KVType.one and .several; and the products alone, .dots."""
    R4, position_bytes = 4 * R, PAGE * item
    V = 1 if FEW_REGISTERS and R > 1 else 4  # vectors of positions, or of value columns, whose sums for all queries the registers hold
    RV = R * V

    def value_chunk(C):
        """C vectors of value columns at once, for R queries."""
        RC = R * C

        @jit
        def chunk(values, delta, row_bytes, weights, left, part, part_bytes):
            acc = stack_vectors(RC)
            for i in range(RC):
                put_f32(acc, i, splat_f32(0.0))
            common = load_i64(left)
            for p in range(common):
                for c in range(C):
                    if 16 * item * c % 64 == 0:
                        prefetch(values + p * row_bytes + delta + 16 * item * c)
                    v = load16(values + p * row_bytes + 16 * item * c)
                    for r in range(R):
                        put_f32(acc, r * C + c, fma(v, splat_load_f32(weights + 256 * r + 4 * p), get_f32(acc, r * C + c)))
            for r in range(R):
                for p in range(common, load_i64(left + 16 * r)):
                    e = splat_load_f32(weights + 256 * r + 4 * p)
                    for c in range(C):
                        put_f32(acc, r * C + c, fma(e, load16(values + p * row_bytes + 16 * item * c), get_f32(acc, r * C + c)))
            for r in range(R):
                for c in range(C):
                    store_f32x16(part + r * part_bytes + 64 * c, get_f32(acc, r * C + c))
        return chunk

    many, one = value_chunk(V), value_chunk(1)

    @jit
    def scores(queries, query_bytes, keys, delta, head_dim, s):
        acc = stack_vectors(RV)
        for first in range(0, 4, V):
            for i in range(RV):
                put_f32(acc, i, splat_f32(0.0))
            for d in range(head_dim):
                k = keys + position_bytes * d + 16 * item * first
                for i in range(V):
                    if 16 * item * (first + i) % 64 == 0:
                        prefetch(k + delta + 16 * item * i)
                    x = load16(k + 16 * item * i)
                    for r in range(R):
                        put_f32(acc, V * r + i, fma(x, splat_load_f32(queries + r * query_bytes + 4 * d), get_f32(acc, V * r + i)))
            for r in range(R):
                for i in range(V):
                    put_f32(s, 4 * r + first + i, get_f32(acc, V * r + i))

    @jit
    def page_kernel(queries, query_bytes, page, ahead, n_kv, kv_head, head_dim, v_dim, left, scale, cap, parts, part_bytes, n):
        s = stack_vectors(R4)
        keys, values = page + item * PAGE * kv_head * head_dim, page + item * PAGE * (n_kv * head_dim + kv_head * v_dim)
        scores(queries, query_bytes, keys, ahead - page, head_dim, s)
        for r in range(n):  # not R: unrolled, this would take long to compile
            softmax(s + 256 * r, load_i64(left + 16 * r), load_i64(left + 16 * r + 8), scale, cap, parts + r * part_bytes)
        d = 0
        while d < v_dim:
            if v_dim - d >= 16 * V:
                many(values + item * d, ahead - page, item * v_dim, s, left, parts + PART_HEADER + 4 * d, part_bytes)
                d += 16 * V
            else:
                one(values + item * d, ahead - page, item * v_dim, s, left, parts + PART_HEADER + 4 * d, part_bytes)
                d += 16

    @jit
    def dots(query, query_bytes, page, n_kv, kv_head, head_dim, v_dim, s):
        scores(query, query_bytes, page + item * PAGE * kv_head * head_dim, 0, head_dim, s)
    return page_kernel, dots


def _appenders(item: int):
    limit = INFINITY_BITS if item == 4 else _HALF_LIMIT_BITS

    @jit
    def append_key(x, n_kv, kv_head, head_dim, value_dim, v_dim, slot, page):
        small, magnitudes = stack_vectors(1), splat_i32(0)
        keys = page + item * (kv_head * head_dim * PAGE + slot)
        for d in range(0, head_dim, 16):
            v = keep_first(load_f32x16(x + 4 * d), head_dim - d, np.float32(0.0))
            magnitudes = vmax_i32(magnitudes, and_i32(bits_of(v), 0x7FFFFFFF))
            if item == 4:
                store_f32x16(small, v)
                for i in range(min(16, head_dim - d)):
                    store_u32(keys + 4 * PAGE * (d + i), load_u32(small + 4 * i))
            else:
                store_f16x16(small, v)
                for i in range(min(16, head_dim - d)):
                    store_u16(keys + 2 * PAGE * (d + i), load_u16(small + 2 * i))
        return vmax_across_i32(magnitudes) >= limit

    @jit
    def append_value(x, n_kv, kv_head, head_dim, value_dim, v_dim, slot, page):
        magnitudes = splat_i32(0)
        values = page + item * (PAGE * (n_kv * head_dim + kv_head * v_dim) + slot * v_dim)
        for d in range(0, value_dim, 16):
            v = keep_first(load_f32x16(x + 4 * d), value_dim - d, np.float32(0.0))
            magnitudes = vmax_i32(magnitudes, and_i32(bits_of(v), 0x7FFFFFFF))
            if item == 4:
                store_f32x16(values + 4 * d, v)
            else:
                store_f16x16(values + 2 * d, v)
        return vmax_across_i32(magnitudes) >= limit
    return append_key, append_value


def _kv_type(name: str, load16, item: int) -> KVType:
    (one, dots), (several, _) = _page_kernel(1, load16, item), _page_kernel(TOGETHER, load16, item)
    append_key, append_value = _appenders(item)
    return KVType(name, lambda n_kv, head_dim, value_dim: item * PAGE * n_kv * (head_dim + v_dim(value_dim)), lambda head_dim: 4 * v_dim(head_dim), _lay_out,
                  one, several, append_key, append_value, dots)


F16, F32 = _kv_type("f16", load_f16x16, 2), _kv_type("f32", load_f32x16, 4)
