"""Block formats: the table, the reference decoders bit for bit against the gguf package, and retiling."""
from __future__ import annotations

from typing import Any

import gguf
import kernel_calls as kernels
import numpy as np
import pytest
import targets
from llamina.kernels.formats import registry, untile
from llamina.kernels.formats.rows import decoder
from llamina.kernels.formats.table import BY_ID, FORMATS, REMOVED, RUNNABLE
from naive_kernels import HALVES, ITEM, block_shape, random_rows, reference

f32 = np.float32
NAMES = targets.formats()
COMPILED = [n for n in sorted(RUNNABLE) if decoder(n)]
WITH_HALVES = [n for n in NAMES if HALVES.get(n)]


def columns_of(name, blocks=2):
    return 21 * blocks if name in ITEM else block_shape(name)[0] * blocks


# -- the table --------------------------------------------------------------------------------------------------------------------------------

def test_table_is_ggmls():
    ours = {f.name: (f.ggml_id, f.columns, f.bytes) for f in FORMATS.values()}
    theirs = {kind.name: (int(kind), *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    del ours["Q8_1"], theirs["Q8_1"]  # llama.cpp's own scratch format, in no file: 36 bytes in ggml-common.h, 40 in the gguf package
    assert len(set(ours) & set(theirs)) > 28
    assert {n: v for n, v in ours.items() if n in theirs} == {n: theirs[n] for n in ours if n in theirs}
    assert max(i for i, _, _ in ours.values()) < min([theirs[n][0] for n in set(theirs) - set(ours)], default=1000), "an old format is missing"
    assert all(BY_ID[f.ggml_id] is f for f in FORMATS.values()) and not set(BY_ID) & set(REMOVED)


def test_runnable_formats_are_those_with_kernels():
    found = set()
    for name in FORMATS:
        try:
            packing: Any = registry.packing(name)
        except KeyError:
            continue
        found.add(name)
        assert packing.name == name
        if not registry.takes_floats(name):
            assert (packing.columns, packing.block_bytes) == (FORMATS[name].columns, FORMATS[name].bytes)
    assert found == RUNNABLE


# -- decoding ---------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_decode_equals_gguf(name):
    rng = np.random.default_rng(len(name))
    cases = [random_rows(name, 7, columns_of(name, 5), rng)]
    cases += [random_rows(name, 3, columns_of(name), rng, codes) for codes in (0x00, 0xFF, 0x7F, 0x80, 0x0F, 0xF0, 0x55)]
    cases += [random_rows(name, 3, columns_of(name), rng, 0xFF, scale) for scale in (1e-7, 10000.0, 0.0)]  # subnormal, large and zero scales
    for data in cases:
        data.flags.writeable = False
        got, expected = registry.decode(name, data), reference(name, data)
        assert got.dtype == f32 and got.shape == expected.shape and (got.view(np.uint32) == expected.view(np.uint32)).all()


def test_every_scale_of_mxfp4():
    data = random_rows("MXFP4", 256, 32, np.random.default_rng(6))
    data[:, 0] = np.arange(256)
    data[:, 1:] = np.arange(16) * 17
    with np.errstate(over="ignore"):
        assert (registry.decode("MXFP4", data).view(np.uint32) == reference("MXFP4", data).view(np.uint32)).all()


@pytest.mark.parametrize("name", NAMES)
def test_decode_takes_any_slice(name):
    """Rows picked out of a matrix (embedding look-up), and none at all."""
    data = random_rows(name, 6, columns_of(name), np.random.default_rng(1))
    assert (registry.decode(name, data[::2]) == reference(name, data)[::2]).all()
    assert registry.decode(name, data[[5, 0, 5]]).shape == (3, columns_of(name))


@pytest.mark.parametrize("factor", [1.0, 33.94])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_rows_are_the_decoders(name, factor):
    """Rows by their numbers, some twice, bit for bit; past a row's end nothing is written; the first row that is not finite is told."""
    columns = columns_of(name, 3)
    data = np.concatenate([random_rows(name, 9, columns, np.random.default_rng(8)),
                           *(random_rows(name, 1, columns, np.random.default_rng(c), c) for c in (0x00, 0xFF, 0x7F, 0x80, 0x0F, 0xF0))])
    ids = np.array([3, 0, 14, 9, 3, *range(len(data))])
    out = np.full((len(ids), columns + 32), 7, f32)

    compiled = decoder(name)
    assert compiled is not None

    def decode():
        return compiled.ctypes(data.ctypes.data, data.shape[1], ids.ctypes.data, len(ids), columns // FORMATS[name].columns, out.ctypes.data,
                               out.shape[1], factor)
    assert decode() == 0
    expected = registry.decode(name, data[ids]) * f32(factor)
    assert (out[:, :columns].view(np.uint32) == expected.view(np.uint32)).all() and (out[:, columns:] == 7).all()
    at = {"Q6_K": 208}.get(name, 0)
    data[9, at:at + 2] = np.array(np.inf, np.float16).reshape(1).view(np.uint8)
    assert decode() == 1 + 3


# -- retiling ---------------------------------------------------------------------------------------------------------------------------------

def unretiled(name, tiles, rows, columns):
    """The matrix as the kernel sees it, float64 [rows, columns]: one token per column, all zero but that column."""
    x = np.zeros((columns, columns), f32)
    np.fill_diagonal(x, 127)
    return kernels.matmul(name, tiles, rows, x).T.astype(np.float64) / 127


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 70])
def test_rows_land_in_their_lanes(name, rows):
    """Retiled and read back through the kernel, every weight is where it was; lanes past the last row stay zero (matmul() checks that)."""
    columns = columns_of(name, 1 if rows > 17 else 2)
    data = random_rows(name, rows, columns, np.random.default_rng(rows))
    tiles, bad = kernels.retile(name, data, columns)
    assert bad == -1
    w = reference(name, data)
    assert np.abs(unretiled(name, tiles, rows, columns) - w).max() <= 4e-7 * np.abs(w).max()


