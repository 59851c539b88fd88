"""Backwards through norms and rotary positions, a token's row (or head) at a time. Sums run as in the forward norms: 16 lanes, then the fixed tree.

    RMSNorm    y = x r g:        dx = fma(x, 0 − c, (dy g) r),   c = ((r × r) × r) × (Σ (dy g) x ÷ n)
    LayerNorm  y = x̂ g + b:      dx = r × fma(x̂, 0 − b, (dy g) − a),   x̂ = (x − mean) r,  a = Σ dy g ÷ n,  b = Σ (dy g) x̂ ÷ n
    RoPE       turned by the opposite angle: da = a' c + b' s,  db = b' c − a' s
"""
from __future__ import annotations

import numpy as np

from ..attention import HEAD_DIM, NORM_EPS, NORM_LAST, Q_SCALES, ROPE_DIM, ROPE_KIND, ROPE_TABLE
from ..compile_cache import compiled
from ..deferred import jit
from ..delta import put_values
from ..elementwise import HALVES, PAIRS, rms_norm, turn
from ..norms import layer_norm, scale_row, squares_about, sum_of
from ..simd import (
    even_twice,
    fma,
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    negate_even,
    odd_twice,
    splat_f32,
    stack_vectors,
    store_f32,
    store_f32x16,
    swap_pairs,
    vsum,
)
from ..team_state import next_tile

X, GAIN, LAYER_NORM, EPS, DIM, LD, DY, DX, N_TOKENS = range(0, 72, 8)
"""Words of `norm_back`: addresses of float32 [N_TOKENS, LD] rows padded with zeros; DX goes on. EPS: float32."""
WORDS = 9


@jit
def _load(x, d, n):
    return keep_first(load_f32x16(x + 4 * d), n - d, np.float32(0.0))


@jit
def _gained(dy, gain, d, n):
    """(dy g) of 16 columns."""
    v = _load(dy, d, n)
    if gain != 0:
        v = v * load_f32x16(gain + 4 * d)
    return v


@jit
def rms_norm_back(x, gain, dy, n, eps, out, add, room):
    """out = dx, or out + dx, float32 [n] of any n; out may be dy. gain: address, or 0. Up to 15 numbers after the last are read, never used."""
    squares, both = splat_f32(0.0), splat_f32(0.0)
    for d in range(0, n, 16):
        v = _load(x, d, n)
        squares = fma(v, v, squares)
        both = fma(_gained(dy, gain, d, n), v, both)
    r = np.float32(1.0) / np.sqrt(vsum(squares) / np.float32(n) + eps)
    c, scale = splat_f32(np.float32(0.0) - r * r * r * (vsum(both) / np.float32(n))), splat_f32(r)
    for d in range(0, n, 16):
        v = fma(_load(x, d, n), c, _gained(dy, gain, d, n) * scale)
        put_values(out + 4 * d, n - d, _load(out, d, n) + v if add else v, room)


@jit
def layer_norm_back(x, gain, dy, n, eps, out, room):
    """out + dx of LayerNorm."""
    m = splat_f32(sum_of(x, n) / np.float32(n))
    r = splat_f32(np.float32(1.0) / np.sqrt(squares_about(x, m, n) / np.float32(n) + eps))
    plain, both = splat_f32(0.0), splat_f32(0.0)
    for d in range(0, n, 16):
        g = _gained(dy, gain, d, n)
        plain = plain + g
        both = fma(g, (_load(x, d, n) - m) * r, both)
    a, b = splat_f32(vsum(plain) / np.float32(n)), splat_f32(np.float32(0.0) - vsum(both) / np.float32(n))
    for d in range(0, n, 16):
        v = fma((_load(x, d, n) - m) * r, b, _gained(dy, gain, d, n) - a) * r
        put_values(out + 4 * d, n - d, _load(out, d, n) + v, room)


