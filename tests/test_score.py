"""Model.score: a naive recount, the border between context and continuation, and that no bit depends on what is computed together."""
from __future__ import annotations

import math

import llamina
import numpy as np
import pytest
from fake_model import fake_model
from llamina.engine.errors import ContextFullError, OptionError, OutOfMemoryError
from llamina.engine.run import kv_cache
from llamina.engine.run.runtime import Feed
from llamina.engine.score import paths
from llamina.engine.score.border import join
from llamina.engine.score.likelihood import deviation, exponential, log_softmax, mean, probabilities, row_of
from llamina.engine.score.paths import Group, Path, Walk
from small_models import random_ids, write_family, write_small_model

REVIEW = "Review: the film was a delight from start to end.\nSentiment:"
CHOICES = ["positive", " negative", " very good", " very bad indeed", " very bad news"]


@pytest.fixture(scope="module")
def demo():
    with llamina.load("demo", threads=1, context=256) as model:
        yield model


def recount(model, ids, first):
    """Log-probabilities of ids[first:], one row after the other, by NumPy."""
    logits = model.logits(ids[:-1]).astype(np.float64)
    return [float(row[t] - row.max() - np.log(np.exp(row - row.max()).sum())) for row, t in zip(logits[first - 1:], ids[first:])]


def test_a_naive_recount(demo):
    for choice, found in zip(CHOICES, demo.score(REVIEW, CHOICES)):
        ids = demo.prompt_ids(REVIEW + choice)
        first = len(demo.prompt_ids(REVIEW))
        assert found.ids == ids[first:] and not found.spans
        assert found.logprobs == pytest.approx(recount(demo, ids, first), abs=1e-9)
        assert found.logprobs == [t.logprob for t in demo.logprobs(ids)[first - 1:]]  # the same sequence of operations: the same bits
        assert found.logprob == math.fsum(found.logprobs)
        assert found.greedy == (demo.logits(ids[:-1]).argmax(axis=1)[first - 1:].tolist() == found.ids)


def test_greedy_is_what_generate_says(demo):
    said = demo.generate("Once upon a time", max_tokens=5, temperature=0)
    list(said)
    [all_of_it, another] = demo.score(demo.prompt_ids("Once upon a time"), [said.ids, [*said.ids[:-1], said.ids[-1] + 1]])
    assert all_of_it.greedy and not another.greedy


