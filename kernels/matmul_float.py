"""The matmul of float formats (F32, F16, BF16) on float32 activations: per output one fma chain over the columns, in order.

    few tokens:   1 token x 8 tiles, 4 x 2, 8 x 1: enough independent chains to hide the latency of fma
    many tokens:  for 8 tiles and 256 tokens:  for 128 columns:  for 2 of the tiles:  widen into a buffer that stays in L1
                                                                 ─►  for each group of 8 tokens: 16 chains go on for 128 columns

Between chunks of columns the chains wait in a packed buffer, as in matmul_many.py. Which loop an output goes through never enters its chain.
"""
from __future__ import annotations

from .deferred import jit
from .matmul import ROWS, TILES_A_GROUP
from .simd import fma, get_f32, load_f32x16, put_f32, splat_f32, splat_load_f32, stack_vectors, store_f32x16
from .target import TARGET

ENOUGH = 32
"""Tokens from which widening the weights once for all of them is faster."""
M, T = (8, 2) if TARGET in ("avx512vnni", "avx512") else (4, 1)
"""Tokens and tiles whose chains the registers hold: 16 vectors of 32 registers, or 4, each in two or four of 16."""
CHUNK, GROUPS, TILES = 128, 256 // M, 8
_TOGETHER, _WIDENED, _CHAINS = M * T, CHUNK * T, M * GROUPS * TILES


def _few_tokens(load16, item_bytes: int, M: int, T: int):
    """T tiles x M tokens, all columns."""
    chains = M * T

    @jit
    def body(w, columns, x, ldx, out, ldo):
        acc = stack_vectors(chains)
        tile_bytes = columns * ROWS * item_bytes
        for i in range(chains):
            put_f32(acc, i, splat_f32(0.0))
        for _ in range(columns):
            for t in range(T):
                weight = load16(w + t * tile_bytes)
                for m in range(M):
                    i = t * M + m
                    put_f32(acc, i, fma(weight, splat_load_f32(x + 4 * m * ldx), get_f32(acc, i)))
            w += ROWS * item_bytes
            x += 4
        for t in range(T):
            for m in range(M):
                store_f32x16(out + 4 * (m * ldo + t * ROWS), get_f32(acc, t * M + m))
    return body


@jit
def _go_on(widened, columns, x, ldx, chains):
    """M x T chains, at `chains`, for so many columns of T tiles side by side."""
    acc = stack_vectors(_TOGETHER)
    for i in range(_TOGETHER):
        put_f32(acc, i, load_f32x16(chains + 64 * i))
    for _ in range(columns):
        for m in range(M):
            a = splat_load_f32(x + 4 * m * ldx)
            for t in range(T):
                i = t * M + m
                put_f32(acc, i, fma(load_f32x16(widened + 64 * t), a, get_f32(acc, i)))
        widened += 64 * T
        x += 4
    for i in range(_TOGETHER):
        store_f32x16(chains + 64 * i, get_f32(acc, i))


def _many_tokens(load16, item_bytes: int):
    """(w, columns, tile0, tile1, x, ldx, out, ldo, groups): whole groups of M tokens."""
    vector_bytes = ROWS * item_bytes

    @jit
    def some_tiles(w, columns, tiles, x, ldx, out, ldo, groups):
        widened, chains = stack_vectors(_WIDENED), stack_vectors(_CHAINS)
        sets = (tiles + T - 1) // T
        for i in range(_TOGETHER * groups * sets):
            store_f32x16(chains + 64 * i, splat_f32(0.0))
        for first in range(0, columns, CHUNK):
            n = min(CHUNK, columns - first)
            for s in range(sets):
                for t in range(T):
                    source = w + (min(s * T + t, tiles - 1) * columns + first) * vector_bytes
                    for c in range(n):
                        store_f32x16(widened + 64 * (T * c + t), load16(source + vector_bytes * c))
                for g in range(groups):
                    _go_on(widened, n, x + 4 * (M * g * ldx + first), ldx, chains + 64 * _TOGETHER * (groups * s + g))
        for m in range(M * groups):
            for t in range(tiles):
                at = chains + 64 * (_TOGETHER * (groups * (t // T) + m // M) + M * (t % T) + m % M)
                store_f32x16(out + 4 * m * ldo + 64 * t, load_f32x16(at))

    @jit
    def many(w, columns, tile0, tile1, x, ldx, out, ldo, groups):
        for g in range(0, groups, GROUPS):
            for t in range(tile0, tile1, TILES):
                some_tiles(w + t * columns * vector_bytes, columns, min(TILES, tile1 - t), x + 4 * M * g * ldx, ldx, out + 64 * t + 4 * M * g * ldo, ldo,
                           min(GROUPS, groups - g))
    return many


def float_kernel(load16, item_bytes: int):
    """The kernel of a float format, same signature as `block_kernel`'s; x: address of float32 [tokens, ldx] activations, as they are."""
    one_8, one, four, eight = (_few_tokens(load16, item_bytes, M, T) for M, T in ((1, 8), (1, 1), (4, 2), (8, 1)))
    many = _many_tokens(load16, item_bytes)

    def kernel(w, columns, tile0, tile1, x, ldx, out, ldo, tokens):
        row_bytes = columns * ROWS * item_bytes
        if tokens >= ENOUGH:
            groups = tokens // M
            many(w, columns, tile0, tile1, x, ldx, out, ldo, groups)
            tokens -= groups * M
            x += 4 * groups * M * ldx
            out += 4 * groups * M * ldo
        for t0 in range(tile0, tile1, TILES_A_GROUP):
            t1 = min(t0 + TILES_A_GROUP, tile1)
            m = 0
            while m < tokens:
                xm, n, t = x + 4 * m * ldx, 1, t0
                if tokens - m >= 8:
                    n = 8
                elif tokens - m >= 4:
                    n = 4
                while t < t1:
                    p, o, done = w + t * row_bytes, out + 4 * (ROWS * t + m * ldo), 1
                    if n == 8:
                        eight(p, columns, xm, ldx, o, ldo)
                    elif n == 4 and t1 - t >= 2:
                        four(p, columns, xm, ldx, o, ldo)
                        done = 2
                    elif n == 1 and t1 - t == 8:
                        one_8(p, columns, xm, ldx, o, ldo)
                        done = 8
                    else:
                        for i in range(n):
                            one(p, columns, xm + 4 * i * ldx, ldx, o + 4 * i * ldo, ldo)
                    t += done
                m += n
    return kernel
