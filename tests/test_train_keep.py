"""Layers that are kept of the first pass: the same bits as computed a second time, all of them, some or none; in the memory that was planned."""
from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llamina import load
from llamina.engine.errors import OptionError
from llamina.engine.train import run, store
from llamina.engine.train.data import Reading
from llamina.engine.train.forward import Forward, Kept
from llamina.engine.train.full import FullGradients
from llamina.engine.train.gradients import Gradients, RowGradients
from llamina.engine.train.model_weights import ModelWeights
from llamina.engine.train.options import Options
from llamina.engine.train.run import Run
from llamina.engine.units import size
from page_cases import write_case
from small_models import write_small_model
from train_cases import LENGTHS, opened, random_adapter, random_rows

LONG = pytest.mark.skipif(not os.environ.get("LLAMINA_LONG"), reason="one page more: LLAMINA_LONG=1 runs it")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers that were computed a second time."""
    found, real = list[int](), Forward._second

    def second(self: Forward, layer: int) -> Kept:
        found.append(layer)
        return real(self, layer)
    monkeypatch.setattr(Forward, "_second", second)
    return found


def bits(found: RowGradients, rows: list[Any], split: int) -> dict[str, bytes]:
    divisor = float(sum(row.targets for row in rows))
    found.zero()  # type: ignore[attr-defined]
    for start in range(0, len(rows), split):
        found.accumulate(rows[start:start + split], divisor, 0)
    return {name: array.tobytes() for name, array in found.arrays.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("steps", [512, 17], ids=["one step", "steps of 17"])
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "stablelm parallel", *(pytest.param(name, marks=LONG) for name in (
    "llama arrays", "phi3", "olmo2", "gpt2", "phi2", "granite", "command-r", "hunyuan", "gptneox", "cohere2"))])
def test_kept_and_computed_layers_have_the_same_bits(name: str, steps: int, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_case(tmp_path / "m.gguf", name)
    for full, dropout in (False, 0.0), (False, 0.25), (True, 0.0):
        with opened(path, threads=2) as model:
            monkeypatch.setattr(model.runtime, "max_batch", steps)
            rows, layers = random_rows(model.config.n_vocab, LENGTHS), range(model.config.n_layers)
            found = FullGradients(ModelWeights(model)) if full else Gradients(model, random_adapter(model.config), dropout=dropout, seed=9)
            tokens = sum(LENGTHS)
            whole, some = found.kept(tokens, 1 << 40)[1], found.kept(tokens, found.kept(tokens, 1 << 40)[1] - 1)[1]
            assert 0 < some < whole and found.kept(tokens, some) == (len(layers) - 1, some), "the first layer goes first"
            said = {}
            for keep, split, again in (0, 4, list(layers)), (whole, 4, []), (some, 4, [0]), (whole, 1, []), (whole, 4, []), (whole // 3, 2, None):
                computed.clear()
                found.keep = keep
                said[keep, split] = bits(found, rows, split)
                assert again is None or sorted(computed) == again, "it was kept as asked"
            for key, arrays in said.items():
                assert arrays == said[0, 4], (full, dropout, key)


def test_memory_of_other_micro_batches_is_used_again(tmp_path: Path) -> None:
    """Rows of another micro-batch lie in it, longer ones and shorter ones."""
    with opened(write_small_model(tmp_path / "m.gguf", "Q4_0")) as model:
        rows, adapter = random_rows(model.config.n_vocab, LENGTHS), random_adapter(model.config)
        found = Gradients(model, adapter, keep=1 << 30)
        for first in range(4):
            fresh = Gradients(model, adapter, keep=0)
            for part in rows[first:], rows[:2], rows[1:]:
                assert bits(found, part, 4) == bits(fresh, part, 4)
        bits(found, rows, 4)
        held = {name: array.ctypes.data for name, array in found._store._named.items()}
        layers = found._store._layers.ctypes.data
        bits(found, rows[:3], 1)
        assert held == {name: array.ctypes.data for name, array in found._store._named.items()} and layers == found._store._layers.ctypes.data


@pytest.mark.parametrize("keep", [0, 1 << 20, 1 << 30])
@pytest.mark.parametrize("make", [lambda model: Gradients(model, random_adapter(model.config)), lambda model: FullGradients(ModelWeights(model)),
                                  lambda model: Gradients(model, random_adapter(model.config), dropout=0.1)], ids=["adapter", "full", "dropout"])
def test_no_more_memory_than_was_planned(make: Callable[[Any], Any], keep: int, tmp_path: Path) -> None:
    with opened(write_small_model(tmp_path / "m.gguf", "F32", dim=256, ffn_dim=704), threads=2) as model:
        rows = random_rows(model.config.n_vocab, [200, 100, 180])
        tokens, found = 480, make(model)
        found.keep = 0
        found.accumulate(rows[1:2], 100.0, 0)  # all is compiled
        found.keep = keep
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for part in rows[:1], rows, rows[1:]:
                found.accumulate(part, 100.0, 1)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        planned = found.memory(tokens, 200, 3) - model.runtime.kv_bytes + found.kept(tokens)[1]
        print(peak, planned, found.kept(tokens))
        assert 0.5 * planned < peak <= planned


def planned(model: Any, rows: list[dict[str, str]], memory: str | None = None, keep: Any = None, **options: Any) -> tuple[dict[str, int], int, int]:
    """-> memory by what it is for, tokens of a micro-batch, bytes that are kept of a step."""
    with Run(model, rows, None, Reading(context=512), Options(**options), memory=memory, keep=keep) as found:
        plan = found.plan(measured=False)
        [_] = [line for line in plan.lines() if f"{size(sum(plan.memory.values()))} beside the model" in line]
        for part in plan.memory:
            assert part in plan.lines()[1]
        return plan.memory, found.loop.largest()[0], found.gradients.keep


def test_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers as long as they fit; of fewer tokens, if those of many don't; what `keep` and `memory` leave."""
    rows = [{"text": "abcdefg " * 60}] * 8
    with load(write_small_model(tmp_path / "m.gguf", "Q4_0", n_layers=4), threads=1) as model:
        memory, tokens, keep = planned(model, rows)
        assert tokens > 600 and memory["4 of 4 layers kept"] == keep and list(memory)[-1].endswith("layers kept")
        one = keep // 4
        memory, tokens, less = planned(model, rows, keep=keep - 1)
        longest = max(len(model.tokenizer.encode(row["text"])) for row in rows)
        assert tokens <= max(512, longest + 2) and memory["4 of 4 layers kept"] == less < keep
        memory, tokens, less = planned(model, rows, keep=f"{(one + 10_000) / 1000}KB")
        assert memory["2 of 4 layers kept"] == less <= one + 10_000, "of half as many tokens, twice as many"
        memory, tokens, less = planned(model, rows, keep="0")
        assert less == 0 and tokens > 600 and "kept" not in " ".join(memory)
        memory, _, less = planned(model, rows, keep=keep, micro_batch=1)
        assert memory["4 of 4 layers kept"] == less < keep
        memory, _, less = planned(model, rows, keep=keep, layers=1, micro_batch=1)
        assert memory["1 of 1 layers kept"] == less
        allowed = sum(planned(model, rows, keep=0, micro_batch=1)[0].values()) + less + 1
        memory, _, _ = planned(model, rows, str(allowed), micro_batch=1)
        assert memory["1 of 4 layers kept"] == less and sum(memory.values()) <= allowed
        monkeypatch.setattr(run, "available_memory", lambda: 2 * allowed)
        assert sum(planned(model, rows)[0].values()) <= 2 * allowed
        monkeypatch.setattr(run, "available_memory", lambda: None)
        assert "4 of 4 layers kept" in planned(model, rows)[0]


