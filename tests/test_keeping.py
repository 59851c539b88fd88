"""The keeping form: the bits of the other two, and at every site the rows that the open form shows there; whatever is asked for, on any threads, in any
chunks."""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.architectures.blocks import Attention, Mlp
from llamina.engine.run.feed import Feed, Keep
from llamina.engine.run.looking import Looking
from llamina.engine.run.ops.common import FAULTS
from llamina.engine.run.runtime import Runtime
from llamina.engine.train.gradients import why_not
from llamina.engine.train.store import MADE_AGAIN, columns_of
from page_cases import CASES, IDS, N_TOKENS, write_case
from runs import open_runtime, run, same
from small_models import write_small_model
from test_adapters import add
from train_cases import random_adapter

LONGER = IDS * 3
GUARD = np.float32(0.40625)
Rows = dict[str, np.ndarray]


def seen(runtime: Runtime, names: list[str], ids: list[int] = IDS, adapters: Any = None) -> Rows:
    """What callbacks see, in open form."""
    found: Rows = {}

    def copy(name: str, rows: np.ndarray) -> None:
        found[name] = rows.copy()
    sequence = runtime.new_sequence(adapters=adapters)
    runtime.step([Feed(sequence, ids, "none")], {name: partial(copy, name) for name in names})
    sequence.close()
    return found


