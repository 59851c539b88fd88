"""The scheduler over a stand-in runtime: who gets what of a step, what an interruption leaves, how it ends."""
from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from fake_model import fake_model
from llamina.engine.errors import ClosedError, NumericError
from llamina.engine.model import Model
from llamina.engine.run.scheduler import QUANTUM, Job


def model_with_steps(say: Any = lambda ids: 65, max_batch: int = 512) -> tuple[Model, list[list[tuple[int, int]]]]:
    """A model, and its steps so far: [(number of the sequence, tokens), …] each."""
    model = fake_model(say, context=4000, max_batch=max_batch)
    steps: list[list[tuple[int, int]]] = []
    numbers: dict[int, int] = {}
    step = model.runtime.step

    def recording(feeds: list[Any]) -> np.ndarray:
        rows = step(feeds)
        steps.append([(numbers.setdefault(id(f.sequence), len(numbers)), len(f.ids)) for f in feeds])
        return rows
    model.runtime.step = recording  # type: ignore[method-assign, assignment]
    return model, steps


def job(model: Model, n: int, stream: bool = False) -> Job:
    return Job(model.new_sequence(), [66] * n, stream=stream)


def test_streams_go_first_and_prompts_get_a_bounded_chunk():
    model, steps = model_with_steps()
    model.scheduler.tokens_per_second = 640.0  # a tenth of a second: 64 tokens
    prompt, streams = job(model, 400), [job(model, 1, stream=True) for _ in range(3)]
    model.scheduler.run([prompt, *streams], first=True)
    assert [n for _, n in steps[0]] == [1, 1, 1, 64] and prompt.done == 64 and all(s.finished for s in streams)
    model.scheduler.run([prompt])
    assert [n for _, n in steps[-1]] == [336]  # nobody streams: all at once
    assert prompt.rows.shape == (1, model.config.n_vocab)


def test_another_threads_stream_bounds_the_chunk_between_its_tokens():
    model, steps = model_with_steps()
    model.scheduler.tokens_per_second = 640.0
    worker = threading.Thread(target=lambda: model.scheduler.run([job(model, 1, stream=True)]))
    worker.start()
    worker.join()
    model.scheduler.run([job(model, 200)])
    assert [sum(n for _, n in step) for step in steps[1:]][0] == 64


def test_short_prompts_are_not_behind_long_ones_and_the_oldest_is_never_starved():
    model, steps = model_with_steps(max_batch=128)
    long, short = job(model, 1000), [job(model, 20) for _ in range(3)]
    model.scheduler.run([long, *short], first=True)
    assert all(s.finished for s in short) and long.done >= QUANTUM
    for _ in range(6):  # short ones keep coming
        before = long.done
        model.scheduler.run([long, *[job(model, 100) for _ in range(4)]], first=True)
        assert long.done >= before + QUANTUM


def test_no_step_is_larger_than_the_runtime_takes():
    model, steps = model_with_steps(max_batch=16)
    jobs = [job(model, n, stream=n < 4) for n in (1, 2, 3, 40, 1, 9, 1, 1, 1, 1, 1, 1, 1, 1)]
    model.scheduler.run(jobs)
    assert all(j.finished and j.error is None for j in jobs) and max(sum(n for _, n in step) for step in steps) <= 16


def test_all_logits_of_a_prompt_in_chunks():
    model, _ = model_with_steps(lambda ids: len(ids), max_batch=16)
    sequence = model.new_sequence()
    rows = model.feed(sequence, [66] * 50, "all")
    assert rows.shape == (50, model.config.n_vocab) and rows.argmax(axis=1).tolist() == list(range(1, 51))
    assert model.feed(sequence, [66] * 50, "none").shape == (0, model.config.n_vocab)


def test_an_error_goes_to_its_own_job():
    def say(ids: list[int]) -> int:
        if ids[0] == 67:
            raise NumericError("planted")
        return 65
    model, _ = model_with_steps(say)
    good, bad = job(model, 5), Job(model.new_sequence(), [67, 68])
    model.scheduler.run([good, bad])
    assert good.rows.shape[0] == 1
    with pytest.raises(NumericError, match="planted"):
        _ = bad.rows


def test_an_interrupted_leader_leaves_the_others_their_work():
    """Ctrl-C in the thread that computes for two: the other one's answer is whole all the same."""
    model, steps = model_with_steps()
    step, other = model.runtime.step, job(model, 30)
    waits = threading.Event()

    def interrupted(feeds: list[Any]) -> np.ndarray:
        model.runtime.step = step  # type: ignore[method-assign]
        worker.start()
        waits.wait(5)
        time.sleep(0.02)
        step(feeds)
        raise KeyboardInterrupt  # the sequences have grown already

    def follow() -> None:
        waits.set()
        model.scheduler.run([other])
    worker = threading.Thread(target=follow)
    model.runtime.step = interrupted  # type: ignore[method-assign, assignment]
    mine = job(model, 12)
    with pytest.raises(KeyboardInterrupt):
        model.scheduler.run([mine])
    worker.join(10)
    assert not worker.is_alive() and other.rows.shape[0] == 1 and mine.sequence.length == 0
    model.scheduler.run([mine])  # can be run again
    assert mine.rows.shape[0] == 1 and mine.sequence.length == 12


def test_closing_while_others_wait():
    model, _ = model_with_steps()
    step, entered = model.runtime.step, threading.Event()

    def slow(feeds: list[Any]) -> np.ndarray:
        entered.set()
        time.sleep(0.1)
        return step(feeds)
    model.runtime.step = slow  # type: ignore[method-assign, assignment]
    errors: list[BaseException | None] = []

    def work() -> None:
        j = Job(model.new_sequence(), [66] * 2000)
        try:
            model.scheduler.run([j])
            errors.append(j.error)
        except ClosedError as error:
            errors.append(error)
    workers = [threading.Thread(target=work) for _ in range(3)]
    for w in workers:
        w.start()
    entered.wait(5)
    model.close()
    for w in workers:
        w.join(10)
    assert not any(w.is_alive() for w in workers) and [type(e) for e in errors] == [ClosedError] * 3
