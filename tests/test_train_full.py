"""Gradients of all weights of a model: right for every tensor, the same bits however rows are divided, and no trace in the model afterwards."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import targets
from llamina import load
from llamina.engine.errors import NumericError, UnsupportedError
from llamina.engine.run.feed import Feed
from llamina.engine.train.data import Reading
from llamina.engine.train.full import FullGradients
from llamina.engine.train.gradients import memory_of
from llamina.engine.train.model_weights import ModelWeights
from llamina.engine.train.options import Options
from llamina.engine.train.run import Run
from llamina.kernels.target import EMULATION
from naive_gradients import Twin
from page_cases import write_case
from small_models import write_small_model
from train_cases import LENGTHS, full_gradients, full_step, opened, random_rows

LONG = pytest.mark.skipif(not os.environ.get("LLAMINA_LONG"), reason="one page more: LLAMINA_LONG=1 runs it")


class FullTwin(Twin):
    """The float64 model, with something added to its tensors."""

    _model: Any
    _weight: Any

    def along(self, directions: dict[str, np.ndarray], h: float = 1e-5) -> float:
        """The loss's derivative along {tensor: direction}, all at once."""
        weight, bias, values = self._weight, self._model.bias, []
        for step in h, -h:
            def moved(name: str, found: np.ndarray, step: float = step) -> np.ndarray:
                return found + step * directions[name] if name in directions else found
            self._weight = lambda name, moved=moved: moved(name + ".weight", weight(name))
            self._model.bias = lambda name, moved=moved: moved(name + ".bias", bias(name))
            values.append(self.loss({}))
        self._weight, self._model.bias = weight, bias
        return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("name", [
    "llama arrays", "qwen3", "phi3", "gemma2", "stablelm parallel", *(pytest.param(name, marks=LONG) for name in (
        "llama biases", "hunyuan", "olmo2", "gpt2", "phi2", "granite", "command-r", "mistral3", "starcoder2", "cohere2", "gemma3", "glm4", "minicpm", "exaone4",
        "ernie4_5", "arcee", "seed_oss", "smollm3", "gptneox"))])
def test_gradients_are_the_slopes_of_a_float64_model(name: str, tmp_path: Path) -> None:
    path, rng = write_case(tmp_path / "m.gguf", name), np.random.default_rng(1)
    with opened(path) as model:
        rows = random_rows(model.config.n_vocab, [35, 2, 9])
        weights, twin = ModelWeights(model), FullTwin(path, model.config.architecture, rows)
        found = FullGradients(weights)
        said = found.accumulate(rows, float(sum(row.targets for row in rows)), 0)
        assert abs(said.nll.mean() - twin.loss({})) < 2e-6
        parts: dict[str, dict[str, np.ndarray]] = {}
        for tensor, array in found.arrays.items():
            part = f"of {array.ndim} dimensions" if not os.environ.get("LLAMINA_LONG") else tensor.split(".", 2)[-1] if tensor.startswith("blk.") else tensor
            parts.setdefault(part, {})[tensor] = array.astype(np.float64)
            assert np.linalg.norm(array) > 1e-4, "one that is wrong would show among the others"
        for part, g in parts.items():
            along = {n: a / np.linalg.norm(a) + 3 * rng.standard_normal(a.shape) / a.size**0.5 for n, a in g.items()}
            slope, size = sum((g[n] * along[n]).sum() for n in g), sum(np.linalg.norm(a) for a in g.values())
            assert abs(twin.along(along) - slope) < 3e-6 * size, part


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_bits_do_not_depend_on_threads_and_micro_batches(name: str, tmp_path: Path) -> None:
    path = write_case(tmp_path / "m.gguf", name)
    expected = full_gradients(path, 1)
    assert ("output.weight" in expected) == (name == "llama") and all(array.any() for array in expected.values())
    for threads, split in ((2, 0), (3, 2), (1, 1)):
        for name, array in full_gradients(path, threads, split).items():
            assert (array.view(np.uint32) == expected[name].view(np.uint32)).all(), (threads, split, name)


@pytest.mark.skipif(not targets.ALL, reason="compiles everything anew: LLAMINA_ALL_TARGETS=1 runs it")
@pytest.mark.parametrize("target", ["avx512", "avx2", "generic"])
def test_every_target_has_the_same_bits(target: str, tmp_path: Path) -> None:
    targets.needs(target)
    path = write_case(tmp_path / "m.gguf", "qwen3")
    expected = full_step(path, 1 << 60)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "NUMBA_CPU_"))}
    done = subprocess.run([sys.executable, "train_cases.py", path, "full"], cwd=Path(__file__).parent, env={**plain, **EMULATION[target]}, capture_output=True,
                          text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"target": target, "digest": expected}


