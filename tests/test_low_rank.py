"""The low-rank product of adapters against its definition (docs/exactness.md), bit for bit: the kernels, and what a step makes of them."""
from __future__ import annotations

from pathlib import Path

import kernel_calls as kc
import numpy as np
import pytest
from adapters import random_adapter
from llamina.engine.run.runtime import Feed, Runtime
from llamina.kernels import low_rank
from llamina.kernels.formats import registry
from naive_kernels import fma32, random_rows
from runs import open_runtime, same
from small_models import random_ids, write_small_model

f32 = np.float32


def naive_parts(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float32 [parts of 256 columns, M, rank] by the definition: a chain over a part's even columns, one over its odd ones."""
    sums = []
    for first in range(0, a.shape[1], 256):
        chains = np.zeros((2, len(x), len(a)), f32)
        for c in range(first, min(first + 256, a.shape[1])):
            chains[c % 2] = fma32(a[:, c], x[:, c, None], chains[c % 2])
        sums.append(chains[0] + chains[1])
    return np.array(sums)


def naive_y(b: np.ndarray, u: np.ndarray, scale: np.float32, y: np.ndarray) -> np.ndarray:
    t = np.zeros_like(y)
    for k in range(b.shape[1]):
        t = fma32(b[:, k], u[:, k, None], t)
    return fma32(scale, t, y)


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize(("rank", "columns", "rows"), [(3, 96, 40), (16, 700, 176), (70, 64, 16)])
def test_the_low_rank_product(kind: str, rank: int, columns: int, rows: int) -> None:
    """Ranks and columns that fill no tile and no block, rows of floats and of records, any number of tokens, any first row."""
    rng, ld = np.random.default_rng(rank), kc.padded(columns)
    dtype = low_rank.KINDS[kind][0]
    a, b = (rng.standard_normal(shape).astype(dtype).astype(f32) for shape in ((rank, columns), (rows, rank)))
    packed_a, packed_b = np.zeros((-(-rank // 16), ld, 16), dtype), np.zeros((-(-rows // 16), rank, 16), dtype)
    low_rank.pack_a(a, packed_a)
    low_rank.pack_b(b, packed_b)
    down, up, scales = low_rank.down(kind).ctypes, low_rank.up(kind).ctypes, np.array([0.37, 1.3], f32)
    n_rows, ldu, ldo = 21, 16 * len(packed_a), 16 * len(packed_b)
    x = rng.standard_normal((n_rows, columns)).astype(f32)
    parts = naive_parts(a, x)
    for first, n in (0, 21), (3, 1), (5, 2), (9, 11), (14, 7):
        y, u = rng.standard_normal((n, ldo)).astype(f32), np.zeros((n, ldu), f32)
        for part, expected in enumerate(parts):
            columns_here = min(256, ld - 256 * part)
            wide = np.full((n, low_rank.APART), 7, f32)
            wide[:, :columns_here] = np.pad(x, ((0, 0), (0, ld - columns)))[first:first + n, 256 * part:256 * part + columns_here]
            s = np.full((n, ldu), 7, f32)
            for tile in range(len(packed_a)):
                down(kc.at(packed_a[tile, 256 * part:]), columns_here, kc.at(packed_a[tile]), kc.at(wide), kc.at(s) + 64 * tile, ldu, n)
            assert same(s[:, :rank] + f32(0), expected[first:first + n] + f32(0)), (first, n)
            u += s
        wanted = naive_y(b, u[:, :rank], scales[0] * scales[1], y[:, :rows])
        up(kc.at(packed_b), rank, 0, len(packed_b), kc.at(u), ldu, kc.at(y), ldo, n, kc.at(scales), kc.at(scales[1:]))
        assert same(y[:, :rows] + f32(0), wanted + f32(0)), (first, n)


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("format", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_beside_the_base(format: str, kind: str) -> None:
    """A lone token's kernel gives what base, bias and product give one after the other, tile by tile of any range, and touches no other tile."""
    rng, columns, rows, rank = np.random.default_rng(3), 512, 80, 19
    dtype = low_rank.KINDS[kind][0]
    tiles, bad = kc.retile(format, random_rows(format, rows, columns, rng), columns)
    assert bad < 0
    b, bias, u = rng.standard_normal((rows, rank)).astype(dtype).astype(f32), rng.standard_normal(rows).astype(f32), rng.standard_normal(32).astype(f32)
    packed, scale, x = np.zeros((5, rank, 16), dtype), np.array([0.4], f32), rng.standard_normal((1, columns)).astype(f32)
    low_rank.pack_b(b, packed)
    records, kernel = kc.quantize(x)[0][0], registry.kernel_beside(format, kind)
    assert kernel is not None
    for added in None, bias:
        base = kc.matmul(format, tiles, rows, x)[0]
        expected = naive_y(b, u[None, :rank], scale[0], (base if added is None else base + added)[None])[0]
        for first, last in (0, 5), (1, 4), (2, 2):
            out = np.full(rows, 7, f32)
            kernel.ctypes(kc.at(tiles), columns, first, last, kc.at(records), 0 if added is None else kc.at(added), kc.at(out), kc.at(packed), rank, kc.at(u),
                          kc.at(scale))
            assert same(out[16 * first:16 * last], expected[16 * first:16 * last]) and (out[:16 * first] == 7).all() and (out[16 * last:] == 7).all()
    assert registry.kernel_beside("BF16", kind) is None


def rows_of_down(runtime: Runtime, ids: list[int], adapters: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """What the first layer's `down` reads and gives, float32 rows."""
    seen: list[np.ndarray] = []

    def keep(rows: np.ndarray) -> None:
        seen.append(rows.copy())
    sequence = runtime.new_sequence(adapters=adapters)
    runtime.step([Feed(sequence, ids, "none")], {"blocks.0.mlp.hook_post": keep, "blocks.0.hook_mlp_out": keep})
    sequence.close()
    read, given = seen
    return read, given


@pytest.mark.parametrize(("format", "stored"), [("Q4_0", "F16"), ("F32", "F32")])
def test_a_step_computes_the_definition(tmp_path: Path, format: str, stored: str) -> None:
    """`down` of three parts, which reads records or rows: a token alone, some, and many, whose u is made by groups; any threads."""
    path = write_small_model(tmp_path / "wide.gguf", format, ffn_dim=704, n_layers=1)
    ids, name = random_ids(80), "blk.0.ffn_down.weight"
    for threads in 1, 3:
        with open_runtime(path, threads) as runtime:
            adapter = random_adapter(runtime.config, rank=20, stored=stored, only=lambda key: key == name)
            pair = adapter.pairs[name]
            runtime.adapters.add("a", adapter)
            for n in 1, 2, 7, 80:
                (x, y), (same_x, found) = (rows_of_down(runtime, ids[:n], asked) for asked in ({}, {"a": 0.3}))
                assert same(x, same_x)
                if format != "F32":
                    records, _ = kc.quantize(x)
                    x = np.array([(t["d"][:, None] * t["q"].astype(f32)).reshape(-1) for t in (kc.token_of(records, m) for m in range(n))], f32)
                u = np.zeros((n, 20), f32)
                for part in naive_parts(pair.a, x):
                    u = u + part
                expected = naive_y(pair.b, u, f32(pair.scale) * f32(0.3), y)
                assert same(found, expected) and not same(expected, y), (threads, n)
