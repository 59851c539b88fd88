"""The matmul of every format: against float64 on reference-decoded weights, bit for bit against the canonical chain, and for any batch and tile range."""
from __future__ import annotations

import functools

import kernel_calls as kernels
import numpy as np
import pytest
import targets
from llamina.kernels import matmul_float
from llamina.kernels.formats import registry
from llamina.kernels.matmul import Packing
from llamina.kernels.matmul_many import ENOUGH, GROUPS, pays
from naive_kernels import (
    ITEM,
    block_shape,
    canonical_float_matmul,
    canonical_matmul,
    canonical_quantise,
    codes_of,
    naive_bf16,
    naive_matmul,
    random_rows,
    reference,
)

f32 = np.float32
NAMES = targets.formats()
FLOATS = [n for n in NAMES if n in ITEM]
BLOCKS = [n for n in NAMES if n not in ITEM]


def activations(tokens, columns, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, columns)) * 10.0 ** rng.uniform(-2, 2, (tokens, 1))).astype(f32)


def as_used(name, x):
    """What the kernel multiplies with: float64 values of the int8 activations, or the floats themselves, rounded for BF16."""
    if name == "BF16":
        return naive_bf16(x).astype(np.float64)
    if name in ITEM:
        return x.astype(np.float64)
    return canonical_quantise(kernels.padded_rows(x)).values()[:, :x.shape[1]]


def equal(a, b):
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def canonical(name, data, x):
    if name in ITEM:
        return canonical_float_matmul(name, reference(name, data), x)
    return canonical_matmul(codes_of(name, data), canonical_quantise(x))


def check(name, data, x):
    """Against float64, within a few roundings per block; and the very bits of the canonical chain."""
    tiles, bad = kernels.retile(name, data, x.shape[1])
    assert bad == -1
    out = kernels.matmul(name, tiles, len(data), x)
    sums, bounds = naive_matmul(reference(name, data), as_used(name, x))
    assert np.isfinite(out).all() and (np.abs(out - sums) <= 2e-6 * bounds).all()
    assert equal(out, canonical(name, data, x))
    return out


@pytest.mark.parametrize("name", BLOCKS)
def test_the_naive_codes_are_right(name):
    """The twin's own unpacking against the gguf package."""
    data = random_rows(name, 3, 512, np.random.default_rng(1))
    codes = codes_of(name, data)
    w = codes.code * np.repeat(codes.scale, 32, axis=1).astype(np.float64)
    if codes.minimums is not None:
        w += np.repeat(-32 * codes.minimums, 16, axis=1) * np.repeat(codes.least, 32, axis=1)
    elif codes.least is not None:
        w += np.repeat(codes.least, 32, axis=1)
    assert np.abs(w - reference(name, data)).max() < 1e-6 * np.abs(w).max()


SHAPES = [(1, 1, 1), (15, 3, 2), (17, 1, 8), (70, 2, 5), (33, 2, 17)]
"""(rows, blocks, tokens): float matrices have 43 columns a block."""


@pytest.mark.parametrize("name", NAMES)
def test_matmul(name):
    for rows, blocks, tokens in SHAPES:
        columns = blocks * (43 if name in ITEM else block_shape(name)[0])
        check(name, random_rows(name, rows, columns, np.random.default_rng(rows)), activations(tokens, columns, rows))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("codes", [0x00, 0xFF, 0x7F, 0x80, 0x81])
