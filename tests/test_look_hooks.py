"""Hooks: what they see and may do, that looking changes no bit, whose steps they see, and everything that a hook can do wrong."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.errors import ClosedError, OptionError
from llamina.engine.model import Model, load
from runs import same
from small_models import random_ids, write_small_model

IDS = random_ids(90)
PROMPT = IDS[:70]


@pytest.fixture(scope="module", params=["F32", "Q4_0"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_small_model(tmp_path_factory.mktemp("look") / "m.gguf", request.param, n_layers=3)
    with load(path, threads=2, context=512) as model:
        yield model


def answer(model: Model, **options: Any) -> list[int]:
    generation = model.generate(PROMPT, max_tokens=24, ignore_eos=True, temperature=1.0, seed=5, **options)
    generation.text()
    return generation.ids


def test_looking_changes_no_bit(model: Model, tmp_path: Path) -> None:
    """Logits and sampled tokens: before, within, and after; hooks that return None, at every site at once and one by one; threads."""
    logits, tokens = model.logits(IDS), answer(model)
    names = list(model.sites())
    seen: list[str] = []
    for chosen in (["*"], names[3:4], names[-2:]):
        with model.hooked({name: lambda array, spot: seen.append(spot.name) for name in chosen}):
            assert same(model.logits(IDS), logits)
            assert answer(model) == tokens
    assert set(seen) >= set(names) - {"hook_embed"}
    assert same(model.logits(IDS), logits) and answer(model) == tokens
    with load(model.path, threads=1, context=512) as alone, alone.hooked({"*": lambda array, spot: None}):
        assert same(alone.logits(IDS), logits) and answer(alone) == tokens


def test_after_changes_everything_is_as_before(model: Model) -> None:
    """What hooks changed is in no prefix cache: also of an answer that was begun outside the block, or goes on after it."""
    logits, tokens = model.logits(IDS), answer(model)
    model.clear_prefix_cache()
    with model.hooked({"blocks.1.hook_resid_post": lambda array, spot: array * 3}):
        changed = model.logits(IDS)
        assert not np.allclose(changed, logits)
        inside = answer(model)
        assert inside != tokens
    assert same(model.logits(IDS), logits) and answer(model) == tokens
    model.clear_prefix_cache()
    begun = model.generate(PROMPT, max_tokens=150, ignore_eos=True, temperature=0.0)
    next(begun)
    with model.hooked({"blocks.0.hook_resid_post": lambda array, spot: array * 2}):
        for _ in range(100):
            next(begun)
    begun.text()
    again = model.generate(begun.history[:180], max_tokens=5, ignore_eos=True, temperature=0.0)
    again.text()
    assert again.stats.reused_tokens <= len(PROMPT) // 64 * 64, "pages that a hook changed were taken over"
    model.clear_prefix_cache()
    fresh = model.generate(begun.history[:180], max_tokens=5, ignore_eos=True, temperature=0.0)
    fresh.text()
    assert again.ids == fresh.ids
    assert answer(model) == tokens


def test_a_change_reaches_later_layers_and_positions_only(model: Model) -> None:
    names = ["blocks.*.hook_resid_post", "blocks.*.attn.hook_k"]
    before = model.activations(IDS, names)

    def change(array: np.ndarray, spot: Any) -> np.ndarray | None:
        here = spot.positions == 40
        if not here.any():
            return None
        array = array.copy()
        array[here] += 1.0
        return array
    with model.hooked({"blocks.1.hook_resid_post": change}):
        after = model.activations(IDS, names)
    for name in before:
        layer, moved = int(name.split(".")[1]), [p for p in range(len(IDS)) if not (before[name][p] == after[name][p]).all()]
        if layer == 0 or layer == 1 and "hook_k" in name:
            assert moved == [], name
        elif layer == 1:
            assert moved == [40], name
        else:
            assert moved and min(moved) == 40, name
    assert np.allclose(after["blocks.1.hook_resid_post"][40], before["blocks.1.hook_resid_post"][40] + 1)


def test_every_site_can_be_changed(model: Model) -> None:
    """And what is put back as it was gives the same bits; a map can't be changed."""
    logits = model.logits(IDS)
    for name in model.sites():
        if "pattern" in name or "scores" in name or name.startswith("ln_final"):
            with model.hooked({name: lambda array, spot: array}), pytest.raises(OptionError, match="not changed"):
                model.logits(IDS[:5])
            continue
        with model.hooked({name: lambda array, spot: array.copy()}):
            assert same(model.logits(IDS), logits), name
        if not name.endswith("hook_mlp_in"):
            with model.hooked({name: lambda array, spot: array * np.float32(1.5) + 1}):
                assert not same(model.logits(IDS), logits), name