def requests():
    """Contexts that share beginnings of many lengths, some of them each other's beginnings; choices of one and of many tokens, and equal ones."""
    texts = [f"Review: film number {i % 7} was {'good' if i % 3 else 'bad, ' * (i % 5)} and {'long ' * (i % 4)}" for i in range(40)]
    texts += ["Review: ", "Review: film", "", "x", texts[0], REVIEW * 3, REVIEW * 3 + " negative\n\n"]
    return [(text, [CHOICES[(i + j) % len(CHOICES)] for j in range(i % 4 + 1)] + ["positive", "positive"][:i % 3]) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def alone(demo):
    found = []
    for request in requests():
        demo.clear_prefix_cache()
        found.append(demo.score(*request))
    return found


@pytest.mark.parametrize("block, live, least", [(256, 64, 4), (1, 1, 1), (7, 3, 1), (16, 64, 30)])
def test_bits_do_not_depend_on_company(demo, alone, monkeypatch, block, live, least):
    monkeypatch.setattr(paths, "BLOCK", block)
    monkeypatch.setattr(paths, "LIVE", live)
    monkeypatch.setattr(paths, "LEAST", least)
    demo.clear_prefix_cache()
    found = list(demo.score_many(requests()))
    assert [f.index for f in found] == list(range(len(alone))) and [f.scores for f in found] == alone
    assert demo.runtime.kv_pages().owned == 0


def test_threads_and_short_steps(alone):
    with llamina.load("demo", threads=2, context=256) as model:
        model.runtime.max_batch, model.runtime.max_logits = 40, 3
        assert [f.scores for f in model.score_many(requests())] == alone


@pytest.mark.parametrize("family, keys", [("gemma3", {"attention.sliding_window": 32}), ("qwen2", {})])
def test_other_families(tmp_path, family, keys):
    """Windows keep pages that forks need."""
    path = write_family(tmp_path / "m.gguf", family, keys, "F32")
    head = random_ids(150, 280, 1)
    asked = [(head[:n], [random_ids(k, 280, n + k) for k in (1, 3, 90)]) for n in (150, 149, 70, 5)]
    with llamina.load(path, threads=1, context=512) as model:
        together = [f.scores for f in model.score_many(asked)]
        model.clear_prefix_cache()
        assert together == [model.score(*a) for a in asked]
        assert together[0][2].logprobs == pytest.approx(recount(model, asked[0][0] + asked[0][1][2], 150), abs=1e-6)


def test_shared_beginnings_are_computed_once(demo):
    demo.clear_prefix_cache()
    head, ends = random_ids(100, 400, 3), [random_ids(6, 400, k) for k in range(20)]
    walk = Walk(demo, [Group(i, [Path([*head, *end, c], 106) for c in (7, 8, 9)]) for i, end in enumerate(ends)])
    assert sorted(group.key for group in walk) == list(range(20))
    assert walk.computed <= 100 + 20 * 6


def test_little_memory(demo, alone, monkeypatch):
    """A cache with room for one text: everything is computed, one after the other, with the same bits; what has no room even then is told."""
    real, spare = vars(kv_cache.PagePool)["free_pages"], [6]
    monkeypatch.setattr(kv_cache.PagePool, "free_pages", property(lambda pool: real.fget(pool) - (pool.max_pages - spare[0])))
    demo.clear_prefix_cache()
    assert [f.scores for f in demo.score_many(requests())] == alone
    spare[0] = 1
    demo.clear_prefix_cache()
    found = list(demo.score_many(requests()))
    assert all(f.scores == a for f, a in zip(found, alone) if not f.error)
    assert {type(f.error) for f in found} == {type(None), OutOfMemoryError}


# -- the border -----------------------------------------------------------------------------------------------------------------------------


def test_trailing_spaces_belong_to_the_continuation(demo):
    assert join(demo, "The sky is ", "blue") == join(demo, "The sky is", " blue")
    assert join(demo, "a:\n", "b").first == len(demo.prompt_ids("a:"))


def test_a_token_over_the_border_is_scored_and_told(demo):
    whole = demo.prompt_ids("Once upon a time there was")
    at = next(i for i in range(2, len(whole)) if len(demo.tokenizer.token_bytes(whole[i])) > 3)
    before = "".join(demo.tokenizer.token_bytes(id).decode() for id in whole[:at]).lstrip()
    text = demo.tokenizer.token_bytes(whole[at]).decode()
    context = before + text[:2]
    found = join(demo, context, "Once upon a time there was"[len(context):])
    assert found.spans and found.first == at and found.ids == whole
    [score] = demo.score(context, ["Once upon a time there was"[len(context):]])
    assert score.spans and score.ids == whole[at:]


def test_ids_are_taken_as_they_are(demo):
    assert join(demo, [5, 6], [7]) .ids == [5, 6, 7]
    assert join(demo, [], [7]).ids == [demo.tokenizer.bos_id, 7]
    assert join(demo, [5, 6], " the") == join(demo, [5, 6], demo.tokenizer.encode(" the", bos=False))


def test_without_bos_a_text_begins_after_another():
    model = fake_model("")
    model.tokenizer.add_bos = False
    assert join(model, "", "ab").ids == [256, 97, 98] and join(model, "", "ab").first == 1
    assert join(model, "c", "ab").ids == [99, 97, 98]
    model.tokenizer.bos_id = None
    assert join(model, " ", "ab").ids == [257, 32, 97, 98]


@pytest.mark.parametrize("context, continuations, error, words", [
    ("a", [""], OptionError, "continuation is empty"), ("a", [[]], OptionError, "continuation is empty"),
    ("a", "b", OptionError, "must be a list of texts"), ([1], [[10**6]], OptionError, "outside this model's vocabulary"),
    ("word " * 300, ["x"], ContextFullError, "context and continuation have")])
def test_refused(demo, context, continuations, error, words):
    with pytest.raises(error, match=words):
        demo.score(context, continuations)
    found = list(demo.score_many([("a", ["b"]), (context, continuations), ("c", ["d"])]))
    assert [type(f.error) for f in found] == [type(None), error, type(None)] and len(found[2].scores) == 1


def test_the_whole_context_may_be_used(demo):
    ids = random_ids(257, 400)
    [found] = demo.score(ids[:-1], [ids[-1:]])
    assert len(found.logprobs) == 1


# -- rows -----------------------------------------------------------------------------------------------------------------------------------


def test_steps_show_rows_instead_of_returning_them(tmp_path):
    path = write_small_model(tmp_path / "m.gguf")
    with llamina.load(path, threads=2) as model:
        runtime = model.runtime
        ids = random_ids(200)
        expected = model.logits(ids)
        runtime.max_logits = 16
        seen: dict[int, np.ndarray] = {}
        most = 0

        def look(rows, positions):
            nonlocal most
            most = max(most, len(rows))
            seen.update(zip(positions.tolist(), rows.copy()))
        for cut in (200, 90, 5, 1):  # few tokens have rows of their own in every thread
            shown, returned = runtime.new_sequence(), runtime.new_sequence()
            seen.clear()
            for start in range(0, 200, cut):
                part = ids[start:start + cut]
                rows = runtime.step([Feed(returned, part, "last"), Feed(shown, part, "all", look)])
                assert rows.tobytes() == expected[start + len(part) - 1].tobytes()
            assert most <= 16 and all(seen[i].tobytes() == expected[i].tobytes() for i in range(200)) and len(seen) == 200
            shown.close()
            returned.close()


def test_log_probabilities():
    rng = np.random.default_rng(0)
    for n in (5, 300, 5000):
        logits = (3 * rng.standard_normal((2, n))).astype(np.float32)
        found = log_softmax(logits)
        x = logits.astype(np.float64)
        assert np.allclose(found, x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)), atol=1e-12)
        assert row_of(logits[0]).log_probability(logits[0, 3]) == found[0, 3]
    assert row_of(np.array([1, 2, 2], np.float32)).best == 1
    assert probabilities([-1.0, -1.0, -math.inf]) == [0.5, 0.5, 0.0] and probabilities([-math.inf] * 2) == [0.5, 0.5]
    assert exponential(1.5) == pytest.approx(math.exp(1.5), rel=1e-15) and exponential(1000) == math.inf
    assert mean([1, 2]) == 1.5 and deviation([1.0, 3.0]) == 1.0
