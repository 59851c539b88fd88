"""The matmul of float formats (F32, F16, BF16) on float32 activations: per output one fma chain over the columns, in order.

BF16 matrices take their activations rounded to bfloat16, so that CPUs with a dot product for it (bfloat16.py) multiply two columns at once, with the
same bits. A *step* is what one instruction multiplies: a column, or two.

    for 8 tiles and up to 256 tokens:  for a chunk of columns:  copy or round the activations into a buffer
                                         for T of the tiles:    (many tokens: widen the weights into another)
                                                                ─►  for each group of M tokens: T x M chains go on, step by step

Between chunks the chains wait in a packed buffer, as in matmul_many.py. Tokens that a last group lacks are computed from zeros, and not stored. Which loop an
output goes through never enters its chain.
"""
from __future__ import annotations

from typing import Any, NamedTuple

from .deferred import jit
from .matmul import TILES_A_GROUP
from .simd import get_f32, load_f32x16, prefetch, put_f32, splat_f32, splat_load_f32, stack_vectors, store_f32x16
from .target import TARGET

ENOUGH = 96
"""Tokens from which widening the weights once for all of them is faster, and there is time to fetch the next ones meanwhile."""
M, T = (8, 2) if TARGET in ("avx512vnni", "avx512") else (4, 1)
"""Tokens and tiles whose chains the registers hold: 16 vectors of 32 registers, or 4, each in two or four of 16."""
LONE = 4
"""Tiles at once for a single token: enough independent chains to hide the latency of fma."""
TOKENS, TILES = 256, TILES_A_GROUP
AHEAD = 4096
"""Bytes from weights to the ones that are fetched into the first-level cache meanwhile, with a few tokens; for a single one the CPU knows best."""
CHUNK, LONG_CHUNK = 128, 2048
"""Steps of a chunk: of many tokens, whose widened weights stay in a first-level cache; and the most of few, since memory streams best through long pieces."""
_APART = 16
"""Activations of two tokens lie this many floats further apart than a chunk is long: else they would share the sets of a first-level cache."""
_ROOM = TOKENS * (CHUNK + _APART)


class Steps(NamedTuple):
    """How a format's kernel goes along the columns."""

    columns: int
    """Of a step: 1, or 2."""
    weight_bytes: int
    """Of 16 rows' step."""
    load: Any
    """(address) -> f32x16: 16 rows' step."""
    multiply_add: Any
    """(weights, activations, acc) -> acc, all f32x16."""
    take: Any
    """(address) -> f32x16: 16 steps' activations from float32 ones, 4 bytes a step."""


def _chains(steps: Steps, load, weight_bytes: int, M: int, T: int, ahead=False):
    """T x M chains, at `chains`, go on for n steps. Tiles after the `last` are that one again. ahead: fetch weights ahead."""
    together, multiply_add = M * T, steps.multiply_add

    @jit
    def go_on(w, tile_bytes, last, n, x, ldx, chains):
        acc = stack_vectors(together)
        for i in range(together):
            put_f32(acc, i, load_f32x16(chains + 64 * i))
        for _ in range(n):
            if ahead:
                for t in range(T):
                    prefetch(w + min(t, last) * tile_bytes + AHEAD)
            for m in range(M):
                a = splat_load_f32(x + 4 * m * ldx)
                for t in range(T):
                    i = t * M + m
                    put_f32(acc, i, multiply_add(load(w + min(t, last) * tile_bytes), a, get_f32(acc, i)))
            w += weight_bytes
            x += 4
        for i in range(together):
            store_f32x16(chains + 64 * i, get_f32(acc, i))
    return go_on