def test_chunks_and_positions(model: Model) -> None:
    """A text in steps of any length: each position is seen once, in order, with its id."""
    seen: list[tuple[int, int]] = []
    with model.hooked({"blocks.0.hook_resid_pre": lambda array, spot: seen.extend(zip(spot.positions.tolist(), spot.ids.tolist()))}):
        model.logits(IDS, chunk=7)
        assert seen == list(enumerate(IDS))
        seen.clear()
        generation = model.generate(PROMPT, max_tokens=10, ignore_eos=True)
        generation.text()
        assert seen == list(enumerate(generation.history[:-1]))  # the last one was never fed


def test_nested_blocks_call_outer_hooks_first(model: Model) -> None:
    order: list[str] = []
    with model.hooked({"blocks.0.hook_resid_post": lambda a, s: order.append("outer") or a * 0 + 1}):  # type: ignore[func-returns-value]
        with model.hooked({"blocks.0.hook_resid_post": lambda a, s: order.append(f"inner {float(a.max())}")}):
            model.logits(IDS[:4])
        model.logits(IDS[:4])
    model.logits(IDS[:4])
    assert order == ["outer", "inner 1.0", "outer"]


def test_other_threads_are_not_watched(model: Model) -> None:
    """Answers of another thread at the same time: not seen, not changed."""
    tokens, results, seen = answer(model), [], set()
    me = threading.get_ident()

    def hook(array: np.ndarray, spot: Any) -> np.ndarray:
        seen.add(threading.get_ident())
        return array + 1
    with model.hooked({"blocks.*.hook_resid_post": hook}):
        threads = [threading.Thread(target=lambda: results.append(answer(model))) for _ in range(2)]
        for thread in threads:
            thread.start()
        inside = [answer(model) for _ in range(2)]
        for thread in threads:
            thread.join()
    assert results == [tokens, tokens] and inside[0] == inside[1] != tokens and seen == {me}


def test_many_prompts(model: Model) -> None:
    """generate_many within a block: every answer is changed, and each by itself."""
    prompts = [IDS[:n] for n in (20, 40, 70)]
    hooks = {"blocks.1.hook_resid_post": lambda array, spot: array * 2}
    with model.hooked(hooks):
        one = [model.generate(p, max_tokens=8, ignore_eos=True, temperature=0.0) for p in prompts]
        expected = [(g.text(), g.ids)[1] for g in one]
        many = [r.ids for r in model.generate_many(prompts, max_tokens=8, ignore_eos=True, temperature=0.0, ordered=True)]
    assert many == expected


# -- what a hook does wrong ---------------------------------------------------------------------------------------------------------------------

class Mine(Exception):
    pass


def raises(array: np.ndarray, spot: Any) -> None:
    raise Mine("mine")


def writes(array: np.ndarray, spot: Any) -> None:
    array[0] = 0


