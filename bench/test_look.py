"""What looking costs: taps at all layers' ends, one layer's attention maps, the lens, activations on disk; each beside the same work unobserved.

Taps, maps and disk count against a 512-token prompt, the lens against the output matrix's multiply-adds of its own rows. `extra_info` has the share.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.bench.suite import ROUNDS, THREADS, model, size
from llamina.engine.look import lens as lenses
from llamina.engine.model import Model, load

TOKENS = size(512, 40)


@pytest.fixture(scope="module")
def opened() -> Iterator[Model]:
    with load(model("q4_0"), threads=THREADS, context=TOKENS) as found:
        yield found


def ids(model: Model, n: int = TOKENS) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).integers(3, model.config.n_vocab, n)]


def prompt(model: Model) -> Callable[[], None]:
    """A prompt, unobserved."""
    text = ids(model)

    def run() -> None:
        sequence = model.new_sequence()
        model.feed(sequence, text, "last")
        sequence.close()
    return run


def best(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def share(benchmark: Any, run: Callable[[], Any], beside: Callable[[], Any], **more: Any) -> None:
    """Time `run`; keep how its time compares with `beside`'s."""
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info.update(more, times=round(benchmark.stats.stats.min / best(beside), 3))


def test_layer_ends(benchmark: Any, opened: Model) -> None:
    """Copies of all layers' output: at most 1.05 times the prompt."""
    kept: list[np.ndarray] = []

    def run() -> None:
        kept.clear()
        with opened.hooked({"blocks.*.hook_resid_post": lambda array, spot: kept.append(array)}):
            prompt(opened)()
    share(benchmark, run, prompt(opened))


def test_one_map(benchmark: Any, opened: Model) -> None:
    """All heads' weights of a layer: at most 1.1 times."""
    layer = opened.config.n_layers // 2
    kept: list[np.ndarray] = []

    def run() -> None:
        kept.clear()
        with opened.hooked({f"blocks.{layer}.attn.hook_pattern": lambda array, spot: kept.append(array)}):
            prompt(opened)()
    share(benchmark, run, prompt(opened))


def test_lens(benchmark: Any, opened: Model) -> None:
    """What every layer's rows say, ranks, entropies and top 5, against the bare logits of as many rows: at most 1.3 times."""
    rows = np.random.default_rng(0).standard_normal((opened.runtime.max_logits, opened.config.dim)).astype(np.float32)
    targets = np.zeros(len(rows), np.int64)

    def run() -> None:
        with opened.scheduler.alone() as runtime:
            for _ in range(4):
                runtime.say(rows, targets, 5)

    def bare() -> None:
        with opened.scheduler.alone() as runtime:
            for _ in range(4):
                runtime.unembed(rows)
    assert lenses.lens(opened, ids(opened, 8)).entropy.shape == (opened.config.n_layers + 1, 8)
    share(benchmark, run, bare, rows=4 * len(rows))


def test_to_disk(benchmark: Any, opened: Model, tmp_path: Path) -> None:
    """One site of many texts to a folder: at least 0.6 of the prompt's speed, that is at most 1.67 times its time."""
    texts, count = [ids(opened) for _ in range(2)], iter(range(1000))

    def run() -> None:
        opened.activations(texts, f"blocks.{opened.config.n_layers - 1}.hook_resid_post", to=tmp_path / str(next(count)))

    def bare() -> None:
        for _ in texts:
            prompt(opened)()
    share(benchmark, run, bare, tokens=len(texts) * TOKENS)
