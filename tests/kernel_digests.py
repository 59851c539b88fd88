"""Digests of what every kernel computes from seeded inputs, to be compared between CPU targets: equal bits or not.

As a script, in a process that compiles for another target:  python kernel_digests.py  prints one JSON object,
{"target": "avx2", "digests": {"matmul Q4_0": "sha256 ...", ...}, "instructions": {"Q4_0": ["vpmaddubsw ymm", ...], ...}}. With --few, of the kernels of
targets.FEW and what of the others is their own; with --dots, of FEW's and of attention, whose dot products are the target's.
"""
from __future__ import annotations

import hashlib
import json
import re
import sys
from typing import Any

import attention_calls
import kernel_calls as kernels
import numba
import numpy as np
from llamina.engine.sampling.candidates import Scores
from llamina.kernels import gates, matmul
from llamina.kernels.compile_cache import compiled
from llamina.kernels.elementwise import HALVES
from llamina.kernels.formats import registry
from llamina.kernels.formats.table import RUNNABLE
from llamina.kernels.target import TARGET
from naive_kernels import ITEM, Array, block_shape, random_rows
from targets import ALL, FEW

f32 = np.float32
DOT = re.compile(r"\b(v?pdpbusds?|v?pmaddubsw|v?pmaddwd|[su]dot)\b.*?(?:%([xyz]mm)\d+|$)", re.M)


DOTS = tuple(name for name in FEW if name not in ("F16", "F32"))
SHAPES = ((8, 2, 64), (4, 4, 8), (3, 1, 24), (2, 2, 128))


def digest(a: Array) -> str:
    """sha256 of the bits of float32 or float64 values, all of which must be numbers (NaN has many)."""
    assert not np.isnan(a).any()
    return hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()


def matmul_digest(name: str, tokens: int = 141, kernel: Any = None) -> str:
    """Two matrices of random and three of extreme codes, activations of very different size, 141 tokens: enough for matmul_many.py, and 5 more."""
    columns, parts = 150 if name in ITEM else max(160, 2 * block_shape(name)[0]), []
    columns -= columns % block_shape(name)[0]
    for seed, codes in ((0, None), (1, None), (2, 0xFF), (3, 0x7F), (4, 0x80)):
        rng = np.random.default_rng(seed)
        data = random_rows(name, 37, columns, rng, codes)
        x = (rng.standard_normal((tokens, columns)) * 10.0 ** rng.uniform(-3, 3, (tokens, columns))).astype(f32)
        if name in ITEM:
            x *= f32(1e-3)
        parts.append(kernels.matmul(name, kernels.retile(name, data, columns)[0], 37, x, kernel=kernel))
    return digest(np.concatenate(parts))