@compiled("int64(int64, int64, int64, int64)")
def norm_back(tid, n_threads, team, words):
    """DX += the gradient of a norm's input; the threads divide the tokens."""
    from_, to, ld, n = load_i64(words + X), load_i64(words + DX), 4 * load_i64(words + LD), load_i64(words + DIM)
    gain, dy, eps, tokens = load_i64(words + GAIN), load_i64(words + DY), load_f32(words + EPS), load_i64(words + N_TOKENS)
    room = stack_vectors(1)
    for m in range(tid * tokens // n_threads, (tid + 1) * tokens // n_threads):
        if load_i64(words + LAYER_NORM) != 0:
            layer_norm_back(from_ + m * ld, gain, dy + m * ld, n, eps, to + m * ld, room)
        else:
            rms_norm_back(from_ + m * ld, gain, dy + m * ld, n, eps, to + m * ld, True, room)
    return 0


AGAIN_X, AGAIN_GAIN, AGAIN_BIAS, AGAIN_LAYER_NORM, AGAIN_EPS, AGAIN_DIM, AGAIN_LD, AGAIN_OUT, AGAIN_TOKENS = range(0, 72, 8)
"""Words of `norm_again`: as of `norm_back`, and the address of the bias, or 0. OUT: of the normed rows."""
SOME = 8
"""Tokens that go to a thread at once."""


@compiled("int64(int64, int64, int64, int64)")
def norm_again(tid, n_threads, team, words):
    """Rows as the forward pass norms them."""
    x, out, ld, n = load_i64(words + AGAIN_X), load_i64(words + AGAIN_OUT), load_i64(words + AGAIN_LD), load_i64(words + AGAIN_DIM)
    gain, bias, eps, tokens = load_i64(words + AGAIN_GAIN), load_i64(words + AGAIN_BIAS), load_f32(words + AGAIN_EPS), load_i64(words + AGAIN_TOKENS)
    first = next_tile(team, 0, SOME)
    while first < tokens:
        for at in range(4 * ld * first, 4 * ld * min(tokens, first + SOME), 4 * ld):
            if load_i64(words + AGAIN_LAYER_NORM) != 0:
                layer_norm(x + at, gain, bias, n, ld, eps, out + at)
            else:
                rms_norm(x + at, gain, n, ld, eps, out + at)
        first = next_tile(team, 0, SOME)
    return 0


@jit
def turn_back(kind, x, rope_dim, table):
    """RoPE of a head's gradient, backwards, in place."""
    if kind == PAIRS:
        i = 0
        while i + 64 <= 4 * rope_dim:
            v, angle = load_f32x16(x + i), load_f32x16(table + i)
            store_f32x16(x + i, v * even_twice(angle) - swap_pairs(v) * negate_even(odd_twice(angle)))
            i += 64
        while i < 4 * rope_dim:
            a, b, c, s = load_f32(x + i), load_f32(x + i + 4), load_f32(table + i), load_f32(table + i + 4)
            store_f32(x + i, a * c + b * s)
            store_f32(x + i + 4, b * c - a * s)
            i += 8
    elif kind == HALVES:
        half, i = 2 * rope_dim, 0
        while i + 64 <= half:
            v, w, cosine, sine = load_f32x16(x + i), load_f32x16(x + half + i), load_f32x16(table + i), load_f32x16(table + half + i)
            store_f32x16(x + i, v * cosine + w * sine)
            store_f32x16(x + half + i, w * cosine - v * sine)
            i += 64
        while i < half:
            a, b, c, s = load_f32(x + i), load_f32(x + half + i), load_f32(table + i), load_f32(table + half + i)
            store_f32(x + i, a * c + b * s)
            store_f32(x + half + i, b * c - a * s)
            i += 4


GEOMETRY, HEADS_X, HEADS_GAIN, HEADS, HEADS_LD, HEADS_D, HEADS_TOKENS, HEADS_POSITIONS, IS_QUERY, HEADS_ROOM, WHOLE, WHOLE_EPS = range(0, 96, 8)
"""Words of `heads_back`. GEOMETRY: of attention (kernels/attention.py). HEADS_X: rows before norm and positions, or 0 if there is no norm. HEADS_D: gradients
of the turned rows, in place. HEADS_POSITIONS: int64 [tokens]. HEADS_ROOM: 4 * (head_dim + 32) bytes a thread, 64-byte aligned. WHOLE: width of a norm of whole
projections, or 0; WHOLE_EPS: its, float32."""
HEADS_WORDS = 12


@compiled("int64(int64, int64, int64, int64)")
def heads_back(tid, n_threads, team, words):
    """Gradients of queries or keys after their positions become those of the projection's rows: position factor, norm and RoPE, last first."""
    geometry, x, gain = load_i64(words + GEOMETRY), load_i64(words + HEADS_X), load_i64(words + HEADS_GAIN)
    heads, ld, d0, tokens = load_i64(words + HEADS), 4 * load_i64(words + HEADS_LD), load_i64(words + HEADS_D), load_i64(words + HEADS_TOKENS)
    head_dim, kind = load_i64(geometry + HEAD_DIM), load_i64(geometry + ROPE_KIND)
    rope_dim, table = load_i64(geometry + ROPE_DIM), load_i64(geometry + ROPE_TABLE)
    factors = load_i64(geometry + Q_SCALES) if load_i64(words + IS_QUERY) != 0 else 0
    eps, last, whole = load_f32(geometry + NORM_EPS), load_i64(geometry + NORM_LAST) != 0, load_i64(words + WHOLE)
    room = stack_vectors(1)
    row = load_i64(words + HEADS_ROOM) + tid * (4 * head_dim + 128)
    for m in range(tid * tokens // n_threads, (tid + 1) * tokens // n_threads):
        position = load_i64(load_i64(words + HEADS_POSITIONS) + 8 * m)
        angles = table + 4 * position * rope_dim
        if factors != 0:
            scale_row(d0 + m * ld, load_f32(factors + 4 * position), ld // 4)
        for head in range(heads):
            d, before = d0 + m * ld + 4 * head * head_dim, x + m * ld + 4 * head * head_dim
            if gain != 0 and last and whole == 0:
                for i in range(0, 4 * head_dim, 4):
                    store_f32(row + i, load_f32(before + i))
                turn(kind, row, head_dim, rope_dim, angles)
                rms_norm_back(row, gain, d, head_dim, eps, d, False, room)
            turn_back(kind, d, rope_dim, angles)
            if gain != 0 and not last and whole == 0:
                rms_norm_back(before, gain, d, head_dim, eps, d, False, room)
        if whole != 0:
            rms_norm_back(x + m * ld, gain, d0 + m * ld, whole, load_f32(words + WHOLE_EPS), d0 + m * ld, False, room)
    return 0