@pytest.mark.parametrize("name", NAMES)
def test_pieces_make_the_same_tiles(name):
    data = random_rows(name, 75, columns_of(name), np.random.default_rng(2))
    whole, _ = kernels.retile(name, data, columns_of(name))
    for pieces in (2, 5):
        assert (kernels.retile(name, data, columns_of(name), pieces)[0] == whole).all()


@pytest.mark.parametrize("name", NAMES)
def test_sources_may_be_read_only_and_unaligned(name, tmp_path):
    data = random_rows(name, 18, columns_of(name), np.random.default_rng(3))
    path = tmp_path / "weights"
    path.write_bytes(b"odd" + data.tobytes())
    mapped = np.memmap(path, np.uint8, mode="r", offset=3, shape=data.shape)
    assert not mapped.flags.writeable
    assert (kernels.retile(name, mapped, columns_of(name))[0] == kernels.retile(name, data, columns_of(name))[0]).all()


def non_finite(name):
    """(column of the element or offset in the block, bytes of a NaN or infinity)"""
    if name == "F32":
        return [np.array(v, f32).tobytes() for v in (np.nan, np.inf, -np.inf)] + [b"\x01\0\x80\x7f", b"\xff\xff\xff\xff"]
    if name == "BF16":
        return [b"\x80\x7f", b"\x80\xff", b"\xc0\x7f", b"\x81\x7f"]
    return [b"\x00\x7c", b"\x00\xfc", b"\x00\x7e", b"\x01\x7c", b"\xff\xff"]


@pytest.mark.parametrize("name", [*ITEM, *WITH_HALVES])
def test_non_finite_rows_are_found(name):
    """NaN or infinity in any scale or element, of the first, middle and last block, of rows in every kind of place: the row is named."""
    rows, blocks = 35, 3
    columns = columns_of(name, blocks)
    clean = random_rows(name, rows, columns, np.random.default_rng(4))
    step = ITEM[name] if name in ITEM else block_shape(name)[1]
    starts = [0, 20, columns - 1] if name in ITEM else range(blocks)
    for row in (0, 1, 15, 16, 31, 32, 34):
        for start in starts:
            for offset in HALVES.get(name, (0,)):
                for value in non_finite(name):
                    data = clean.copy()
                    at = start * step + offset
                    data[row, at:at + len(value)] = list(value)
                    assert kernels.retile(name, data, columns)[1] == row, (row, start, offset, value)
    assert kernels.retile(name, clean, columns)[1] == -1


@pytest.mark.parametrize("name", WITH_HALVES)
def test_largest_finite_scales_are_not_refused(name):
    data = random_rows(name, 20, columns_of(name), np.random.default_rng(5))
    size = block_shape(name)[1]
    for at in HALVES[name]:
        for b in range(2):
            data[:, b * size + at:b * size + at + 2] = [0xFF, 0x7B]  # 65504
    assert kernels.retile(name, data, columns_of(name))[1] == -1


def test_non_finite_scale_of_iq1_m_is_found():
    """Its f16 scale is scattered over the upper 4 bits of bytes 49, 51, 53 and 55."""
    clean = random_rows("IQ1_M", 20, 512, np.random.default_rng(7))
    assert kernels.retile("IQ1_M", clean, 512)[1] == -1
    for row, block in ((0, 0), (17, 1)):
        for nibbles in (0x7C00, 0xFC00, 0x7E00, 0x7C01):
            data = clean.copy()
            for i in range(4):
                byte = 56 * block + 49 + 2 * i
                data[row, byte] = data[row, byte] & 15 | (nibbles >> 4 * i & 15) << 4
            assert kernels.retile("IQ1_M", data, 512)[1] == row


# -- and back ---------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_rows_come_out_of_tiles_as_they_were(name):
    """Any bytes at all, rows in any order; formats that aren't REVERSIBLE do lose bits, and would be noticed here."""
    rng = np.random.default_rng(len(name))
    columns = columns_of(name, 3)
    size = FORMATS[name].row_bytes(columns)
    data = rng.integers(0, 256, (37, size), np.uint8)
    tiles = np.zeros(registry.tiled_bytes(name, 37, columns), np.uint8)
    registry.retiler(name).ctypes(data.ctypes.data, size, 37, columns // FORMATS[name].columns, 0, 3, tiles.ctypes.data)
    ids = np.array([36, 0, 15, 16, 5, 5, 31])
    try:
        same = bool((untile.Rows(name, tiles.ctypes.data, columns)[ids] == data[ids]).all())
    except ValueError:
        same = False
    assert same == (name in untile.REVERSIBLE)
