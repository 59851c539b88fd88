"""Speculation changes nothing but time: tokens and logits with == on and off; its n-grams, costs and account."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import EOS, fake_model
from llamina.engine.answers.chat import Chat
from llamina.engine.answers.generation import Generation
from llamina.engine.answers.speculation import MAX_DRAFT, Costs, PromptLookup, Speculator, continuation
from llamina.engine.errors import NumericError, OptionError, OutOfMemoryError
from llamina.engine.model import Model, load
from llamina.engine.sampling.sampler import SamplingOptions
from small_models import random_ids, write_small_model


class Eager(Costs):
    """Costs at which every draft pays, however long; lengths vary."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.calls = 1.0, 0

    def observe(self, m: int, seconds: float) -> None:
        pass

    def ratio(self, m: int) -> float:
        self.calls += m == 2
        return 1.0 if m <= 2 + self.calls * 5 % MAX_DRAFT else 99.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A small model with random weights, and another one that guesses for it, mostly wrong."""
    folder = tmp_path_factory.mktemp("models")
    main = write_small_model(folder / "main.gguf", "Q8_0", context_length=256)
    draft = write_small_model(folder / "draft.gguf", "Q8_0", seed=1, n_layers=1, context_length=256)
    with load(main, threads=1, draft=draft) as model:
        model.costs = Eager()
        yield model


def run(model: Model, prompt: list[int], *, speculate: bool, draft: bool = False, **options: Any) -> tuple[Any, ...]:
    """(text, ids, reason, logits' bytes row by row), KV given back; and what was guessed."""
    before, other = model.runtime._pool.free_pages, model.draft
    model.draft = other if draft else None
    g = model.generate(prompt, speculate=speculate, **{"max_tokens": 100, "ignore_eos": True, "logprobs": 2, **options})
    sample, rows = g._sampler.sample, []

    def record(logits: np.ndarray, *rest: Any) -> int:
        rows.append(logits.tobytes())
        return sample(logits, *rest)

    g._sampler.sample = record  # type: ignore[method-assign, assignment]
    text = g.text()
    model.draft = other
    assert model.runtime._pool.free_pages == before
    return (text, g.ids, g.finish_reason, rows, g.logprobs), g.stats


REPEATING = [1, *[40, 41, 42, 43, 44, 45] * 12]
CASES: list[dict[str, Any]] = [
    {"temperature": 0.0}, {"seed": 1}, {"seed": 2, "temperature": 1.5, "top_k": 0, "top_p": 1.0}, {"seed": 3, "temperature": 0.3, "repeat_penalty": 1.3},
    {"temperature": 0.0, "dry_multiplier": 0.8, "dry_breakers": ["\n"]}, {"seed": 4, "mirostat": 2, "mirostat_tau": 2.0},
    {"seed": 5, "xtc_probability": 0.5, "frequency_penalty": 0.1, "min_p": 0.01}, {"temperature": 0.0, "banned": ["e", "4"]},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("draft", [False, True], ids=["lookup", "draft"])
def test_the_same_with_and_without(model, case, draft):
    drafted = accepted = 0
    for prompt in REPEATING, random_ids(20, seed=7):
        plain, stats = run(model, prompt, speculate=False, **case)
        guessed, more = run(model, prompt, speculate=True, draft=draft, **case)
        assert guessed == plain
        assert (stats.drafted_tokens, stats.accepted_tokens) == (0, 0)
        drafted, accepted = drafted + more.drafted_tokens, accepted + more.accepted_tokens
    assert drafted > (20 if draft else 0)
    assert accepted > 0 or case != {"temperature": 0.0}


def test_a_draft_model_that_is_always_right(model):
    with load(model.path, threads=1) as twin:
        other, model.draft = model.draft, twin
        for case in {"temperature": 0.0}, {"seed": 8}, {"seed": 9, "mirostat": 2}:
            plain, _ = run(model, random_ids(9), speculate=False, **case)
            guessed, stats = run(model, random_ids(9), speculate=True, draft=True, **case)
            assert guessed == plain
            assert stats.accepted_tokens > 60 and stats.accepted_tokens >= 0.8 * stats.drafted_tokens  # wrong only where an n-gram guessed
        model.draft = other


@pytest.mark.parametrize("n_left", [0, 1, 2, 5])
def test_at_the_end_of_the_context_and_of_max_tokens(model, n_left):
    prompt = (REPEATING * 9)[:256 - n_left]
    for options in {"max_tokens": None}, {"max_tokens": n_left}:
        plain, _ = run(model, prompt, speculate=False, temperature=0.0, **options)
        for draft in False, True:
            assert run(model, prompt, speculate=True, draft=draft, temperature=0.0, **options)[0] == plain
        assert len(plain[1]) == (n_left + 1 if options["max_tokens"] is None else n_left)


def test_stop_strings_and_end_of_sequence(model):
    plain, _ = run(model, REPEATING, speculate=False, temperature=0.0)
    for i in 3, 20, 60:
        stop = plain[0][i:i + 3]
        ends = [run(model, REPEATING, speculate=s, temperature=0.0, stop=stop)[0] for s in (False, True)]
        assert ends[0] == ends[1] and ends[0][2] == "stop"
    ends = [run(model, REPEATING, speculate=s, seed=6, temperature=2.0, top_k=0, top_p=1.0, ignore_eos=False, max_tokens=None)[0] for s in (False, True)]
    assert ends[0] == ends[1]


def test_a_generation_given_up_half_way_leaves_a_clean_sequence(model):
    """Chat goes on with the sequence: what was drafted and not chosen must be gone."""
    for n in range(1, 12):
        sequence = model.runtime.new_sequence()
        g = Generation(model, REPEATING, SamplingOptions(temperature=0.0), sequence=sequence)
        while len(g.ids) < n:
            next(g)
        g.close()
        assert sequence.length <= len(g.history)
        more = model.feed(sequence, [*g.history, 77][sequence.length:])[-1]
        assert more.tobytes() == model.logits([*g.history, 77])[-1].tobytes()
        sequence.close()


def test_chat_on_the_demo_model():
    answers = []
    with load("demo") as demo:
        for speculate in False, True:
            demo.speculate, demo.costs = speculate, Eager()
            with Chat(demo) as chat:
                answers.append([chat.ask(text, seed=5, max_tokens=60).text() for text in ("Tell me a story about a fox.", "Tell me a story about a fox.")])
    assert answers[0] == answers[1]


def test_another_vocabulary_is_refused(tmp_path: Path, model):
    other = write_small_model(tmp_path / "other.gguf", n_vocab=300)
    with pytest.raises(OptionError, match=r"other\.gguf has another vocabulary than .*main\.gguf \(300 and 288 tokens"):
        load(model.path, threads=1, draft=other)


@pytest.mark.parametrize("error", [OutOfMemoryError, NumericError])
def test_what_only_a_guess_meets_is_no_error(error):
    """KV memory that ends, or numbers that overflow, in tokens that were never chosen."""
    m = fake_model(lambda ids: 65 + len(ids) % 3 if len(ids) < 40 else EOS, max_batch=64)
    m.speculate, m.costs = True, Eager()
    step, refused = m.runtime.step, []

    def small_steps(feeds: list[Any]) -> np.ndarray:
        if feeds[0].sequence.length and len(feeds[0].ids) > 1:
            refused.append(len(feeds[0].ids))
            raise error("no")
        return step(feeds)

    m.runtime.step = small_steps  # type: ignore[method-assign, assignment]
    g = m.generate("ab", temperature=0.0)
    assert len(g.text()) == 37 and g.finish_reason == "eos" and refused
    assert g.stats.drafted_tokens == 0


# ---------------------------------------------------------------------------------------------------------------- n-grams

@pytest.mark.parametrize("seed", range(10))
def test_lookup_is_the_naive_one(seed):
    rng = np.random.default_rng(seed)
    history: list[int] = []
    lookup = PromptLookup()
    for _ in range(120):
        history += rng.integers(0, 6, rng.integers(1, 3)).tolist()
        if rng.random() < 0.05:
            del history[len(history) // 2:]
        n, start = lookup.find(history)
        for ref in 4, 3, 2:
            ends = [e for e in range(ref, len(history)) if history[e - ref:e] == history[len(history) - ref:]] if len(history) >= ref else []
            if ends:
                assert (n, start) == (ref, ends[-1])
                break
        else:
            assert (n, start) == (0, 0)


def test_continuation_goes_round():
    assert continuation([5, 6, 7, 8], 1, 3) == [6, 7, 8]
    assert continuation([5, 6, 7, 8], 2, 5) == [7, 8, 7, 8, 7]


# ---------------------------------------------------------------------------------------------------------------- time

def simulate(n_tokens: int, right: float, prices: dict[int, float], seed: int = 0) -> tuple[float, Speculator]:
    """Time, in steps of one, for n tokens of a text full of n-grams whose continuation is right with this probability; a clock stands in for the machine."""
    rng, now = np.random.default_rng(seed), [0.0]
    m = fake_model(lambda ids: 65 if rng.random() < right else 66 + int(rng.integers(0, 100)), context=n_tokens + 9, max_batch=64)
    step = m.runtime.step

    def timed(feeds: list[Any]) -> np.ndarray:
        n = len(feeds[0].ids)
        now[0] += float(np.interp(n, list(prices), list(prices.values()))) * rng.uniform(0.9, 1.1)
        return step(feeds)

    m.runtime.step = timed  # type: ignore[method-assign, assignment]
    m.speculate = True
    g = m.generate([65] * 8, temperature=0.0, max_tokens=n_tokens, ignore_eos=True)
    assert g._speculator is not None
    g._speculator._clock = m.scheduler.clock = lambda: now[0]
    next(g)
    now[0] = 0.0
    g.text()
    return now[0], g._speculator


@pytest.mark.parametrize("prices", [{1: 1, 64: 6}, {1: 1, 64: 64}, {1: 1, 2: 3, 64: 40}], ids=["cheap", "no gain", "dear"])
@pytest.mark.parametrize("right", [0.0, 0.2, 0.5])
def test_never_much_slower(prices, right):
    for seed in range(3):
        seconds, _ = simulate(400, right, prices, seed)
        assert seconds <= 1.03 * 399 * 1.005, (seconds, seed)  # and half a per cent for the clock's noise


def test_much_faster_where_guesses_are_right():
    seconds, speculator = simulate(400, 1.0, {1: 1.0, 64: 6.0})
    assert seconds < 400 / 4
    assert speculator.accepted > 300
    seconds, _ = simulate(400, 0.9, {1: 1.0, 64: 6.0})
    assert seconds < 400 / 1.5


def test_costs_are_measured_and_outliers_bounded():
    costs = Costs()
    for _ in range(50):
        costs.observe(1, 0.1)
        costs.observe(8, 0.15)
    assert costs.one == pytest.approx(0.1) and costs.ratio(8) == pytest.approx(1.5, abs=0.01)
    assert costs.ratio(1) == 1.0 and 1.0 < costs.ratio(4) < 1.5 < costs.ratio(12)
    costs.observe(1, 60.0)
    assert costs.one < 0.15
