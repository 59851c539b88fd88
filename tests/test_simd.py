"""SIMD values, half precision, the byte dot product, exp, sin and cos: against definitions, on whatever target this process compiles for."""
from __future__ import annotations

import math
import os
from fractions import Fraction

import kernel_calls as kernels
import numpy as np
import pytest
from llamina.kernels.target import EMULATION, IS_X86, TARGET, choose_target, emulatable
from naive_kernels import canonical_exp, fma32, naive_bf16, naive_half, tree_sum

f32 = np.float32


def bits(x):
    return np.ascontiguousarray(x).view({4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


def same(a, b):
    """Equal bits; any NaN equals any NaN."""
    return bool(((bits(a) == bits(b)) | (np.isnan(a) & np.isnan(b))).all())


def test_target_is_the_one_asked_for():
    """test_targets.py runs this file in processes that must compile for another target."""
    assert os.environ.get("LLAMINA_TEST_TARGET", TARGET) == TARGET


@pytest.mark.parametrize("machine, features, expected", [
    ("x86_64", "avx512f avx512bw avx512vl avx512dq avx512vnni avx2 fma f16c", "avx512vnni"),
    ("x86_64", "avx512f avx512bw avx512vl avx512dq avx2 fma f16c", "avx512"),
    ("AMD64", "avx512f avx2 fma f16c", "avx2"),
    ("x86_64", "avxvnni avx2 fma f16c", "avxvnni"),
    ("x86_64", "avx2 fma", "generic"),
    ("x86_64", "", "generic"),
    ("aarch64", "dotprod neon", "neon"),
    ("arm64", "neon", "generic"),
    ("riscv64", "", "generic"),
])
def test_choice_of_target(machine, features, expected):
    assert choose_target(machine, frozenset(features.split())) == expected


def test_emulation_asks_for_what_it_names():
    for target, environment in EMULATION.items():
        features = frozenset(f[1:] for f in environment["NUMBA_CPU_FEATURES"].split(","))
        assert choose_target("x86_64", features) == target
        assert target == TARGET or not IS_X86 or target in emulatable(features)


# -- byte dot product -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("any_byte", [False, True])
def test_dot(any_byte):
    rng, top = np.random.default_rng(1), 255 if any_byte else 127
    cases = [(np.full(64, u, np.uint8), np.full(64, s, np.int8)) for u in (0, 1, 127, top) for s in (-127, -1, 0, 1, 127)]
    if any_byte:
        cases += [(np.full(64, u, np.uint8), np.full(64, 127, np.int8)) for u in (128, 129, 254)]
    alternating = np.where(np.arange(64) % 2, 127, -127).astype(np.int8)
    cases += [(np.full(64, top, np.uint8), alternating), (np.full(64, top, np.uint8), alternating[::-1].copy())]
    cases += [(rng.integers(0, top + 1, 64, dtype=np.uint8), rng.integers(-127, 128, 64).astype(np.int8)) for _ in range(100)]
    one = np.zeros(64, np.uint8)
    for i in range(64):  # every byte goes to its own lane
        one[:] = 0
        one[i] = top
        cases.append((one.copy(), rng.integers(-127, 128, 64).astype(np.int8)))
    for u, s in cases:
        for start in (0, 12345, -(1 << 20)):
            expected = start + (u.astype(np.int64) * s).reshape(16, 4).sum(axis=1)
            assert (kernels.byte_dot(u, s, start, any_byte) == expected).all(), (u, s)


def test_stores_past_the_caches():
    """All bytes, none beside them; and the instruction is the one that is there for it."""
    raw = np.full(16 * 9, 0.25, f32)
    first = -raw.ctypes.data % 64 // 4
    out, x = raw[first:first + 16 * 7], np.random.default_rng(2).standard_normal(16 * 7).astype(f32)
    code = kernels.stream(x, out)
    assert same(out, x) and (raw[:first] == 0.25).all() and (raw[first + 16 * 7:] == 0.25).all()
    assert not IS_X86 or "movntps" in code


# -- half precision ---------------------------------------------------------------------------------------------------------------------------

def test_all_halves_widen():
    halves = np.arange(65536, dtype=np.uint16)
    expected = halves.view(np.float16).astype(f32)
    assert same(kernels.widen(halves), expected)
    assert same(kernels.widen_one(halves), expected)


def test_all_bfloats_widen():
    halves = np.arange(65536, dtype=np.uint16)
    assert (bits(kernels.widen_bf16(halves)) == halves.astype(np.uint32) << 16).all()


def test_all_halves_survive_the_round_trip():
    halves = np.arange(65536, dtype=np.uint16)
    finite = halves & 0x7C00 != 0x7C00
    back = kernels.narrow(kernels.widen(halves))
    assert (back[finite] == halves[finite]).all()
    assert (back[halves & 0x7FFF == 0x7C00] == halves[halves & 0x7FFF == 0x7C00]).all()
    assert np.isnan(back[halves & 0x7FFF > 0x7C00].view(np.float16)).all()


def test_narrowing_rounds_to_nearest_even():
    """Every half, the midpoints to its neighbours, and the floats next to these: ties, subnormals, and the border of overflow (65520)."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(f32)
    middle = (halves + np.append(halves[1:], f32(65536))) / 2
    x = np.concatenate([halves, middle, np.nextafter(middle, f32(0)), np.nextafter(middle, f32(np.inf))])
    x = np.concatenate([x, -x, np.array([0.0, -0.0, 1e-45, 3e-8, 1e-30, 3e38, np.inf, -np.inf], f32)])
    x = np.append(x, np.zeros(-len(x) % 16, f32))
    with np.errstate(over="ignore"):
        assert (kernels.narrow(x) == x.astype(np.float16).view(np.uint16)).all()
    some = x[::97][:len(x) // 97 // 16 * 16]
    assert kernels.narrow(some).tolist() == [naive_half(float(v)) for v in some]


def test_narrowing_random_bits():
    x = np.random.default_rng(2).integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32).view(f32)
    x[:1 << 16] = np.random.default_rng(3).standard_normal(1 << 16) * 10.0 ** np.random.default_rng(4).uniform(-9, 5, 1 << 16)
    nan = np.isnan(x)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    got = kernels.narrow(x)
    assert (got[~nan] == expected.view(np.uint16)[~nan]).all() and np.isnan(got[nan].view(np.float16)).all()


def test_rounding_to_bfloat16():
    """Ties both ways, numbers next to them, overflow, what counts as zero, and numbers that are none."""
    upper = np.arange(0, 1 << 16, 3, dtype=np.uint32)
    x = np.concatenate([upper << 16 | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(f32)
    x = np.append(x[np.isfinite(x)], [3.4e38, -3.4e38, 2.0**-55, -(2.0**-55), np.nextafter(f32(2.0**-55), f32(0))]).astype(f32)
    x = np.append(x, np.zeros(-len(x) % 16, f32))
    assert (bits(kernels.rounded_bf16(x)) == bits(naive_bf16(x))).all()
    special = np.array([np.inf, -np.inf, np.nan] + 13 * [0], f32)
    special[2:3].view(np.uint32)[:] = 0x7FFFFFFF  # a NaN whose bits would round to zero
    out = kernels.rounded_bf16(special)
    assert out[0] == np.inf and out[1] == -np.inf and np.isnan(out[2])


# -- arithmetic, sums -------------------------------------------------------------------------------------------------------------------------

def test_arithmetic_is_not_contracted():
    """a * b + 1 takes two roundings: the compiler may not make an fma of it."""
    rng = np.random.default_rng(5)
    differs = False
    for _ in range(50):
        a, b = (rng.standard_normal(16).astype(f32) for _ in range(2))
        got = kernels.arithmetic(a, b)
        for row, expected in zip(got, (a + b, a - b, a * b, a / b, a * b + f32(1))):
            assert same(row, expected)
        differs |= not same(fma32(a, b, f32(1)), a * b + f32(1))
    assert differs, "the inputs can't tell"


def test_the_naive_fma_rounds_once():
    """The twin itself, against exact fractions, among them sums just above and below a tie."""
    rng = np.random.default_rng(14)
    a, b = (rng.standard_normal(500).astype(f32) for _ in range(2))
    c = (-a * b * rng.choice([f32(1), f32(1e-8), f32(1 << 24), f32(0.5)], 500)).astype(f32)
    a[:4], b[:4], c[:4] = 1 + 2**-12, [1 + 2**-12, 1 + 2**-12, 2**-40, -2**-40], [0, -1, 1 + 2**-23, 1]
    for x, y, z, got in zip(a, b, c, fma32(a, b, c)):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(got)) - exact)
        for other in (np.nextafter(got, f32(np.inf)), np.nextafter(got, f32(-np.inf))):
            distance = abs(Fraction(float(other)) - exact)
            assert error < distance or (error == distance and not bits(got)[()] & 1)


def test_reductions_follow_the_tree():
    rng = np.random.default_rng(6)
    orders = 0
    for _ in range(100):
        f = (rng.standard_normal(16) * 10.0 ** rng.uniform(-4, 4, 16)).astype(f32)
        i = rng.integers(-(1 << 26), 1 << 26, 16).astype(np.int32)
        total, largest, i_total, i_largest = kernels.reductions(f, i)
        assert bits(total) == bits(tree_sum(f)) and largest == f.max() and i_total == i.sum() and i_largest == i.max()
        orders += total != np.add.accumulate(f)[-1]
    assert orders > 10, "the inputs can't tell one order from another"
    for lane in range(16):
        f, i = np.full(16, -3, f32), np.full(16, -3, np.int32)
        f[lane] = i[lane] = -1
        assert kernels.reductions(f, i)[1:] == (-1, -46, -1)


def test_keep_first():
    x = np.arange(1, 17, dtype=f32)
    x[15] = np.nan
    for n in (-100, -1, 0, 1, 7, 15, 16, 17, 64):
        expected = np.where(np.arange(16) < n, x, f32(-1e30))
        assert same(kernels.keep_first_lanes(x, n, -1e30), expected)


def test_packed_stores():
    integers, doubles = np.arange(8) - 2**62, np.append(np.linspace(-3, 1e9, 7), -np.inf)
    for mask in range(256):
        chosen = np.array([mask >> i & 1 for i in range(8)], bool)
        comp = kernels.packed(integers, doubles, chosen)
        assert [a.tolist() for a in comp] == [integers[chosen].tolist(), doubles[chosen].tolist(), doubles[chosen].astype(f32).tolist()]


def test_round_to_bits():
    x = np.concatenate([np.arange(-512, 512) / 4, np.random.default_rng(7).uniform(-(1 << 21), 1 << 21, 1024)]).astype(f32)
    assert (kernels.round_to_bits(x) == np.rint(x)).all()


# -- exp, sin, cos ----------------------------------------------------------------------------------------------------------------------------

def test_exp():
    x = np.concatenate([np.linspace(-87, 88, 1 << 14), np.random.default_rng(8).normal(0, 3, 1 << 14), np.arange(-126, 127) * math.log(2), [0, -0.0, 0]])
    x = np.clip(x, -87, 88).astype(f32)
    got = kernels.exp(x)
    relative = max(abs(float(y) / math.exp(float(v)) - 1) for v, y in zip(x, got))
    assert relative < 3e-7
    assert (bits(got) == bits(canonical_exp(x))).all()
    assert kernels.exp(np.zeros(16))[0] == 1


def test_exp_clamps():
    got = kernels.exp(np.array([-1e30, -np.inf, -88, 89, np.inf, 1e30, np.nan, -87, 88] + [0] * 7))
    assert (got[:3] == got[7]).all() and (got[3:6] == got[8]).all() and np.isfinite(got).all()


def test_sin_cos():
    """Positions times frequencies up to 1.6e6, multiples of pi/4 and their neighbours; and the largest arguments of a 131,072-token context."""
    rng = np.random.default_rng(9)
    multiples = np.arange(0, 4000) * (math.pi / 4)
    far = np.arange(2_030_000, 2_031_000) * (math.pi / 4)
    x = np.concatenate([rng.uniform(0, 10, 4000), rng.uniform(0, 131072, 8000), rng.uniform(0, 1.6e6, 8000), multiples, far,
                        np.nextafter(multiples, np.inf), np.nextafter(multiples[1:], 0), [0.0, 1e-300, 1e-9, 131071.0, 1.6e6 - 1]])
    got = kernels.sin_cos(x)
    error = max(max(abs(s - math.sin(v)), abs(c - math.cos(v))) for v, (s, c) in zip(x.tolist(), got.tolist()))
    assert error < 1e-15
