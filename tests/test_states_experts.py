"""Models that have both states and experts, with places for all experts and for half of them: many sequences in one step, taken back, forked, guessed,
interrupted and repeated, the bits are those of the text computed in one go. Each of these alone: test_states.py, test_expert_arena.py."""
from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.run import runtime as runtime_module
from llamina.engine.run.replay import Recurrence
from llamina.engine.run.runtime import Feed, Runtime
from page_cases import write_case
from runs import open_runtime, run, same
from small_models import random_ids
from test_expert_arena import opened, tight

N = 200
TEXT = random_ids(N, seed=5)
NAMES = ["lfm2moe", "qwen35moe"]


@pytest.fixture(scope="module", params=NAMES)
def path(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("both") / "m.gguf", request.param, "Q8_0")


@pytest.fixture(scope="module")
def expected(path: Path) -> np.ndarray:
    """Logits after every token of TEXT, all experts in place."""
    with open_runtime(path, 2, 256) as runtime:
        return run(runtime, TEXT, 64)


@pytest.fixture(params=["whole", "half"])
def runtime(path: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """Layers one by one, so that a step can be interrupted between any two."""
    monkeypatch.setattr(runtime_module, "_RANGE_MACS", 1)
    gguf, runtime = opened(path, tight(path, context=1024) if request.param == "half" else None, context=1024)
    assert (runtime.arena is not None) == (request.param == "half")
    yield runtime
    if runtime.arena is not None:
        assert 0 < runtime.arena.use.missed < runtime.arena.use.wanted
    runtime.close()
    gguf.close()


def test_many_sequences_in_one_step(runtime: Runtime, expected: np.ndarray) -> None:
    """Each at another position, by parts of another size, in changing order."""
    rng, sequences = random.Random(1), [runtime.new_sequence() for _ in range(min(9, runtime._pool.max_pages // runtime.plan.layout.units(130)))]
    assert len(sequences) > 1
    while any(s.length < 90 for s in sequences):
        room, feeds = runtime.max_batch, list[Feed]()
        for s in rng.sample(sequences, rng.randrange(1, len(sequences) + 1)):
            n = min(rng.choice([1, 1, 1, 3, 7, 40]), N - s.length, room)
            if n:
                feeds.append(Feed(s, TEXT[s.length:s.length + n], "all"))
                room -= n
        at = [feed.sequence.length for feed in feeds]
        rows = runtime.step(feeds)
        assert same(rows, np.concatenate([expected[i:i + len(feed.ids)] for i, feed in zip(at, feeds)]))
    for s in sequences:
        s.close()


class Stop(Exception):
    pass


def test_taken_back_forked_guessed_interrupted(runtime: Runtime, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, s, scans, calls, scan = random.Random(2), runtime.new_sequence(), 0, 0, Recurrence._scan

    def scanned(self: Any, *args: Any) -> None:
        nonlocal scans
        scans += 1
        scan(self, *args)

    def stop(share: float) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise Stop
    monkeypatch.setattr(Recurrence, "_scan", scanned)
    interrupted = 0
    for turn in range(40):
        if s.length > 150:
            s.truncate(rng.randrange(150))
        n = min(rng.choice([1, 2, 7, 33]), runtime.max_batch - 4)
        s.tentative = n < 8
        ids, at = [*TEXT[s.length:s.length + n], *random_ids(4, seed=turn)[1:]], s.length
        runtime.on_layers = stop
        for _ in range(2):
            try:
                runtime.step([Feed(s, random_ids(n, seed=turn + 50), "none")])
                s.truncate(at)
            except Stop:
                interrupted += 1
                assert s.length == at
        runtime.on_layers = None
        rows = runtime.step([Feed(s, ids, "all")])
        assert same(rows[:n], expected[at:at + n])
        s.truncate(at + n)
        if turn % 5 == 4:
            fork = s.fork(rng.randrange(s.length + 1))
            s.close()
            s = fork
    s.close()
    assert interrupted > 10 and scans > 3
