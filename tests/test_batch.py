"""Many answers at once are, with ==, the answers one at a time; what goes wrong with one touches no other; memory comes back."""
from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_model import EOS, fake_model
from llamina.engine.answers.batch import Request, Result
from llamina.engine.errors import ContextFullError, NumericError, OptionError, OutOfMemoryError
from llamina.engine.model import Model, load
from small_models import random_ids, write_small_model
from test_speculation import Eager


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_small_model(tmp_path_factory.mktemp("models") / "m.gguf", "Q8_0", context_length=256)
    with load(path, threads=1) as model:
        yield model


@pytest.fixture
def free(model: Model) -> Iterator[int]:
    """Free pages; and all come back."""
    gc.collect()
    model.runtime.clear_prefix_cache()
    before = model.runtime._pool.free_pages
    yield before
    assert model.runtime._pool.free_pages == before and model.runtime._pool._promised == 0


def answer(r: Result) -> tuple[Any, ...]:
    assert r.error is None, r.error
    return r.text, r.ids, r.finish_reason, r.logprobs


def alone(model: Model, prompt: Any, **options: Any) -> tuple[Any, ...]:
    g = model.generate(prompt, **options)
    return g.text(), g.ids, g.finish_reason, g.logprobs


PROMPTS = [random_ids(n, seed=n) for n in (1, 5, 63, 64, 65, 130, 200, 255, 256)] + [[1, *[40, 41, 42] * 20]]
CASES: list[dict[str, Any]] = [
    {"temperature": 0.0}, {"seed": 1, "temperature": 1.2}, {"seed": 4, "mirostat": 2, "mirostat_tau": 2.0}, {"seed": 2, "banned": ["e", "4"]},
    {"seed": 3, "stop": ["a", "é"]}, {"seed": 5, "dry_multiplier": 0.8, "dry_breakers": ["\n"], "repeat_penalty": 1.1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("live", [2, 16])
def test_the_same_as_one_at_a_time(model, free, case, live):
    ref = [alone(model, p, max_tokens=30, ignore_eos=True, logprobs=2, **case) for p in PROMPTS]
    for eager in False, True:
        model.costs = Eager() if eager else type(model.costs)()
        found = list(model.generate_many(PROMPTS, max_tokens=30, ignore_eos=True, logprobs=2, live=live, **case))
        assert sorted(r.index for r in found) == list(range(len(PROMPTS)))
        for r in found:
            assert answer(r) == ref[r.index]
        drafted = sum(r.stats.drafted_tokens for r in found)
        assert drafted or not eager
    model.runtime.clear_prefix_cache()


def test_samples_share_the_prompt_and_differ(model, free):
    prompt, n = random_ids(150), 5
    found = list(model.generate_many([prompt, prompt[:70]], samples=n, seed=3, max_tokens=20, ignore_eos=True, ordered=True))
    assert [(r.index, r.sample) for r in found] == [(i, s) for i in range(2) for s in range(n)]
    for r in found:
        assert r.ids == alone(model, [prompt, prompt[:70]][r.index], seed=3, sample_index=r.sample, max_tokens=20, ignore_eos=True)[1]
        assert r.stats.reused_tokens == (len([prompt, prompt[:70]][r.index]) if r.sample else r.stats.reused_tokens)
    assert len({tuple(r.ids) for r in found}) > n
    repeating = [1, *[40, 41, 42] * 30]
    ref = [alone(model, repeating, seed=3, sample_index=s, max_tokens=20, ignore_eos=True)[1] for s in range(3)]
    model.costs = Eager()  # the prefix cache knows all but the last token: a draft follows it in the prompt's own step
    assert [r.ids for r in model.generate_many([repeating], samples=3, seed=3, max_tokens=20, ignore_eos=True, ordered=True)] == ref
    assert len({r.stats.seed for r in model.generate_many([prompt], samples=3, max_tokens=1)}) == 1
    model.runtime.clear_prefix_cache()


def test_samples_share_pages(model, free):
    """The whole pages of a prompt exist once, however many answers there are."""
    batch = model.generate_many([random_ids(193)], samples=6, max_tokens=40, ignore_eos=True, live=6)
    for _ in range(4):
        batch._begin_more()
        batch._advance()
    pages = {id(page) for a in batch._live for page in a.generation._sequence._pages[:3]}
    assert len(batch._live) == 6 and len(pages) == 3
    batch.close()
    model.runtime.clear_prefix_cache()


def test_a_prompt_that_many_begin_with_is_computed_once(model, free):
    system = random_ids(192, seed=8)
    prompts = [[*system, *random_ids(9, seed=s)[1:]] for s in range(8)]
    ref = [alone(model, p, max_tokens=4, temperature=0.0) for p in prompts]
    model.runtime.clear_prefix_cache()
    found = list(model.generate_many(prompts, max_tokens=4, temperature=0.0, ordered=True))
    assert [answer(r) for r in found] == ref
    reused = sorted(r.stats.reused_tokens for r in found)
    assert reused[0] == 0 and reused[1:] == [192] * 7, reused
    again = list(model.generate_many(prompts, max_tokens=4, temperature=0.0, ordered=True))
    assert [answer(r) for r in again] == ref and min(r.stats.reused_tokens for r in again) >= 192
    model.runtime.clear_prefix_cache()


def test_errors_stay_with_their_prompt(model, free):
    prompts: list[Any] = ["a", random_ids(257), {"prompt": "b", "temperature": -1}, {"prompt": "b", "nonsense": 1}, {"no": 1}, [99999], 5,
                          Request("c", {"seed": 7}), {"prompt": "d", "seed": 8, "max_tokens": 0}, {"prompt": "e", "samples": 0}]
    found = list(model.generate_many(prompts, max_tokens=5, ordered=True))
    assert [type(r.error) for r in found] == [type(None), ContextFullError, OptionError, OptionError, OptionError, OptionError, OptionError, type(None),
                                              type(None), OptionError]
    assert found[7].ids == alone(model, "c", seed=7, max_tokens=5)[1] and (found[8].ids, found[8].finish_reason) == ([], "length")
    assert "the prompt has 257 tokens, the context 256" in str(found[1].error) and "nonsense" in str(found[3].error)
    with pytest.raises(OptionError, match="prompts must be a list of prompts"):
        model.generate_many("text")
    for wrong in {"samples": 0}, {"live": -1}, {"samples": 1.5}:
        with pytest.raises(OptionError):
            model.generate_many(["a"], **wrong)
    model.runtime.clear_prefix_cache()


def test_a_step_that_fails_for_one_sequence_fails_for_it_alone():
    def say(ids: list[int]) -> int:
        if ids[1] == ord("x") and len(ids) == 5:
            raise NumericError("planted")
        return 65 if len(ids) < 9 else EOS
    m = fake_model(say, max_batch=32)
    found = list(m.generate_many(["abc", "xbc", "cde"], temperature=0.0, ordered=True))
    assert [r.text for r in found] == ["AAAAA", "A", "AAAAA"]
    assert [str(r.error) for r in found] == ["None", "planted", "None"] and found[1].finish_reason is None
    assert m.runtime.open_sequences == 0


def test_waits_for_kv_memory(model):
    """A budget for two answers at a time: the others wait, nobody fails midway."""
    pool = model.runtime._pool
    model.runtime.clear_prefix_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "max_pages", 7)
        patch.setattr(pool, "pages", set())
        patch.setattr(pool, "claimed", 0)
        patch.setattr(pool, "_free", [])
        prompts = [random_ids(100, seed=s) for s in range(12)]
        most = 0
        batch = model.generate_many(prompts, max_tokens=90, ignore_eos=True, temperature=0.0)  # three pages each
        for _ in batch:
            most = max(most, len(batch._live))
        assert most <= 2 and pool.claimed <= 7 and pool._promised == 0
        found = list(model.generate_many(prompts, max_tokens=90, ignore_eos=True, temperature=0.0, samples=2, ordered=True))
        assert [(r.index, r.error) for r in found] == [(i // 2, None) for i in range(24)]
        holding = [model.generate(random_ids(100, seed=s), max_tokens=90, ignore_eos=True, temperature=0.0) for s in (1, 2)]
        for g in holding:
            next(g)
        with pytest.raises(OutOfMemoryError, match="KV cache has 1 of 7 pages"):
            model.generate(random_ids(100, seed=3), max_tokens=90).text()
        found = list(model.generate_many([random_ids(100, seed=3), random_ids(10, seed=4)], max_tokens=40, ordered=True))
        assert isinstance(found[0].error, OutOfMemoryError) and found[1].error is None
        timer = threading.Timer(0.1, holding[0].close)
        timer.start()
        assert len(model.generate(random_ids(100, seed=3), max_tokens=90, wait=20.0, ignore_eos=True).text()) >= 0  # another thread ends
        timer.join()
        holding[1].close()
        assert pool.free_pages == 7
        model.runtime.clear_prefix_cache()


def test_hundreds_of_prompts_take_the_memory_of_a_few(model, free):
    taken = []

    def prompts() -> Iterator[list[int]]:
        for i in range(400):
            taken.append(i)
            yield [1, 3 + i % 250, 5 + i // 250]
    batch = model.generate_many(prompts(), max_tokens=2, ignore_eos=True, temperature=0.0, live=8)
    for done, r in enumerate(batch, 1):
        assert r.error is None and len(taken) - done <= 8
    assert done == 400
    model.runtime.clear_prefix_cache()
    pool = model.runtime._pool
    assert pool.claimed <= 800


def test_ordered_ones_wait_for_the_slow(model, free):
    prompts = [{"prompt": [1, 5 + i], "max_tokens": 60 if i % 5 == 0 else 1} for i in range(40)]
    plain = [r.index for r in model.generate_many(prompts, ignore_eos=True, live=4)]
    assert plain != sorted(plain) and sorted(plain) == list(range(40))
    assert [r.index for r in model.generate_many(prompts, ignore_eos=True, live=4, ordered=True)] == list(range(40))
    model.runtime.clear_prefix_cache()


def test_given_up_half_way(model, free):
    def begin() -> Any:
        batch = model.generate_many([random_ids(90, seed=s) for s in range(20)], max_tokens=9, samples=2, seed=1)
        next(batch)
        return batch
    batch = begin()
    batch.close()
    assert list(batch) == []
    with begin():
        pass
    for _ in begin():
        break
    gc.collect()

    def broken() -> Iterator[Any]:
        yield from [random_ids(9)] * 3
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        list(model.generate_many(broken(), max_tokens=50))
    model.runtime.clear_prefix_cache()


def test_interrupted(model, free, monkeypatch):
    step, n = model.runtime.step, itertools.count()

    def interrupted(feeds: list[Any]) -> np.ndarray:
        rows = step(feeds)
        if next(n) == 7:
            raise KeyboardInterrupt  # after the sequences have grown
        return rows
    monkeypatch.setattr(model.runtime, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(model.generate_many(PROMPTS, max_tokens=20))
    model.runtime.clear_prefix_cache()


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_arrivals_from_threads_at_any_time(model, free, case):
    """Streams of several threads share steps with a batch, logits and prompts that come when they like."""
    ref = [alone(model, p, max_tokens=25, ignore_eos=True, **case) for p in PROMPTS]
    rows = model.logits(PROMPTS[5])
    wrong: list[Any] = []

    def work(i: int) -> None:
        for k in range(3):
            j = (i * 3 + k) % len(PROMPTS)
            if alone(model, PROMPTS[j], max_tokens=25, ignore_eos=True, **case) != ref[j]:
                wrong.append(j)
            if model.logits(PROMPTS[5]).tobytes() != rows.tobytes():
                wrong.append("logits")
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for r in model.generate_many(PROMPTS, max_tokens=25, ignore_eos=True, **case):
        assert answer(r) == ref[r.index]
    for t in threads:
        t.join(60)
    assert not wrong and not any(t.is_alive() for t in threads)
    model.runtime.clear_prefix_cache()


@pytest.mark.parametrize("case", [{"temperature": 0.0}, {"seed": 1}], ids=str)
def test_with_a_draft_model_and_on_more_threads(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("draft")
    main = write_small_model(folder / "m.gguf", "Q8_0", context_length=256)
    draft = write_small_model(folder / "d.gguf", "Q8_0", seed=1, n_layers=1, context_length=256)
    with load(main, threads=1) as plain, load(main, threads=2, draft=draft) as model:
        model.costs = Eager()
        for sample in 0, 1:
            ref = [alone(plain, p, max_tokens=20, ignore_eos=True, sample_index=sample, speculate=False, **case) for p in PROMPTS[:6]]
            found = list(model.generate_many(PROMPTS[:6], max_tokens=20, ignore_eos=True, ordered=True, samples=2, **case))
            assert [answer(r) for r in found if r.sample == sample] == ref
            assert sum(r.stats.drafted_tokens for r in found if r.stats) > 50
