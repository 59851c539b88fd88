"""Lens, trace and attribution: the last layer is the model, sums are the logits, heads are their block; against NumPy on the whole logits."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.errors import OptionError
from llamina.engine.look import reading
from llamina.engine.model import Model, load
from small_models import random_ids, write_family, write_small_model

IDS = random_ids(70)


@pytest.fixture(scope="module", params=["F32", "Q4_0"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_small_model(tmp_path_factory.mktemp("look") / "m.gguf", request.param, n_layers=3, head_dim=32)
    with load(path, threads=2, context=256) as model:
        yield model


def numbers(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities, entropies), float64."""
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    logp = x - np.log(np.exp(x).sum(1, keepdims=True))
    return logp, -(np.exp(logp) * logp).sum(1)


def test_the_lens_says_what_the_output_matrix_says(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer against the logits of its rows, taken with NumPy; the last one against the model's own, bit for bit; steps of any length."""
    lens = model.lens(IDS, top=7)
    assert lens.layers == [-1, 0, 1, 2] and lens.top_ids.shape == (4, 70, 7) and lens.tokens[0] and len(lens.tokens) == 70
    rows = model.activations(IDS, ["hook_embed", "blocks.*.hook_resid_post"])
    for i, name in enumerate(rows if list(rows)[0] == "hook_embed" else ["hook_embed", *(n for n in rows if n != "hook_embed")]):
        with model.scheduler.alone() as runtime:
            logits = runtime.unembed(rows[name])
        logp, entropy = numbers(logits)
        order = np.argsort(-logits, axis=1, kind="stable")
        assert (lens.top_ids[i] == order[:, :7]).all()
        assert np.allclose(lens.top_probs[i], np.take_along_axis(np.exp(logp), order[:, :7], 1), rtol=1e-4, atol=1e-7)
        assert np.allclose(lens.entropy[i], entropy, atol=1e-4)
        assert np.allclose(lens.target_logprob[i], logp[np.arange(70), lens.target_ids], atol=1e-4)
        assert (lens.rank[i] == [1 + int(np.flatnonzero(order[p] == lens.target_ids[p])[0]) for p in range(70)]).all()
    logits = model.logits(IDS)
    assert lens.target_ids.tolist() == [*IDS[1:], int(logits[-1].argmax())]
    assert (lens.top_ids[-1, :, 0] == logits.argmax(1)).all()
    monkeypatch.setattr(reading, "TOKENS", 9)
    again = model.lens(IDS, top=7)
    assert (again.top_ids == lens.top_ids).all() and (again.top_probs == lens.top_probs).all() and (again.rank == lens.rank).all()
    some = model.lens(IDS, layers=[0, 2])
    assert some.layers == [0, 2] and (some.entropy == lens.entropy[[1, 3]]).all()


def test_settled_is_the_first_layer_of_the_last_run(model: Model) -> None:
    lens = model.lens(IDS)
    for p in range(70):
        firsts = lens.top_ids[:, p, 0].tolist()
        i = len(firsts) - 1
        while i and firsts[i - 1] == firsts[-1]:
            i -= 1
        assert lens.settled[p] == lens.layers[i]


def test_an_affine_lens(model: Model) -> None:
    """The identity changes nothing but rounding; a map to a later layer's rows, solved by least squares, comes nearer to the model."""
    identity = {1: (np.eye(64), np.zeros(64))}
    plain, same = model.lens(IDS), model.lens(IDS, affine=identity)
    assert np.allclose(plain.entropy, same.entropy, atol=1e-4)
    bias = {2: (np.zeros((64, 64), np.float32), np.ones(64, np.float32))}
    assert np.ptp(model.lens(IDS, affine=bias).entropy[-1]) < 1e-6
    for wrong, message in (({9: identity[1]}, "from 0 to 2"), ({1: np.eye(64)}, "needs"), ({1: (np.eye(3), np.zeros(3))}, r"A \[64, 64\]"),
                           ({1: (np.eye(64) * np.nan, np.zeros(64))}, "finite"), ([1], "mapping"), ({1: ("a", "b")}, r"\(A, b\)")):
        with pytest.raises(OptionError, match=message):
            model.lens(IDS, affine=wrong)  # type: ignore[arg-type]


def test_options(model: Model) -> None:
    for options, message in (({"layers": [5]}, "from 0 to 2"), ({"layers": []}, "no layer"), ({"layers": 1.5}, "must be numbers"), ({"top": 0}, "top"),
                             ({"top": 101}, "between 1 and 100"), ({"top": True}, "top"), ({"layers": ["a"]}, "must be numbers")):
        with pytest.raises(OptionError, match=message):
            model.lens(IDS, **options)  # type: ignore[arg-type]


def check_attribution(model: Model, ids: list[int], exact: bool) -> None:
    trace, logits = model.trace(ids), model.logits(ids)
    a = trace.attribution
    assert a is not None and a.target_ids.tolist() == trace.lens.target_ids.tolist()
    chosen = logits[np.arange(len(ids)), a.target_ids].astype(np.float64)
    if cap := model.config.output.soft_cap:
        chosen = cap * np.arctanh(chosen / cap)
    scale = np.abs(chosen).max()
    assert np.abs(a.logits - chosen).max() <= 1e-6 * scale
    assert np.abs(a.parts.sum(1) - chosen).max() <= 1e-6 * scale
    assert a.labels[-1] == "rounding" and "edits" not in a.labels
    rounding = np.abs(a.parts[:, -1]).max()
    assert rounding <= (1e-4 if exact else 5e-2) * scale, "the parts but for rounding are not the logit"
    for layer, heads in a.heads.items():
        block = a.parts[:, a.labels.index(f"blocks.{layer}.attn")]
        biased = any(m.bias for block_ in model.config.layers[layer] for m in block_.matrices()) or model.config.architecture == "stablelm"
        if not biased:
            assert np.abs(heads.sum(1) - block).max() <= 1e-4 * scale, layer
    assert len(a.heads) == model.config.n_layers


def test_parts_are_the_logit(model: Model) -> None:
    """Embedding, blocks and bias sum to the logit to 1e-4 where activations are floats; heads sum to their block in every format."""
    check_attribution(model, IDS, exact=model.path.name == "m.gguf" and model.config.float32_kv)


FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "sandwich norms, caps": ("gemma2", {"attention.sliding_window": 40, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0,
                                        "attention.key_length": 16, "attention.value_length": 16}, []),
    "post-norms": ("olmo2", {}, ["output.weight"]),
    "factors": ("granite", {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 4.0, "attention.scale": 0.1}, ["output.weight"]),
    "side by side, LayerNorm": ("stablelm", {"use_parallel_residual": True, "attention.layer_norm_rms_epsilon": None, "rope.dimension_count": 8},
                                ["output.weight"]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_the_logit_in_every_family(family: str, tmp_path: Path) -> None:
    architecture, keys, tensors = FAMILIES[family]
    with load(write_family(tmp_path / "m.gguf", architecture, keys, tensors=tensors), threads=2, context=256) as model:
        check_attribution(model, IDS, exact=True)


def test_a_trace(model: Model) -> None:
    trace = model.trace(IDS, top=4)
    expected = [-lp.logprob for lp in model.logprobs(IDS)]
    assert np.isnan(trace.surprise[0]) and np.allclose(trace.surprise[1:], expected, atol=1e-4)
    assert trace.expected(0) == [] and len(trace.expected(70)) == 4 and len(trace.expected(1)) == 4
    with pytest.raises(IndexError):
        trace.expected(71)
    assert all((trace.rank[i] == 1) == (trace.lens.top_ids[-1, i - 1, 0] == IDS[i]) for i in range(1, 70))
    data = json.loads(json.dumps(trace.to_dict()))
    assert len(data["tokens"]) == 70
    assert set(data["tokens"][3]) >= {"id", "text", "surprise", "entropy", "rank", "settled", "expected", "logit", "parts", "heads"}
    assert model.trace(IDS[:3], attribution=False).attribution is None
    assert model.trace(IDS[:1]).to_dict()["tokens"] == [{"id": 1, "text": trace.tokens[0]}]


def test_changes_are_seen_and_attributed(model: Model) -> None:
    """Within a hooked block lens and trace are of the changed pass; what hooks added has a part of its own."""
    plain = model.trace(IDS)
    with model.hooked({"blocks.1.hook_resid_pre": lambda array, spot: array * 1.5}):
        changed = model.trace(IDS)
        logits = model.logits(IDS)
    a = changed.attribution
    assert a is not None and "edits" in a.labels and np.abs(changed.surprise[1:] - plain.surprise[1:]).max() > 1e-3
    assert np.allclose(a.parts.sum(1), logits[np.arange(70), a.target_ids], atol=1e-4)
    again = model.trace(IDS)
    assert (again.surprise[1:] == plain.surprise[1:]).all() and "edits" not in again.attribution.labels  # type: ignore[union-attr]


def test_matrix_rows_are_the_files(tmp_path: Path) -> None:
    """Rows out of tiles are the decoded rows of the file, in formats of every kind."""
    from llamina.engine.gguf.file import open_gguf
    from llamina.kernels.formats import registry
    for kind in ("F32", "F16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_NL"):
        path = write_small_model(tmp_path / f"{kind}.gguf", kind, n_vocab=290)
        with load(path, threads=1, context=64) as model, open_gguf(path) as file:
            ids = np.array([0, 289, 17, 16, 17])
            with model.scheduler.alone() as runtime:
                found = runtime.vocabulary_rows(ids)
            info = file.tensors["output.weight"]
            raw = file.data("output.weight").reshape(info.rows, -1)[ids]
            expected = registry.decode(info.format.name, raw)
            assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max(), kind