@pytest.mark.parametrize("keep", ["", "-1", "some", -1, True, 0.5, [1]])
def test_what_keep_may_be(keep: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="keep must be 0 .*, bytes or a size such as 500MB, found "):
        store.parse_keep(keep)
    assert store.parse_keep(None) is None and store.parse_keep("0") == store.parse_keep(0) == 0 and store.parse_keep("2MB") == 2_000_000


def test_the_adapter_is_the_same(tmp_path: Path, computed: list[int]) -> None:
    """Of `model.train`, whatever is kept."""
    rows = [{"text": "abc " * n} for n in (3, 40, 7, 90, 20, 1)]
    with load(write_small_model(tmp_path / "m.gguf", "Q4_0"), threads=2) as model:
        said, seconds = [], []
        for keep in 0, None, planned(model, rows, rank=2, batch=3)[2] - 1:
            computed.clear()
            path = tmp_path / f"{keep}.gguf"
            model.train(rows, path, rank=2, epochs=2, batch=3, lr=1e-2, keep=keep)
            said.append(path.read_bytes())
            seconds.append(len(computed))
        assert said[0] == said[1] == said[2] and seconds[0] > seconds[2] > seconds[1] == 0
        with pytest.raises(OptionError, match="keep must be 0"):
            model.train(rows, keep="much")
