"""Hugging Face folders of every family, made by hand: names, order of rows, gains less one, keys; and what comes after: other formats, importance, perplexity.

The weights of a random GGUF model (small_models.write_family) are written as Hugging Face has them, by names spelled out here and an order of rows of this
file's own, and must come back as they were. tests/test_oracle_families.py compares logits with transformers.
"""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import sentencepiece_model, write_safetensors
from llamina import load
from llamina.convert.convert import convert
from llamina.convert.fit import plan
from llamina.convert.importance import collect
from llamina.convert.sources import open_source
from llamina.engine.architectures.pages import PAGES
from llamina.engine.errors import FormatError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.score.perplexity import perplexity
from runs import logits_of
from small_models import random_ids, write_family

N_VOCAB = 320
BASE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": N_VOCAB,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16}
USUAL = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_qkv": "self_attn.qkv_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
SANDWICH = {**USUAL, **AFTER, "ffn_norm": "pre_feedforward_layernorm"}
EXAONE = {
    "token_embd": "transformer.wte", "output_norm": "transformer.ln_f", "output": "lm_head", "attn_norm": "ln_1", "ffn_norm": "ln_2",
    "attn_q": "attn.attention.q_proj", "attn_k": "attn.attention.k_proj", "attn_v": "attn.attention.v_proj", "attn_output": "attn.attention.out_proj",
    "ffn_gate": "mlp.c_fc_0", "ffn_up": "mlp.c_fc_1", "ffn_down": "mlp.c_proj"}
GPT2 = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f", "output": "lm_head", "attn_norm": "ln_1",
    "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
NEOX = {
    "token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense", "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h"}
LAYERS = {"exaone": "transformer.h", "gpt2": "transformer.h", "gptneox": "gpt_neox.layers"}
BIASES = {
    "gpt2": ("attn_norm", "ffn_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"), "phi2": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
    "ffn_up", "ffn_down"), "starcoder2": ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")}
