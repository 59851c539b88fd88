"""The adapter's file is the same bytes on any number of threads, however a step is cut into micro-batches, calls of the model and rows of logits, and on every
CPU; and what is another order is seen: each that is planted here gives another SHA-256."""
from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import targets
from llamina import load
from llamina.engine.errors import OptionError, OutOfMemoryError
from llamina.engine.model import Model
from llamina.engine.train import gradients, loop, optimiser, order
from llamina.engine.train.gradients import Gradients
from llamina.engine.train.loop import Progress
from llamina.engine.train.options import Options
from llamina.engine.train.rows import Row, RowLosses
from llamina.kernels.target import EMULATION
from small_models import write_small_model
from train_cases import random_adapter

LONG = bool(os.environ.get("LLAMINA_LONG"))
OPTIONS: dict[str, Any] = {"rank": 4, "lr": 0.01, "batch": 8, "steps": 4, "dropout": 0.2, "weight_decay": 0.1}
"""Steps of Adam, of up to 700 tokens; clipped, too. An epoch has three."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and rows of 3 to 250 tokens."""
    found, rng = tmp_path_factory.mktemp("exact"), random.Random(3)
    for format in "Q4_0", "F32":
        write_small_model(found / f"{format}.gguf", format)
    words = ["".join(rng.choice("abcdefgh ") for _ in range(n)) for n in (1, 250, 30, 7, 90, 130, 2, 64, 40, 12, 200, 5, 33, 70, 1, 8, 21, 160, 3, 50)]
    (found / "d.jsonl").write_text("".join(json.dumps({"prompt": w[:len(w) // 2], "completion": w[len(w) // 2:]}) + "\n" for w in words))
    return found


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with load(folder / "Q4_0.gguf", threads=3) as found:
        yield found


def made(model: Model, folder: Path, **changes: Any) -> tuple[str, str]:
    """SHA-256 of the adapter's file, and of what a log would say: losses and norms."""
    path = folder / "a.gguf"
    try:
        trained = model.train(folder / "d.jsonl", path, **{**OPTIONS, **changes})
        assert len(trained.history) == 4 and all(pair.b.any() for pair in trained.adapter.pairs.values())
        return hashlib.sha256(path.read_bytes()).hexdigest(), hashlib.sha256(json.dumps(trained.history).encode()).hexdigest()
    finally:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def right(model: Model, folder: Path) -> tuple[str, str]:
    """On three threads, cut as memory and speed ask for."""
    return made(model, folder)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(folder: Path, right: tuple[str, str], threads: int) -> None:
    with load(folder / "Q4_0.gguf", threads=threads) as model:
        assert made(model, folder) == right


@pytest.mark.parametrize("cut", [{"micro_batch": 1}, {"micro_batch": 2}, {"micro_batch": 8}, {"memory": "5MB"}], ids=str)
def test_micro_batches(model: Model, folder: Path, right: tuple[str, str], cut: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], Gradients.accumulate

    def counted(self: Gradients, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        calls.append(len(rows))
        return real(self, rows, divisor, step)
    monkeypatch.setattr(Gradients, "accumulate", counted)
    assert made(model, folder, **cut) == right
    assert sum(calls) == 28 and (max(calls) == cut["micro_batch"] if "micro_batch" in cut else len(calls) > 4), "it was cut as asked"


@pytest.mark.parametrize(("tokens", "logits"), [(40, 512), (512, 7), (17, 3)])
def test_steps_of_the_model(model: Model, folder: Path, right: tuple[str, str], tokens: int, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are cut where a step of the model is full, and targets where there is no more room for logits."""
    monkeypatch.setattr(model.runtime, "max_batch", tokens)
    monkeypatch.setattr(model.runtime, "max_logits", min(logits, model.runtime.max_logits))
    assert made(model, folder) == right


def test_a_small_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the longest row, whatever was asked for: rows that don't fit together are computed one after the other."""
    options: dict[str, Any] = {"threads": 3, "context": 256}
    with load(folder / "Q4_0.gguf", **options) as model:
        plan = model.memory_plan
    with load(folder / "Q4_0.gguf", **options, memory=plan.weights + 9 * plan.page_bytes) as model:  # five of them become the adapter's
        assert model.runtime._pool.free_pages == 9
        assert made(model, folder, micro_batch=8, context=256) == made(model, folder, context=256)
        assert model.train([{"text": "ab"}] * 40, batch=40, steps=1, rank=1).history[0]["targets"] > 80
        monkeypatch.setattr(Gradients, "most_pages", 1 << 40)
        with pytest.raises(OutOfMemoryError, match="the KV cache has 0 free pages"):  # what it was cut for
            made(model, folder, micro_batch=8, context=256)


def test_another_base_is_refused(model: Model, folder: Path, tmp_path: Path) -> None:
    """What was begun beside one file is not gone on with beside another of the same shape."""
    def stop(state: Progress) -> None:
        if state.step == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model.train(folder / "d.jsonl", tmp_path / "a.gguf", **OPTIONS, progress=stop)
    with load(folder / "F32.gguf", threads=1) as other, pytest.raises(OptionError, match=r"a\.gguf: was begun with other base \(\"[0-9a-f]+…, now "):
        other.train(folder / "d.jsonl", tmp_path / "a.gguf", **OPTIONS)
    trained = model.train(folder / "d.jsonl", tmp_path / "a.gguf", **OPTIONS)
    assert [record["step"] for record in trained.history] == [1, 2, 3, 4]


def test_how_gradients_went_back_is_bound(model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another way back makes another adapter. A checkpoint of the time before there were two is of float32."""
    def stop(state: Progress) -> None:
        if state.step == 2:
            raise KeyboardInterrupt
    other, right = made(model, folder), made(model, folder, backward="float32")
    assert other != right
    bound = Options.bound
    monkeypatch.setattr(Options, "bound", lambda self: {k: v for k, v in bound(self).items() if k != "backward"})
    with pytest.raises(KeyboardInterrupt):
        model.train(folder / "d.jsonl", tmp_path / "a.gguf", **OPTIONS, backward="float32", progress=stop)
    monkeypatch.undo()
    with pytest.raises(OptionError, match=r'was begun with other backward \("float32", now "bfloat16"\)'):
        model.train(folder / "d.jsonl", tmp_path / "a.gguf", **OPTIONS)
    model.train(folder / "d.jsonl", tmp_path / "a.gguf", **OPTIONS, backward="float32")
    assert hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest() == right[0]
    with pytest.raises(OptionError, match="backward must be one of bfloat16, float32, found 'half'"):
        model.train(folder / "d.jsonl", **OPTIONS, backward="half")
    with pytest.raises(OptionError, match="backward must be one of bfloat16, float32, found 'half'"):
        Gradients(model, random_adapter(model.config), backward="half")


def test_memory_counts_the_pages_of_short_rows(model: Model) -> None:
    """Each row of two tokens takes a page of its own, so 300 take 300."""
    found = Gradients(model, random_adapter(model.config))
    page = model.runtime.plan.layout.rows * model.runtime.page_bytes
    assert 290 * page <= found.memory(600, 2, 300) - found.memory(600, 2, 1) <= 295 * page and model.runtime._pool.free_pages > 300


@pytest.mark.skipif(not LONG, reason="takes minutes (set LLAMINA_LONG)")
@pytest.mark.parametrize("format", ["Q4_0", "F32"])
def test_everything_together(folder: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads × all micro-batches × some cuts of a step, with dropout and without."""
    found: dict[float, set[tuple[str, str]]] = {0.0: set(), 0.2: set()}
    for threads in 1, 2, 3:
        with load(folder / f"{format}.gguf", threads=threads) as model:
            for micro in 1, 2, 8, None:
                for tokens in 512, 40, 17:
                    monkeypatch.setattr(model.runtime, "max_batch", tokens)
                    for dropout, said in found.items():
                        said.add(made(model, folder, micro_batch=micro, dropout=dropout))
    print(f"{format}: 72 runs, {found}")
    assert all(len(said) == 1 for said in found.values()) and found[0.0] != found[0.2]


# -- other orders are seen ------------------------------------------------------------------------------------------------------------------


def _rows_turned(patch: pytest.MonkeyPatch) -> None:
    """A step's rows the other way round."""
    patch.setattr(order.Order, "numbers", lambda self, step, real=order.Order.numbers: real(self, step)[::-1])


def _rows_by_length(patch: pytest.MonkeyPatch) -> None:
    """Rows of a step sorted by length, each with its own number for dropout."""
    patch.setattr(order.Order, "rows", lambda self, step, real=order.Order.rows: sorted(real(self, step), key=lambda row: len(row.ids)))


def _sums_of_micro_batches(patch: pytest.MonkeyPatch) -> None:
    """Each micro-batch's sum made for itself, then added."""
    real = Gradients.accumulate

    def accumulate(self: Gradients, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        before = {name: array.copy() for name, array in self.arrays.items()}
        for array in self.arrays.values():
            array.fill(0)
        found = real(self, rows, divisor, step)
        for name, array in self.arrays.items():
            array += before[name]
        return found
    patch.setattr(Gradients, "accumulate", accumulate)


def _divided_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """The divisor applied to the sums, where it belongs to the gradients of the logits."""
    real = Gradients.accumulate

    def accumulate(self: Gradients, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        for array in self.arrays.values():
            array *= np.float32(divisor)
        found = real(self, rows, 1.0, step)
        for array in self.arrays.values():
            array /= np.float32(divisor)
        return found
    patch.setattr(Gradients, "accumulate", accumulate)


def _divisor_of_each_micro_batch(patch: pytest.MonkeyPatch) -> None:
    """Its own targets', as a mean of means has it."""
    real = Gradients.accumulate
    patch.setattr(Gradients, "accumulate", lambda self, rows, divisor, step: real(self, rows, float(sum(row.targets for row in rows)), step))


def _dropout_by_micro_batch(patch: pytest.MonkeyPatch) -> None:
    """Keyed by a token's place in its micro-batch, where its number in the step belongs."""
    class Batch(gradients.Batch):
        def __init__(self, rows: Sequence[Row], most: int) -> None:
            super().__init__(rows, most)
            self.first_token -= self.first_token[:1]
    patch.setattr(gradients, "Batch", Batch)


def _norm_in_another_order(patch: pytest.MonkeyPatch) -> None:
    """Of matrices from the last name to the first."""
    def norm(arrays: dict[str, np.ndarray]) -> float:
        return optimiser.gradient_norm({f"{i:03d}": arrays[name] for i, name in enumerate(sorted(arrays, reverse=True))})
    patch.setattr(loop, "gradient_norm", norm)


def _norm_in_float32(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "gradient_norm", lambda arrays: float(np.float32(optimiser.gradient_norm(arrays))))


def _q_k_v_turned(patch: pytest.MonkeyPatch) -> None:
    """The gradient of what q, k and v read goes over the rows of v, then k, then q."""
    from llamina.engine.train.backward import Backward
    real = Backward._matrices
    patch.setattr(Backward, "_matrices", lambda self, parts, x, dx: real(self, parts[::-1], x, dx))


def _heads_turned(patch: pytest.MonkeyPatch) -> None:
    """Queries of a key from the last to the first: dK and dV of rows that are turned round and turned back are other chains."""
    from llamina.engine.train.ops import Ops
    real = Ops.attention_back

    def call(self: Any, a: Any, items: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, z: np.ndarray, dz: np.ndarray, dq: np.ndarray, dk: np.ndarray,
             dv: np.ndarray) -> None:
        group, wide = a.heads // a.kv_heads, a.heads * a.head_dim
        turn = np.arange(wide).reshape(a.kv_heads, group, a.head_dim)[:, ::-1].reshape(-1)  # the heads of a group, the last first
        for rows in q, z, dz:
            rows[:, :wide] = rows[:, turn]
        real(self, a, items, q, k, v, z, dz, dq, dk, dv)
        for rows in q, z, dz, dq:
            rows[:, :wide] = rows[:, turn]
    patch.setattr(Ops, "attention_back", call)


PLANTS = [_rows_turned, _rows_by_length, _sums_of_micro_batches, _divided_at_the_end, _divisor_of_each_micro_batch, _dropout_by_micro_batch,
          _norm_in_another_order, _norm_in_float32, _q_k_v_turned, _heads_turned]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_order_is_seen(model: Model, folder: Path, right: tuple[str, str], plant: Callable[[pytest.MonkeyPatch], None],
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert made(model, folder, micro_batch=3) != right
    monkeypatch.undo()


# -- CPUs -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (LONG or targets.ALL), reason="compiles everything anew (set LLAMINA_LONG)")
@pytest.mark.parametrize("target", ["avx512", "avxvnni", "avx2", "generic"])
def test_every_target(folder: Path, right: tuple[str, str], target: str, tmp_path: Path) -> None:
    """The command line, in a process that compiles for another CPU."""
    targets.needs(target)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "NUMBA_CPU_"))}
    command = [sys.executable, "-c", "import sys; from llamina.kernels.target import TARGET; from llamina.engine.cli import main; "
               "code = main(sys.argv[1:]); print(TARGET); sys.exit(code)", "train", str(folder / "Q4_0.gguf"), str(folder / "d.jsonl"), "-o",
               str(tmp_path / "a.gguf"), *(word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value)))]
    done = subprocess.run(command, env={**plain, **EMULATION[target]}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stdout.split() == [target], done.stderr[-3000:]
    assert hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest() == right[0]