def one_token_kernel(name: str) -> Any:
    """A block format's loop body for one token, which holds all that is its own: unpacking, scales, minimums, zero point. Compiles in a quarter of the time."""
    f: Any = registry.packing(name)
    body, file_columns, tile_bytes = matmul._body(f, 1), f.columns, f.tile_bytes

    @compiled("void(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
    def kernel(w, columns, tile0, tile1, x, ldx, out, ldo, tokens):
        blocks = columns // file_columns
        for t in range(tile0, tile1):
            body(w + t * blocks * tile_bytes, blocks, x, tokens, out + 64 * t, ldo)
    return kernel


def attention_digest(heads: int, n_kv: int, head_dim: int, kv: str = "f16", **words: Any) -> str:
    rng = np.random.default_rng(head_dim)
    q, k, v = ((3 * rng.standard_normal((150, n, head_dim))).astype(f32) for n in (heads, n_kv, n_kv))
    return digest(attention_calls.attend(q, attention_calls.Cache(k, v, kv=kv), 0, head_dim**-0.5, **words))


def attention_of_all_kinds(kv: str) -> str:
    gain = np.random.default_rng(6).uniform(0.5, 2, 40).astype(f32)
    sinks, table = np.linspace(-3, 3, 8).astype(f32), kernels.rope_table(500000.0 ** (-np.arange(0, 32, 2) / 32), 150, halves=True)
    return attention_digest(8, 2, 40, kv, WINDOW=70, SOFT_CAP=20.0, SINKS=sinks, Q_NORM=gain, NORM_EPS=1e-6, ROPE_KIND=HALVES, ROPE_DIM=32, ROPE_TABLE=table)


def sampler_digest() -> str:
    """Weights and running sums of two kinds of logits, and what the stages that need them all leave."""
    parts: list[Array] = []
    for spread in (3.0, 0.01):
        logits = (spread * np.round(np.random.default_rng(5).standard_normal(33_333), 3)).astype(f32)
        weights, scores = np.zeros(33_336), Scores(logits, 0.8)
        whole = scores.weigh(weights)
        parts += [weights[:33_333], scores._sums, np.array([scores.surprise(4.5), scores.deviation(), scores.draw(0.7)])]
        for cut in (scores.cut(0.9 * whole, np.zeros(66_682)), scores.cut(0.6 * whole, np.zeros(66_682), 9.0, 2.5)):
            assert cut
            kept, ids = np.zeros_like(logits), np.zeros(33_333, np.int64)
            n = scores.collect(cut, None, kept, ids)
            parts += [np.array(cut), kept[:n].astype(np.float64), ids[:n].astype(np.float64)]
    return digest(np.concatenate(parts))


def digests(whole: bool = True) -> dict[str, str]:
    """{kernel: sha256}. Not whole: of formats that aren't FEW, what is their own."""
    rng = np.random.default_rng(100)
    x = (rng.standard_normal(1 << 14) * 10.0 ** rng.uniform(-8, 2, 1 << 14)).astype(f32)
    row, gain = x[:2048], x[2048:4096]
    frequencies = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    table = kernels.rope_table(frequencies, 3000)
    result = {
        "exp": digest(kernels.exp(x)),
        "narrow": hashlib.sha256(kernels.narrow(x).tobytes()).hexdigest(),
        "sin, cos": digest(kernels.sin_cos(np.abs(x.astype(np.float64)) * 1e4)),
        "rope table": digest(table),
        "rope": digest(kernels.rope(row.reshape(16, 128), 128, table[2999])),
        "rms norm": digest(kernels.rms_norm(row, gain, 2040, 1e-5)[0]),
        "head norm": digest(kernels.head_norm(row[:200], gain[:200], 1e-6)[0]),
        "layer norm": digest(kernels.layer_norm(row, gain, gain[::-1].copy(), 2040, 1e-5)[0]),
        "rope of halves": digest(kernels.rope_halves(row.reshape(16, 128), 128, kernels.rope_table(frequencies, 3000, halves=True)[2999])),
        "soft cap": digest(kernels.soft_cap(x, 30.0)),
        "silu mul": digest(kernels.silu_mul(row, gain)),
        "quantize": hashlib.sha256(kernels.quantize(x.reshape(8, -1))[0][0].tobytes()).hexdigest(),
        "sampler": sampler_digest(),
    }
    result |= {f"gate {name}": digest(kernels.activate(kind, row, np.sqrt(np.abs(gain)))) for name, kind in gates.KINDS.items()}
    for heads, n_kv, head_dim in SHAPES:
        result[f"attention {heads} {n_kv} {head_dim}"] = attention_digest(heads, n_kv, head_dim)
    result["attention of all kinds f16"] = attention_of_all_kinds("f16")
    result |= {f"matmul {name}": matmul_digest(name) for name in (sorted(RUNNABLE - {*DOTS}) if whole else sorted({*FEW} - {*DOTS}))}
    result |= {f"one token {name}": matmul_digest(name, 1, None if whole else one_token_kernel(name)) for name in sorted(RUNNABLE - {*FEW})}
    return result | dot_digests()


def dot_digests() -> dict[str, str]:
    """Of what is built of a target's dot products alone."""
    result = {f"attention {heads} {n_kv} {head_dim} q8_0": attention_digest(heads, n_kv, head_dim, "q8_0") for heads, n_kv, head_dim in SHAPES}
    return {**result, "attention of all kinds q8_0": attention_of_all_kinds("q8_0"), **{f"matmul {name}": matmul_digest(name) for name in DOTS}}


def assembly(name: str) -> str:
    """A format's kernel, compiled anew, because code loaded from disk can't be looked at."""
    kernel = registry.kernel(name)
    return str(numba.cfunc(kernel.signature, **kernel.options)(kernel.__wrapped__)._library.get_asm_str())


def instructions(name: str, whole: bool) -> list[str]:
    """The byte and word dot products in a format's machine code, each with its width: ["vpdpbusd zmm"].

    Of the whole kernel, or of its loop body for one token (quicker).
    """
    if whole:
        text = assembly(name)
    else:
        packing: Any = registry.packing(name)
        body = matmul._body(packing, 1)
        body.compile("void(int64, int64, int64, int64, int64, int64)")
        text = "".join(body.inspect_asm().values())
    return sorted({f"{op} {register}".strip() for op, register in DOT.findall(text)})


def main() -> None:
    found = dot_digests() if "--dots" in sys.argv and not ALL else digests("--few" not in sys.argv or ALL)
    print(json.dumps({"target": TARGET, "digests": found, "instructions": {"Q4_0": instructions("Q4_0", True), "Q8_0": instructions("Q8_0", False)}}))


if __name__ == "__main__":
    main()
