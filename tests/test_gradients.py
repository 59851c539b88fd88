"""Gradients of adapters: right (against differences of a float64 model's loss), and the same bits however rows are divided, on any number of threads."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import targets
from llamina.engine.errors import OptionError, UnsupportedError
from llamina.engine.train.adapter import Pair
from llamina.engine.train.gradients import Gradients
from llamina.engine.train.rows import Row
from llamina.engine.train.tokens import TokenGradients, token_gradients
from llamina.kernels.target import EMULATION
from naive_gradients import Twin
from page_cases import write_case
from small_models import write_small_model
from train_cases import LENGTHS, found_digest, gradients, opened, random_adapter, random_rows


@pytest.mark.parametrize("name", ["llama arrays", "qwen3", "phi3", "gemma2", "stablelm parallel"])
def test_gradients_are_the_slopes_of_a_float64_model(name: str, tmp_path: Path) -> None:
    path, rng = write_case(tmp_path / "m.gguf", name), np.random.default_rng(1)
    with opened(path) as model:
        rows, adapter = random_rows(model.config.n_vocab, [35, 2, 9]), random_adapter(model.config)
        found, twin = Gradients(model, adapter), Twin(path, model.config.architecture, rows)
        said = found.accumulate(rows, float(sum(row.targets for row in rows)), 0)
        pairs = {k: (p.a.astype(np.float64), p.b.astype(np.float64), p.scale) for k, p in adapter.pairs.items()}
        assert abs(said.nll.mean() - twin.loss(pairs)) < 2e-6 and said.tokens == len(said.nll)
        for i in range(model.config.n_layers):  # a layer's at once: they are of one size, so that a wrong one would show
            g = {n: a.astype(np.float64) for n, a in found.arrays.items() if n.startswith(f"blk.{i}.")}
            along = {n: a / np.linalg.norm(a) + 3 * rng.standard_normal(a.shape) / a.size**0.5 for n, a in g.items()}
            slope, size = sum((g[n] * along[n]).sum() for n in g), sum(np.linalg.norm(a) for a in g.values())
            assert abs(twin.slope(adapter, along) - slope) < 3e-6 * size, i


@pytest.mark.parametrize(("format", "dropout"), [("F32", 0.25), ("Q4_0", 0.0)])
def test_bits_do_not_depend_on_threads_and_micro_batches(format: str, dropout: float, tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.gguf", format)
    expected, nll = gradients(path, LENGTHS, dropout=dropout)
    for threads, split in ((2, 0), (3, 2), (1, 1)):
        arrays, again = gradients(path, LENGTHS, split, threads, dropout)
        assert (again == nll).all()
        for name, array in arrays.items():
            assert (array.view(np.uint32) == expected[name].view(np.uint32)).all(), (threads, split, name)


def test_another_order_gives_other_bits(tmp_path: Path) -> None:
    """What the test above would see: rows in another order, and sums of a call of its own that are added afterwards."""
    path = write_small_model(tmp_path / "m.gguf", "Q4_0")
    with opened(path) as model:
        rows, adapter = random_rows(model.config.n_vocab, LENGTHS), random_adapter(model.config)
        found = Gradients(model, adapter)

        def summed(*parts: list[Row]) -> list[dict[str, np.ndarray]]:
            sums = []
            for part in parts:
                found.zero()
                found.accumulate(part, 80.0, 0)
                sums.append({name: array.copy() for name, array in found.arrays.items()})
            return sums
        [right], [turned], (first, second) = summed(rows), summed(rows[::-1]), summed(rows[:2], rows[2:])
        for name, array in right.items():
            assert np.allclose(array, turned[name], atol=1e-4) and np.allclose(array, first[name] + second[name], atol=1e-4)
        assert len({found_digest(arrays) for arrays in (right, turned, {name: first[name] + second[name] for name in first})}) == 3


@pytest.mark.skipif(not targets.ALL, reason="compiles everything anew: LLAMINA_ALL_TARGETS=1 runs it")
@pytest.mark.parametrize("target", ["avx512", "avx2", "generic"])
def test_every_target_has_the_same_bits(target: str, tmp_path: Path) -> None:
    targets.needs(target)
    path = write_small_model(tmp_path / "m.gguf", "Q4_0")
    expected = found_digest(gradients(path, LENGTHS)[0])
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "NUMBA_CPU_"))}
    done = subprocess.run([sys.executable, "train_cases.py", path], cwd=Path(__file__).parent, env={**plain, **EMULATION[target]}, capture_output=True,
                          text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"target": target, "digest": expected}


def test_losses_are_those_of_accumulate(tmp_path: Path) -> None:
    with opened(write_small_model(tmp_path / "m.gguf", "Q4_0")) as model:
        rows, adapter = random_rows(model.config.n_vocab, LENGTHS), random_adapter(model.config)
        found = Gradients(model, adapter)
        said, only = found.accumulate(rows, 1.0, 0), Gradients(model, adapter).losses(rows)
        assert (said.nll == only.nll).all() and said.hits == only.hits and said.tokens == only.tokens == sum(row.targets for row in rows)
        assert all(array.any() for array in found.arrays.values())
        found.zero()
        assert not any(array.any() for array in found.arrays.values())


def test_what_is_refused(tmp_path: Path) -> None:
    with opened(write_small_model(tmp_path / "m.gguf", "F32")) as model:
        adapter = random_adapter(model.config)
        with pytest.raises(OptionError, match="first token is a target"):
            Gradients(model, adapter).losses([Row(np.array([1, 2], np.int32), np.array([True, True]), 0, "rows.jsonl, line 3")])
        with pytest.raises(OptionError, match="dropout must be"):
            Gradients(model, adapter, dropout=1.0)
        adapter.pairs["output.weight"] = Pair(np.ones((2, 64), np.float32), np.ones((model.config.n_vocab, 2), np.float32), 1.0)
        with pytest.raises(UnsupportedError, match="no matrix of a layer"):
            Gradients(model, adapter)
    with opened(write_case(tmp_path / "e.gguf", "qwen3moe")) as model, pytest.raises(UnsupportedError, match="layer 0 has blocks .*Experts"):
        Gradients(model, random_adapter(model.config))


def test_token_gradients_are_slopes(tmp_path: Path) -> None:
    """Along a token's own row: the model with that row a little longer (an embedding that no other token has) against the score."""
    ids, longer = [3, 200, 17, 90], 1.001

    def said(factor: float) -> TokenGradients:
        def edit(name: str, values: np.ndarray) -> np.ndarray:
            values = values.copy()
            if name == "token_embd.weight":
                values[17] *= np.float32(factor)
            return values
        with opened(write_small_model(tmp_path / "m.gguf", "F32", edit=edit)) as model:
            assert token_gradients(model, ids).log_probability >= token_gradients(model, ids, 5).log_probability
            return token_gradients(model, ids, 5)
    low, found, high = said(1 / longer), said(1.0), said(longer)
    slope = (high.log_probability - low.log_probability) / (longer - 1 / longer)
    assert abs(slope - found.scores[2]) < 2e-3 * np.abs(found.scores).max() and found.gradients.shape == (4, 64)
