"""Looking into encoders, whose positions see what comes after them; and what a page can't offer, which is refused by name."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.errors import LlaminaError, OptionError
from llamina.engine.model import Model, load
from page_cases import write_case
from runs import same
from small_models import random_ids, write_family

IDS = random_ids(150)
ENCODERS: dict[str, dict[str, Any]] = {"bert": {"attention.layer_norm_rms_epsilon": None}, "gemma-embedding": {"attention.sliding_window": 40}}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_family(tmp_path_factory.mktemp("look") / "m.gguf", request.param, ENCODERS[request.param])
    with load(path, threads=2) as model:
        yield model


def test_maps_look_both_ways(encoder: Model) -> None:
    """A row's weights are those of all that it sees, before and after it: their sum is 1, and of the values they make what attention made."""
    names = ["*.hook_pattern", "*.hook_attn_scores", "*.hook_z", "*.hook_v"]
    found, n = encoder.activations(IDS, names), len(IDS)
    for a in encoder.config.attentions():
        pattern, scores, z, v = (found[f"blocks.{a.layer}.attn.{name.split('.')[-1]}"].astype(np.float64) for name in names)
        p = np.arange(n)
        seen = np.abs(p[:, None] - p) < (a.window or n)
        assert (np.isfinite(scores) == seen).all() and (pattern[:, ~seen] == 0).all() and np.abs(pattern.sum(2) - 1).max() < 1e-5
        ours = np.einsum("hqk,khd->qhd", pattern, np.repeat(v, a.heads // a.kv_heads, 1))
        assert np.abs(ours - z).max() <= 2e-3 * np.abs(z).max()
    whole = found["blocks.1.attn.hook_pattern"]
    some = encoder.activations(IDS, "blocks.1.attn.hook_pattern", positions=[0, 70])["blocks.1.attn.hook_pattern"]
    assert same(some, np.ascontiguousarray(whole[:, [0, 70]]))
    seen_maps: list[np.ndarray] = []
    with encoder.hooked({"blocks.1.attn.hook_pattern": lambda array, spot: seen_maps.append(array)}):
        encoder.activations(IDS, "blocks.2.hook_resid_post")
    assert same(np.ascontiguousarray(seen_maps[0]), whole)
    attention = encoder.attention(IDS, layers=[1])
    assert same(attention.maps[1], whole) and np.isfinite(attention.entropy[1]).all()


def test_texts_are_taken_whole(encoder: Model) -> None:
    """However many there are, none is cut by a step's end: its numbers are those it has alone."""
    texts = [random_ids(n, seed=n) for n in (400, 401, 402, 30)]
    assert sum(map(len, texts)) > encoder.runtime.max_batch
    name = "blocks.2.hook_resid_post"
    together = encoder.activations(texts, name)[name]
    assert all(same(one, encoder.activations(text, name)[name]) for text, one in zip(texts, together))


def test_what_an_encoder_has_not(encoder: Model) -> None:
    """No logits: lenses, traces, attribution and patching say so, and name the file and its architecture."""
    other = [*IDS[:-1], 5]
    asked: dict[str, Callable[[], Any]] = {
        "lens": lambda: encoder.lens(IDS), "trace": lambda: encoder.trace(IDS), "without parts": lambda: encoder.trace(IDS, attribution=False),
        "patch": lambda: encoder.patch(IDS, other, "blocks.*.hook_resid_pre", lambda row: 0.0), "generate": lambda: encoder.generate(IDS)}
    for name, ask in asked.items():
        with pytest.raises(LlaminaError, match=rf"m\.gguf: is an encoder \(architecture {encoder.config.architecture}\)"):
            ask()
            pytest.fail(name)


def test_what_a_recurrent_layer_has_not(tmp_path: Path) -> None:
    """Maps and patching of layers without attention over positions; lens and trace are of all layers."""
    with load(write_case(tmp_path / "m.gguf", "lfm2"), threads=2) as model:
        have = {a.layer for a in model.config.attentions()}
        without = next(i for i in range(model.config.n_layers) if i not in have)
        for ask, message in ((lambda: model.attention(IDS, layers=[without]), rf"layer {without} has no attention"),
                             (lambda: model.activations(IDS, f"blocks.{without}.attn.hook_pattern"), rf"layer {without} doesn't compute that"),
                             (lambda: model.patch(IDS, [*IDS[:-1], 5], "blocks.*.hook_resid_pre", lambda row: 0.0), "recurrent layers")):
            with pytest.raises(OptionError, match=message):
                ask()
        trace = model.trace(IDS)
        assert trace.lens.layers == list(range(-1, model.config.n_layers)) and trace.attribution is not None and set(trace.attribution.heads) <= have
