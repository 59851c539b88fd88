"""Whole models of random weights: prompts, decoding, several sequences at once, long contexts."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llamina.bench.speed import Test, fill, stage_work
from llamina.bench.suite import ROUNDS, THREADS, model, record, size
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run.runtime import Feed, Runtime

KINDS = ("q4_0",) if size(0, 1) else ("q4_0", "q4_k_m", "q8_0", "q6_k", "f16")
TESTS = [Test("prompt", size(512, 16)), Test("generate", size(16, 2)), Test("generate", size(8, 2), 8), Test("generate", size(8, 2), 1, size(4096, 64))]


@pytest.fixture(scope="module", params=KINDS)
def runtime(request: Any) -> Iterator[tuple[str, Runtime]]:
    with open_gguf(model(request.param)) as gguf:
        runtime = Runtime(gguf, ModelConfig.from_gguf(gguf), threads=THREADS, context=max(t.depth + t.tokens for t in TESTS))
        yield request.param, runtime
        runtime.close()


@pytest.mark.parametrize("test", TESTS, ids=lambda t: t.name.replace(" ", ""))
def test_model(benchmark: Any, runtime: tuple[str, Runtime], test: Test) -> None:
    kind, engine = runtime
    ids = np.random.default_rng(0).integers(0, engine.config.n_vocab, test.tokens)
    sequences = [engine.new_sequence() for _ in range(test.batch)]
    for sequence in sequences:
        fill(sequence, test.depth, engine._pool.page_bytes)
    steps = list(test.steps(engine.max_batch))

    def run() -> None:
        for n, position, wanted in steps:
            part = ids[position - test.depth:position - test.depth + n]
            engine.step([Feed(sequence, part, "last" if wanted else "none") for sequence in sequences])
        for sequence in sequences:
            sequence.truncate(test.depth)
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    for sequence in sequences:
        sequence.close()
    work = [w for n, position, wanted in steps for w in stage_work(engine, n, test.batch, position, wanted).values()]
    record(benchmark, sum(work[1:], work[0]), model=kind, test=test.name)
    if benchmark.stats is not None:
        benchmark.extra_info["tokens_per_second"] = round(test.tokens * test.batch / benchmark.stats.stats.min, 1)
