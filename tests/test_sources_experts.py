"""Hugging Face folders of families with experts, made by hand in each way in which experts are stored; then other formats, importance by expert, fitted mixes.

As tests/test_sources_families.py: the weights of a random GGUF model are written as Hugging Face has them, and must come back as they were.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import sentencepiece_model, write_safetensors
from llamina import load
from llamina.convert.convert import convert
from llamina.convert.fit import plan
from llamina.convert.importance import collect, read, write
from llamina.convert.sources import open_source
from llamina.engine.errors import FormatError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.score.perplexity import perplexity
from llamina.kernels.formats import registry
from runs import logits_of
from small_models import random_ids, write_family
from test_sources_families import BASE, N_VOCAB, USUAL, assert_same, halves, theirs

Weights = dict[str, np.ndarray]
E, W, SHARED = 6, 96, 64
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "mixtral", "num_local_experts": E, "num_experts_per_tok": 2, "intermediate_size": W},
    "qwen2moe": {"model_type": "qwen2_moe", "num_experts": E, "num_experts_per_tok": 2, "moe_intermediate_size": W, "shared_expert_intermediate_size": SHARED},
    "qwen3moe": {"model_type": "qwen3_moe", "num_experts": E, "num_experts_per_tok": 2, "moe_intermediate_size": W, "norm_topk_prob": True},
    "olmoe": {"model_type": "olmoe", "num_experts": E, "num_experts_per_tok": 2, "intermediate_size": W},
    "granitemoe": {"model_type": "granitemoeshared", "num_local_experts": E, "num_experts_per_tok": 2, "intermediate_size": W, "logits_scaling": 5.0,
                   "shared_intermediate_size": SHARED},
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": E, "num_experts_per_tok": 2, "intermediate_size": W, "sliding_window": 40,
                "max_position_embeddings": 1024},
}
KEYS: dict[str, dict[str, Any]] = {
    "qwen2moe": {"expert_feed_forward_length": W, "expert_shared_feed_forward_length": SHARED}, "qwen3moe": {"expert_feed_forward_length": W},
    "granitemoe": {"expert_shared_feed_forward_length": SHARED, "logit_scale": 5.0},
    "gpt-oss": {"expert_feed_forward_length": W, "attention.sliding_window": 40, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
                "rope.scaling.original_context_length": 4096, "rope.freq_base": 150000.0}}


def one_by_one(place: str, names: tuple[str, str, str]) -> Callable[[str, np.ndarray, np.ndarray, np.ndarray], Weights]:
    def store(layer: str, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> Weights:
        return {f"{layer}{place}.experts.{e}.{name}.weight": x[e] for name, x in zip(names, (gate, up, down)) for e in range(E)}
    return store


def stacked(both: str, last: str) -> Callable[[str, np.ndarray, np.ndarray, np.ndarray], Weights]:
    def store(layer: str, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> Weights:
        return {layer + both: np.concatenate([gate, up], axis=1), layer + last: down}
    return store


def turned(layer: str, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> Weights:
    both = np.stack([gate, up], axis=2).reshape(E, 2 * W, -1)  # rows by turns
    return {f"{layer}mlp.experts.gate_up_proj": both.transpose(0, 2, 1), f"{layer}mlp.experts.down_proj": down.transpose(0, 2, 1)}


QWEN = one_by_one("mlp", ("gate_proj", "up_proj", "down_proj"))
LAYOUTS: dict[str, list[Callable[[str, np.ndarray, np.ndarray, np.ndarray], Weights]]] = {
    "llama": [one_by_one("block_sparse_moe", ("w1", "w3", "w2")), stacked("mlp.experts.gate_up_proj", "mlp.experts.down_proj")],
    "qwen2moe": [QWEN], "qwen3moe": [QWEN, stacked("mlp.experts.gate_up_proj", "mlp.experts.down_proj")], "olmoe": [QWEN],
    "granitemoe": [stacked("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight")], "gpt-oss": [turned],
}
WITH_STATES = {"lfm2", "lfm2moe", "qwen35", "qwen35moe", "qwen3next", "granitehybrid", "falcon-h1", "nemotron_h", "deepseek2"}
"""Families that tests/test_oracle_families.py alone compares: the tensors of their recurrent layers, or of their latents, change in more than names."""
WAYS = [(architecture, i) for architecture, layouts in LAYOUTS.items() for i in range(len(layouts))]
ROUTERS = {"llama": "block_sparse_moe.gate", "granitemoe": "block_sparse_moe.router.layer", "gpt-oss": "mlp.router"}


def weights_of(path: Path, architecture: str) -> Weights:
    asked = ["output.weight"] + ([f"blk.*.attn_{x}.bias" for x in "qkv"] if architecture == "qwen2moe" else [])
    keys = {"attention.key_length": 16, "feed_forward_length": W, "expert_count": E, "expert_used_count": 2, **KEYS.get(architecture, {})}
    with open_gguf(write_family(path, architecture, keys, tensors=asked, n_vocab=N_VOCAB)) as file:
        return {name: file.data(name).view("<f4").reshape(file.tensors[name].shape).copy() for name in file.tensors}


def experts_of(weights: Weights, i: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gate, up, down = (weights[f"blk.{i}.ffn_{part}_exps.{kind}"] for part in ("gate", "up", "down"))
    return gate, up, down


def as_stored(weights: Weights, architecture: str, way: int = 0) -> Weights:
    """Under Hugging Face's names, as they are there."""
    stored: Weights = {}
    names = {**USUAL, "ffn_gate_inp": ROUTERS.get(architecture, "mlp.gate"), "post_attention_norm": "post_attention_layernorm",
             **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}}
    for name, x in weights.items():
        layer, part = (int(name.split(".")[1]), name.split(".")[2]) if name.startswith("blk.") else (0, "")
        if part.endswith("_exps") or architecture == "granitemoe" and part.endswith("_shexp"):
            continue
        if part in ("ffn_gate_inp_shexp", "attn_sinks"):
            stored[f"model.layers.{layer}." + {"attn_sinks": "self_attn.sinks"}.get(part, "mlp.shared_expert_gate.weight")] = (
                x[None] if part.startswith("ffn") else x)
            continue
        heads = {"attn_q": 4, "attn_k": 2}.get(part)
        stored[theirs(name, names, "model.layers")] = halves(x, heads) if heads and architecture in ("llama", "granitemoe") else x
    for i in range(BASE["num_hidden_layers"]):
        stem = f"model.layers.{i}."
        stored |= LAYOUTS[architecture][way](stem, *experts_of(weights, i, "weight"))
        if architecture == "gpt-oss":
            gate, up, down = experts_of(weights, i, "bias")
            stored |= {f"{stem}mlp.experts.gate_up_proj_bias": np.stack([gate, up], axis=2).reshape(E, -1), f"{stem}mlp.experts.down_proj_bias": down}
        if architecture == "granitemoe":
            gate, up, down = (weights[f"blk.{i}.ffn_{part}_shexp.weight"] for part in ("gate", "up", "down"))
            stored |= {f"{stem}shared_mlp.input_linear.weight": np.concatenate([gate, up]), f"{stem}shared_mlp.output_linear.weight": down}
    return {name: np.ascontiguousarray(x) for name, x in stored.items()}