def test_another_order_gives_other_bits(tmp_path: Path) -> None:
    """What the test above would see."""
    with opened(write_case(tmp_path / "m.gguf", "qwen3")) as model:
        rows, found = random_rows(model.config.n_vocab, LENGTHS), FullGradients(ModelWeights(model))
        embeddings = set()
        for order in rows, rows[::-1]:
            found.zero()
            found.accumulate(order, 80.0, 0)
            embeddings.add(found.arrays["token_embd.weight"].tobytes())
        found.zero()
        for part in rows[:2], rows[2:]:
            found.accumulate(part, 80.0, 0)
            early = found.arrays["token_embd.weight"]  # asked for between two parts: rows of the embedding stand before the output's of the second
        assert len({*embeddings, early.tobytes()}) == 3


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_the_model_has_the_weights_and_then_its_own_again(name: str, tmp_path: Path) -> None:
    """Changed numbers give the logits of a file that holds them, which `save` writes; the prefix cache does not mix the two; afterwards all is as it was."""
    path, ids = write_case(tmp_path / "m.gguf", name), np.arange(150) % 97

    def logits(model: object) -> np.ndarray:
        with model.scheduler.alone() as runtime:  # type: ignore[attr-defined]
            text = runtime.new_sequence(cached=True)
            try:
                text.match(ids[:-1].tolist())
                return runtime.step([Feed(text, ids[text.length:], "last")]).copy()
            finally:
                text.close()
    with opened(path) as model:
        before, weights = logits(model), ModelWeights(model)
        assert (logits(model) == before).all()
        rng = np.random.default_rng(0)
        for array in weights.arrays.values():
            array += rng.standard_normal(array.shape).astype(np.float32) * np.float32(0.01)
        FullGradients(weights).losses(random_rows(model.config.n_vocab, [5]))
        changed = logits(model)
        weights.save(tmp_path / "n.gguf")
        weights.put_back()
        assert (logits(model) == before).all() and not (changed == before).any()
        with model.scheduler.alone() as runtime, pytest.raises(NumericError, match="'output_norm.weight' would hold NaN"):
            runtime.rewrite({"output_norm.weight": np.full(96, np.nan, np.float32)})
    with opened(tmp_path / "n.gguf") as other:
        assert (logits(other) == changed).all()
        again = ModelWeights(other)
        assert again.digest == weights.digest
        again.save(tmp_path / "o.gguf")
        assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "n.gguf").read_bytes()


def test_what_is_refused(tmp_path: Path) -> None:
    with opened(write_small_model(tmp_path / "q.gguf", "Q4_0")) as model, pytest.raises(UnsupportedError, match=r"q\.gguf: tensor '.+' is Q4_0: .*--type f32"):
        ModelWeights(model)
    with opened(write_case(tmp_path / "e.gguf", "qwen3moe")) as model, pytest.raises(UnsupportedError, match="layer 0 has blocks .*Experts"):
        ModelWeights(model)


def test_memory_counts_a_tied_embeddings_waiting_rows(tmp_path: Path) -> None:
    """What `arrays` has not been asked for yet: gradients of all rows of a step, however it is cut into micro-batches."""
    with opened(write_case(tmp_path / "m.gguf", "gemma2")) as model:
        found, rows = FullGradients(ModelWeights(model)), random_rows(model.config.n_vocab, [10] * 8)
        for row in rows:
            found.accumulate([row], 72.0, 0)
        waiting = sum(ids.nbytes + (d if d.base is None else d.base).nbytes for ids, d in found._late)
        counted = [found.memory(10, 10, n) - memory_of(model.runtime, 10, 10, n, 0, None) for n in (8, 1)]
        assert model.config.tied_output and len(found._late) == 8 and 7 / 8 * waiting <= counted[0] - counted[1] <= waiting


def test_a_plan_counts_rows_that_wait_for_other_micro_batches(tmp_path: Path) -> None:
    """One row at a time, of eight: the plan's memory has the eight rows' gradients, as with all at once."""
    rows = [{"text": "ab" * 20}] * 8
    with load(write_case(tmp_path / "m.gguf", "gemma2"), threads=1) as model:
        planned = {}
        for batch in 8, 1:
            with Run(model, rows, None, Reading(), Options(full=True, batch=batch, micro_batch=1, steps=1)) as run:
                planned[batch] = run.plan(measured=False).memory["micro-batch"]
                longest = max(len(example.ids) for example in run.data.examples)
        assert planned[8] - planned[1] >= 7 * longest * 4 * model.config.dim