def _some_tiles(steps: Steps, M: int, T: int, most: int):
    """(w, tile_bytes, columns, tiles, x, ldx, out, ldo, tokens, many): up to TILES tiles and `most` tokens; if `many`, a multiple of M."""
    columns_a_step, bytes_a_step, load, _, take = steps
    few = _chains(steps, load, bytes_a_step, M, T, most > 1)
    widens, takes = bytes_a_step != 64 and most > 1, take is not load_f32x16
    go_on = few if most == 1 else _chains(steps, load_f32x16, 64, M, T)
    taken_vectors = (_ROOM if most > 1 else LONG_CHUNK + _APART) // 16
    widened_vectors, chain_vectors = (CHUNK * T if widens else 1), TILES * (most + M - 1) // M * M

    @jit
    def some_tiles(w, tile_bytes, columns, tiles, x, ldx, out, ldo, tokens, many):
        taken, widened, chains = stack_vectors(taken_vectors), stack_vectors(widened_vectors), stack_vectors(chain_vectors)
        n_steps, groups = (columns + columns_a_step - 1) // columns_a_step, (tokens + M - 1) // M
        chunk = CHUNK if many else min(LONG_CHUNK, (taken_vectors * 16 // (M * groups) - _APART) // 32 * 32)
        for i in range(TILES * M * groups):
            store_f32x16(chains + 64 * i, splat_f32(0.0))
        for first in range(0, n_steps, chunk):
            n, xs, ld = min(chunk, n_steps - first), x + 4 * first, ldx
            if takes or not many:
                xs, ld = taken, chunk + _APART
                for m in range(tokens):
                    source, to = x + 4 * (m * ldx + columns_a_step * first), taken + 4 * m * ld
                    for i in range(0, n, 16):
                        store_f32x16(to + 4 * i, take(source + 4 * columns_a_step * i))
                for m in range(tokens, M * groups):
                    for i in range(0, n, 16):
                        store_f32x16(taken + 4 * (m * ld + i), splat_f32(0.0))
            for t0 in range(0, tiles, T):
                last, here, apart = min(T, tiles - t0) - 1, w + t0 * tile_bytes + first * bytes_a_step, tile_bytes
                next_one = here + T * tile_bytes if t0 + T < tiles else w + (first + n) * bytes_a_step
                if widens and many:
                    for t in range(T):
                        source = here + min(t, last) * tile_bytes
                        for c in range(n):
                            store_f32x16(widened + 64 * (CHUNK * t + c), load(source + bytes_a_step * c))
                    here, apart = widened, 64 * CHUNK
                for g in range(groups):
                    at, to = xs + 4 * M * g * ld, chains + 64 * M * (TILES * g + t0)
                    if not many:
                        few(here, tile_bytes, last, n, at, ld, to)
                        continue
                    for t in range(T):
                        for i in range(g * CHUNK * bytes_a_step // groups, (g + 1) * CHUNK * bytes_a_step // groups, 64):
                            prefetch(next_one + t * tile_bytes + i)
                    go_on(here, apart, last, n, at, ld, to)
        for m in range(tokens):
            for t in range(tiles):
                store_f32x16(out + 4 * m * ldo + 64 * t, load_f32x16(chains + 64 * (M * (TILES * (m // M) + t) + m % M)))
    return some_tiles


def float_kernel(steps: Steps):
    """The kernel of a float format, same signature as `block_kernel`'s; x: address of float32 [tokens, ldx] activations, rows padded with zeros to 32."""
    lone, together = _some_tiles(steps, 1, LONE, 1), _some_tiles(steps, M, T, TOKENS)

    def kernel(w, columns, tile0, tile1, x, ldx, out, ldo, tokens):
        tile_bytes, m = (columns + steps.columns - 1) // steps.columns * steps.weight_bytes, 0
        while m < tokens:
            n = min(TOKENS, tokens - m)
            many = n >= ENOUGH
            if many:
                n -= n % M
            for t in range(tile0, tile1, TILES):
                here, xm, to, tiles = w + t * tile_bytes, x + 4 * m * ldx, out + 4 * m * ldo + 64 * t, min(TILES, tile1 - t)
                if n == 1:
                    lone(here, tile_bytes, columns, tiles, xm, ldx, to, ldo, 1, False)
                else:
                    together(here, tile_bytes, columns, tiles, xm, ldx, to, ldo, n, many)
            m += n
    return kernel
