"""Little memory: what is told before loading is what is taken, a smaller context is said, nobody's answer ends another's, and a fork finds all locks free."""
from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz import scenarios
from llamina.engine.errors import InternalError, NumericError, OutOfMemoryError
from llamina.engine.model import Model, load
from llamina.engine.run.memory import MOST_TOKENS
from pool_check import check_whole
from small_models import random_ids, write_small_model
from test_speculation import Eager

CONTEXT = 256


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("models") / "m.gguf", "Q8_0", context_length=1024)


@pytest.fixture(scope="module")
def roomy(path: Path) -> Iterator[Model]:
    with load(path, threads=1, context=CONTEXT) as model:
        yield model


def tight(path: Path, pages: int, **more: Any) -> Model:
    """A model with memory for so many pages."""
    with load(path, threads=1, context=CONTEXT) as model:
        memory = model.memory_plan.weights + pages * model.runtime.page_bytes
    model = load(path, threads=1, context=CONTEXT, memory=memory, **more)
    assert model.memory_plan.pages == pages
    return model


def alone(model: Model, prompt: Any, **options: Any) -> list[int]:
    model.clear_prefix_cache()
    with model.generate(prompt, **options) as g:
        g.text()
        return g.ids


# ----------------------------------------------------------------------------------------------------------- shared pages in little memory

@pytest.mark.parametrize("pages", [4, 5, 8])
@pytest.mark.parametrize("shared", [8, 30, 64, 100])
def test_prompts_that_begin_alike(path, roomy, pages, shared):
    """No batch fails, however little is common to its prompts, and no page is lost."""
    prompts = [{"prompt": random_ids(shared, seed=1) + random_ids(n, seed=n)[1:], "max_tokens": 20 + n} for n in (5, 60, 33, 80, 2, 50, 90, 7)]
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 0.0}
    ref = [alone(roomy, **p, **options) for p in prompts]
    with tight(path, pages) as model:
        for _ in range(3):
            found = list(model.generate_many(prompts, ordered=True, samples=1, **options))
            assert [(r.error, r.ids) for r in found] == [(None, ids) for ids in ref]
            model.clear_prefix_cache()
            check_whole(model.runtime._pool)


@pytest.mark.parametrize("pages", [4, 7, 8, 12])
def test_a_context_shift_over_shared_pages(path, roomy, pages):
    prompt, options = random_ids(200), {"max_tokens": 150, "context_shift": True, "ignore_eos": True, "seed": 1}
    ref = [alone(roomy, prompt, sample_index=i, **options) for i in range(4)]
    with tight(path, pages) as model:
        found = list(model.generate_many([prompt], samples=4, ordered=True, **options))
        assert [(r.error, r.ids) for r in found] == [(None, ids) for ids in ref]
        model.clear_prefix_cache()
        check_whole(model.runtime._pool)


@pytest.mark.parametrize("pages", [4, 5])
def test_a_banned_text_goes_back_over_a_shared_page(path, roomy, pages):
    """Another answer takes the page over, if there is memory for both whatever happens; else it is not begun."""
    prompt = random_ids(58, seed=4)
    plain = alone(roomy, prompt, max_tokens=30, temperature=0.0, ignore_eos=True)
    banned = roomy.detokenize(plain[3:12]).strip()
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True, "banned": [banned], "speculate": False}
    ref = alone(roomy, prompt, **options)
    assert ref != plain
    other = (prompt + plain)[:66] + random_ids(60, seed=9)
    ref_other = alone(roomy, other, max_tokens=20, temperature=0.0, ignore_eos=True)
    with tight(path, pages) as model:
        a = model.generate(prompt, **options)
        while len(a.ids) < 9:
            if job := a.prepare():
                model.scheduler.run([job])
            a.advance()
        b = model.generate(other, max_tokens=20, temperature=0.0, ignore_eos=True)
        if pages == 4:
            with pytest.raises(OutOfMemoryError):
                next(b)
            a.text()
            b = model.generate(other, max_tokens=20, temperature=0.0, ignore_eos=True)
        next(b, "")
        a.text()
        b.text()
        assert (a.ids, b.ids) == (ref, ref_other)


