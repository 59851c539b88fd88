"""The promise: a token's logits have the same bits on any number of threads, in any batch and chunking, on any CPU target, whatever the caller's floating-point
environment and NumPy's CPU dispatch. Everything here is `==` on bits, over enough tokens to cross several KV pages."""
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
from llamina.engine.run import runtime as runtime_module
from llamina.engine.run.runtime import Feed
from llamina.kernels import target
from llamina.kernels.atomics import get_float_env, set_float_env
from llamina.kernels.compile_cache import jit
from llamina.kernels.formats.table import RUNNABLE
from runs import N_TOKENS, digest, logits_of, numpy_dispatch, open_runtime, run, said_digest, same
from small_models import ALL_FORMATS, random_ids, write_small_model

IDS = random_ids(N_TOKENS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model of each format: random blocks, heads of 16 or 32 dimensions."""
    folder = tmp_path_factory.mktemp("models")
    return {f: write_small_model(folder / f"{f}.gguf", f, blocks=True) for f in ALL_FORMATS}


@pytest.fixture(scope="module")
def digests(models: dict[str, Path]) -> dict[str, str]:
    """What every other way of computing must give: here, one thread, one chunk."""
    return {path.name: digest(logits_of(path, IDS, threads=1)) for path in models.values()}


def test_every_format_with_a_kernel_is_tested() -> None:
    assert set(ALL_FORMATS) == RUNNABLE


@pytest.mark.parametrize("format", ALL_FORMATS)
def test_threads_and_chunks(format: str, models: dict[str, Path], digests: dict[str, str]) -> None:
    for threads in 1, 2, 3:
        with open_runtime(models[format], threads) as runtime:
            for chunk in 512, 1, 7, 64:
                assert digest(run(runtime, IDS, chunk)) == digests[f"{format}.gguf"], f"{threads} threads, chunks of {chunk}"


SHAPES: dict[str, dict[str, Any]] = {
    "one head": {"n_heads": 1, "n_kv_heads": 1, "head_dim": 64},
    "head size 8, 172 columns": {"n_heads": 8, "n_kv_heads": 4, "ffn_dim": 172},
    "head size 24, not dim / heads": {"n_heads": 3, "n_kv_heads": 3, "head_dim": 24},
    "six query heads share one": {"dim": 96, "n_heads": 6, "n_kv_heads": 1},
    "three query heads share one": {"dim": 96, "n_heads": 6, "n_kv_heads": 2},
    "wide heads, odd sizes": {"dim": 52, "n_heads": 4, "n_kv_heads": 2, "head_dim": 128, "ffn_dim": 131, "n_vocab": 283},
    "tied": {"tied_output": True},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape: dict[str, Any], tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.gguf", "F32", **shape)
    ids = [i % 283 for i in IDS]
    expected = logits_of(path, ids, threads=1)
    with open_runtime(path, 3) as runtime:
        for chunk in 1, 7, 64:
            assert same(run(runtime, ids, chunk), expected), f"chunks of {chunk}"


@pytest.mark.parametrize("kv", ["f16", "q8_0", "f32"])
def test_kv_types_and_long_contexts(kv: str, tmp_path: Path) -> None:
    """Contexts that are split into spans between the threads: the last tokens one at a time and in small chunks, alone and beside another sequence."""
    path = write_small_model(tmp_path / "m.gguf", "Q4_0", n_heads=8, n_kv_heads=2, head_dim=16)
    ids, start = random_ids(1100), 1060
    found = []
    for threads in 1, 2, 3:
        with open_runtime(path, threads, 1152, kv) as runtime:
            found.append(run(runtime, ids)[start:])
            for chunk in 1, 7, 40:
                sequence, other = runtime.new_sequence(), runtime.new_sequence()
                for i in range(0, start, 512):
                    runtime.step([Feed(sequence, ids[i:min(i + 512, start)], "none")])
                runtime.step([Feed(other, ids[:500], "none")])
                rows = []
                for i in range(start, len(ids), chunk):
                    part = ids[i:i + chunk]
                    rows.append(runtime.step([Feed(sequence, part, "all"), Feed(other, ids[500:503], "none")])[:len(part)].copy())
                found.append(np.concatenate(rows))
                sequence.close()
                other.close()
    assert all(same(a, found[0]) for a in found)
    assert np.isfinite(found[0]).all()


def test_kv_types_differ_a_little(tmp_path: Path) -> None:
    """Each type is really used, and 8 bits are near to 16."""
    path = write_small_model(tmp_path / "m.gguf", "F32")
    logits = {}
    for kv in "f32", "f16", "q8_0":
        with open_runtime(path, 2, 512, kv) as runtime:
            logits[kv] = run(runtime, IDS)
    f16, q8_0 = (np.abs(logits[kv] - logits["f32"]).max() for kv in ("f16", "q8_0"))
    assert 0 < f16 < 0.02 and 0 < q8_0 < 0.3 and f16 < q8_0


@pytest.mark.parametrize("format", ["F32", "Q8_0", "Q4_K"])
def test_sequences_side_by_side(format: str, models: dict[str, Path]) -> None:
    """Two sequences of different lengths, in steps that hold some tokens of both, of one, or of either in the other order."""
    a, b = random_ids(N_TOKENS, seed=1), random_ids(N_TOKENS - 40, seed=2)
    with open_runtime(models[format], 2) as runtime:
        alone = [run(runtime, a), run(runtime, b)]
        sequences = [runtime.new_sequence(), runtime.new_sequence()]
        rows: list[list[np.ndarray]] = [[], []]
        rng, done, at = np.random.default_rng(3), False, [0, 0]
        while not done:
            sizes = rng.integers(0, 40, 2)
            feeds = [(i, ids[at[i]:at[i] + n]) for i, (ids, n) in enumerate(zip((a, b), sizes)) if n and at[i] < len(ids)]
            if rng.integers(2):
                feeds.reverse()
            if feeds:
                logits = runtime.step([Feed(sequences[i], ids, "all") for i, ids in feeds])
                start = 0
                for i, ids in feeds:
                    rows[i].append(logits[start:start + len(ids)].copy())
                    start, at[i] = start + len(ids), at[i] + len(ids)
            done = at == [len(a), len(b)]
        assert same(np.concatenate(rows[0]), alone[0]) and same(np.concatenate(rows[1]), alone[1])


@pytest.mark.parametrize("format", ["Q4_K", "F16"])
def test_open_form(format: str, models: dict[str, Path]) -> None:
    """The open form of all layers gives the fused form's bits; what is seen at a site depends neither on chunks nor on which other sites are looked at."""
    def taps(runtime: Any, chunk: int, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
        observe = {name: (lambda rows, name=name: seen[name].append(rows.copy())) for name in names}
        sequence = runtime.new_sequence()
        logits = [runtime.step([Feed(sequence, IDS[i:i + chunk], "all")], observe).copy() for i in range(0, len(IDS), chunk)]
        sequence.close()
        return np.concatenate(logits), {name: np.concatenate(rows) for name, rows in seen.items()}
    with open_runtime(models[format], 2) as runtime:
        names = list(runtime.config.sites())
        assert len(names) == 17 * runtime.config.n_layers + 1
        logits, whole = taps(runtime, 330, names)
        fused = run(runtime, IDS)
        assert same(logits, fused)
        again, parts = taps(runtime, 7, names)
        assert same(again, fused) and all(same(whole[name], parts[name]) for name in names)
        one = "blocks.1.attn.hook_z"
        again, few = taps(runtime, 64, [one])
        assert same(again, fused) and same(few[one], whole[one])
        assert not same(whole["blocks.0.attn.hook_q"], whole["blocks.0.attn.hook_rot_q"])
        assert same(whole["blocks.0.hook_resid_post"], whole["blocks.1.hook_resid_pre"])
        assert same(run(runtime, IDS), fused)


def test_what_is_written_at_a_site_goes_on(models: dict[str, Path]) -> None:
    """A step whose attention output is set to zero differs; one whose sites are written with what they held does not."""
    with open_runtime(models["Q4_K"], 2) as runtime:
        def logits(name: str, edit: Any) -> np.ndarray:
            sequence = runtime.new_sequence()
            found = runtime.step([Feed(sequence, IDS[:40], "all")], {name: edit}).copy()
            sequence.close()
            return found

        def rewrite(rows: np.ndarray) -> None:
            rows[:] = rows.copy()

        def zero(rows: np.ndarray) -> None:
            rows[:] = 0
        plain = run(runtime, IDS[:40])
        for name in runtime.config.sites():
            assert same(logits(name, rewrite), plain), name
            changes = not same(logits(name, zero), plain)
            assert changes is (name != "ln_final.hook_normalized"), name


def test_hidden_rows(models: dict[str, Path]) -> None:
    """The rows before the output matrix are the final norm's, in steps of any size."""
    with open_runtime(models["Q4_K"], 2) as runtime:
        seen: list[np.ndarray] = []
        for n in 3, 40:
            sequence, other = runtime.new_sequence(), runtime.new_sequence()
            hidden = runtime.step([Feed(sequence, IDS[:n], "all")], hidden=True)
            runtime.step([Feed(other, IDS[:n], "none")], {"ln_final.hook_normalized": lambda rows: seen.append(rows.copy())})
            assert hidden.shape == (n, runtime.config.dim) and same(np.ascontiguousarray(hidden), seen[-1])
            sequence.close()
            other.close()


@pytest.mark.parametrize("format", ["F16", "Q4_0"])
def test_a_step_in_several_ranges_of_layers(format: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What every thread has of the residual stream of few tokens is handed on from one range to the next."""
    with open_runtime(models[format], 2) as runtime:
        whole = run(runtime, IDS, 7)
        monkeypatch.setattr(runtime_module, "_RANGE_MACS", 1)
        assert same(run(runtime, IDS, 7), whole) and same(run(runtime, IDS[:20], 1), whole[:20]) and same(run(runtime, IDS), whole)


def test_which_logits_are_wanted(models: dict[str, Path]) -> None:
    """"last" and "none" give rows of "all"; a sequence that was cut back goes on as if the rest had never been."""
    with open_runtime(models["Q5_K"], 2) as runtime:
        whole = run(runtime, IDS)
        sequence, other = runtime.new_sequence(), runtime.new_sequence()
        assert runtime.step([Feed(sequence, IDS[:100], "none")]).shape[0] == 0
        assert same(runtime.step([Feed(sequence, IDS[100:200]), Feed(other, IDS[:30], "all")]), np.concatenate([whole[199:200], whole[:30]]))
        runtime.step([Feed(sequence, random_ids(70, seed=9), "none")])
        sequence.truncate(130)
        assert same(runtime.step([Feed(sequence, IDS[130:], "all")]), whole[130:])


def child(models: dict[str, Path], environment: dict[str, str], threads: int = 2, chunk: int = 100) -> dict[str, Any]:
    """Digests of all models from another process."""
    command = [sys.executable, str(Path(__file__).with_name("runs.py")), str(threads), str(chunk), *map(str, models.values())]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


ON_ALL_TARGETS = targets.FEW
"""Whole models, compiled anew for each target; test_targets.py compares what is every format's own."""


@pytest.mark.parametrize("name", targets.TAKEN)
def test_targets(name: str, models: dict[str, Path], digests: dict[str, str]) -> None:
    targets.needs(name)
    answer = child({f: models[f] for f in ON_ALL_TARGETS}, target.EMULATION[name])
    assert answer["target"] == name
    assert answer["digests"] == {models[f].name: digests[models[f].name] for f in ON_ALL_TARGETS}
    assert answer["said"] == said_digest(models[ON_ALL_TARGETS[0]])


def test_what_is_said_of_logits_on_any_threads(models: dict[str, Path]) -> None:
    """The op behind lenses and traces, which no model's own steps run."""
    assert len({said_digest(models["F32"], threads) for threads in (1, 2, 3)}) == 1


def test_numpy_dispatch_disabled(models: dict[str, Path], digests: dict[str, str]) -> None:
    features = numpy_dispatch()
    if not features:
        pytest.skip("NumPy uses nothing beyond its baseline on this CPU")
    answer = child(models, {"NPY_DISABLE_CPU_FEATURES": " ".join(features)})
    assert answer["numpy"] == []
    assert answer["digests"] == digests


@jit()
def _get_float_env() -> Any:
    return get_float_env()


@jit()
def _set_float_env(value: Any) -> None:
    set_float_env(value)


@pytest.mark.skipif(not target.IS_X86, reason="sets bits of x86's MXCSR")
def test_flush_to_zero_in_the_caller(tmp_path: Path) -> None:
    """The caller's flush-to-zero and denormals-are-zero must neither change a bit nor be lost. The model works with subnormal numbers: attention's norm
    gains are about 1e-39, and its input matrices make up for it."""
    def edit(name: str, values: np.ndarray) -> np.ndarray:
        if name.endswith("attn_norm.weight"):
            return values * np.float32(1e-39)
        return values * np.float32(1e37) if any(part in name for part in ("attn_q", "attn_k", "attn_v")) else values

    path = write_small_model(tmp_path / "m.gguf", "F32", edit=edit)
    for threads in 1, 3:
        expected = logits_of(path, IDS, threads)
        before = _get_float_env()
        _set_float_env(before | 0x8040)
        try:
            planted = float(np.full(8, 1e-39, np.float32).sum()) == 0.0  # NumPy's own arithmetic in this thread
            found = logits_of(path, IDS, threads)
            after = _get_float_env()
        finally:
            _set_float_env(before)
        assert planted and after & 0x8040 == 0x8040
        assert same(found, expected)


def test_subnormals_matter(tmp_path: Path) -> None:
    """The model of the test above would show it if they were flushed: without its norm gains the logits are others."""
    def scaled(gain: float) -> np.ndarray:
        def edit(name: str, values: np.ndarray) -> np.ndarray:
            if name.endswith("attn_norm.weight"):
                return values * np.float32(gain)
            return values * np.float32(1e37) if any(part in name for part in ("attn_q", "attn_k", "attn_v")) else values
        return logits_of(write_small_model(tmp_path / f"{gain}.gguf", "F32", edit=edit), IDS[:20])
    assert not same(scaled(1e-39), scaled(0.0))
