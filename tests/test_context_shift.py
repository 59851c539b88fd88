"""Context shifts: no random number comes twice in an answer, whatever chooses by it; chats that left turns out go on after undo, save and load."""
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from llamina import load
from llamina.engine.answers.chat import Chat, whole_turns
from llamina.engine.errors import LlaminaError
from llamina.engine.sampling import sampler
from small_models import random_ids, write_small_model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with load(write_small_model(tmp_path_factory.mktemp("m") / "m.gguf", "Q8_0", context_length=64), threads=1) as model:
        yield model


CASES: list[dict[str, Any]] = [{"temperature": 1.3}, {"xtc_probability": 0.5, "xtc_threshold": 0.05, "top_k": 0}, {"mirostat": 2}, {"banned": ["e", "4"]}]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_random_number_comes_twice(small, monkeypatch, case):
    """Each is numbered by the token's index in the whole text; before and after a shift, with draws taken back, too."""
    drawn: list[tuple[int, int]] = []

    def uniform(seed: int, index: int, position: int, stream: int = 0) -> float:
        drawn.append((position, stream))
        return real(seed, index, position, stream)
    real = sampler.uniform
    monkeypatch.setattr(sampler, "uniform", uniform)
    g = small.generate(random_ids(20), max_tokens=150, ignore_eos=True, context_shift=True, seed=3, **case)
    g.text()
    assert g.stats.context_shifts >= 3 and g.ids
    positions = [position for position, stream in drawn if stream == 0]
    assert set(positions) == set(range(20, 20 + len(g.ids)))
    if "banned" not in case:
        assert len(drawn) == len(set(drawn)) and positions == sorted(positions)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saved_between_shifts(small, tmp_path, case):
    ref = small.generate(random_ids(20), max_tokens=150, ignore_eos=True, context_shift=True, seed=5, **case)
    ref.text()
    for n in 50, 100, 140:
        g = small.generate(random_ids(20), max_tokens=150, ignore_eos=True, context_shift=True, seed=5, **case)
        while len(g.ids) < n:
            next(g)
        g.save(tmp_path / "s")
        rest = small.resume(tmp_path / "s", note=pytest.fail)
        rest.text()
        assert rest.ids == ref.ids and rest.stats.context_shifts == ref.stats.context_shifts >= 3
    many = list(small.generate_many([random_ids(20)], samples=2, max_tokens=150, ignore_eos=True, context_shift=True, seed=5, ordered=True, **case))
    assert many[0].ids == ref.ids != many[1].ids


def test_a_draft_model_draws_by_the_same_numbers(tmp_path):
    """The model as its own draft: every guess is right, also after shifts."""
    path = write_small_model(tmp_path / "m.gguf", "Q8_0", context_length=64)
    with load(path, threads=1, draft=path) as model:
        model.costs.one = 1.0  # drafting pays from the first token on
        model.costs.observe(8, 1.0)
        options: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "context_shift": True, "seed": 1, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
        g = model.generate(random_ids(20), **options)
        g.text()
        plain = model.generate(random_ids(20), **options, speculate=False)
        assert plain.text() == g.so_far and g.stats.context_shifts >= 2
        assert g.stats.drafted_tokens > 20 and g.stats.accepted_tokens >= 0.9 * g.stats.drafted_tokens


def test_whole_turns():
    turns = [{"role": role, "content": ""} for role in ("user", "assistant", "user", "assistant", "assistant")]
    assert [whole_turns(turns, n) for n in (-1, 0, 1, 2, 3, 4, 5, 99)] == [0, 0, 0, 2, 2, 2, 5, 5]
    assert whole_turns([], 7) == 0 == whole_turns(turns[1:2], 0)


STEPS = ("ask", "long", "undo", "stop", "fail")


def drive(chat: Chat, steps: tuple[str, ...], path: Path | None) -> list[str]:
    """What is said along these steps; path: saved and loaded after each."""
    said: list[str] = []
    for step in steps:
        try:
            if step == "undo":
                chat.undo()
            elif step == "stop":
                next(chat.ask("Stop", max_tokens=9, seed=1, context_shift=True))
            else:
                text = {"ask": "Why?", "long": "Tell me more. " * 5, "fail": "no " * 200}[step]
                said.append(chat.ask(text, max_tokens=20, seed=1, ignore_eos=True, context_shift=True).text())
        except LlaminaError as error:
            assert step == "fail", (steps, error)
        if path is not None:
            chat.save(path)
            with Chat(chat.model) as other:
                other.load(path)
                assert other.left_out == chat.left_out or other.left_out == whole_turns(chat.messages, chat.left_out)
            assert chat.load(path) is None
    return said


def test_chats_go_on_after_anything(tmp_path):
    """Every way through asking, undoing, interrupting and failing, saved and loaded or not: the same answers, and always one more."""
    with load("demo", threads=1, context=128) as model:
        for steps in itertools.product(STEPS, repeat=2):
            way = ("long", "long", *steps, "ask")
            with Chat(model) as chat:
                ref = drive(chat, way, None)
            with Chat(model) as chat:
                assert drive(chat, way, tmp_path / "talk") == ref, way