BIASES["gptneox"] = BIASES["gpt2"]
BIASES["stablelm"] = ("attn_norm", "ffn_norm")
LAYER_NORM = {*BIASES, "command-r", "cohere2"}
HALVES = {"llama", "smollm3", "arcee", "granite", "mistral3", "minicpm"}
"""Families whose rows of q and k GGUF has in another order."""
CASES: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, Any]]] = {
    # architecture: names, config.json over BASE, keys that must stand in the file
    "llama": (USUAL, {"model_type": "llama"}, {}),
    "qwen2": (USUAL, {"model_type": "qwen2"}, {}),
    "qwen3": (USUAL, {"model_type": "qwen3"}, {}),
    "smollm3": (USUAL, {"model_type": "smollm3", "no_rope_layers": [1, 1, 1], "pad_token_id": 0}, {"rope.freq_base": 2e6}),
    "seed_oss": ({**USUAL, "post_attention_norm": "post_attention_layernorm"}, {"model_type": "seed_oss"}, {}),
    "arcee": (USUAL, {"model_type": "arcee", "hidden_act": "relu2"}, {}),
    "hunyuan-dense": ({**USUAL, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}, {
        "model_type": "hunyuan_v1_dense", "rope_scaling": {"type": "dynamic", "alpha": 100.0, "factor": 1.0}}, {"rope.freq_base": 1e4 * 100 ** (16 / 14)}),
    "ernie4_5": (USUAL, {"model_type": "ernie4_5"}, {"rope.freq_base": 5e5}),
    "gemma": (USUAL, {"model_type": "gemma", "hidden_act": "gelu"}, {}),
    "gemma2": (SANDWICH, {"model_type": "gemma2", "query_pre_attn_scalar": 20, "sliding_window": 40, "final_logit_softcapping": None}, {
        "attention.scale": 20**-0.5, "attention.sliding_window": 40, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 0.0}),
    "gemma3": (SANDWICH, {
        "model_type": "gemma3_text", "query_pre_attn_scalar": 16, "sliding_window": 40, "sliding_window_pattern": 2, "rope_theta": 2e6,
        "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, {
        "rope.freq_base": 2e6, "rope.freq_base_swa": 2e4, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
        "attention.sliding_window_pattern": [True, False, True]}),
    "gemma4": ({**SANDWICH, "post_norm": "post_per_layer_input_norm", "inp_gate": "per_layer_input_gate", "proj": "per_layer_projection",
                "per_layer_token_embd": "model.embed_tokens_per_layer", "per_layer_model_proj": "model.per_layer_model_projection",
                "per_layer_proj_norm": "model.per_layer_projection_norm", "layer_output_scale": "layer_scalar"}, {
        "model_type": "gemma4_text", "sliding_window": 40, "global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": N_VOCAB,
        "num_kv_shared_layers": 1, "use_double_wide_mlp": True, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}, {
        "attention.key_length": 32, "attention.key_length_swa": 16, "attention.shared_kv_layers": 1, "feed_forward_length": [96, 96, 192],
        "attention.sliding_window_pattern": [False, True, False], "rope.freq_base_swa": 1e4, "rope.freq_base": 1e6}),
    "gpt2": (GPT2, {
        "model_type": "gpt2", "hidden_size": ..., "num_hidden_layers": ..., "num_attention_heads": ..., "num_key_value_heads": ..., "intermediate_size": ...,
        "max_position_embeddings": ..., "rms_norm_eps": ..., "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 1024,
        "layer_norm_epsilon": 1e-4}, {"attention.layer_norm_epsilon": 1e-4, "context_length": 1024}),
    "gptneox": (NEOX, {"model_type": "gpt_neox", "rms_norm_eps": ..., "layer_norm_eps": 1e-4, "rotary_pct": 0.5, "rotary_emb_base": 5000,
                       "num_key_value_heads": ...}, {
        "attention.layer_norm_epsilon": 1e-4, "rope.dimension_count": 8, "rope.freq_base": 5000.0, "use_parallel_residual": True}),
    "phi2": ({**USUAL, "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2", "output_norm": "model.final_layernorm"}, {
        "model_type": "phi", "layer_norm_eps": 1e-4}, {"rope.dimension_count": 8}),
    "starcoder2": ({**USUAL, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, {"model_type": "starcoder2", "norm_epsilon": 1e-4, "sliding_window": 40}, {
        "attention.sliding_window": 40}),
    "command-r": (USUAL, {"model_type": "cohere", "logit_scale": 0.25}, {"logit_scale": 0.25, "rope.freq_base": 5e5}),
    "cohere2": (USUAL, {"model_type": "cohere2", "sliding_window": 40}, {"attention.sliding_window": 40, "logit_scale": 0.0625}),
    "stablelm": (USUAL, {"model_type": "stablelm", "layer_norm_eps": 1e-4}, {"rope.dimension_count": 4, "use_parallel_residual": False}),
    "phi3": ({**USUAL, "ffn_up": "mlp.gate_up_proj"}, {
        "model_type": "phi3", "original_max_position_embeddings": 64, "rope_scaling": {
            "type": "su", "long_factor": [1.0 + i for i in range(6)], "short_factor": [1.0 + i / 8 for i in range(6)]}, "partial_rotary_factor": 0.75}, {
        "rope.dimension_count": 12, "rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": (1 + np.log(16) / np.log(64)) ** 0.5, "attention.sliding_window": 0}),
    "granite": (USUAL, {"model_type": "granite", "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3, "logits_scaling": 5.0}, {
        "embedding_scale": 3.0, "attention.scale": 0.2, "residual_scale": 0.3, "logit_scale": 5.0}),
    "mistral3": (USUAL, {"model_type": "ministral3"}, {
        "rope.scaling.factor": 16.0, "rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.1, "rope.freq_base": 1e6}),
    "olmo2": ({**USUAL, **AFTER}, {"model_type": "olmo3", "sliding_window": 40, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                                                                            "original_max_position_embeddings": 64}}, {
        "attention.sliding_window_pattern": [True, True, True], "rope.scaling.type": "yarn", "rope.freq_base_swa": 5e5}),
    "exaone4": ({**USUAL, **AFTER}, {"model_type": "exaone4", "sliding_window": 40, "sliding_window_pattern": "LLG"}, {
        "attention.sliding_window_pattern": [True, True, False]}),
    "glm4": ({**SANDWICH, "ffn_norm": "post_attention_layernorm", "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm",
              "ffn_up": "mlp.gate_up_proj"}, {"model_type": "glm4"}, {"rope.dimension_count": 8}),
    "exaone": (EXAONE, {"architectures": ["ExaoneForCausalLM"], "model_type": "exaone", "num_hidden_layers": ..., "num_layers": 3, "rms_norm_eps": ...,
                        "layer_norm_epsilon": 1e-4, "activation_function": "silu"}, {"attention.layer_norm_rms_epsilon": 1e-4}),
    "minicpm": (USUAL, {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}, {
        "embedding_scale": 12.0, "residual_scale": 1.4 / 3**0.5, "logit_scale": 4.0}),
}


def theirs(name: str, names: dict[str, str], layers: str) -> str:
    part = name.removesuffix(".weight").removesuffix(".bias")
    if match := re.fullmatch(r"blk\.(\d+)\.(.+)", part):
        last = name.rsplit(".", 1)[1]
        return f"{layers}.{match[1]}.{names[match[2]]}" + ("" if match[2] == "layer_output_scale" else f".{last}")
    return f"{names[part]}.{name.rsplit('.', 1)[1]}"


def halves(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads that pair neighbours -> rows that pair halves."""
    size = len(x) // heads
    return np.concatenate([np.concatenate([x[h * size:(h + 1) * size:2], x[h * size + 1:(h + 1) * size:2]]) for h in range(heads)])


def as_stored(architecture: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under GGUF's names, as Hugging Face has them."""
    stored = {}
    for name, x in weights.items():
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2])
        x = halves(x, heads) if heads and architecture in HALVES else x
        if architecture == "gptneox" and ".attn_qkv." in name:  # a head's q, k and v, then the next head's
            x = np.concatenate([x.reshape(3, 4, 16, -1)[:, h].reshape(48, *x.shape[1:]) for h in range(4)])
        if architecture == "gpt2" and x.ndim == 2 and name.startswith("blk."):
            x = np.ascontiguousarray(x.T)
        stored[name] = x - np.float32(1) if "gemma" in architecture and architecture != "gemma4" and "norm" in name else x
    return stored


def folder_of(path: Path, architecture: str, tied: bool = False, **more: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint of random weights in Hugging Face's form, and the weights as GGUF has them."""
    names, config, _ = CASES[architecture]
    keys: dict[str, Any] = {"attention.key_length": 16, **({"rope.dimension_count": 12} if architecture == "phi3" else {}),
                            **({"logit_scale": 5.0} if architecture == "granite" else {})}
    asked = [] if tied else ["output.weight"]
    if architecture == "gemma4":
        keys |= {"attention.key_length": 32, "attention.key_length_swa": 16, "attention.shared_kv_layers": 1, "feed_forward_length": [96, 96, 192],
                 "embedding_length_per_layer_input": 8, "attention.sliding_window": 40, "attention.sliding_window_pattern": [False, True, False]}
        asked += ["blk.*.layer_output_scale.weight", "blk.*.attn_v.weight"]
    asked += ["blk.*.attn_qkv.weight"] if architecture == "phi3" else []
    asked += [f"blk.*.{part}.bias" for part in BIASES.get(architecture, ())] + (["output_norm.bias"] if architecture in BIASES else [])
    asked += ["blk.*.attn_qkv.weight"] if architecture in ("gpt2", "gptneox") else []
    asked += ["output.bias"] if architecture == "phi2" else []
    if architecture in ("gpt2", "gptneox"):
        keys["attention.head_count_kv"] = 4
    keys |= {"rope.dimension_count": 8} if architecture in ("gptneox", "phi2") else {"rope.dimension_count": 4} if architecture == "stablelm" else {}
    keys |= {"attention.layer_norm_rms_epsilon": None} if architecture in LAYER_NORM else {}
    keys |= {"attention.sliding_window": 40} if architecture == "cohere2" else {}
    asked += [f"blk.*.attn_{x}.bias" for x in "qkv"] if architecture in ("glm4", "seed_oss") else []
    weights = {}
    with open_gguf(write_family(path.with_suffix(".gguf"), architecture, keys, tensors=asked, n_vocab=N_VOCAB)) as file:
        for name in file.tensors:
            shape = file.tensors[name].shape
            weights[name] = file.data(name).view("<f4").reshape(shape).copy()
    layers = LAYERS.get(architecture, "model.layers")
    stored = {theirs(name, names, layers): x for name, x in as_stored(architecture, weights).items()}
    if "gemma" in architecture and architecture != "gemma4":  # what rounding made of them
        weights = {name: x - np.float32(1) + np.float32(1) if "norm" in name else x for name, x in weights.items()}
    path.mkdir()
    write_safetensors(path / "model.safetensors", stored)
    values = {**BASE, "tie_word_embeddings": tied, **config, **more}
    (path / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    (path / "tokenizer.model").write_bytes(sentencepiece_model(N_VOCAB))
    return path, weights


def assert_same(source: Any, weights: dict[str, np.ndarray]) -> None:
    found = {t.name: t.rows(0, t.n_rows).reshape(t.shape) for t in source.tensors if not t.name.startswith("rope_")}
    assert set(found) == set(weights)
    for name, x in weights.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_every_page_has_a_case() -> None:
    """Encoders are converted in test_oracle_encoders.py."""
    from page_cases import CAUSAL
    from test_sources_experts import LAYOUTS, WITH_STATES
    assert {name for name in CAUSAL if PAGES[name].hf} == {*CASES, *LAYOUTS, *WITH_STATES}


@pytest.mark.parametrize("tied", (False, True))
@pytest.mark.parametrize("architecture", CASES)
def test_folder(tmp_path: Path, architecture: str, tied: bool) -> None:
    folder, weights = folder_of(tmp_path / "m", architecture, tied)
    with open_source(folder) as source:
        assert_same(source, weights)
        assert source.metadata["general.architecture"] == architecture
        for key, value in CASES[architecture][2].items():
            assert np.asarray(source.metadata[f"{architecture}.{key}"]).tolist() == pytest.approx(value), key
        if architecture == "gemma3":
            assert "gemma3.attention.scale" not in source.metadata


def test_extra_and_missing_tensors(tmp_path: Path) -> None:
    folder, weights = folder_of(tmp_path / "m", "qwen3")
    for name, kind in ("model.layers.0.self_attn.q_proj.bias", UnsupportedError), ("model.layers.7.mlp.up_proj.weight", FormatError):
        stored = {theirs(n, USUAL, "model.layers"): x for n, x in weights.items()}
        write_safetensors(folder / "model.safetensors", {**stored, name: np.ones(64, np.float32)})
        with pytest.raises(kind, match=re.escape(name)):
            open_source(folder)
        del stored["model.layers.1.self_attn.q_norm.weight"]
        write_safetensors(folder / "model.safetensors", stored)
        with pytest.raises(FormatError, match=r"layers\.1\.self_attn\.q_norm"):
            open_source(folder)


@pytest.mark.parametrize("outer, prefix", (("gemma3", "language_model.model."), ("gemma3", "model.language_model."), ("mistral3", "language_model.model."),
                                           ("mistral3", "model.language_model."), ("gemma4", "model.language_model.")))
def test_text_part_of_a_model_with_vision(tmp_path: Path, outer: str, prefix: str) -> None:
    architecture = outer
    folder, weights = folder_of(tmp_path / "m", architecture, architecture == "gemma3")
    names = CASES[architecture][0]
    stored = {theirs(n, names, "model.layers"): x for n, x in as_stored(architecture, weights).items()}
    inside = {n.replace("model.", prefix, 1) if n.startswith("model.") else ("language_model." if prefix.startswith("language") else "") + n: x
              for n, x in stored.items()}
    vision = "" if prefix.startswith("language") else "model."
    unused = {"model.language_model.layers.2.self_attn.k_proj.weight": np.ones((4, 4), np.float32)} if outer == "gemma4" else {}  # of shared keys
    write_safetensors(folder / "model.safetensors", {**inside, **unused, f"{vision}vision_tower.encoder.weight": np.ones((4, 4), np.float32),
                                                     f"{vision}multi_modal_projector.linear.weight": np.ones((4, 4), np.float32)})
    text = json.loads((folder / "config.json").read_text())
    if outer == "mistral3":
        text |= {"model_type": "mistral", "sliding_window": None}
    name = f"{outer.capitalize()}ForConditionalGeneration"
    (folder / "config.json").write_text(json.dumps({"architectures": [name], "model_type": outer, "text_config": text, "vision_config": {"hidden_size": 4},
                                                    "tie_word_embeddings": text["tie_word_embeddings"]}))
    with open_source(folder) as source:
        assert_same(source, weights)
        assert names and source.metadata["general.architecture"] == architecture
        assert any("2 tensors of" in note and "vision" in note for note in source.notes)
        assert any("another's keys" in note for note in source.notes) == (outer == "gemma4")
        assert (f"{architecture}.rope.scaling.type" in source.metadata) == (outer == "gemma3")


@pytest.mark.parametrize("architecture", ("gemma3", "phi3"))
def test_what_comes_after(tmp_path: Path, architecture: str) -> None:
    """Another format, its check against the source, importance of every matrix, a fitted mix, requantising, perplexity."""
    folder, _ = folder_of(tmp_path / "m", architecture, architecture == "gemma3")
    text = "the cat sat on a mat and the dog ran to the hat with him then she said no " * 12
    exact, small = tmp_path / "exact.gguf", tmp_path / "small.gguf"
    report = convert(folder, exact, "f32", verify=True, verify_text=text)
    assert not report.verification.problems and report.mix["F32"] == len(report.tensors)
    with load(exact, threads=1) as model:
        measured = collect(model, text, context=64)
        assert set(measured) == {m.tensor for m in model.config.matrices()}
        before = perplexity(model, text, context=64).perplexity
    weights = {name: c.sums / c.count for name, c in measured.items()}
    again = convert(exact, small, "q8_0", importance=weights, verify=True)
    assert again.mix["Q8_0"] == sum(len(t.shape) == 2 for t in again.tensors) and not again.verification.problems
    with load(small, threads=1) as model:
        assert perplexity(model, text, context=64).perplexity == pytest.approx(before, rel=0.05)
    with open_source(exact) as source:
        chosen = plan(source, bits=6.0, importance=weights)
        fitted = convert(source, tmp_path / "fit.gguf", "q4_0", plan=chosen, overwrite=True, verify=True)
    assert fitted.bits_per_weight < 6.5
    ids = random_ids(100, N_VOCAB)
    a, b = logits_of(exact, ids), logits_of(small, ids)
    assert 0 < np.abs(a - b).max() < 0.2 * np.abs(a).max()


def test_heads_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    """Layers after the last one: left out and said where config.json names them, refused where it doesn't."""
    folder, weights = folder_of(tmp_path / "m", "glm4", num_nextn_predict_layers=1)
    stored = {theirs(name, CASES["glm4"][0], "model.layers"): x for name, x in as_stored("glm4", weights).items()}
    more = {"model.layers.3.eh_proj.weight": np.ones((4, 4), np.float32), "model.layers.3.input_layernorm.weight": np.ones(64, np.float32)}
    write_safetensors(folder / "model.safetensors", {**stored, **more})
    with open_source(folder) as source:
        assert_same(source, weights)
        assert any("2 tensors of heads that predict" in note for note in source.notes)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}))
    with pytest.raises(FormatError, match="model.layers.3"):
        open_source(folder)


def test_bare_gpt2(tmp_path: Path) -> None:
    """The first releases hold the model without its head's prefix, and masks."""
    folder, weights = folder_of(tmp_path / "m", "gpt2", tied=True)
    stored = {theirs(name, GPT2, "transformer.h"): x for name, x in as_stored("gpt2", weights).items()}
    bare = {name.removeprefix("transformer."): x for name, x in stored.items()} | {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}
    write_safetensors(folder / "model.safetensors", bare)
    with open_source(folder) as source:
        assert_same(source, weights)
        assert any("masks" in note for note in source.notes)