def folder_of(path: Path, architecture: str, way: int = 0, **more: Any) -> tuple[Path, Weights]:
    weights = weights_of(path.with_suffix(".gguf"), architecture)
    path.mkdir()
    write_safetensors(path / "model.safetensors", as_stored(weights, architecture, way))
    (path / "config.json").write_text(json.dumps({**BASE, "tie_word_embeddings": False, **CONFIGS[architecture], **more}))
    (path / "tokenizer.model").write_bytes(sentencepiece_model(N_VOCAB))
    return path, weights


@pytest.mark.parametrize("architecture, way", WAYS)
def test_folder(tmp_path: Path, architecture: str, way: int) -> None:
    folder, weights = folder_of(tmp_path / "m", architecture, way)
    with open_source(folder) as source:
        assert_same(source, weights)
        meta = source.metadata
        assert meta["general.architecture"] == architecture
        assert (meta[f"{architecture}.expert_count"], meta[f"{architecture}.expert_used_count"]) == (E, 2)
        assert f"{architecture}.expert_weights_norm" not in meta
        out = tmp_path / "m.gguf"
        convert(source, out, "f32", verify=False)
    np.testing.assert_array_equal(logits_of(out, random_ids(20, N_VOCAB)), logits_of(folder.with_suffix(".gguf"), random_ids(20, N_VOCAB)))


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss"])
def test_an_expert_is_missing(tmp_path: Path, architecture: str) -> None:
    folder, weights = folder_of(tmp_path / "m", architecture)
    stored = as_stored(weights, architecture)
    gone = next(name for name in stored if name.startswith("model.layers.1.mlp.experts."))
    write_safetensors(folder / "model.safetensors", {name: x for name, x in stored.items() if name != gone})
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_.*_exps|layers\.1\.mlp"):
        open_source(folder)


