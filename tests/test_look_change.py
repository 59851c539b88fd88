"""Ablation, patching and steering: each against hooks written by hand, with ==; files of steering vectors; what is asked wrongly."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llamina
import numpy as np
import pytest
from llamina.engine.errors import FileError, FormatError, LlaminaError, OptionError
from llamina.engine.look.steer import SteeringVector
from llamina.engine.model import Model, load
from runs import same
from small_models import random_ids, write_family, write_small_model

IDS = random_ids(40)
OTHER = [*IDS[:20], 99, *IDS[21:]]


@pytest.fixture(scope="module", params=["F32", "Q8_0"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_small_model(tmp_path_factory.mktemp("look") / "m.gguf", request.param, n_layers=3)
    with load(path, threads=2, context=256) as model:
        yield model


# -- ablation -----------------------------------------------------------------------------------------------------------------------------------

def test_ablation_is_a_hook(model: Model) -> None:
    def by_hand(array: np.ndarray, spot: Any) -> np.ndarray:
        array = array.copy()
        array[np.ix_(spot.positions >= 5, [1, 3])] = 0
        return array
    with model.hooked({"blocks.1.attn.hook_z": by_hand}):
        expected = model.logits(IDS, chunk=16)
    with model.ablate("blocks.1.attn.hook_z", heads=[1, 3], positions=slice(5, None)):
        assert same(model.logits(IDS), expected)
    with model.ablate("blocks.*.hook_mlp_out"):
        a = model.activations(IDS, "blocks.1.*")
    assert not a["blocks.1.hook_mlp_out"].any() and same(a["blocks.1.hook_resid_post"], a["blocks.1.hook_resid_mid"])
    means = model.mean_activations([IDS, OTHER], ["blocks.1.attn.hook_z", "blocks.2.hook_mlp_out"])
    every = model.activations([IDS, OTHER], list(means))
    for name, mean in means.items():
        assert np.allclose(mean, np.concatenate(every[name]).mean(0), atol=1e-5)
    with model.ablate(list(means), value=means):
        a = model.activations(IDS, list(means))
    assert all((a[name] == means[name]).all() for name in means)


def test_what_ablation_refuses(model: Model) -> None:
    for options, message in (({"names": "blocks.1.attn.hook_pattern"}, "not changed"), ({"names": "ln_final.hook_normalized"}, "not changed"),
                             ({"names": "blocks.1.hook_mlp_out", "heads": 1}, "has no heads"), ({"names": "blocks.1.attn.hook_z", "heads": 4}, "from 0 to 3"),
                             ({"names": "blocks.1.attn.hook_k", "heads": 2}, "from 0 to 1"),
                             ({"names": "blocks.1.attn.hook_z", "positions": -1}, "from the end"),
                             ({"names": "blocks.1.attn.hook_z", "value": np.zeros(3)}, r"of shape \[4, 16\], found \[3\]"),
                             ({"names": "blocks.1.attn.hook_z", "value": float("nan")}, "finite"), ({"names": "blocks.1.attn.hook_z", "value": "x"}, "number"),
                             ({"names": "blocks.1.attn.hook_z", "value": {}}, "no value was given")):
        with pytest.raises(OptionError, match=message), model.ablate(**options):  # type: ignore[arg-type]
            pass


# -- patching -----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["dense", "window"])
def test_patching_is_what_hooks_give(model: Model, kind: str, tmp_path: Path) -> None:
    """Though layers below, and positions before, are not computed again: every number ==."""
    if kind == "window":
        path = write_family(tmp_path / "m.gguf", "gemma2", {"attention.sliding_window": 9, "attention.key_length": 16, "attention.value_length": 16})
        with load(path, threads=2, context=256) as other:
            check_patching(other)
    else:
        check_patching(model)


def check_patching(model: Model) -> None:
    def metric(logits: np.ndarray) -> float:
        return float(logits[7]) - float(logits[11])
    names = ["blocks.*.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.2.attn.hook_k", "blocks.0.attn.hook_z"]
    found = model.patch(IDS, OTHER, names, metric, positions=[3, 20, 25, 39])
    assert found.positions.tolist() == [20, 25, 39] and found.raw.shape == (6, 3) and found.clean_ids == IDS
    clean = model.activations(IDS, names)

    def logits(name: str, position: int, head: int | None = None) -> np.ndarray:
        def hook(array: np.ndarray, spot: Any) -> np.ndarray:
            array, at = array.copy(), spot.positions == position
            if head is None:
                array[at] = clean[name][position]
            else:
                array[at, head] = clean[name][position, head]
            return array
        with model.hooked({name: hook}):
            return model.logits(OTHER)[-1]
    for s, name in enumerate(found.names):
        for p, position in enumerate(found.positions):
            assert found.raw[s, p] == metric(logits(name, int(position))), (name, position)
    assert found.clean == metric(model.logits(IDS)[-1]) and found.corrupt == metric(model.logits(OTHER)[-1])
    heads = model.patch(IDS, OTHER, "blocks.*.attn.hook_z", (7, 11), positions=slice(38, None), heads=[0, 2])
    assert heads.raw.shape == (len(heads.names), 2, 2)
    assert heads.raw[0, 1, 1] == metric(logits(heads.names[0], 39, 2))
    first = found.names.index("blocks.0.hook_resid_pre")
    assert np.allclose(found.recovered[first, 0], 1.0), "the only token that differs, put back, is the clean text"


def test_what_patching_refuses(model: Model) -> None:
    name = "blocks.1.hook_resid_pre"
    for arguments, message in (((IDS, IDS, name, (1, 2)), "the same"), ((IDS, IDS[:-1], name, (1, 2)), "as many tokens"), ((IDS, OTHER, name, 3), "metric"),
                               ((IDS, OTHER, name, (1, 999)), "token"), ((IDS, OTHER, name, lambda logits: "x"), "must give a number"),
                               ((IDS, OTHER, "blocks.1.attn.hook_pattern", (1, 2)), "not changed"), ((IDS, OTHER, name, (1, 2), [0, 3]), "from position 20 on"),
                               ((IDS, OTHER, ["blocks.1.attn.hook_z", "blocks.1.attn.hook_k"], (1, 2), None, [0, 3]), "from 0 to 1")):
        with pytest.raises(OptionError, match=message):
            model.patch(*arguments)
    with model.hooked({name: lambda a, s: None}), pytest.raises(OptionError, match="within a hooked block"):
        model.patch(IDS, OTHER, name, (1, 2))
    held = model.runtime.kv_pages()
    assert not held.owned and not held.shared


# -- steering -----------------------------------------------------------------------------------------------------------------------------------

def test_steering_is_a_hook_and_nothing_at_zero(model: Model) -> None:
    vector = model.steering_vector([IDS, OTHER], [IDS[::-1][:-1], IDS[5:]])
    assert sorted(vector.directions) == [1, 2]
    a, b = (model.activations(texts, "blocks.2.hook_resid_post", positions=-1)["blocks.2.hook_resid_post"]
            for texts in ([IDS, OTHER], [IDS[::-1][:-1], IDS[5:]]))
    assert np.allclose(vector.directions[2], np.concatenate(a).mean(0) - np.concatenate(b).mean(0), atol=1e-5)
    logits = model.logits(IDS)
    tokens = model.generate(IDS, max_tokens=9, seed=1, ignore_eos=True)
    tokens.text()
    with model.steer(vector, 0.0):
        assert same(model.logits(IDS), logits)
        again = model.generate(IDS, max_tokens=9, seed=1, ignore_eos=True)
        again.text()
        assert again.ids == tokens.ids
    add = np.float32(1.5) * vector.directions[1]
    with model.hooked({"blocks.1.hook_resid_post": lambda array, spot: array + add * (spot.positions >= 10)[:, None].astype(np.float32)}):
        expected = model.logits(IDS)
    with model.steer(vector, 1.5, layers=[1], positions=slice(10, None)):
        assert same(model.logits(IDS), expected)
    with model.steer(vector.directions[1], 1.5, layers=1, positions=slice(10, None)):
        assert same(model.logits(IDS), expected)
    assert same(model.logits(IDS), logits)


def test_what_steering_refuses(model: Model) -> None:
    vector = SteeringVector({1: np.ones(64, np.float32)})
    for arguments, message in (((vector, float("nan")), "finite number"), ((vector, "1"), "finite number"), ((vector, True), "finite number"),
                               ((vector, 1.0, [2]), "no direction for these"), ((np.ones(64), 1.0), "give layers"),
                               ((np.ones(9), 1.0, 1), "64 finite numbers"),
                               ((SteeringVector({9: np.ones(64)}), 1.0), "layer 9"),
                               ((np.full(64, np.nan), 1.0, 1), "64 finite"), ((vector, 1.0, None, -1), "end"),
                               (("x", 1.0, 1), "must be numbers")):
        with pytest.raises(OptionError, match=message), model.steer(*arguments):
            pass
    for positive, negative, layers, message in (([], [IDS], None, "no positive texts"), ([IDS], [], None, "no negative texts"),
                                                ([IDS], [IDS], [-1], "from 0 on")):
        with pytest.raises(OptionError, match=message):
            model.steering_vector(positive, negative, layers)


def test_files(model: Model, tmp_path: Path) -> None:
    """Saved and read back; read by the gguf package as repeng and llama.cpp would; a file of repeng's making."""
    vector = model.steering_vector([IDS], [OTHER])
    vector.save(tmp_path / "v.gguf")
    again = llamina.load_steering_vector(tmp_path / "v.gguf")
    assert again.hint == "llama" and list(again.directions) == [1, 2] and all(same(again.directions[i], vector.directions[i]) for i in again.directions)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert [t.name for t in reader.tensors] == ["direction.1", "direction.2"]
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"controlvector"
    assert int(reader.fields["controlvector.layer_count"].parts[-1][0]) == 2
    writer = gguf.GGUFWriter(tmp_path / "r.gguf", "controlvector")  # as repeng's export_gguf
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 1)
    writer.add_tensor("direction.2", np.arange(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = llamina.load_steering_vector(str(tmp_path / "r.gguf"))
    assert theirs.hint == "mistral" and (theirs.directions[2] == np.arange(64)).all()
    both = 2 * vector + theirs
    assert np.allclose(both.directions[2], 2 * vector.directions[2] + np.arange(64)) and np.isclose(np.linalg.norm(both.normalised().directions[1]), 1)
    with pytest.raises(OptionError, match="no place for layer 0"):
        SteeringVector({0: np.ones(64, np.float32)}).save(tmp_path / "z.gguf")
    with pytest.raises(FileError):
        vector.save(tmp_path / "no" / "v.gguf")
    for path, message in ((model.path, "expected 'controlvector'"), (tmp_path / "nothing.gguf", "nothing")):
        with pytest.raises(LlaminaError, match=message):
            llamina.load_steering_vector(path)


@pytest.mark.parametrize("tensors", [{}, {"other.1": np.ones(4, np.float32)}, {"direction.x": np.ones(4, np.float32)},
                                     {"direction.1": np.ones((2, 2), np.float32)},
                                     {"direction.1": np.ones(4, np.float16)}, {"direction.1": np.full(4, np.nan, np.float32)},
                                     {"direction.1": np.ones(4, np.float32), "direction.2": np.ones(5, np.float32)}])
def test_files_that_are_no_vectors(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError):
        llamina.load_steering_vector(tmp_path / "v.gguf")


# -- attention ----------------------------------------------------------------------------------------------------------------------------------

def test_what_is_said_of_maps(model: Model) -> None:
    """Entropy, the strongest keys and means, against the maps themselves, whether they are held or not."""
    a = model.attention(IDS, layers=[0, 2], top=3)
    b = model.attention(IDS, layers=[0, 2], top=3, maps=False)
    acts = model.activations(IDS, "*.hook_pattern")
    assert a.layers == [0, 2] and not b.maps
    for layer in a.layers:
        p = acts[f"blocks.{layer}.attn.hook_pattern"]
        assert same(a.maps[layer], p)
        x = p.astype(np.float64)
        entropy = -np.where(x > 0, x * np.log(np.where(x > 0, x, 1)), 0).sum(2)
        for found in a, b:
            assert np.allclose(found.entropy[layer], entropy, atol=1e-5)
            assert np.allclose(found.mean[layer], p.mean(0), atol=1e-6)
            for d in (0, 1, 30):
                assert np.allclose(found.by_distance[layer][:, d], np.mean([p[:, q, q - d] for q in range(d, 40)], axis=0), atol=1e-5)
            order = np.argsort(-p, axis=2, kind="stable")[:, :, :3]
            for q in range(40):
                k = min(3, q + 1)
                assert (found.top_keys[layer][:, q, :k] == order[:, q, :k]).all() and (found.top_keys[layer][:, q, k:] == -1).all()
    some = model.attention(IDS, layers=2, heads=[1, 3], positions=slice(30, 34))
    assert same(some.maps[2], acts["blocks.2.attn.hook_pattern"][[1, 3], 30:34]) and some.heads == {2: [1, 3]}
    for options, message in (({"layers": [3]}, "from 0 to 2"), ({"layers": [-1]}, "has no attention"), ({"heads": [4]}, "from 0 to 3"),
                             ({"heads": []}, "no head"),
                             ({"positions": 40}, "outside"), ({"heads": "a"}, "must be numbers")):
        with pytest.raises(OptionError, match=message):
            model.attention(IDS, **options)  # type: ignore[arg-type]
