"""Attention x context x what keys and values are kept as: a model whose other stages are small, its attention stage told apart by the profile."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llamina.bench.profile import Profile
from llamina.bench.speed import fill, stage_work
from llamina.bench.suite import ROUNDS, THREADS, limits, model, record, size
from llamina.bench.synthetic import Shape
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run import kv_cache
from llamina.engine.run.runtime import Feed, Runtime

CONTEXTS = (size(512, 64), size(4096, 128), size(16384, 192))
SHAPES = {  # heads of 1.1B and 7B models, narrow feed-forward
    "grouped": Shape(2048, size(4, 1), 32, 4, 256, n_vocab=512, context_length=32768),
    "ungrouped": Shape(4096, size(2, 1), 32, 32, 256, n_vocab=512, context_length=32768),
}


@pytest.mark.parametrize("tokens", (1, size(128, 8)))
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kv", list(kv_cache.KV_TYPES))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_attention(benchmark: Any, shape: str, kv: str, context: int, tokens: int) -> None:
    with open_gguf(model("q4_0", SHAPES[shape])) as gguf:
        runtime = Runtime(gguf, ModelConfig.from_gguf(gguf), threads=THREADS, context=context + tokens, kv=kv)
        sequence = runtime.new_sequence()
        fill(sequence, context, runtime._pool.page_bytes)
        ids = np.zeros(tokens, np.int64)

        def step() -> None:
            runtime.step([Feed(sequence, ids, "none")])
            sequence.truncate(context)
        step()
        with Profile(runtime) as profile:
            benchmark.pedantic(step, rounds=2 * ROUNDS)
        work, seconds = stage_work(runtime, tokens, 1, context, False)["attention"], profile.seconds["attention"] / profile.steps
        record(benchmark, work, shape=shape, kv=kv, context=context, tokens=tokens, attention_milliseconds=round(1e3 * seconds, 3),
               attention_gbytes_per_second=round(work.bytes / seconds / 1e9, 2),
               attention_share_of_limit=round(work.bound(limits(), THREADS)[0] / seconds, 3))
        runtime.close()
