"""Windowed layers give back pages that no query sees: the bits of a model that keeps them all, and the memory that was told."""
from __future__ import annotations

import gc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.answers.generation import Generation
from llamina.engine.model import Model, load
from llamina.engine.run import memory
from llamina.engine.run.kv_cache import PAGE, pages_of
from llamina.engine.run.kv_groups import SLACK, kv_layout
from llamina.engine.run.runtime import Feed
from pool_check import check_whole, watch_pools
from small_models import random_ids, write_family

CONTEXT, WINDOW = 1536, 40
TEXT = random_ids(CONTEXT, seed=5)
KEYS = {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": [True, True, False], "context_length": 8192,
        "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0, "attention.key_length": 16, "attention.value_length": 16}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("windows") / "m.gguf", "gemma3", KEYS, "Q8_0")


@pytest.fixture(scope="module")
def keeping(path: Path) -> Iterator[Model]:
    """One group: windows only mask, as in a context too short to give anything back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "kv_layout", lambda config, kv, context, step: kv_layout(config, kv, PAGE, step))
        model = load(path, threads=1, context=CONTEXT)
    assert not model.runtime.plan.layout.windowed
    with model:
        yield model


@pytest.fixture(scope="module")
def giving(path: Path) -> Iterator[Model]:
    with load(path, threads=2, context=CONTEXT) as model:
        assert model.runtime.plan.layout.windowed == 2 and model.runtime.plan.layout.whole == 1
        yield model


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
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
    options = {"ignore_eos": True, "temperature": 0.9, "seed": 4, "max_tokens": 20} | options
    with model.generate(prompt, **options) as g:
        g.text()
        return g.ids, getattr(g, "rows"), g.stats.reused_tokens  # noqa: B009  conftest's recorder


def alone(model: Model, prompt: list[int], **options: Any) -> tuple[Any, ...]:
    model.clear_prefix_cache()
    return answer(model, prompt, speculate=False, **options)[:2]


def forget_window(model: Model, entry: Any) -> None:
    """As if somebody had wanted the memory of an entry's windowed page."""
    pool, page = model.runtime._pool, entry.window
    with pool.lock:
        pool.collect()
        assert page is not None and page.users == 0
        pool.prefix.used(page)
        pool.prefix.forget_window(entry)
        pool._recycle([page])


@pytest.mark.parametrize("chunk", [1, 63, 200, 512])
def test_a_long_text_in_chunks(keeping: Model, giving: Model, chunk: int) -> None:
    n = 400 if chunk == 1 else CONTEXT
    found = []
    for model in (keeping, giving):
        sequence, other = model.runtime.new_sequence(cached=True), model.runtime.new_sequence(slides=True)
        sums = []
        for start in range(0, n, chunk):
            part = TEXT[start:min(start + chunk, n)]
            feeds = [Feed(sequence, part[:256])]
            if len(part) > 256:
                sums.append(zlib.crc32(model.runtime.step(feeds).tobytes()))
                feeds = [Feed(sequence, part[256:])]
            elif start < 700:  # somebody else beside it
                feeds.append(Feed(other, part[::-1][:256]))
            sums.append(zlib.crc32(model.runtime.step(feeds).tobytes()))
        found.append(sums)
        if model is giving:
            layout = model.runtime.plan.layout
            assert len(sequence._windows) <= layout.most
            assert len(sequence._windows) <= pages_of(WINDOW + SLACK + chunk) + 1
            assert len(sequence._pages) == pages_of(n)
        sequence.close()
        other.close()
        model.clear_prefix_cache()
        check_whole(model.runtime._pool)
    assert found[0] == found[1]


def test_pages_of_an_answer_are_bounded(giving: Model) -> None:
    giving.clear_prefix_cache()
    pool, layout = giving.runtime._pool, giving.runtime.plan.layout
    before = pool.free_pages
    with giving.generate(TEXT[:30], max_tokens=CONTEXT - 40, ignore_eos=True) as g:
        next(g)
        promised = before - pool.free_pages
        assert promised == layout.units(CONTEXT - 10) == pages_of(CONTEXT - 10) + 2 * layout.most
        for _ in range(300):
            next(g, "")
            assert before - pool.free_pages <= promised
        assert g._sequence is not None
        assert len(g._sequence._windows) <= pages_of(WINDOW + SLACK) + 2
    del g
    gc.collect()


@pytest.mark.parametrize("n", [64, 640, 641, 700, 767, 1300])
def test_prefix_hits(keeping: Model, giving: Model, n: int) -> None:
    """At a page's end and between; also where the text went on far beyond, so that the windowed pages there were left behind."""
    expected = alone(keeping, TEXT[:n] + [7, 8, 9])
    giving.clear_prefix_cache()
    answer(giving, TEXT[:1400], max_tokens=1)
    ids, sums, reused = answer(giving, TEXT[:n] + [7, 8, 9])
    assert (ids, sums) == expected and reused >= n // PAGE * PAGE
    pool = giving.runtime._pool
    with pool.lock:
        pool.collect()
        entries = [page.entry for page in pool.prefix.idle.values() if page.entry and page.entry.window is page]
    assert len(entries) >= 1400 // PAGE
    for entry in entries:
        forget_window(giving, entry)
    ids, sums, reused = answer(giving, TEXT[:n] + [7, 8, 9])
    assert (ids, sums) == expected and reused == 0


def test_a_hit_gets_shorter_where_a_windowed_page_is_missing(keeping: Model, giving: Model) -> None:
    expected = alone(keeping, TEXT[:1000])
    giving.clear_prefix_cache()
    answer(giving, TEXT[:1000], max_tokens=1)
    pool = giving.runtime._pool
    chain, _, _ = pool.prefix.walk(TEXT[:999])
    forget_window(giving, chain[12])
    ids, sums, reused = answer(giving, TEXT[:1000])
    assert (ids, sums) == expected and reused >= 14 * PAGE  # pages 13 and 14 are all that is seen from 960 on
    giving.clear_prefix_cache()
    answer(giving, TEXT[:1000], max_tokens=1)
    chain, _, _ = pool.prefix.walk(TEXT[:999])
    forget_window(giving, chain[14])
    ids, sums, reused = answer(giving, TEXT[:1000])
    assert (ids, sums) == expected and reused == 14 * PAGE


@pytest.mark.parametrize("options", [
    {"context_shift": True, "max_tokens": 60}, {"context_shift": True, "keep": 700, "max_tokens": 60}, {"banned": ["e", "th", "a"], "max_tokens": 120},
    {"temperature": 0.0, "max_tokens": 200}], ids=["shift", "shift and keep", "banned", "greedy"])
def test_going_back(keeping: Model, giving: Model, options: dict[str, Any]) -> None:
    prompt = TEXT[:CONTEXT - 30] if "context_shift" in options else TEXT[:1100]
    expected = alone(keeping, prompt, **options)
    giving.clear_prefix_cache()
    assert answer(giving, prompt, speculate=False, **options)[:2] == expected
    assert answer(giving, prompt, **options)[:2] == expected


def test_guesses(keeping: Model, giving: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that repeats itself, where every guess pays."""
    from llamina.engine.answers.speculation import Costs
    prompt = [1] + [40, 41, 42, 43, 44] * 200
    expected = alone(keeping, prompt, max_tokens=300, temperature=0.0)
    monkeypatch.setattr(Costs, "ratio", lambda self, m: 1.0)
    giving.clear_prefix_cache()
    ids, sums, _ = answer(giving, prompt, max_tokens=300, temperature=0.0)
    assert (ids, sums) == expected


def test_truncate_goes_to_the_beginning_where_a_window_is_gone(keeping: Model, giving: Model) -> None:
    rows = []
    for model in (keeping, giving):
        sequence = model.runtime.new_sequence(cached=False, slides=True)
        model.feed(sequence, TEXT[:1000], "none")
        model.feed(sequence, TEXT[1000:1001], "none")
        sequence.truncate(990)
        assert sequence.length == 990  # within the slack
        model.feed(sequence, TEXT[990:1100], "none")
        sequence.truncate(500)
        assert sequence.length == (500 if model is keeping else 0)
        rows.append(model.feed(sequence, TEXT[sequence.length:800])[-1].tobytes())
        sequence.close()
        own = model.new_sequence()  # a text of one's own keeps everything
        model.feed(own, TEXT[:1000], "none")
        fork = own.fork(300)
        own.truncate(200)
        assert own.length == 200
        rows.append(model.feed(own, TEXT[200:400])[-1].tobytes() + model.feed(fork, TEXT[300:500])[-1].tobytes())
        own.close()
        fork.close()
    assert rows[:2] == rows[2:]


def test_many_in_tight_memory(keeping: Model, path: Path) -> None:
    """Two samples each of prompts that share beginnings, in memory for two contexts and a bit."""
    prompts = [TEXT[:800] + [9], TEXT[:800] + [8], TEXT[:640], TEXT[:200], TEXT[900:1500]]
    def run(model: Model) -> dict[tuple[int, int], list[int]]:
        asked = [{"prompt": prompt, "samples": 2, "max_tokens": 70, "ignore_eos": True, "seed": 2} for prompt in prompts]
        with model.generate_many(asked, wait=60.0) as batch:
            found = {(r.index, r.sample): (r.error, r.generation.ids if hasattr(r, "generation") else r.ids) for r in batch}
        assert all(error is None for error, _ in found.values())
        return {key: ids for key, (_, ids) in found.items()}
    keeping.clear_prefix_cache()
    expected = run(keeping)
    with load(path, threads=1, context=CONTEXT) as model:
        model.runtime._pool.max_pages = 2 * model.runtime.plan.layout.units(CONTEXT) + 5
        assert run(model) == expected
        gc.collect()
        model.clear_prefix_cache()
        check_whole(model.runtime._pool)


@pytest.mark.parametrize("n", [100, 640, 1200])
def test_sessions(keeping: Model, giving: Model, n: int, tmp_path: Path) -> None:
    expected = alone(keeping, TEXT[:n], max_tokens=200)
    giving.clear_prefix_cache()
    with giving.generate(TEXT[:n], ignore_eos=True, temperature=0.9, seed=4, max_tokens=200) as g:
        for _ in range(90):
            next(g, "")
        g.save(tmp_path / "s")
        before: Any = list(g.rows)  # type: ignore[attr-defined]
    giving.clear_prefix_cache()
    size = (tmp_path / "s").stat().st_size
    layout = giving.runtime.plan.layout
    assert size < layout.unit * (pages_of(n + 90) + 2 * (pages_of(WINDOW + SLACK + min(n, 512)) + 2)) + 60000, "what no query sees was saved"
    again: Any = giving.resume(tmp_path / "s")
    again.rows = before
    with again:
        again.text()
        assert again._sequence is None or again.stats.reused_tokens >= 0
    assert (again.ids, again.rows) == expected


def test_the_memory_plan_tells_it(keeping: Model, giving: Model) -> None:
    few, all_ = giving.memory_plan, keeping.memory_plan
    assert few.context_bytes < 0.8 * all_.context_bytes
    assert "1 layers that see all" in str(few) and f"2 that see {WINDOW} positions" in str(few)
    long = kv_layout(giving.config, giving.runtime.kv, 8192, 512)
    assert long.bytes(8192) < 0.45 * kv_layout(giving.config, giving.runtime.kv, PAGE, 512).bytes(8192)
