"""Tokenising, and sampling from a vocabulary of 128,256: also as a share of a decoding step's time."""
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from llamina.bench.speed import Test, run
from llamina.bench.suite import THREADS, model, size
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import load_vocabulary
from llamina.engine.run.runtime import Runtime
from llamina.engine.sampling.sampler import Sampler, SamplingOptions, token_logprob

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


OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1}
"""All stages off but the temperature, which at 1.0 still weighs the whole vocabulary."""
STAGES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0}, "defaults": {"temperature": 0.8, "top_k": 40, "top_p": 0.95}, "temperature": {"temperature": 0.8},
    "dynatemp": {"dynatemp_range": 0.5}, "top-k": {"top_k": 40}, "top-p": {"top_p": 0.95}, "min-p": {"min_p": 0.05}, "typical": {"typical_p": 0.95},
    "top-n-sigma": {"top_n_sigma": 1.0}, "xtc": {"xtc_probability": 1.0}, "mirostat": {"mirostat": 2}, "bias": {"logit_bias": {7: 1.0, 9: -5.0}},
    "penalties": {"repeat_penalty": 1.1, "presence_penalty": 0.1, "top_k": 40}, "dry": {"dry_multiplier": 0.8, "top_k": 40},
}
PEAK = 15.0  # added to one logit: it gets nine tenths of the probability


def some_logits(kind: str) -> np.ndarray:
    """float32 [VOCABULARY]: "flat", normal with deviation 3, or "peaked", one token far above."""
    logits = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32) * (3 if kind == "flat" else 1)
    if kind == "peaked":
        logits[VOCABULARY // 3] += np.float32(PEAK)
    return logits


def record(benchmark: Any) -> None:
    if benchmark.stats is not None:
        benchmark.extra_info["share_of_decode_step"] = round(benchmark.stats.stats.median / step_seconds(), 4)


@pytest.mark.parametrize("kind", ("flat", "peaked"))
@pytest.mark.parametrize("name", STAGES)
def test_sample(benchmark: Any, name: str, kind: str) -> None:
    """One choice by each stage alone."""
    logits, history = some_logits(kind), list(range(64))
    sampler = Sampler(SamplingOptions(**{**OFF, **STAGES[name]}))
    benchmark(lambda: sampler.sample(logits, 64, history))
    record(benchmark)


@pytest.mark.parametrize("kind", ("flat", "peaked"))
def test_logprobs(benchmark: Any, kind: str) -> None:
    logits = some_logits(kind)
    benchmark(lambda: token_logprob(logits, 5, 5))
    record(benchmark)