def test_many_clients_wait_their_turn(path, roomy):
    """All are answered, in turn: who waits is not passed by those who come later, nor by a batch that goes on and on."""
    asked = [(random_ids(30, seed=1) + random_ids(n, seed=n)[1:], 20 + n) for n in range(5, 65, 2)]
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 0.0}
    ref = {n: alone(roomy, p, max_tokens=n, **options) for p, n in asked}
    with tight(path, 5) as model:
        problems: list[Any] = []
        left, lock = list(asked), threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    if not left:
                        return
                    prompt, n = left.pop()
                try:
                    with model.generate(prompt, max_tokens=n, wait=30, **options) as g:
                        g.text()
                    if g.ids != ref[n]:
                        problems.append(n)
                except Exception as error:
                    problems.append(error)

        def batch() -> None:
            problems.extend(r.error for r in model.generate_many([{"prompt": p, "max_tokens": n} for p, n in asked], **options)
                            if r.error or r.ids != ref[asked[r.index][1]])
        threads = [threading.Thread(target=f) for f in (client, client, client, client, batch)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert not any(t.is_alive() for t in threads) and not problems
        model.clear_prefix_cache()
        check_whole(model.runtime._pool)


@pytest.mark.parametrize("seed", range(6))
def test_random_scenarios(seed, tmp_path):
    references: dict[Any, Model] = {}
    try:
        assert not scenarios.Scenario(500 + seed, tmp_path, references).run()
    finally:
        for model in references.values():
            model.close()


def test_a_dropped_sequence_gives_its_pages_back(path):
    with tight(path, 4) as model:
        for _ in range(30):
            s = model.new_sequence()
            model.feed(s, [5] * 64)
            s.promise(200)
            del s
        gc.collect()
        check_whole(model.runtime._pool)


def test_an_error_keeps_no_pages(path):
    """Without the garbage collector: what was refused memory, and is let go, holds none."""
    with tight(path, 4) as model:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                held = model.generate([1, 5], max_tokens=150)
                next(held)
                s = model.new_sequence()
                model.feed(s, [5] * 64)
                with pytest.raises(OutOfMemoryError):
                    model.feed(s, [5] * 64)
                held.close()
                del s, held
                model.clear_prefix_cache()
                check_whole(model.runtime._pool)
        finally:
            gc.enable()


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_no_tokens_of_several_samples(roomy, samples):
    found = list(roomy.generate_many([[1, 5], {"prompt": [1, 6], "max_tokens": 1}], samples=samples, max_tokens=0, ordered=True, seed=1))
    assert [(r.index, r.sample, len(r.ids), r.error) for r in found] == [(i, s, i, None) for i in range(2) for s in range(samples)]


def test_a_fault_in_one_answer_is_its_own(roomy, monkeypatch):
    """Whatever an answer raises, also what we never thought of, is its error; the others are as alone."""
    from llamina.engine.sampling.sampler import Sampler
    ref = alone(roomy, [1, 9], max_tokens=8, temperature=0.0, ignore_eos=True)
    sample = Sampler.sample

    def planted(self: Any, logits: Any, position: int, *rest: Any) -> int:
        if self.options.seed == 77 and position == 4:
            raise self.options.top_k and ZeroDivisionError("planted\nhere")
        if self.options.seed == 78:
            raise MemoryError
        return sample(self, logits, position, *rest)
    monkeypatch.setattr(Sampler, "sample", planted)
    found = list(roomy.generate_many([[1, 9], {"prompt": [1, 9], "seed": 77, "temperature": 1.0}, {"prompt": [1, 8], "seed": 78}], max_tokens=8,
                                     temperature=0.0, ignore_eos=True, ordered=True, samples=1))
    assert [type(r.error) for r in found] == [type(None), InternalError, OutOfMemoryError]
    assert found[0].ids == ref and "ZeroDivisionError: planted here" in str(found[1].error) and len(found[1].ids) == 2


def test_a_step_without_memory_ends_its_own_answer(roomy, monkeypatch):
    """The system refuses memory for a step: each part is tried alone, and whose it is gets the error."""
    step = roomy.runtime.step

    def refusing(feeds: list[Any]) -> Any:
        if any(9 in feed.ids for feed in feeds):
            raise MemoryError
        return step(feeds)
    monkeypatch.setattr(roomy.runtime, "step", refusing)
    found = list(roomy.generate_many([[1, 5], [1, 9]], max_tokens=1, ordered=True, ignore_eos=True, temperature=0.0))
    assert found[0].error is None and type(found[1].error) is OutOfMemoryError


# ------------------------------------------------------------------------------------------------------------------------------- the plan

SHAPES: list[dict[str, Any]] = [{}, {"ffn_dim": 8192}, {"n_vocab": 9000}, {"n_heads": 16, "n_kv_heads": 16}, {"n_layers": 9, "context_length": 4096}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_planned_is_what_is_taken(tmp_path, shape, threads):
    """Buffers, tables, scratch, logits: all that is allocated beside matrices and pages, counted while a model is loaded and at work."""
    file = write_small_model(tmp_path / "m.gguf", "Q8_0", **shape)
    with load(file, threads=threads) as model:  # compiles
        model.generate(random_ids(100), max_tokens=3).text()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with load(file, threads=threads) as model:
            plan = model.memory_plan
            loaded = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.reset_peak()
            model.generate(random_ids(400), max_tokens=3).text()
            out = model.logits(random_ids(200)).nbytes
            peak = tracemalloc.get_traced_memory()[1] - before - model.runtime.kv_bytes - out
    finally:
        tracemalloc.stop()
    tokenizer = 3 << 20  # and what else Python keeps of a file
    assert loaded <= plan.buffers + tokenizer and peak <= plan.buffers + tokenizer, (loaded, peak, plan.buffers)
    assert plan.tokens == MOST_TOKENS and plan.buffers < 2.5 * (loaded + 2 * 4 * 128 * model.config.n_vocab) + (2 << 20)


def test_a_wide_model_in_little_memory(tmp_path, roomy):
    """A small file whose buffers would be large: steps get fewer tokens, and the answers are the same."""
    file = write_small_model(tmp_path / "m.gguf", "Q8_0", ffn_dim=32768, n_layers=1)
    with load(file, threads=1) as model:
        ref, full = alone(model, random_ids(300), max_tokens=10, temperature=0.0, ignore_eos=True), model.memory_plan
    assert full.buffers > 100e6 and full.tokens == MOST_TOKENS
    budget = full.weights - full.buffers + full.context_bytes + 20 * 10**6
    with load(file, threads=1, memory=budget) as model:
        plan = model.memory_plan
        assert plan.tokens < 100 and plan.weights + plan.kv <= budget and plan.context == full.context and plan.shortage is None
        assert alone(model, random_ids(300), max_tokens=10, temperature=0.0, ignore_eos=True) == ref
    with pytest.raises(OutOfMemoryError, match="buffers .* don't fit into the"):
        load(file, threads=1, memory=full.weights - full.buffers + 10**6)


def test_a_smaller_context_is_said(path):
    with load(path, threads=1) as model:
        full = model.memory_plan
        assert (full.wanted, full.context, full.shortage) == (1024, 1024, None)
    contexts = []
    for more in range(900_000, 0, -50_000):
        notes: list[str] = []
        try:
            model = load(path, threads=1, memory=full.weights - full.buffers + more, note=notes.append)
        except OutOfMemoryError:
            break
        with model, model.generate([1], max_tokens=1) as g:
            plan = model.memory_plan
            contexts.append(plan.context)
            assert plan.wanted == 1024 and (plan.context < 1024) == (plan.shortage is not None) and plan.weights + plan.kv <= full.weights - full.buffers + more
            assert plan.shortage is None or plan.shortage in notes and f"{plan.context} positions instead of 1024" in plan.shortage
            g.text()
            assert (g.stats.context, g.stats.wanted_context) == (plan.context, 1024)
    assert contexts == sorted(contexts, reverse=True) and contexts[0] == 1024 > contexts[-1]
    with pytest.raises(OutOfMemoryError, match="a context of 1024"):
        load(path, threads=1, memory=full.weights - full.buffers + more + 50_000, context=1024)


def test_a_draft_never_changes_the_context(path, tmp_path):
    """In one budget: the draft gets what the main model's context leaves, or is refused; the answers are those without it."""
    draft = write_small_model(tmp_path / "draft.gguf", "Q8_0", seed=1, n_layers=1, context_length=1024)
    with load(path, threads=1) as model:
        full = model.memory_plan
    contexts, refused = [], 0
    for extra in range(300_000, 4 * 10**6, 250_000):
        budget = full.weights - full.buffers + full.context_bytes + extra
        with load(path, threads=1, memory=budget) as model:
            context = model.context
        try:
            with load(path, threads=1, memory=budget, draft=draft) as model:
                assert model.draft is not None and model.context == context
                plans = model.memory_plan, model.draft.memory_plan
                assert sum(plan.weights + plan.kv for plan in plans) <= budget
                contexts.append(model.draft.context)
                model.costs = Eager()
                if len(contexts) == 1:
                    ids = alone(model, random_ids(20), max_tokens=None, temperature=0.0, ignore_eos=True)
                    model.speculate = False
                    assert alone(model, random_ids(20), max_tokens=None, temperature=0.0, ignore_eos=True) == ids and len(ids) == 1024 - 19
        except OutOfMemoryError as error:
            assert "the draft model needs" in str(error)
            refused += 1
    assert refused and contexts == sorted(contexts) and contexts[-1] == 1024


# -------------------------------------------------------------------------------------------------------------------------------- forks

FORKS = """
import faulthandler, os, sys, threading, time
from llamina.engine.model import load
model = load("demo", threads=2)
ref = model.generate("The fox", max_tokens=4, seed=1).text()
stop = False
def stream():
    while not stop:
        model.generate("Once upon a time", max_tokens=30, seed=1, ignore_eos=True).text()
def batches():
    while not stop:
        list(model.generate_many(["Once", "The bear"], samples=2, max_tokens=10, seed=1))
threads = [threading.Thread(target=f, daemon=True) for f in (stream, batches, batches)]
for t in threads:
    t.start()
time.sleep(0.2)
bad = 0
for i in range(12):
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(20, exit=True)
        same = model.generate("The fox", max_tokens=4, seed=1).text() == ref
        same &= [r.text for r in model.generate_many(["The fox"], samples=2, max_tokens=4, seed=1) if not r.sample] == [ref]
        os._exit(not same)
    bad += os.waitpid(child, 0)[1] != 0
    time.sleep(0.013 * (i % 5))
stop = True
for t in threads:
    t.join(20)
os._exit(bad + any(t.is_alive() for t in threads))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_others_are_in_a_step():
    """The child computes by itself, whatever threads of the parent were doing; the parent goes on."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def test_numeric_errors_stay_with_their_answer(roomy, monkeypatch):
    step = roomy.runtime.step

    def planted(feeds: list[Any]) -> Any:
        if any(9 in feed.ids for feed in feeds):
            raise NumericError("planted")
        return step(feeds)
    monkeypatch.setattr(roomy.runtime, "step", planted)
    found = list(roomy.generate_many([[1, 5], [1, 9], [1, 6]], max_tokens=1, samples=2, ordered=True, ignore_eos=True, seed=1))
    assert [type(r.error) for r in found] == [type(None)] * 2 + [NumericError] * 2 + [type(None)] * 2
