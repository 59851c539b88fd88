"""Adapters at run time: the same logits however a text is computed, and beside whom; nobody else's bits change. test_low_rank.py has the product itself."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import llamina
import numpy as np
import pytest
from adapters import random_adapter
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.errors import OptionError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run.runtime import Feed, Runtime
from llamina.engine.train.adapter import Adapter
from runs import open_runtime, run, same
from small_models import random_ids, write_family, write_small_model

f32 = np.float32
IDS = random_ids(150)


# -- the forward pass -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def q4(folder: Path) -> Path:
    return write_small_model(folder / "q4.gguf", "Q4_0")


def config_of(path: Path) -> ModelConfig:
    with open_gguf(path) as file:
        return ModelConfig.from_gguf(file)


def add(runtime: Runtime, adapter: Adapter, name: str = "a", scale: float = 1.0) -> None:
    adapter.check(runtime.config)
    runtime.adapters.add(name, adapter, scale)


def run_with(runtime: Runtime, ids: list[int], adapters: Any, chunk: int = 512) -> np.ndarray:
    sequence = runtime.new_sequence(adapters=adapters)
    parts = [runtime.step([Feed(sequence, ids[i:i + chunk], "all")]).copy() for i in range(0, len(ids), chunk)]
    sequence.close()
    return np.concatenate(parts)


FAMILIES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("llama", {}, []), ("phi3", {}, ["blk.*.attn_qkv.weight"]), ("phi2", {"rope.dimension_count": 8, "attention.layer_norm_rms_epsilon": None}, []),
    ("qwen2", {}, ["output.weight"]),
]


@pytest.mark.parametrize(("architecture", "keys", "tensors"), FAMILIES, ids=lambda x: x if isinstance(x, str) else None)
def test_it_is_the_merged_model(folder: Path, architecture: str, keys: dict[str, Any], tensors: list[str]) -> None:
    """Of float models, to rounding: W x + scale B A x is (W + scale B A) x, for every matrix; fused and parallel ones, biases and tied embeddings, too."""
    path = write_family(folder / f"{architecture}.gguf", architecture, keys, tensors=tensors)
    config = config_of(path)
    adapter = random_adapter(config, rank=5, only=lambda name: name != "output.weight" or "output.weight" in tensors)

    def merged(name: str, values: np.ndarray) -> np.ndarray:
        pair = adapter.pairs.get(name)
        return values + 0.5 * pair.scale * (pair.b.astype(np.float64) @ pair.a) if pair else values
    other = write_family(folder / f"{architecture}-merged.gguf", architecture, keys, tensors=tensors, edit=merged)
    with open_runtime(path, 2, kv="f32") as runtime, open_runtime(other, 2, kv="f32") as whole:
        base, expected = run(runtime, IDS[:40]), run(whole, IDS[:40])
        add(runtime, adapter)
        found = run_with(runtime, IDS[:40], {"a": 0.5})
        assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max() < 0.01 * np.abs(base - expected).max()


@pytest.mark.parametrize("stored", ["F32", "F16"])
def test_threads_chunks_and_storage(q4: Path, stored: str) -> None:
    """The same bits on any threads and in any chunks; numbers kept as halves give those of the same numbers kept as floats."""
    config = config_of(q4)
    adapter, found = random_adapter(config, rank=20, stored="F16"), []
    for pair in adapter.pairs.values():
        pair.stored = stored
    for threads in 1, 2, 3:
        with open_runtime(q4, threads) as runtime:
            base = run(runtime, IDS)
            add(runtime, adapter)
            found += [run_with(runtime, IDS, ["a"], chunk) for chunk in ((512, 1, 2, 7, 64) if threads == 2 else (512, 7))]
            assert same(run(runtime, IDS), base), "a sequence without adapters has the bits it always had"
    assert all(same(a, found[0]) for a in found) and not same(found[0], base)
    _seen.setdefault("bits", found[0])
    assert same(found[0], _seen["bits"])


_seen: dict[str, np.ndarray] = {}


def test_mixed_in_one_step(q4: Path) -> None:
    """Sequences with no adapter, one, another, and both, in the same steps: each has the bits it has alone."""
    config = config_of(q4)
    with open_runtime(q4, 2) as runtime:
        add(runtime, random_adapter(config, rank=4, seed=1), "a")
        add(runtime, random_adapter(config, rank=18, seed=2, only=lambda name: "ffn" in name or name == "output.weight"), "b", 0.25)
        asked: list[Any] = [{}, {"a": 1}, {"b": 0.5}, {"a": 0.5, "b": 1.0}, {"b": 1.0, "a": 0.5}, ["b"], {"a": 0.0}]
        texts = [random_ids(60, seed=i) for i in (1, 2, 3, 4, 4, 6, 7)]
        alone = [run_with(runtime, ids, adapters) for ids, adapters in zip(texts, asked)]
        assert same(alone[3], alone[4]) and same(alone[0], run(runtime, texts[0])) and same(alone[6], run(runtime, texts[6]))
        assert same(alone[5], run_with(runtime, texts[5], {"b": 0.25}))
        rng = np.random.default_rng(5)
        for wanted in "all", "last":
            sequences = [runtime.new_sequence(adapters=adapters) for adapters in asked]
            at, rows = [0] * len(asked), [[] for _ in asked]  # type: list[int], list[list[np.ndarray]]
            while any(n < 60 for n in at):
                order = [int(i) for i in rng.permutation(len(asked)) if at[i] < 60]
                sizes = {i: int(rng.choice([1, 1, 2, 9])) for i in order}
                feeds = [Feed(sequences[i], texts[i][at[i]:at[i] + sizes[i]], wanted if i % 3 else "last") for i in order]
                logits, start = runtime.step(feeds), 0
                for i, feed in zip(order, feeds):
                    n = len(feed.ids) if feed.logits == "all" else 1
                    at[i] += len(feed.ids)
                    assert same(logits[start:start + n].copy(), alone[i][at[i] - n:at[i]]), (wanted, i)
                    start += n
            del rows


def test_open_form_and_what_goes_on_between(q4: Path) -> None:
    """Observed layers have the fused ones' bits; forks keep their adapters; a removed adapter stays with whoever has it, and its place is given again."""
    config = config_of(q4)
    with open_runtime(q4, 2) as runtime:
        add(runtime, random_adapter(config))
        expected = run_with(runtime, IDS, ["a"])
        sequence = runtime.new_sequence(adapters=["a"])
        seen: list[np.ndarray] = []
        observe = {f"blocks.{i}.{site}": lambda rows: seen.append(rows.copy()) for i in (0, 1) for site in ("attn.hook_q", "mlp.hook_post")}
        assert same(runtime.step([Feed(sequence, IDS[:100], "all")], observe=observe).copy(), expected[:100]) and len(seen) == 4
        fork = sequence.fork(90)
        runtime.adapters.remove("a")
        with pytest.raises(OptionError, match="no adapter called 'a'"):
            runtime.new_sequence(adapters=["a"])
        assert same(runtime.step([Feed(fork, IDS[90:], "all")]).copy(), expected[90:])
        slot = fork.adapters[0][0].slot
        assert slot not in runtime.adapters._free
        sequence.adapters = fork.adapters = ()
        runtime.adapters._planned = ()
        assert slot in runtime.adapters._free
        add(runtime, random_adapter(config, seed=3, only=lambda name: "attn_q" in name), "b")
        assert not same(run_with(runtime, IDS, ["b"]), run(runtime, IDS))