def kept(runtime: Runtime, names: list[str], chunk: int, ids: list[int] = IDS, adapters: Any = None, off: int = 0, more: int = 0) -> tuple[np.ndarray, Rows]:
    """-> (logits, what was kept). The rows begin `off` floats after a cache line, `more` floats wider than they need be; nothing is written beside them."""
    sequence, found, raws, columns = runtime.new_sequence(adapters=adapters), Rows(), [], {}
    for name in names:
        columns[name] = runtime.sites[name][1].columns
        wide = -(-columns[name] // 32) * 32 + more
        raw = np.full(len(ids) * wide + 64, GUARD, np.float32)
        first = -raw.ctypes.data % 64 // 4 + off
        found[name] = raw[first:first + len(ids) * wide].reshape(len(ids), wide)
        raws.append((name, raw))
    logits = []
    for at in range(0, len(ids), chunk):
        n = min(chunk, len(ids) - at)
        observe = {name: Keep(rows[at:at + n]) for name, rows in found.items()}
        logits.append(runtime.step([Feed(sequence, ids[at:at + n], "all")], observe).copy())
    sequence.close()
    for name, raw in raws:
        inside, rows = np.zeros(len(raw), bool), found[name]
        first = (rows.ctypes.data - raw.ctypes.data) // 4
        inside[first:first + rows.size].reshape(rows.shape)[:, :columns[name]] = True
        assert (raw[~inside] == GUARD).all(), f"{name}: written beside its rows"
    return np.concatenate(logits), {name: np.ascontiguousarray(rows[:, :columns[name]]) for name, rows in found.items()}


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the parts of the steps."""
    found, real = list[str](), Looking._parts

    def parts(self: Looking, *args: Any) -> Any:
        said = real(self, *args)
        found.extend(form for form, _, _ in said[0])
        return said
    monkeypatch.setattr(Looking, "_parts", parts)
    return found


def sites_of(runtime: Runtime) -> list[str]:
    return [name for layer in runtime.program.kept for name in layer if name in runtime.sites]


@pytest.mark.parametrize("name", CASES)
def test_every_page(name: str, tmp_path: Path, forms: list[str]) -> None:
    """Which layers have the form: all that training goes back through, with all that it reads."""
    path = write_case(tmp_path / "m.gguf", name, "Q8_0")
    for threads in 1, 2, 3:
        with open_runtime(path, threads, 256) as runtime:
            keeping = [bool(layer) for layer in runtime.program.keeping]
            if threads == 1:
                for blocks, has in zip(runtime.config.layers, keeping):
                    assert not has or all(type(block) in (Attention, Mlp) for block in blocks)
                if not why_not(runtime.config):
                    assert all(keeping)
                    assert all({f"blocks.{i}.{site}" for site in {"hook_resid_pre", *columns_of(runtime, i)} - MADE_AGAIN} <= set(runtime.program.kept[i])
                               for i in range(len(keeping)))
            names = sites_of(runtime)
            if not names:
                return
            expected, rows = run(runtime, IDS), seen(runtime, names)
            forms.clear()
            for chunk in {1: (N_TOKENS,), 2: (N_TOKENS, 34), 3: (33, 7)}[threads]:
                logits, found = kept(runtime, names, chunk)
                assert same(logits, expected), (threads, chunk)
                assert [site for site in names if not same(found[site], rows[site])] == [], (threads, chunk)
            assert set(forms) <= {"keeping", "fused"} and "keeping" in forms


@pytest.mark.parametrize("format", ["Q4_0", "F32", "BF16"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_wide_feed_forward(format: str, threads: int, tmp_path: Path, forms: list[str]) -> None:
    """Of many tokens a thread has its pieces of gate and up for itself; F32 has rows, whole ones, and here some that end within a vector."""
    path = write_small_model(tmp_path / "m.gguf", format, ffn_dim=1090 if format == "F32" else 1088)
    with open_runtime(path, threads, 512) as runtime:
        names = sites_of(runtime)
        expected, rows = run(runtime, LONGER), seen(runtime, names, LONGER)
        forms.clear()
        for chunk, off, more in (300, 0, 0), (300, 1, 0), (64, 0, 16), (31, 0, 5), (9, 3, 0), (8, 0, 0), (1, 0, 0):
            logits, found = kept(runtime, names, chunk, LONGER, None, off, more)
            assert same(logits, expected) and all(same(found[name], rows[name]) for name in names), (chunk, off, more)
        assert set(forms) == {"keeping"}


def test_some_sites_in_some_layers(tmp_path: Path, forms: list[str]) -> None:
    """Only what is asked for is written, whatever was asked for in the step before; callbacks see and change what they do without it."""
    with open_runtime(write_small_model(tmp_path / "m.gguf", "Q4_0", n_layers=5), 2, 256) as runtime:
        names = sites_of(runtime)
        expected, rows = run(runtime, IDS), seen(runtime, names)
        _, everything = kept(runtime, names, N_TOKENS)
        before = {name: array.copy() for name, array in everything.items()}
        rng = np.random.default_rng(1)
        for _ in range(12):
            some = [str(name) for name in rng.choice(names, 4, replace=False)]
            logits, found = kept(runtime, some, 50)
            assert same(logits, expected) and all(same(found[name], rows[name]) for name in some)
        assert all(same(everything[name], before[name]) for name in names), "written where rows of a step before went"

        first, second, third = (f"blocks.{i}.attn.hook_z" for i in (1, 2, 3))
        forms.clear()
        for wanted, said in (([first, second], ["fused", "keeping", "fused"]), ([first, third], ["fused", "keeping", "fused", "keeping", "fused"])):
            kept(runtime, wanted, N_TOKENS)
            assert forms == said
            forms.clear()

        def mixed(observe: dict[str, Any]) -> np.ndarray:
            sequence = runtime.new_sequence()
            logits = runtime.step([Feed(sequence, IDS, "all")], observe).copy()
            sequence.close()
            return logits

        def cleared(rows: np.ndarray) -> None:
            rows[:] = 0
        room, end = {name: np.zeros((N_TOKENS, rows[name].shape[1] + 7), np.float32) for name in names}, np.zeros((N_TOKENS, 64), np.float32)
        looked: list[np.ndarray] = []
        observe = {first: Keep(room[first]), second: Keep(room[second]), "blocks.2.mlp.hook_pre": lambda rows: looked.append(rows.copy()),
                   "blocks.3.hook_resid_pre": lambda rows: looked.append(rows.copy()), third: Keep(room[third]), "blocks.4.hook_resid_post": Keep(end)}
        assert same(mixed(observe), expected) and forms == ["fused", "keeping", "open", "keeping", "fused"]
        assert same(looked[0], rows["blocks.2.mlp.hook_pre"]) and same(looked[1], rows["blocks.3.hook_resid_pre"])
        for name in first, second, third:
            assert same(np.ascontiguousarray(room[name][:, :-7]), rows[name])
        forms.clear()
        changed = mixed({first: cleared, third: Keep(room[third])})
        assert forms == ["fused", "open", "fused", "keeping", "fused"] and not same(changed, expected)
        other = seen(runtime, [third])
        assert same(mixed({first: cleared, third: lambda rows: looked.append(rows.copy())}), changed)
        assert same(np.ascontiguousarray(room[third][:, :-7]), looked[2]) and not same(looked[2], other[third])


@pytest.mark.parametrize("room", [np.zeros((N_TOKENS, 64), np.float64), np.zeros((N_TOKENS, 128), np.float32)[:, ::2]], ids=["float64", "strides"])
def test_rows_that_compiled_code_can_not_write(room: np.ndarray, tmp_path: Path, forms: list[str]) -> None:
    with open_runtime(write_small_model(tmp_path / "m.gguf", "Q4_0"), 2, 256) as runtime:
        name = "blocks.0.attn.hook_z"
        runtime.step([Feed(runtime.new_sequence(), IDS, "none")], {name: Keep(room)})
        assert (room == seen(runtime, [name])[name]).all() and forms == ["open", "fused"] * 2
        for wrong in np.zeros((N_TOKENS, 32), np.float32), np.zeros((N_TOKENS - 1, 64), np.float32):
            with pytest.raises(ValueError, match="broadcast"):
                runtime.step([Feed(runtime.new_sequence(), IDS, "none")], {name: Keep(wrong)})


def test_adapters(tmp_path: Path) -> None:
    with open_runtime(write_small_model(tmp_path / "m.gguf", "Q4_0", ffn_dim=1088), 2, 512) as runtime:
        add(runtime, random_adapter(runtime.config))
        names = sites_of(runtime)
        rows, without = seen(runtime, names, LONGER, ["a"]), seen(runtime, names, LONGER)
        for chunk in 300, 50, 3:
            _, found = kept(runtime, names, chunk, LONGER, ["a"])
            assert all(same(found[name], rows[name]) for name in names)
        assert not any(same(rows[name], without[name]) for name in names if name != "blocks.0.hook_resid_pre")


def test_what_is_not_finite_is_told(tmp_path: Path) -> None:
    """By the stage's name and its layer, as in the other forms."""
    with open_runtime(write_small_model(tmp_path / "m.gguf", "Q4_0"), 2, 256) as runtime:
        program = runtime.program
        for layers in program.layers, program.keeping:
            for i, placed in enumerate(layers):
                for p in placed:
                    assert program.fault(1 + FAULTS * int(p.words[2])) == (i, (p.stage.faults or (p.stage.name,))[0])
        assert [p.stage.name for p in program.keeping[1]] == ["attention norm", "q k v", "keep", "positions", "append", "attention", "attention output", "keep",
                                                              "ffn norm", "gate up", "down", "keep"]
