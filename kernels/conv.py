"""Short causal convolutions, channel by channel, over a sequence's tokens and the few before them that its state keeps.

    y[t] = sum over j of w[j] * u[t - taps + 1 + j]          oldest first: acc = fma(w[j], u, acc) from 0

A *feed* is the tokens of one sequence in a step: rows [M0, M1) of the buffers, READ, the address of its state before them (0: it begins here), and the states
to write: for each of its SEGMENTS (END, WRITE), the state after row END - 1. A state keeps the last taps - 1 inputs, float32 [taps - 1, ld], oldest first.
One lane is one channel, and nothing is summed across lanes: the bits don't depend on how channels or tokens are divided.
"""
from __future__ import annotations

import numpy as np

from .deferred import jit
from .simd import fma, keep_first, load_f32x16, load_i64, splat_f32, store_f32x16
from .vecmath import vexp

(M0, M1, READ, SEGMENTS, N_SEGMENTS) = range(0, 8 * 5, 8)
FEED_WORDS = 5
(END, WRITE) = range(0, 16, 8)
SEGMENT_WORDS = 2


@jit
def _gated_input(rows, ld, channels, m, c):
    """u = b * x of a row [b | c | x]."""
    row = rows + 4 * (m * ld + c)
    return keep_first(load_f32x16(row) * load_f32x16(row + 8 * channels), channels - c, np.float32(0.0))


@jit
def _kept(read, ld, i):
    """Row i of a state; zeros where a text begins."""
    if read == 0:
        return splat_f32(0.0)
    return load_f32x16(read + 4 * i * ld)


@jit
def gated_conv(feed, offset, rows, ld, channels, taps, kernel, ld_state, out, ld_out, c0, c1):
    """out = c * conv(b * x) for channels [c0, c1), c0 a multiple of 16. rows: float32 [tokens, ld] = [b | c | x], each of `channels`; kernel: float32
    [taps, ld_state]; offset: of this layer in a state. Columns up to the next multiple of 16 become zero. (LFM2, 2025.)"""
    m0, m1, read, keep = load_i64(feed + M0), load_i64(feed + M1), load_i64(feed + READ), taps - 1
    segments, n_segments = load_i64(feed + SEGMENTS), load_i64(feed + N_SEGMENTS)
    for c in range(c0, c1, 16):
        old = read + offset + 4 * c if read != 0 else 0
        for m in range(m0, m1):
            acc = splat_f32(0.0)
            for j in range(taps):
                i = m - keep + j
                u = _gated_input(rows, ld, channels, i, c) if i >= m0 else _kept(old, ld_state, i - m0 + keep)
                acc = fma(load_f32x16(kernel + 4 * (j * ld_state + c)), u, acc)
            gate = keep_first(load_f32x16(rows + 4 * (m * ld + channels + c)), channels - c, np.float32(0.0))
            store_f32x16(out + 4 * (m * ld_out + c), gate * acc)
        for s in range(n_segments):
            end, write = load_i64(segments + 16 * s + END), load_i64(segments + 16 * s + WRITE) + offset + 4 * c
            for j in range(keep):
                i = end - keep + j
                u = _gated_input(rows, ld, channels, i, c) if i >= m0 else _kept(old, ld_state, i - m0 + keep)
                store_f32x16(write + 4 * j * ld_state, u)


@jit
def silu_conv(feed, offset, rows, ld, taps, kernel, bias, ld_state, c0, c1):
    """rows = silu(conv(rows)) in place for columns [c0, c1), multiples of 16; the last token first, as each needs those before it. bias:
    address of what the sum begins with, a number a channel, or 0."""
    m0, m1, read, keep = load_i64(feed + M0), load_i64(feed + M1), load_i64(feed + READ), taps - 1
    segments, n_segments = load_i64(feed + SEGMENTS), load_i64(feed + N_SEGMENTS)
    one, zero = splat_f32(1.0), splat_f32(0.0)
    for c in range(c0, c1, 16):
        old = read + offset + 4 * c if read != 0 else 0
        for s in range(n_segments):
            end, write = load_i64(segments + 16 * s + END), load_i64(segments + 16 * s + WRITE) + offset + 4 * c
            for j in range(keep):
                i = end - keep + j
                u = load_f32x16(rows + 4 * (i * ld + c)) if i >= m0 else _kept(old, ld_state, i - m0 + keep)
                store_f32x16(write + 4 * j * ld_state, u)
        for back in range(m1 - m0):
            m, acc = m1 - 1 - back, splat_f32(0.0)
            if bias != 0:
                acc = load_f32x16(bias + 4 * c)
            for j in range(taps):
                i = m - keep + j
                u = load_f32x16(rows + 4 * (i * ld + c)) if i >= m0 else _kept(old, ld_state, i - m0 + keep)
                acc = fma(load_f32x16(kernel + 4 * (j * ld_state + c)), u, acc)
            store_f32x16(rows + 4 * (m * ld + c), acc / (one + vexp(zero - acc)))