def test_extreme_codes_and_activations(name, codes):
    """Codes of all-ones and all-zeros bits, 127, -128 and -127, against activations at the ends of int8, of either and of mixed sign."""
    columns = 64 if name in ITEM else max(64, block_shape(name)[0])
    data = random_rows(name, 17, columns, np.random.default_rng(codes), codes)
    x = np.ones((5, columns), f32)
    x[1] = -1
    x[2, 1::2] = -1
    x[3, columns // 2:] = -1
    x[4] = np.random.default_rng(6).choice([-1, 1], columns)
    check(name, data, x)
    check(name, data, x * f32(3e4) if name in BLOCKS else x)


@pytest.mark.parametrize("name", NAMES)
def test_one_huge_column(name):
    columns = 96 if name in ITEM else max(96, block_shape(name)[0])
    data = random_rows(name, 16, columns, np.random.default_rng(7))
    for at, value in ((0, 1e6), (31, -1e6), (32, 1e6), (columns - 1, -1e6)):
        x = activations(3, columns)
        x[1, at] = value
        check(name, data, x)


@pytest.mark.parametrize("name", BLOCKS)
def test_zero_and_tiny_blocks(name):
    """Blocks of zero weights among others; activation blocks that are zero, minus zero, or below 1e-30 add exactly nothing."""
    columns = max(128, 2 * block_shape(name)[0])
    data = random_rows(name, 20, columns, np.random.default_rng(8))
    data[3] = 0
    data[5, :block_shape(name)[1]] = 0
    x = activations(6, columns)
    x[0, 32:64], x[1, 32:64], x[2, 32:64], x[3, :32] = 0, -0.0, 5e-31, -1e-38
    if name != "MXFP4":  # whose scale is a power of two, never zero
        assert (check(name, data, x)[:, 3] == 0).all()
    tiles, _ = kernels.retile(name, data, columns)
    zeroed = x.copy()
    zeroed[:3, 32:64] = zeroed[3, :32] = 0
    assert equal(kernels.matmul(name, tiles, 20, x), kernels.matmul(name, tiles, 20, zeroed))
    for nothing in (0.0, -0.0, 9e-31, -9e-31, 1e-45):
        assert (kernels.matmul(name, tiles, 20, np.full((3, columns), nothing, f32)) == 0).all()


@pytest.mark.parametrize("name", ["F32", "F16"])
def test_float_formats_keep_small_numbers(name):
    """No flushing to zero: products of subnormal weights and activations count."""
    data = random_rows(name, 3, 40, np.random.default_rng(9), scale=1e-7 if name == "F16" else 1e-40)
    assert (reference(name, data) != 0).any()
    x = activations(2, 40)
    out = check(name, data, x)
    assert (out != 0).any()
    assert (kernels.matmul(name, kernels.retile(name, data, 40)[0], 3, np.full((1, 40), -0.0, f32)) == 0).all()


def test_bf16_knows_no_numbers_below_its_smallest():
    """What comes near subnormal products, zero to the CPU's dot product and not to fma, counts as zero; the smallest numbers that count do so fully."""
    rng = np.random.default_rng(9)
    for size in (2.0**-55, 2.0**-56, 2.0**-100, 1e-40):
        w = (rng.choice([-1, 1], (17, 41)) * rng.uniform(1, 2, (17, 41)) * size).astype(f32)
        data = (w.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        x = (rng.choice([-1, 1], (3, 41)) * rng.uniform(1, 2, (3, 41)) * np.array([[1], [2.0**-55], [size]])).astype(f32)
        tiles, _ = kernels.retile("BF16", data, 41)
        out = kernels.matmul("BF16", tiles, 17, x)
        assert equal(out, canonical("BF16", data, x)) and (out != 0).all() == (size == 2.0**-55) and (size == 2.0**-55 or (out == 0).all())
    w = np.full((1, 2), 2.0**-55, f32)  # an exact zero of two products that cancel, and the smallest difference
    x = np.array([[2.0**-55, -(2.0**-55)], [2.0**-55 * (1 + 2.0**-7), -(2.0**-55)]], f32)
    tiles, _ = kernels.retile("BF16", (w.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), 2)
    assert kernels.matmul("BF16", tiles, 1, x)[:, 0].tolist() == [0.0, 2.0**-117]


@functools.cache
def large(name):
    """(tiles, x, out) of a matrix of 19 tiles, the last with 5 rows, for 24 tokens in one call."""
    columns = 50 if name in ITEM else max(64, block_shape(name)[0])
    rows = 18 * 16 + 5
    data = random_rows(name, rows, columns, np.random.default_rng(10))
    tiles, _ = kernels.retile(name, data, columns)
    x = activations(24, columns)
    return tiles, x, kernels.matmul(name, tiles, rows, x)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_for_any_number_of_tokens(name):
    tiles, x, whole = large(name)
    for tokens in range(1, 18):
        assert equal(kernels.matmul(name, tiles, whole.shape[1], x[:tokens]), whole[:tokens]), tokens
    for first in (1, 7, 8, 13, 23):
        assert equal(kernels.matmul(name, tiles, whole.shape[1], x[first:]), whole[first:]), first


@pytest.mark.parametrize("name", [name for name in BLOCKS if isinstance(p := registry.packing(name), Packing) and pays(p)])
def test_same_bits_for_very_many_tokens(name):
    """As for 24 at a time; 281 are more than GROUPS groups, 128 the fewest that take this way."""
    tiles, _, whole = large(name)
    x = activations(8 * GROUPS + 25, max(64, block_shape(name)[0]), 3)
    out = kernels.matmul(name, tiles, whole.shape[1], x)
    for first in range(0, len(x), 24):
        assert equal(kernels.matmul(name, tiles, whole.shape[1], x[first:first + 24]), out[first:first + 24]), first
    for tokens, borders in ((ENOUGH, None), (ENOUGH + 3, [0, 7, 8, 16, 19])):
        assert equal(kernels.matmul(name, tiles, whole.shape[1], x[:tokens], borders), out[:tokens]), tokens


@pytest.mark.parametrize("name", FLOATS)
def test_same_bits_for_many_tokens_of_floats(name):
    """As for 24 at a time: several chunks of columns, an odd number of tiles, more tokens than wait for one another."""
    columns, rows = 4 * matmul_float.CHUNK + 9, 4 * 16 + 3
    tiles, _ = kernels.retile(name, random_rows(name, rows, columns, np.random.default_rng(4)), columns)
    x = activations(matmul_float.TOKENS + 11, columns, 5)
    out = kernels.matmul(name, tiles, rows, x)
    for first in range(0, len(x), 24):
        assert equal(kernels.matmul(name, tiles, rows, x[first:first + 24]), out[first:first + 24]), first
    for tokens, borders in ((matmul_float.ENOUGH, None), (matmul_float.ENOUGH + 3, [0, 1, 5])):
        assert equal(kernels.matmul(name, tiles, rows, x[:tokens], borders), out[:tokens]), tokens


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_for_any_split_into_tiles(name):
    tiles, x, whole = large(name)
    for borders in ([0, 1, 19], list(range(20)), [0, 7, 8, 16, 19], [0, 3, 3, 17, 19]):
        for tokens in (1, 4, 9):
            assert equal(kernels.matmul(name, tiles, whole.shape[1], x[:tokens], borders), whole[:tokens]), (borders, tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_does_not_see_its_neighbours(name):
    """NaN, infinity and huge values in one token leave the others' bits alone."""
    tiles, x, whole = large(name)
    for value in (np.nan, np.inf, 3e38):
        spoilt = x.copy()
        spoilt[3] = value
        out = kernels.matmul(name, tiles, whole.shape[1], spoilt)
        others = np.arange(24) != 3
        assert equal(out[others], whole[others])