def test_changed_numbers_are_taken_over(q4: Path) -> None:
    with llamina.load(q4, threads=2) as model:
        adapter, other = random_adapter(model.config, seed=1), random_adapter(model.config, seed=2)
        assert model.add_adapter(adapter, name="mine", default=False) == "mine"
        first = model.adapters["mine"]["digest"]
        before = run_with(model.runtime, IDS, ["mine"])
        for name, pair in adapter.pairs.items():
            pair.a[:], pair.b = other.pairs[name].a, other.pairs[name].b
        assert same(run_with(model.runtime, IDS, ["mine"]), before)
        model.update_adapter("mine")
        assert model.adapters["mine"]["digest"] == other.digest != first
        model.add_adapter(other, name="other", default=False)
        assert same(run_with(model.runtime, IDS, ["mine"]), run_with(model.runtime, IDS, ["other"]))


def test_texts_under_way_become_private(q4: Path) -> None:
    """What was begun before an adapter's numbers or the control vectors changed is told to the prefix cache under neither name; forks neither."""
    from llamina.engine.look.steer import SteeringVector
    with llamina.load(q4, threads=2) as model:
        runtime, adapter = model.runtime, random_adapter(model.config)
        model.add_adapter(adapter, name="mine")
        saved = {name: pair.a.copy() for name, pair in adapter.pairs.items()}

        def scaled(by: int) -> None:
            for name, pair in adapter.pairs.items():
                pair.a[:] = by * saved[name]
            model.update_adapter("mine")
        changes = [(lambda: scaled(2), lambda: scaled(1)), (lambda: model.control(SteeringVector({0: np.full(64, 0.5, f32)}, "llama")), model.control)]
        expected = run_with(runtime, IDS, None)[-1:]
        for change, back in changes:
            under_way = runtime.new_sequence(cached=True)
            runtime.step([Feed(under_way, IDS[:64], "none")])
            change()
            for sequence in under_way.fork(64), under_way:
                runtime.step([Feed(sequence, IDS[64:], "none")])
                sequence.close()
            back()
            later = runtime.new_sequence(cached=True)
            assert later.match(IDS[:-1]) == 64  # what was computed before the change
            assert same(runtime.step([Feed(later, IDS[64:], "last")]).copy(), expected) and later.match(IDS) == 0
            later.close()
            again = runtime.new_sequence(cached=True)
            assert again.match(IDS[:-1]) > 64
            again.close()
            model.clear_prefix_cache()
