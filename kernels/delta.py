"""The gated delta rule (Yang, Kautz and Hatamizadeh, arXiv 2412.06464): a head's matrix S [keys, values] over a sequence's tokens, one after the other.

    r = S'k, p = S'q  (chains over the keys d = 0, 1, …)     e = beta (v - g r)     o = fma(e, k.q, g p)     S[d] = fma(k[d], e, g S[d])

The new S is in o only as g S'q + e (k.q), so a token passes S twice: once reading, once writing; and while it writes for one token, it reads for the next.
A lane is a value, and nothing is summed across lanes but a head's k.q and lengths: the bits don't depend on how heads, values or tokens are divided.
A piece of work is 64 values of a head, whose part of S is float32 [keys, 64] in one piece of memory.
"""
from __future__ import annotations

import numpy as np

from .conv import END, M0, N_SEGMENTS, READ, SEGMENTS, WRITE
from .deferred import jit
from .simd import (
    fma,
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    splat_load_f32,
    store_f32,
    store_f32x16,
    vmax,
    vsum,
)
from .vecmath import vabs, vexp

TOKENS = 16
"""Tokens whose gates and keys are prepared together: their gates fill a vector."""
BLOCK = 64
"""Values of a piece of work."""
EPS = np.float32(1e-6)  # of the lengths of queries and keys, as in transformers and FLA
_GATES = 4 * 16 * 4  # g, beta, k.q of TOKENS, and room for a vector


