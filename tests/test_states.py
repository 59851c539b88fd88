"""Recurrent layers: whatever is taken back, shared, kept, lost or interrupted, the bits are those of the text computed in one go; and no memory is lost."""
from __future__ import annotations

import gc
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.answers.generation import Generation
from llamina.engine.model import Model, load
from llamina.engine.run import runtime as runtime_module
from llamina.engine.run.kv_cache import PAGE, Sequence
from llamina.engine.run.replay import Recurrence
from llamina.engine.run.runtime import Feed, Runtime
from page_cases import write_case
from pool_check import check_sequences, check_whole, watch_pools
from small_models import random_ids

CONTEXT = 768
TEXT = random_ids(CONTEXT, seed=5)


@pytest.fixture(scope="module", params=["lfm2", "qwen35", "falcon-h1"])
def path(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("states") / "m.gguf", request.param, "Q8_0")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with load(path, threads=2, context=CONTEXT) as model:
        yield model


@pytest.fixture(scope="module")
def expected(model: Model) -> np.ndarray:
    """Logits after every token of TEXT, computed in one go."""
    sequence = model.runtime.new_sequence()
    rows = np.concatenate([model.feed(sequence, TEXT[i:i + 64], "all") for i in range(0, CONTEXT, 64)])
    sequence.close()
    return rows


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers keep a checksum of each row of logits that a token was chosen from; the pool is looked at after every operation."""
    take = Generation._take_row

    def take_row(self: Any) -> np.ndarray:
        row = take(self)
        self.__dict__.setdefault("rows", []).append(zlib.crc32(row.tobytes()))
        return row
    monkeypatch.setattr(Generation, "_take_row", take_row)
    watch_pools(monkeypatch)
    yield


def answer(model: Model, prompt: list[int], **options: Any) -> tuple[Any, ...]:
    """-> (ids, checksums of the logits, tokens of the prompt that were taken over)"""
    with model.generate(prompt, **{"ignore_eos": True, "temperature": 0.9, "seed": 4, "max_tokens": 20, **options}) as g:
        g.text()
        return g.ids, getattr(g, "rows"), g.stats.reused_tokens  # noqa: B009  the recorder's


def alone(model: Model, prompt: list[int], **options: Any) -> tuple[Any, ...]:
    model.clear_prefix_cache()
    return answer(model, prompt, speculate=False, **options)[:2]


def whole(model: Model) -> None:
    gc.collect()
    model.clear_prefix_cache()
    check_whole(model.runtime._pool)


def test_truncated_and_forked_anywhere(model: Model, expected: np.ndarray) -> None:
    """A text of one's own, cut and gone on with at random, by steps of any size, beside its forks."""
    rng, sequences = random.Random(1), [model.new_sequence()]
    for _ in range(60):
        s = rng.choice(sequences)
        kind = rng.random()
        if kind < 0.25 and s.length:
            s.truncate(rng.choice([rng.randrange(s.length), s.length - 1, s.length // PAGE * PAGE]))
        elif kind < 0.4 and len(sequences) < 4:
            sequences.append(s.fork(rng.randrange(s.length + 1)))
        elif s.length < 300:
            n = rng.choice([1, 2, 7, 64, 90])
            rows = model.feed(s, TEXT[s.length:s.length + n], "all")
            assert (rows == expected[s.length - n:s.length]).all()
        assert s.ids == TEXT[:s.length]
        check_sequences(model.runtime._pool, sequences)
    for s in sequences:
        s.close()
    whole(model)


def test_guesses_taken_back(model: Model, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was guessed wrong is taken back, again and again; of what was right, the recurrent layers' scan alone is repeated, as long as it was kept."""
    scans, scan = [], Recurrence._scan

    def seen(self, runtime, feeds):
        scans.append([feed.sequence.lag for feed in feeds])
        scan(self, runtime, feeds)
    monkeypatch.setattr(Recurrence, "_scan", seen)
    s, other, at = model.runtime.new_sequence(cached=True), model.runtime.new_sequence(), 0
    other.tentative = True
    while at < 200:
        s.tentative = at % 7 > 1
        if at % 5 == 3:  # somebody else's guesses are kept instead
            model.feed(other, random_ids(4), "none")
        draft = [*TEXT[at:at + at % 5 + 1], *random_ids(4, seed=at)[1:]]
        rows = model.feed(s, draft, "all")
        assert (rows[:at % 5 + 1] == expected[at:at + at % 5 + 1]).all()
        at += at % 5 + 1
        s.truncate(at)
    s.close()
    assert len(scans) > 20 and max(lag for lags in scans for lag in lags) >= 5
    a, b = (model.runtime.new_sequence(cached=True) for _ in range(2))
    for at in range(0, 60, 3):  # two whose guesses are in one step
        a.tentative = b.tentative = True
        rows = model.runtime.step([Feed(a, [*TEXT[at:at + 3], 9, 9], "all"), Feed(b, [*TEXT[at:at + 3], 8], "all")])
        assert (rows[:3] == expected[at:at + 3]).all() and (rows[5:8] == expected[at:at + 3]).all()
        a.truncate(at + 3)
        b.truncate(at + 3)
    assert scans[-1] == [3, 3]
    for sequence in (a, b, other):
        sequence.close()
    whole(model)


@pytest.mark.parametrize("n", [64, 65, 127, 200, 512, 513, 700])
def test_prefix_hits(model: Model, n: int) -> None:
    """A text is taken over up to a snapshot, wherever it parts from the one before, or goes on after its answer."""
    follows = [7, 8, 9]
    expected = alone(model, TEXT[:n] + follows)
    model.clear_prefix_cache()
    first = answer(model, TEXT[:700], max_tokens=5)[0]
    ids, sums, reused = answer(model, TEXT[:n] + follows)
    assert (ids, sums) == expected and reused in (0, 512, 640)
    ids, sums, reused = answer(model, TEXT[:n] + follows)
    assert (ids, sums) == expected and reused >= (n + 2) // PAGE * PAGE - PAGE, "the second text that parts there finds a snapshot"
    went_on = TEXT[:700] + first + follows
    expected = alone(model, went_on)
    model.clear_prefix_cache()
    answer(model, TEXT[:700], max_tokens=5)
    ids, sums, reused = answer(model, went_on)
    assert (ids, sums) == expected and reused >= 704
    whole(model)


def test_evicted_snapshots(model: Model) -> None:
    """States and pages that others want the memory of are gone, one after the other: hits get shorter, the bits stay."""
    expected = alone(model, TEXT[:400])
    pool = model.runtime._pool
    lengths = []
    for n in range(0, 14):
        model.clear_prefix_cache()
        answer(model, TEXT[:400], max_tokens=3)
        with pool.lock:
            pool.collect()
            for _ in range(n):
                pool._recycle(pool.prefix.evict())
        ids, sums, reused = answer(model, TEXT[:400])
        assert (ids, sums) == expected
        lengths.append(reused)
    assert lengths[0] == 384 and lengths[-1] == 0 and lengths == sorted(lengths, reverse=True)
    whole(model)


@pytest.mark.parametrize("options", [
    {"context_shift": True, "max_tokens": 60}, {"context_shift": True, "keep": 300, "max_tokens": 60}, {"banned": ["e", "th", "a"], "max_tokens": 100}],
    ids=["shift", "shift and keep", "banned"])
def test_going_back(model: Model, options: dict[str, Any]) -> None:
    prompt = TEXT[:CONTEXT - 30] if "context_shift" in options else TEXT[:300]
    expected = alone(model, prompt, **options)
    assert answer(model, prompt, **options)[:2] == expected
    if "context_shift" in options:  # after a shift it is the answer after the prompt that was kept
        with model.generate(prompt, ignore_eos=True, temperature=0.9, seed=4, **options) as g:
            g.text()
            assert g.stats.context_shifts
    whole(model)


def test_guesses(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that repeats itself, where every guess pays."""
    from llamina.engine.answers.speculation import Costs
    prompt = [1] + [40, 41, 42, 43, 44] * 40
    expected = alone(model, prompt, max_tokens=150, temperature=0.0)
    monkeypatch.setattr(Costs, "ratio", lambda self, m: 1.0)
    model.clear_prefix_cache()
    assert answer(model, prompt, max_tokens=150, temperature=0.0)[:2] == expected
    whole(model)


def test_many_in_tight_memory(model: Model, path: Path) -> None:
    """Two samples each of prompts that share beginnings, in memory for two contexts and a bit."""
    prompts = [TEXT[:400] + [9], TEXT[:400] + [8], TEXT[:320], TEXT[:100], TEXT[500:750]]

    def run(model: Model) -> dict[tuple[int, int], list[int]]:
        asked = [{"prompt": prompt, "samples": 2, "max_tokens": 40, "ignore_eos": True, "seed": 2} for prompt in prompts]
        with model.generate_many(asked, wait=60.0) as batch:
            found = {(r.index, r.sample): (r.error, r.generation.ids if hasattr(r, "generation") else r.ids) for r in batch}
        assert all(error is None for error, _ in found.values())
        return {key: ids for key, (_, ids) in found.items()}
    model.clear_prefix_cache()
    expected = run(model)
    with load(path, threads=1, context=CONTEXT) as small:
        small.runtime._pool.max_pages = 2 * small.runtime.plan.layout.units(CONTEXT) + 1
        assert run(small) == expected
        whole(small)
    whole(model)


@pytest.mark.parametrize("n", [100, 128, 500])
def test_sessions(model: Model, n: int, tmp_path: Path) -> None:
    expected = alone(model, TEXT[:n], max_tokens=60)
    model.clear_prefix_cache()
    with model.generate(TEXT[:n], ignore_eos=True, temperature=0.9, seed=4, max_tokens=60) as g:
        for _ in range(25):
            next(g, "")
        g.save(tmp_path / "s")
        before: Any = list(g.rows)  # type: ignore[attr-defined]
    model.clear_prefix_cache()
    with model.resume(tmp_path / "s") as again:
        assert again._sequence is not None and again._sequence.length >= n and again._sequence.lag == 0, "nothing need be computed again"
        again.__dict__["rows"] = list(before)
        again.text()
        assert (again.ids, again.__dict__["rows"]) == expected
    del again, g
    whole(model)
    raw = bytearray((tmp_path / "s").read_bytes())
    for name, changed in ("short", raw[:-5]), ("damaged", raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:]):
        (tmp_path / name).write_bytes(changed)
        notes: list[str] = []
        with model.resume(tmp_path / name, note=notes.append) as again:
            again.__dict__["rows"] = list(before)
            again.text()
            assert notes and (again.ids, again.__dict__["rows"]) == expected
    del again
    whole(model)


def test_prompts_that_begin_alike(model: Model) -> None:
    """Computed at once, they compute their common pages once."""
    prompts = [TEXT[:330] + tail for tail in ([7, 8, 9], [8] * 70, [9] * 200, TEXT[330:335])]
    asked = [{"prompt": prompt, "max_tokens": 10, "ignore_eos": True, "temperature": 0.0} for prompt in prompts]
    expected = [alone(model, prompt, max_tokens=10, temperature=0.0)[0] for prompt in prompts]
    model.clear_prefix_cache()
    with model.generate_many(asked) as batch:
        found = {r.index: r for r in batch}
    assert [found[i].ids for i in range(len(prompts))] == expected
    assert sorted(r.stats.reused_tokens for r in found.values() if r.stats)[1:] == [320, 320, 320]
    whole(model)


class Stop(Exception):
    pass


def test_interrupted_in_the_middle(path: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that ends between two layers leaves the sequence as it was, as often as it happens, and whatever was reserved for it."""
    monkeypatch.setattr(runtime_module, "_RANGE_MACS", 1)
    with load(path, threads=2, context=CONTEXT) as model:
        runtime: Runtime = model.runtime
        s, at, calls = runtime.new_sequence(cached=True), 0, 0

        def stop(share: float) -> None:
            nonlocal calls
            calls += 1
            if calls % 5 < 3:
                raise Stop
        for n in (3, 64, 1, 1, 100, 1, 40):
            for _ in range(4):
                runtime.on_layers = stop
                try:
                    runtime.step([Feed(s, random_ids(n, seed=calls)[:n], "none")])
                except Stop:
                    assert s.length == at
                else:
                    s.truncate(at)
            runtime.on_layers = None
            assert (runtime.step([Feed(s, TEXT[at:at + n], "all")]) == expected[at:at + n]).all()
            at += n
        s.close()
        whole(model)
        runtime.on_layers, calls = stop, 0
        with pytest.raises(Stop):
            runtime.step([Feed(s, TEXT[:9], "none")])  # nothing was ever computed: what was made ready is given back
        del s
        whole(model)


def test_the_memory_plan_tells_it(model: Model) -> None:
    layout = model.runtime.plan.layout
    assert layout.slot * layout.unit >= layout.state_bytes > 0
    assert f"in 2 states of its {len(layout.state_places)} recurrent layers" in str(model.memory_plan)
    free = model.runtime._pool.free_pages
    s = model.new_sequence()
    s.promise(100)
    assert free - model.runtime._pool.free_pages == layout.units(100) == 2 + 2 * layout.slot
    s.close()


def test_a_state_outlives_the_sequence_that_made_it(model: Model, expected: np.ndarray) -> None:
    """Kept for others, then gone back to by the sequence itself, whose own ones have moved on."""
    s = model.runtime.new_sequence(cached=True)
    s.begin(TEXT[:129], 200)
    for at, n in ((0, 100), (100, 28), (128, 1), (129, 1), (130, 1)):
        model.feed(s, TEXT[at:at + n], "none")
    assert isinstance(s, Sequence) and s.states is not None and s._chain[1].state is not None
    s.truncate(128)
    assert s.lag == 0
    assert (model.feed(s, TEXT[128:140], "all") == expected[128:140]).all()
    s.close()
    whole(model)
