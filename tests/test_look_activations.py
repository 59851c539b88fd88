"""Activations: against a pass of one's own, ragged texts, positions, attention's maps against the kernel's results, and folders that are gone on with."""
from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llamina
import numpy as np
import pytest
from llamina.engine.errors import ContextFullError, FileError, FormatError, OptionError, OutOfMemoryError
from llamina.engine.look import store
from llamina.engine.model import Model, load
from small_models import random_ids, write_family, write_small_model

TEXTS = [random_ids(n, seed=n) for n in (5, 130, 1, 64, 33)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(write_small_model(tmp_path_factory.mktemp("look") / "m.gguf", "Q8_0", n_layers=3), threads=2, context=256) as model:
        yield model


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((np.asarray(a) == np.asarray(b)).all())


def test_many_texts_are_as_each_alone(model: Model) -> None:
    """They share steps; nothing of that is seen."""
    names = ["blocks.*.hook_resid_post", "blocks.1.attn.*", "ln_final.hook_normalized"]
    every = model.activations(TEXTS, names)
    assert every.ids == TEXTS and list(every) == list(model.activations(TEXTS[0], names))
    for i, ids in enumerate(TEXTS):
        alone = model.activations(ids, names)
        assert alone.ids == ids
        for name in every:
            assert same(every[name][i], alone[name]), (name, i)
            assert every[name][i].dtype == np.float32
    assert every["blocks.1.attn.hook_q"][1].shape == (130, 4, 16) and every["blocks.1.attn.hook_k"][1].shape == (130, 2, 16)
    assert every["blocks.1.attn.hook_pattern"][1].shape == (4, 130, 130) and every["blocks.0.hook_resid_post"][1].shape == (130, 64)


def test_the_stream_is_what_its_parts_are(model: Model) -> None:
    """The first stream is the embedding, a layer adds to it what its parts say, and the last one gives the logits."""
    ids = TEXTS[1]
    a, logits = model.activations(ids, "*"), model.logits(ids)
    with model.scheduler.alone() as runtime:
        assert same(a["blocks.0.hook_resid_pre"], runtime._weights.embed(np.array(ids)))
        assert same(runtime.unembed(a["blocks.2.hook_resid_post"][:50]), logits[:50])
    for i in range(3):
        assert np.allclose(a[f"blocks.{i}.hook_resid_mid"], a[f"blocks.{i}.hook_resid_pre"] + a[f"blocks.{i}.hook_attn_out"], atol=1e-5)
        assert np.allclose(a[f"blocks.{i}.hook_resid_post"], a[f"blocks.{i}.hook_resid_mid"] + a[f"blocks.{i}.hook_mlp_out"], atol=1e-5)
        if i:
            assert same(a[f"blocks.{i}.hook_resid_pre"], a[f"blocks.{i - 1}.hook_resid_post"])


def test_positions(model: Model) -> None:
    whole = model.activations(TEXTS, ["blocks.1.hook_resid_post", "blocks.2.attn.hook_pattern"])
    for asked in (-1, "last", 0, slice(None, None, 3), slice(2, 9), [0, -1], np.array([0])):
        found = model.activations(TEXTS, list(whole), positions=asked)
        for i, ids in enumerate(TEXTS):
            index = -1 if isinstance(asked, str) else asked
            rows = np.arange(len(ids))[index] if not isinstance(asked, list) else sorted({p % len(ids) for p in asked})
            rows = np.atleast_1d(rows)
            assert (found.positions[i] == rows).all()
            assert same(found["blocks.1.hook_resid_post"][i], whole["blocks.1.hook_resid_post"][i][rows])
            assert same(found["blocks.2.attn.hook_pattern"][i], whole["blocks.2.attn.hook_pattern"][i][:, rows])
    for wrong, message in ((9, "outside a text of 5"), ("first", "'last'"), (1.5, "whole numbers"), ([1, "a"], "whole numbers"), (slice(5, 2, -1), "forward"),
                           (True, "whole numbers"), (slice("a", None), "slice must be of whole numbers")):
        with pytest.raises(OptionError, match=message):
            model.activations(TEXTS, "blocks.1.hook_resid_post", positions=wrong)


def test_what_is_no_text(model: Model) -> None:
    for wrong, message in ((3, "str, token ids, or a list"), ([[1, 999]], "outside this model's vocabulary"), ([[]], "no tokens"), ([[1.5]], "whole numbers"),
                           ({"a": 1}, "found dict"), ([b"ab"], "found bytes"), ([None], "found NoneType")):
        with pytest.raises(OptionError, match=message):
            model.activations(wrong, "blocks.1.hook_resid_post")
    with pytest.raises(ContextFullError, match="257 tokens, the context 256"):
        model.activations(random_ids(257), "blocks.1.hook_resid_post")
    with pytest.raises(OptionError, match="no site was named"):
        model.activations(TEXTS[0], [])
    assert list(model.activations([], "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]) == []
    held = model.runtime.kv_pages()
    assert not held.owned and not held.shared


def test_memory_that_others_hold(tmp_path: Path) -> None:
    """An error with a name, and everything is given back."""
    path = write_small_model(tmp_path / "m.gguf", "Q8_0")
    with load(path, threads=1, context=128) as model:
        plan = model.memory_plan
    with load(path, threads=1, context=128, memory=plan.weights + plan.buffers + 20 * plan.page_bytes) as model:
        sequences = []
        with pytest.raises(OutOfMemoryError):
            for _ in range(1000):
                sequences.append(model.new_sequence())
                model.feed(sequences[-1], TEXTS[3], "none")
        with pytest.raises(OutOfMemoryError):
            model.activations(TEXTS[3] * 2, "blocks.1.hook_resid_post")
        for sequence in sequences:
            sequence.close()
        assert model.activations(TEXTS[3] * 2, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"].shape == (128, 64)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "window and caps": ("gemma2", {"attention.sliding_window": 40, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0, "attention.key_length": 16,
                                   "attention.value_length": 16}),
    "norms of heads": ("qwen3", {"attention.key_length": 24, "attention.value_length": 24}),
    "parallel": ("stablelm", {"use_parallel_residual": True, "attention.layer_norm_rms_epsilon": None, "rope.dimension_count": 8}),
}


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_what_attention_weighs_by(tmp_path: Path, family: str, kv: str) -> None:
    """Weights times values is what the kernel gives, scores give the weights, weights sum to 1, whatever the window, cap and type of keys and values; chunks
    and threads change no bit."""
    architecture, keys = FAMILIES[family]
    path = write_family(tmp_path / "m.gguf", architecture, keys)
    ids = random_ids(600, seed=3)
    with load(path, threads=2, context=640, kv=kv) as model:
        names = ["*.hook_pattern", "*.hook_attn_scores", "*.hook_z", "*.hook_v"]
        a = model.activations(ids, names)
        for attention in model.config.attentions():
            at = f"blocks.{attention.layer}.attn."
            pattern, scores, z, v = (a[at + name].astype(np.float64) for name in ("hook_pattern", "hook_attn_scores", "hook_z", "hook_v"))
            seen = np.tril(np.ones((600, 600), bool))
            if attention.window:
                seen &= ~np.tril(np.ones((600, 600), bool), -attention.window)
            assert (np.isfinite(scores) == seen).all() and (pattern[:, ~seen] == 0).all() and np.abs(pattern.sum(2) - 1).max() < 1e-5
            e = np.exp(scores - scores.max(2, keepdims=True))
            assert np.abs(e / e.sum(2, keepdims=True) - pattern).max() < 1e-5
            ours = np.einsum("hqk,khd->qhd", pattern, np.repeat(v, attention.heads // attention.kv_heads, 1))
            assert np.abs(ours - z).max() <= {"f32": 1e-5, "f16": 2e-3, "q8_0": 3e-2}[kv] * np.abs(z).max()
        again: dict[str, list[np.ndarray]] = {name: [] for name in a}
        with model.hooked({"*.hook_pattern": lambda array, spot: again[spot.name].append(array)}):
            model.logits(ids, chunk=37)
        for name in a:
            if "pattern" in name:
                at_ = 0
                for part in again[name]:
                    assert same(part, a[name][:, at_:at_ + part.shape[1], :part.shape[2]])
                    at_ += part.shape[1]
    with load(path, threads=1, context=640, kv=kv) as alone:
        assert all(same(alone.activations(ids, "*.hook_pattern")[name], a[name]) for name in a if "pattern" in name)


def test_sinks_take_their_part(tmp_path: Path) -> None:
    """Of a page that has attention sinks: weights sum to less than 1, and give what the kernel gives."""
    from llamina.engine.architectures import pages
    from test_program import KEYS, PAGE, TENSORS
    pages.PAGES["everything"] = PAGE
    try:
        path = write_family(tmp_path / "m.gguf", "everything", {**KEYS, "norm_kind": "rms"}, tensors=TENSORS)
        with load(path, threads=2, context=256) as model:
            a = model.activations(random_ids(150), "blocks.*.attn.*")
            for i in range(4):
                pattern, z, v = (a[f"blocks.{i}.attn.{name}"].astype(np.float64) for name in ("hook_pattern", "hook_z", "hook_v"))
                assert np.abs(np.einsum("hqk,khd->qhd", pattern, np.repeat(v, pattern.shape[0] // v.shape[1], 1)) - z).max() < 1e-5 * np.abs(z).max()
                assert (pattern.sum(2).max() < 0.999) == (i == 0)
    finally:
        del pages.PAGES["everything"]


# -- folders ------------------------------------------------------------------------------------------------------------------------------------

NAMES = ["blocks.1.hook_resid_post", "blocks.2.attn.hook_pattern", "blocks.0.attn.hook_q"]


def check(model: Model, stored: store.Stored, texts: list[list[int]], positions: Any = None) -> None:
    expected = model.activations(texts, NAMES, positions=positions)
    assert list(stored) == list(expected) and list(stored.ids) == texts
    for name in expected:
        assert len(stored[name]) == len(texts)
        assert all(same(a, b) for a, b in zip(stored[name], expected[name])), name
        assert all((a == b).all() for a, b in zip(stored.positions, expected.positions))


def test_a_folder_holds_them(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 100_000)
    for positions in None, slice(1, None, 2):
        folder = tmp_path / f"{positions}"
        stored = model.activations(TEXTS * 2, NAMES, positions=positions, to=folder)
        assert len(stored.parts) > 2
        check(model, stored, TEXTS * 2, positions)
        opened = llamina.load_activations(str(folder))
        check(model, opened, TEXTS * 2, positions)
        assert not opened[NAMES[0]][0].flags.writeable
        assert sum(len(part) for part in opened.rows(NAMES[0])) == sum(len(a) for a in opened[NAMES[0]])
    single = model.activations(TEXTS[1], NAMES, to=tmp_path / "one")
    assert single.ids == TEXTS[1] and same(single[NAMES[0]], model.activations(TEXTS[1], NAMES[0])[NAMES[0]])
    with pytest.raises(KeyError):
        single["blocks.0.hook_resid_post"]


def test_going_on(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two texts, with a file half written: the next run computes the rest only."""
    monkeypatch.setattr(store, "PART_BYTES", 30_000)

    def interrupted() -> Iterator[list[int]]:
        yield from TEXTS[:3]
        yield from [TEXTS[1]] * 2
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model.activations(interrupted(), NAMES, to=tmp_path)
    done = len(llamina.load_activations(tmp_path)[NAMES[0]])
    assert 0 < done <= 5
    (tmp_path / "00099.ids.npy").write_bytes(b"half")
    steps: list[int] = []
    texts = [*TEXTS[:3], TEXTS[1], TEXTS[1], *TEXTS]
    with model.hooked({}):
        pass
    original = model.runtime.step

    def step(feeds: Any, *a: Any, **k: Any) -> Any:
        steps.append(sum(len(f.ids) for f in feeds))
        return original(feeds, *a, **k)
    monkeypatch.setattr(model.runtime, "step", step)
    stored = model.activations(texts, NAMES, to=tmp_path)
    assert sum(steps) == sum(map(len, texts[done:]))
    steps.clear()
    model.activations(texts, NAMES, to=tmp_path)
    assert steps == []
    monkeypatch.undo()
    check(model, stored, texts)


def test_a_folder_of_something_else(model: Model, tmp_path: Path) -> None:
    model.activations(TEXTS[:2], NAMES, to=tmp_path / "a")
    other = write_small_model(tmp_path / "other.gguf", "Q8_0", n_layers=3, seed=1)
    with load(other, threads=1, context=256) as another, pytest.raises(FileError, match="of another model"):
        another.activations(TEXTS[:2], NAMES, to=tmp_path / "a")
    with load(model.path, threads=1, context=256, kv="q8_0") as another, pytest.raises(FileError, match="type of keys and values"):
        another.activations(TEXTS[:2], NAMES, to=tmp_path / "a")
    cases: list[tuple[Any, list[str], Any, str]] = [
        (TEXTS[:2], NAMES[:1], None, "of other names"), (TEXTS[:2], NAMES, -1, "of other positions"), (TEXTS[1:3], NAMES, None, "text 0 is not"),
        (TEXTS[:1], NAMES, None, "text 1 is not"), (TEXTS[0], NAMES, None, "given in another way")]
    for texts, names, positions, message in cases:
        with pytest.raises(FileError, match=message):
            model.activations(texts, names, positions, to=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    with pytest.raises(FileError, match="holds other files"):
        model.activations(TEXTS[:2], NAMES, to=tmp_path / "b")
    with pytest.raises(FileError, match="not a folder"):
        model.activations(TEXTS[:2], NAMES, to=tmp_path / "b" / "letter.txt")
    with pytest.raises(FileError):
        model.activations(TEXTS[:2], NAMES, to="a\0b")
    with model.hooked({"*.hook_resid_post": lambda a, s: a}), pytest.raises(OptionError, match="couldn't say what was changed"):
        model.activations(TEXTS[:2], NAMES, to=tmp_path / "a")
    check(model, llamina.load_activations(tmp_path / "a"), TEXTS[:2])


def test_a_full_disk(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as such; the parts before are whole, and the next run goes on from them."""
    monkeypatch.setattr(store, "PART_BYTES", 30_000)
    save, calls = np.save, []

    def full(file: Any, array: np.ndarray, **options: Any) -> None:
        calls.append(1)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array, **options)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(FileError, match=r"cannot be written \(no space left"):
        model.activations(TEXTS, NAMES, to=tmp_path)
    monkeypatch.setattr(np, "save", save)
    assert len(llamina.load_activations(tmp_path).parts) == 1
    check(model, model.activations(TEXTS, NAMES, to=tmp_path), TEXTS)


def test_a_damaged_folder(model: Model, tmp_path: Path) -> None:
    model.activations(TEXTS[:2], NAMES, to=tmp_path)
    index = (tmp_path / "index.json").read_text()
    for damaged in ("", "[]", "{}", index[:-20], index.replace('"llamina_activations": 1', '"llamina_activations": 9'),
                    index.replace('"parts": [', '"parts": [3, '),
                    index.replace('"shape": [', '"shape": ["x", ')):
        (tmp_path / "index.json").write_text(damaged)
        with pytest.raises((FormatError, FileError)):
            llamina.load_activations(tmp_path)
        with pytest.raises((FormatError, FileError)):
            model.activations(TEXTS[:2], NAMES, to=tmp_path)
    (tmp_path / "index.json").write_text(index)
    json.loads(index)
    path = tmp_path / f"00000.{NAMES[0]}.npy"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FormatError, match="is damaged"):
        llamina.load_activations(tmp_path)[NAMES[0]][0]
    path.unlink()
    with pytest.raises(FileError, match="lacks a part"):
        llamina.load_activations(tmp_path)[NAMES[0]][0]
    with pytest.raises(FileError):
        llamina.load_activations(tmp_path / "nothing")
