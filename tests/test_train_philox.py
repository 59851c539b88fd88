"""Training's random numbers: the published generator, and each a function of its place alone."""
from __future__ import annotations

import numpy as np
import pytest
from llamina.engine.train import philox
from naive_philox import philox4x32_10

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
"""Random123's kat_vectors for philox4x32, 10 rounds."""


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(map(int, philox.philox4x32(np.array([counter], np.uint32), key)[0])) == expected
    assert philox4x32_10(counter, key) == expected


def test_many_equal_one_by_one() -> None:
    """Rows longer than a piece, sites and seeds beyond 32 bits, against plain integers."""
    seed, step, site = (7 << 40) + 3, 5, "blk.0.attn_q.weight"
    found = philox.rows_of_words(seed, step, site, 1 << 20, 3, 10)
    import zlib
    for row in range(3):
        for column in range(10):
            counter = (column // 4, (1 << 20) + row, step, zlib.crc32(site.encode()))
            assert found[row, column] == philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))[column % 4]
    wide = philox.words(1, 2, "x", 3, 4 * philox._PIECE + 7)
    assert np.array_equal(wide[-3:], philox.rows_of_words(1, 2, "x", 3, 1, 4 * philox._PIECE + 7)[0, -3:])
    assert len(np.unique(wide)) > len(wide) * 0.999


def test_dropout_depends_on_the_token_alone() -> None:
    whole = philox.dropout_mask(3, 9, "a", 100, 50, 33, 0.25)
    assert whole.dtype == np.float32 and whole.shape == (50, 33)
    assert set(np.unique(whole)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((whole == 0).mean() - 0.25) < 0.04
    pieces = [philox.dropout_mask(3, 9, "a", 100 + at, n, 33, 0.25) for at, n in ((0, 1), (1, 20), (21, 29))]
    assert np.array_equal(whole, np.concatenate(pieces))
    for other in ((4, 9, "a"), (3, 10, "a"), (3, 9, "b")):
        assert not np.array_equal(whole, philox.dropout_mask(*other, 100, 50, 33, 0.25))
    assert (philox.dropout_mask(3, 9, "a", 0, 4, 5, 0.0) == 1).all()


def test_shuffles_are_permutations() -> None:
    found = philox.permutation(1, 0, 1000)
    assert sorted(found) == list(range(1000)) and not np.array_equal(found, np.arange(1000))
    assert np.array_equal(found, philox.permutation(1, 0, 1000)) and not np.array_equal(found, philox.permutation(1, 1, 1000))
    first = [int(philox.permutation(seed, 0, 4)[0]) for seed in range(400)]
    assert min(first.count(i) for i in range(4)) > 60, "each row comes first about as often"


def test_initial_a() -> None:
    a = philox.initial_a(0, "blk.0.ffn_up.weight", 8, 100)
    assert a.shape == (8, 100) and a.dtype == np.float32
    assert np.abs(a).max() <= 0.1 and abs(a.mean()) < 0.01 and abs(a.std() - 0.1 / 3 ** 0.5) < 0.005
    assert not np.array_equal(a, philox.initial_a(0, "blk.1.ffn_up.weight", 8, 100))