def scratch_bytes(key_dim: int) -> int:
    """Of a thread: gates, keys and queries of TOKENS."""
    return _GATES + 2 * TOKENS * 4 * (-(-key_dim // 16) * 16)


@jit
def vsoftplus(x):
    """log(1 + exp(x)) of f32x16: max(x, 0) + log1p(t), t = exp(-|x|); log1p(t) = 2 s (1 + s^2 / 3 + s^4 / 5 + …), s = t / (2 + t) <= 1 / 3, to s^16."""
    t = vexp(splat_f32(0.0) - vabs(x))
    s = t / (splat_f32(2.0) + t)
    z = s * s
    p = splat_f32(1.0 / 17)
    p = fma(p, z, splat_f32(1.0 / 15))
    p = fma(p, z, splat_f32(1.0 / 13))
    p = fma(p, z, splat_f32(1.0 / 11))
    p = fma(p, z, splat_f32(1.0 / 9))
    p = fma(p, z, splat_f32(1.0 / 7))
    p = fma(p, z, splat_f32(1.0 / 5))
    p = fma(p, z, splat_f32(1.0 / 3))
    p = fma(p, z, splat_f32(1.0))
    return fma(s + s, p, vmax(x, splat_f32(0.0)))


@jit
def gates(alpha, beta, ld, n, dt, a, out):
    """g = exp(a softplus(alpha + dt)), beta = 1 / (1 + exp(-beta)) of n <= TOKENS tokens, a lane each: out float32 [2, 16]. alpha, beta: of the first token,
    ld floats from one to the next. -> not finite inputs leave NaN."""
    for i in range(TOKENS):
        store_f32(out + 4 * i, load_f32(alpha + 4 * i * ld) if i < n else np.float32(0.0))
        store_f32(out + 64 + 4 * i, load_f32(beta + 4 * i * ld) if i < n else np.float32(0.0))
    x, b = load_f32x16(out) + splat_f32(dt), load_f32x16(out + 64)
    one, zero = splat_f32(1.0), splat_f32(0.0)
    store_f32x16(out, vexp(splat_f32(a) * vsoftplus(x)) + (x - x))
    store_f32x16(out + 64, one / (one + vexp(zero - b)) + (b - b))


@jit
def unit_row(x, n, factor, out):
    """out = x / |x| [* factor], n numbers, padded with zeros to a multiple of 16: (x * (1 / sqrt(sum of squares + EPS))) * factor."""
    squares = splat_f32(0.0)
    for d in range(0, n, 16):
        v = keep_first(load_f32x16(x + 4 * d), n - d, np.float32(0.0))
        squares = fma(v, v, squares)
    r, f = splat_f32(np.float32(1.0) / np.sqrt(vsum(squares) + EPS)), splat_f32(factor)
    for d in range(0, n, 16):
        store_f32x16(out + 4 * d, keep_first(load_f32x16(x + 4 * d), n - d, np.float32(0.0)) * r * f)


@jit
def _dot(a, b, n):
    total = splat_f32(0.0)
    for d in range(0, n, 16):
        total = fma(load_f32x16(a + 4 * d), load_f32x16(b + 4 * d), total)
    return vsum(total)


@jit
def some_values(v, n):
    """16 values of a row with n left; zeros past its end."""
    if n <= 0:
        return splat_f32(0.0)
    return keep_first(load_f32x16(v), n, np.float32(0.0))


@jit
def put_values(out, n, value, room):
    """Write the first n of 16 lanes: another thread may write what follows."""
    if n >= 16:
        store_f32x16(out, value)
    elif n > 0:
        store_f32x16(room, value)
        for i in range(n):
            store_f32(out + 4 * i, load_f32(room + 4 * i))


@jit
def _tokens(read, write, n, keys, key_dim, ld_key, scratch, values, ld_values, left, out, ld_out):
    """n <= TOKENS tokens whose gates, keys and queries are in scratch: `read` before them, `write` after them (or the same); `left`: values from here to the
    head's end."""
    queries, zero = keys + 4 * TOKENS * ld_key, splat_f32(0.0)
    r0 = r1 = r2 = r3 = p0 = p1 = p2 = p3 = zero
    for d in range(key_dim):
        k, q, s = splat_load_f32(keys + 4 * d), splat_load_f32(queries + 4 * d), read + 256 * d
        s0, s1, s2, s3 = load_f32x16(s), load_f32x16(s + 64), load_f32x16(s + 128), load_f32x16(s + 192)
        r0, r1, r2, r3 = fma(s0, k, r0), fma(s1, k, r1), fma(s2, k, r2), fma(s3, k, r3)
        p0, p1, p2, p3 = fma(s0, q, p0), fma(s1, q, p1), fma(s2, q, p2), fma(s3, q, p3)
    for t in range(n):
        g, beta, kq = splat_load_f32(scratch + 4 * t), splat_load_f32(scratch + 64 + 4 * t), splat_load_f32(scratch + 128 + 4 * t)
        v, o, less = values + 4 * t * ld_values, out + 4 * t * ld_out, zero - g
        e0, e1 = beta * fma(less, r0, some_values(v, left)), beta * fma(less, r1, some_values(v + 64, left - 16))
        e2, e3 = beta * fma(less, r2, some_values(v + 128, left - 32)), beta * fma(less, r3, some_values(v + 192, left - 48))
        put_values(o, left, fma(e0, kq, g * p0), scratch + 192)
        put_values(o + 64, left - 16, fma(e1, kq, g * p1), scratch + 192)
        put_values(o + 128, left - 32, fma(e2, kq, g * p2), scratch + 192)
        put_values(o + 192, left - 48, fma(e3, kq, g * p3), scratch + 192)
        now, following = keys + 4 * t * ld_key, keys + 4 * (t + 1) * ld_key
        if t + 1 < n:
            next_queries = queries + 4 * (t + 1) * ld_key
            r0 = r1 = r2 = r3 = p0 = p1 = p2 = p3 = zero
            for d in range(key_dim):
                k, s, w = splat_load_f32(now + 4 * d), read + 256 * d, write + 256 * d
                s0, s1 = fma(k, e0, g * load_f32x16(s)), fma(k, e1, g * load_f32x16(s + 64))
                s2, s3 = fma(k, e2, g * load_f32x16(s + 128)), fma(k, e3, g * load_f32x16(s + 192))
                store_f32x16(w, s0)
                store_f32x16(w + 64, s1)
                store_f32x16(w + 128, s2)
                store_f32x16(w + 192, s3)
                k, q = splat_load_f32(following + 4 * d), splat_load_f32(next_queries + 4 * d)
                r0, r1, r2, r3 = fma(s0, k, r0), fma(s1, k, r1), fma(s2, k, r2), fma(s3, k, r3)
                p0, p1, p2, p3 = fma(s0, q, p0), fma(s1, q, p1), fma(s2, q, p2), fma(s3, q, p3)
        else:
            for d in range(key_dim):
                k, s, w = splat_load_f32(now + 4 * d), read + 256 * d, write + 256 * d
                store_f32x16(w, fma(k, e0, g * load_f32x16(s)))
                store_f32x16(w + 64, fma(k, e1, g * load_f32x16(s + 64)))
                store_f32x16(w + 128, fma(k, e2, g * load_f32x16(s + 128)))
                store_f32x16(w + 192, fma(k, e3, g * load_f32x16(s + 192)))
        read = write


@jit
def scan(feed, offset, query, key, values, alpha, beta, ld, dt, a, key_dim, factor, left, out, ld_out, scratch):
    """A piece of work over all tokens of a feed (conv.py), and the states it is to write. query, key, values, alpha, beta: addresses in the first row of the
    buffer, ld floats from row to row; out: in the first row of the results. left: values from the piece's first to the head's end."""
    m, read, segments = load_i64(feed + M0), load_i64(feed + READ), load_i64(feed + SEGMENTS)
    ld_key = (key_dim + 15) // 16 * 16
    keys, queries = scratch + _GATES, scratch + _GATES + 4 * TOKENS * ld_key
    if read != 0:
        read += offset
    for s in range(load_i64(feed + N_SEGMENTS)):
        end, write = load_i64(segments + 16 * s + END), load_i64(segments + 16 * s + WRITE) + offset
        if read == 0:
            for i in range(0, 256 * key_dim, 64):
                store_f32x16(write + i, splat_f32(0.0))
            read = write
        while m < end:
            n = min(TOKENS, end - m)
            row = 4 * m * ld
            gates(alpha + row, beta + row, ld, n, dt, a, scratch)
            for t in range(n):
                unit_row(key + row + 4 * t * ld, key_dim, np.float32(1.0), keys + 4 * t * ld_key)
                unit_row(query + row + 4 * t * ld, key_dim, factor, queries + 4 * t * ld_key)
                store_f32(scratch + 128 + 4 * t, _dot(keys + 4 * t * ld_key, queries + 4 * t * ld_key, key_dim))
            _tokens(read, write, n, keys, key_dim, ld_key, scratch, values + row, ld, left, out + 4 * m * ld_out, ld_out)
            read, m = write, m + n
        read = write