@pytest.mark.parametrize("architecture, more, message", [
    ("qwen3moe", {"mlp_only_layers": [1]}, "layers without experts"), ("qwen3moe", {"decoder_sparse_step": 2}, "layers without experts"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"), ("gpt-oss", {"swiglu_limit": 6.0}, "swiglu_limit"), ("gpt-oss", {"attention_bias": False}, "attention_bias"),
    ("gpt-oss", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "truncate"),
])
def test_refused_by_name(tmp_path: Path, architecture: str, more: dict[str, Any], message: str) -> None:
    folder, _ = folder_of(tmp_path / "m", architecture, **more)
    with pytest.raises(UnsupportedError, match=message):
        open_source(folder)


def test_norm_is_said_where_it_is_not_the_usual(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "m", "qwen3moe", norm_topk_prob=False)
    with open_source(folder) as source:
        assert source.metadata["qwen3moe.expert_weights_norm"] is False and any("norm_topk_prob" in note for note in source.notes)


def packed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random weights [..., columns] as gpt-oss's blocks and scales, and what they are."""
    rng = np.random.default_rng(x.size)
    blocks = rng.integers(0, 256, (*x.shape[:-1], x.shape[-1] // 32, 16), np.uint8)
    scales = rng.integers(118, 124, blocks.shape[:-1]).astype(np.uint8)
    values = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0.0, -.5, -1, -1.5, -2, -3, -4, -6])
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    return blocks, scales, (values[codes] * 2.0 ** (scales[..., None].astype(float) - 127)).reshape(x.shape)


def test_mxfp4_is_copied(tmp_path: Path) -> None:
    """Each weight of gpt-oss's blocks and scales is the file's; other tensors take the asked type; a float type decodes them."""
    folder, weights = folder_of(tmp_path / "m", "gpt-oss")
    stored = as_stored(weights, "gpt-oss")
    for i in range(3):
        at = f"model.layers.{i}.mlp.experts."
        for name, shape in ("gate_up_proj", (E, 2 * W, 64)), ("down_proj", (E, 64, W)):
            del stored[at + name]
            stored[f"{at}{name}_blocks"], stored[f"{at}{name}_scales"], values = packed(np.empty(shape))
            if name == "down_proj":
                weights[f"blk.{i}.ffn_down_exps.weight"] = values
            else:
                weights[f"blk.{i}.ffn_gate_exps.weight"], weights[f"blk.{i}.ffn_up_exps.weight"] = values[:, ::2], values[:, 1::2]
    kinds = {name: "U8" for name, x in stored.items() if x.dtype == np.uint8}
    write_safetensors(folder / "model.safetensors", stored, dtypes=kinds)
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), "quantization_config": {"quant_method": "mxfp4"}}))
    out, plain = tmp_path / "q.gguf", tmp_path / "f.gguf"
    report = convert(folder, out, "q8_0", verify=True)
    assert report.mix["MXFP4"] == 9 and not report.verification.problems
    assert not convert(folder, plain, "f32", verify=True).verification.problems
    for path in out, plain:
        with open_gguf(path) as file:
            for name in (n for n in file.tensors if n.endswith("_exps.weight")):
                found = registry.decode(file.tensors[name].format.name, file.data(name))
                np.testing.assert_array_equal(found.reshape(weights[name].shape), weights[name])
    write_safetensors(folder / "model.safetensors", {n: x for n, x in stored.items() if n != "model.layers.1.mlp.experts.down_proj_scales"},
                      dtypes=kinds)
    with pytest.raises(FormatError, match="down_proj_scales.*missing"):
        open_source(folder)


@pytest.mark.parametrize("architecture", ["qwen2moe", "gpt-oss"])
def test_what_comes_after(tmp_path: Path, architecture: str) -> None:
    """Importance by expert (there and back through a file), another format weighed by it, requantising, a fitted mix, perplexity."""
    folder, _ = folder_of(tmp_path / "m", architecture)
    text = "the cat sat on a mat and the dog ran to the hat with him then she said no " * 12
    exact, small = tmp_path / "exact.gguf", tmp_path / "small.gguf"
    report = convert(folder, exact, "f32", verify=True, verify_text=text)
    assert not report.verification.problems and report.mix["F32"] == len(report.tensors)
    with load(exact, threads=1) as model:
        measured = collect(model, text, context=64)
        assert set(measured) == {m.tensor for m in model.config.matrices()}
        before = perplexity(model, text, context=64).perplexity
        tokens = measured["blk.0.attn_q.weight"].count
    for i in range(3):
        for part, columns in ("gate", 64), ("up", 64), ("down", W):
            c = measured[f"blk.{i}.ffn_{part}_exps.weight"]
            assert c.sums.shape == (E, columns) and c.count.sum() == 2 * tokens and (c.count == measured[f"blk.{i}.ffn_up_exps.weight"].count).all()
        gate = measured[f"blk.{i}.ffn_gate_exps.weight"].sums
        np.testing.assert_allclose(gate.sum(axis=0), 2 * measured[f"blk.{i}.ffn_gate_inp.weight"].sums, rtol=1e-9)  # each row went to two experts
    write(tmp_path / "i.gguf", measured, "text", 64)
    weights = read(tmp_path / "i.gguf")
    for name, c in measured.items():
        np.testing.assert_allclose(weights[name], c.means(), rtol=1e-5)
    again = convert(exact, small, "q4_0", importance=weights, verify=True)
    assert not again.verification.problems and not any("exps" in note for note in again.notes)
    assert {t.format for t in again.tensors if re.search("gate_inp|bias|norm|sinks", t.name)} == {"F32"}
    assert {t.format for t in again.tensors if t.name.endswith("exps.weight")} <= {"Q4_0", "Q4_1"}
    with load(small, threads=1) as model:
        assert perplexity(model, text, context=64).perplexity == pytest.approx(before, rel=0.25)
    with open_source(exact) as source:
        chosen = plan(source, bits=6.0, importance=weights)
        fitted = convert(source, tmp_path / "fit.gguf", "f16", plan=chosen, importance=weights, verify=True)
    assert not fitted.verification.problems and fitted.bits_per_weight <= 6.01
