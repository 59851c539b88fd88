"""Encoders: never worse than llama.cpp's quantiser, stable under re-encoding, the same bytes on every target, sane on strange blocks."""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from llamina.kernels.formats.encoders import ENCODERS, encode
from llamina.kernels.formats.table import FORMATS
from llamina.kernels.target import EMULATION, FEATURES, emulatable
from targets import TAKEN

# Relative mean squared error of llama.cpp's ggml_quantize_chunk (llama-cpp-python 0.3.36) on gaussian() below, without importance.
LLAMA_CPP = {
    "Q8_0": 2.8665e-05, "Q4_0": 7.3889e-03, "Q4_1": 6.1098e-03, "Q5_0": 1.8251e-03, "Q5_1": 1.4317e-03, "Q2_K": 8.8028e-02, "Q3_K": 2.2778e-02,
    "Q4_K": 5.0826e-03, "Q5_K": 1.3040e-03, "Q6_K": 3.1499e-04, "IQ4_NL": 5.7914e-03, "IQ4_XS": 5.8821e-03,
}


def gaussian(rows: int = 256, columns: int = 4096) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def decoded(name: str, blocks: np.ndarray) -> np.ndarray:
    return dequantize(blocks, gguf.GGMLQuantizationType[name]).astype(np.float64)


def error(name: str, x: np.ndarray, blocks: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    x64 = x.astype(np.float64)
    return float(np.mean(weights * (x64 - decoded(name, blocks)) ** 2) / np.mean(weights * x64**2))


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_error_is_below_llama_cpp(name):
    x = gaussian(64)
    # 64 of llama.cpp's 256 rows: the errors of a quarter scatter by well under 1 %
    assert error(name, x, encode(name, x)) <= LLAMA_CPP[name] * 1.003


@pytest.mark.parametrize("name", ENCODERS)
def test_encoding_again_adds_at_most_one_percent(name):
    x = gaussian(16)
    once = encode(name, x)
    y = decoded(name, once).astype(np.float32)
    assert np.sqrt(error(name, x, encode(name, y))) <= 1.01 * np.sqrt(error(name, x, once)) + 1e-12


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_formats_round_to_nearest_even(name):
    x = np.random.default_rng(1).standard_normal((4, 512)).astype(np.float32)
    x[0, :4] = [0.0, -0.0, 65504.0, 6e-8]
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
    assert (encode(name, x) == np.ascontiguousarray(expected).view(np.uint8).reshape(4, -1)).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_strange_blocks(name):
    rng = np.random.default_rng(2)
    x = np.zeros((8, 512), np.float32)
    x[1] = 1.0  # constant
    x[2] = -3.5
    x[3, ::7] = 1000.0  # sparse outliers
    x[4] = rng.standard_normal(512) * 1e-30  # vanishing
    x[5] = rng.standard_normal(512) * 1e4  # large
    x[6] = rng.random(512) + 5.0  # far from zero
    x[7, 3] = 1e-7
    y = decoded(name, encode(name, x))
    assert np.isfinite(y).all() and (y[0] == 0).all()
    bits = FORMATS[name].bits_per_weight
    if bits > 4:
        for row in (1, 2, 3, 5, 6):
            assert np.abs(y[row] - x[row]).max() <= 0.12 * np.abs(x[row]).max(), row


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q3_K", "Q2_K", "IQ4_XS"])
def test_importance_lowers_the_weighted_error(name):
    x = gaussian(32, 512)
    importance = np.exp(np.random.default_rng(3).standard_normal(512) * 2).astype(np.float32)
    plain, weighted = encode(name, x), encode(name, x, importance)
    assert error(name, x, weighted, importance) < error(name, x, plain, importance)


def test_threads_do_not_change_the_bytes():
    x = gaussian(200, 2048)
    with ThreadPoolExecutor(3) as threads:
        assert (encode("Q4_K", x, threads=threads) == encode("Q4_K", x)).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="multiples of 256"):
        encode("Q4_K", np.zeros((1, 32), np.float32))
    with pytest.raises(ValueError, match="importance must have 256"):
        encode("Q4_K", np.zeros((1, 256), np.float32), np.ones(8, np.float32))


def digest() -> str:
    x = gaussian(3, 512)
    importance = np.linspace(0.1, 2, 512, dtype=np.float32)
    h = hashlib.sha256()
    for name in ("Q4_1", "Q5_0", "Q4_K", "Q3_K", "IQ4_NL"):  # every kind of search
        h.update(encode(name, x).tobytes() + encode(name, x, importance).tobytes())
    return h.hexdigest()


def test_every_target_writes_the_same_bytes():
    others = [name for name in TAKEN if name in emulatable(FEATURES)]
    if not others:
        pytest.skip("no other x86 target can be run on this CPU")
    mine = digest()
    for target in others:
        child = subprocess.run([sys.executable, __file__], env={**os.environ, **EMULATION[target]}, capture_output=True, text=True, timeout=500)
        assert child.stdout.strip() == mine, f"{target}: {child.stderr[-500:]}"


if __name__ == "__main__":
    print(digest())
