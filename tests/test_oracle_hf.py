"""The engine, and the naive model, against Hugging Face `transformers` (extra `oracle`): LlamaForCausalLM with random small configurations, run in float64 and
exported to GGUF here, so that the pairing of RoPE dimensions, grouped heads, RoPE scaling and tied outputs are judged by their authors' code."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llamina.bench.synthetic import add_vocabulary
from naive import naive_logits
from runs import logits_of
from small_models import random_ids

torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed")

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all heads alike": {"num_key_value_heads": 4},
    "one key/value head": {"num_key_value_heads": 1},
    "head size not dim / heads": {"head_dim": 40},
    "odd sizes": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 77, "vocab_size": 301},
    "tied": {"tie_word_embeddings": True},
    "three layers, eps": {"num_hidden_layers": 3, "rms_norm_eps": 1e-3},
    "linear": {"rope": {"rope_type": "linear", "factor": 3.0}},
    "yarn": {"rope": YARN},
    "yarn, wide heads": {"head_dim": 64, "rope": {**YARN, "beta_fast": 24.0, "beta_slow": 2.0}},
    "llama 3": {"head_dim": 32, "theta": 500000.0, "rope": LLAMA3},
}


def make(config: dict[str, Any]) -> Any:
    """A float64 LlamaForCausalLM with random weights, norm gains included."""
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 288,
              "max_position_embeddings": 512, "tie_word_embeddings": False, **config}
    theta, rope = config.pop("theta", 10000.0), config.pop("rope", None)
    if int(transformers.__version__.split(".")[0]) >= 5:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, **(rope or {})}
    else:
        config.update(rope_theta=theta, rope_scaling=rope)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, attn_implementation="eager")).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if "norm" in name else torch.randn_like(weight) * weight.shape[-1] ** -0.5)
            weight.copy_(weight.float().double())  # what an F32 file can hold
    return model


def interleave(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a query or key matrix from HF's order, which pairs dimension i with i + d/2, to GGUF's, which pairs 2i with 2i + 1."""
    rows, cols = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def llama3_factors(head_dim: int, theta: float, rope: dict[str, float]) -> np.ndarray:
    """What Llama 3.1 divides each pair's frequency by, as its authors' code says it (llama-models, `apply_scaling`)."""
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        if wavelength < rope["original_max_position_embeddings"] / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > rope["original_max_position_embeddings"] / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            smooth = (rope["original_max_position_embeddings"] / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export(model: Any, path: Path, theta: float, rope: dict[str, Any] | None) -> Path:
    c = model.config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    add_vocabulary(writer, c.vocab_size)
    if rope and rope["rope_type"] != "llama3":
        writer.add_string("llama.rope.scaling.type", rope["rope_type"])
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            writer.add_float32("llama.rope.scaling.yarn_beta_fast", rope.get("beta_fast", 32.0))
            writer.add_float32("llama.rope.scaling.yarn_beta_slow", rope.get("beta_slow", 1.0))
    elif rope:
        writer.add_tensor("rope_freqs.weight", llama3_factors(head_dim, theta, rope))
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            name = f"blk.{layer}.{NAMES[part]}"
            if name.endswith(("attn_q", "attn_k")):
                values = interleave(values, c.num_attention_heads if name.endswith("q") else c.num_key_value_heads)
        elif name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        else:
            name = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}[name]
        writer.add_tensor(name + ".weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits(config: dict[str, Any], tmp_path: Path) -> None:
    model = make(config)
    ids = random_ids(300, model.config.vocab_size)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    path = export(model, tmp_path / "m.gguf", config.get("theta", 10000.0), config.get("rope"))
    assert worst(naive_logits(path, ids), expected) <= 2e-5  # HF norms and turns in float32
    assert worst(logits_of(path, ids), expected) <= 1e-4


def worst(logits: np.ndarray, expected: np.ndarray) -> float:
    """max |difference| / max |expected|"""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())
