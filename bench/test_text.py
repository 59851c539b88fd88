"""Tokenising, and sampling from a vocabulary of 128,256: also as a share of a decoding step's time."""
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from llamina.bench.speed import Test, run
from llamina.bench.suite import THREADS, model, size
from llamina.engine.config import ModelConfig
from llamina.engine.gguf import open_gguf
from llamina.engine.model import load_vocabulary
from llamina.engine.runtime import Runtime
from llamina.engine.sampling import Sampler, SamplingOptions

TEXT = "Once upon a time there was a little house at the edge of the forest, and nobody knew who lived in it. " * size(200, 2)
VOCABULARY = size(128256, 512)


@functools.cache
def step_seconds() -> float:
    """Of one decoding step of the model that the suite uses."""
    with open_gguf(model("q4_0")) as gguf:
        runtime = Runtime(gguf, ModelConfig.from_gguf(gguf), threads=THREADS, context=256)
        speed = run(runtime, Test("generate", size(16, 2)), 3)
        runtime.close()
    return 1 / max(speed.tokens_per_second)


@pytest.mark.parametrize("name", ("demo", "made up"))
def test_encode(benchmark: Any, name: str) -> None:
    tokenizer = load_vocabulary("demo" if name == "demo" else model("q4_0"))
    ids = benchmark(tokenizer.encode, TEXT)
    if benchmark.stats is not None:
        benchmark.extra_info.update(tokens=len(ids), mbytes_per_second=round(len(TEXT) / benchmark.stats.stats.min / 1e6, 2))


def test_decode(benchmark: Any) -> None:
    tokenizer = load_vocabulary("demo")
    ids = tokenizer.encode(TEXT)
    assert benchmark(tokenizer.decode, ids)


OPTIONS = {
    "greedy": SamplingOptions(temperature=0.0), "default": SamplingOptions(seed=1), "temperature": SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, seed=1),
    "top-p": SamplingOptions(temperature=0.8, top_k=0, top_p=0.95, seed=1), "min-p": SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.05, seed=1),
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_sample(benchmark: Any, name: str) -> None:
    logits = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32) * 3
    sampler = Sampler(OPTIONS[name])
    history = list(range(64))
    benchmark(lambda: sampler.sample(logits, 64, history))
    if benchmark.stats is not None:
        benchmark.extra_info["share_of_decode_step"] = round(benchmark.stats.stats.median / step_seconds(), 4)
