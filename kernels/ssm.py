"""The state space of Mamba-2 (Dao and Gu, arXiv 2405.21060): a head's matrix S [state, values] over a sequence's tokens, one after the other.

    step = softplus(dt + bias)     g = exp(a step)     u = step x     S[n] = fma(B[n], u, g S[n])     y = fma chain over n = 0, 1, … of S[n] C[n]
    o = fma(d, x, y)

A lane is a value, and nothing is summed across lanes: the bits don't depend on how heads, values or tokens are divided. A piece of work is 64 values of a head,
whose part of S is float32 [state, 64] in one piece of memory, which a token passes once.
"""
from __future__ import annotations

import numpy as np

from .conv import END, M0, N_SEGMENTS, READ, SEGMENTS, WRITE
from .deferred import jit
from .delta import BLOCK, TOKENS, put_values, some_values, vsoftplus
from .simd import fma, load_f32, load_f32x16, load_i64, splat_f32, splat_load_f32, store_f32, store_f32x16
from .vecmath import vexp

__all__ = ["BLOCK", "SCRATCH", "scan"]

SCRATCH = 3 * 64
"""Bytes of a thread: step sizes and decays of TOKENS, and room for a vector."""


@jit
def _steps(dt, ld, n, bias, a, out):
    """step = softplus(dt + bias), g = exp(a step) of n <= TOKENS tokens, a lane each: out float32 [2, 16]. dt: of the first token, ld floats from one to the
    next. -> not finite inputs leave NaN."""
    for i in range(TOKENS):
        store_f32(out + 4 * i, load_f32(dt + 4 * i * ld) if i < n else np.float32(0.0))
    x = load_f32x16(out) + splat_f32(bias)
    step = vsoftplus(x) + (x - x)
    store_f32x16(out, step)
    store_f32x16(out + 64, vexp(splat_f32(a) * step) + (x - x))


@jit
def _token(read, write, step, g, x, b, c, n_state, d, left, out, room):
    """One token's values from x on, of which `left` are the head's: `read` before it, `write` after it (or the same)."""
    x0, x1, x2, x3 = some_values(x, left), some_values(x + 64, left - 16), some_values(x + 128, left - 32), some_values(x + 192, left - 48)
    u0, u1, u2, u3 = step * x0, step * x1, step * x2, step * x3
    y0 = y1 = y2 = y3 = splat_f32(0.0)
    for n in range(n_state):
        bn, cn, s, w = splat_load_f32(b + 4 * n), splat_load_f32(c + 4 * n), read + 256 * n, write + 256 * n
        s0, s1 = fma(bn, u0, g * load_f32x16(s)), fma(bn, u1, g * load_f32x16(s + 64))
        s2, s3 = fma(bn, u2, g * load_f32x16(s + 128)), fma(bn, u3, g * load_f32x16(s + 192))
        store_f32x16(w, s0)
        store_f32x16(w + 64, s1)
        store_f32x16(w + 128, s2)
        store_f32x16(w + 192, s3)
        y0, y1, y2, y3 = fma(s0, cn, y0), fma(s1, cn, y1), fma(s2, cn, y2), fma(s3, cn, y3)
    skip = splat_f32(d)
    put_values(out, left, fma(skip, x0, y0), room)
    put_values(out + 64, left - 16, fma(skip, x1, y1), room)
    put_values(out + 128, left - 32, fma(skip, x2, y2), room)
    put_values(out + 192, left - 48, fma(skip, x3, y3), room)


@jit
def scan(feed, offset, x, b, c, dt, ld, bias, a, d, n_state, left, out, ld_out, scratch):
    """A piece of work over all tokens of a feed (conv.py), and the states it is to write. x, b, c, dt: addresses in the first row of the buffer, ld floats from
    row to row; out: in the first row of the results. left: values from the piece's first to the head's end."""
    m, read, segments = load_i64(feed + M0), load_i64(feed + READ), load_i64(feed + SEGMENTS)
    if read != 0:
        read += offset
    for s in range(load_i64(feed + N_SEGMENTS)):
        end, write = load_i64(segments + 16 * s + END), load_i64(segments + 16 * s + WRITE) + offset
        if read == 0:
            for i in range(0, 256 * n_state, 64):
                store_f32x16(write + i, splat_f32(0.0))
            read = write
        while m < end:
            n = min(TOKENS, end - m)
            _steps(dt + 4 * m * ld, ld, n, bias, a, scratch)
            for t in range(n):
                row = 4 * (m + t) * ld
                _token(read, write, splat_load_f32(scratch + 4 * t), splat_load_f32(scratch + 64 + 4 * t), x + row, b + row, c + row, n_state, d, left,
                       out + 4 * (m + t) * ld_out, scratch + 128)
                read = write
            m += n
        read = write