FAULTS: dict[str, tuple[Any, str]] = {
    "shape": (lambda a, s: a[:-1], r"shape \[\d+, 64\], found \[\d+, 64\]"),
    "one more dimension": (lambda a, s: a[None], "shape"),
    "integers": (lambda a, s: a.astype(np.int32), "must return floats, found an array of int32"),
    "complex": (lambda a, s: a.astype(np.complex64), "complex64"),
    "objects": (lambda a, s: a.astype(object), "object"),
    "NaN": (lambda a, s: a * np.nan, r"NaN, infinity .* at \[0, 0\]"),
    "too large": (lambda a, s: a.astype(np.float64) * 1e300 + 1e300, "float32 can't hold"),
    "a number": (lambda a, s: 3.0, "None or a NumPy array, found float 3.0"),
    "a list": (lambda a, s: a.tolist(), "found list"),
    "writes": (writes, "read-only: return a changed copy"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_hook_returns_wrong(model: Model, fault: str) -> None:
    """Named, with the site; no token of the step counts, and the model goes on."""
    hook, message = FAULTS[fault]
    logits = model.logits(IDS[:9])
    with model.hooked({"blocks.1.hook_resid_post": hook}):
        with pytest.raises(OptionError, match=message) as caught:
            model.logits(IDS[:9])
        assert "blocks.1.hook_resid_post" in str(caught.value)
        generation = model.generate(IDS[:9], max_tokens=3)
        with pytest.raises(OptionError, match=message):
            generation.text()
        assert generation.finish_reason == "interrupted"
        with pytest.raises(OptionError, match=message):
            model.activations(IDS[:9], "blocks.1.hook_resid_post")
    assert same(model.logits(IDS[:9]), logits)


def test_float64_and_float16_are_taken(model: Model) -> None:
    with model.hooked({"blocks.1.hook_resid_post": lambda a, s: a.astype(np.float64) * 2}):
        double = model.logits(IDS[:9])
    with model.hooked({"blocks.1.hook_resid_post": lambda a, s: a * np.float32(2)}):
        assert same(model.logits(IDS[:9]), double)


def test_what_a_hook_raises_is_raised(model: Model) -> None:
    logits = model.logits(IDS[:9])
    sequence = model.new_sequence()
    model.feed(sequence, IDS[:4])
    with model.hooked({"blocks.1.attn.hook_z": raises}):
        with pytest.raises(Mine):
            model.feed(sequence, IDS[4:9])
        with pytest.raises(Mine):
            model.generate(IDS[:9], max_tokens=3).text()
        with pytest.raises(Mine):
            list(model.generate_many([IDS[:9]], max_tokens=3))
        with pytest.raises(Mine):
            model.activations(IDS[:9], "blocks.2.hook_resid_post")
    assert sequence.length == 4
    assert same(model.feed(sequence, IDS[4:9])[-1], logits[-1])
    sequence.close()


def test_arrays_can_be_kept(model: Model) -> None:
    kept: list[np.ndarray] = []
    with model.hooked({"blocks.*.hook_resid_post": lambda a, s: kept.append(a)}):
        model.logits(IDS[:9])
    copies = [a.copy() for a in kept]
    model.logits(IDS[9:40])
    assert all(same(a, b) for a, b in zip(kept, copies)) and len(kept) == 3 and not any(a.flags.writeable for a in kept)


def test_a_hook_can_not_run_the_model(model: Model) -> None:
    def again(array: np.ndarray, spot: Any) -> None:
        model.logits(IDS[:3])
    with model.hooked({"blocks.0.hook_resid_post": again}), pytest.raises(OptionError, match="in the middle of a step"):
        model.logits(IDS[:9])
    model.logits(IDS[:9])


def test_what_is_no_hook(model: Model) -> None:
    for hooks, message in (({"blocks.0.hook_resid_pots": raises}, "did you mean 'blocks.0.hook_resid_post'"), ({"blocks.9.hook_z": raises}, "it has 3 layers"),
                           ({"nothing": raises}, "no site 'nothing'"), ({"*.hook_z": 3}, "must be a function"), ({7: raises}, "must be text"),
                           ([raises], "must be a mapping")):
        with pytest.raises(OptionError, match=message), model.hooked(hooks):  # type: ignore[arg-type]
            pass


def test_a_closed_model_has_no_hooks(tmp_path: Path) -> None:
    model = load(write_small_model(tmp_path / "m.gguf"), threads=1, context=64)
    with model.hooked({"blocks.0.hook_resid_post": lambda a, s: None}):
        model.close()
        with pytest.raises(ClosedError):
            model.logits(IDS[:3])
    with pytest.raises(ClosedError):
        model.hooked({})
