"""Small models of every page: the cases that its tests run. A family's traps are its keys: windows shorter than the text, patterns given and absent, arrays
per layer, odd head counts, every scale away from 1.

    path = write_case(tmp_path / "m.gguf", "gemma3", "Q8_0")
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

from llamina.engine.architectures.page import Page
from llamina.engine.architectures.pages import PAGES
from small_models import random_ids, write_family

N_TOKENS = 100
"""Crosses a border of KV pages (64), and every window."""
IDS = random_ids(N_TOKENS)
SIZES: dict[str, Any] = {"embedding_length": 96, "attention.head_count": 6, "attention.head_count_kv": 2, "feed_forward_length": 160, "context_length": 1024}
WIDE = {"attention.key_length": 32, "attention.value_length": 32}
ODD = {"attention.head_count": 3, "attention.head_count_kv": 1}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
UNTIED = ("output.weight",)
QKV = tuple(f"blk.*.attn_{m}.bias" for m in "qkv")
ALL = (*QKV, "blk.*.attn_output.bias", "blk.*.ffn_gate.bias", "blk.*.ffn_up.bias", "blk.*.ffn_down.bias")
NORM_BIASES = ("blk.*.attn_norm.bias", "blk.*.ffn_norm.bias", "output_norm.bias")
HEAD_NORMS = ("blk.*.attn_q_norm.weight", "blk.*.attn_k_norm.weight")
LAYER_NORM = {"attention.layer_norm_rms_epsilon": None}
EXPERTS = {"expert_count": 8, "expert_used_count": 2}
GEMMA4 = {"attention.key_length": 64, "attention.value_length": 64, "attention.key_length_swa": 32, "attention.value_length_swa": 32,
          "rope.dimension_count": 64, "rope.dimension_count_swa": 32, "rope.freq_base": 1000000.0, "final_logit_softcapping": 3.0}
WINDOW = {"attention.sliding_window": 30}
MAMBA = {"ssm.conv_kernel": 4, "ssm.state_size": 24, "ssm.group_count": 2, "ssm.time_step_rank": 6, "ssm.inner_size": 192}
LATENT = {"attention.head_count_kv": 1, "attention.key_length": 80, "attention.value_length": 64, "attention.kv_lora_rank": 64, "rope.dimension_count": 16,
          "attention.key_length_mla": 48, "attention.value_length_mla": 32}
DELTA = {**WIDE, "rope.dimension_count": 8, "rope.dimension_sections": [2, 1, 1, 0], "ssm.conv_kernel": 4, "ssm.state_size": 24, "ssm.group_count": 2,
         "ssm.time_step_rank": 4, "ssm.inner_size": 96}


def gives_logits(page: Page) -> bool:
    """Whether it ends in a matrix of logits; encoders end in normed rows (Builder.rows)."""
    builder = MagicMock(n_layers=1)
    page.output(builder)
    return not builder.rows.called


CAUSAL = {name for name, page in PAGES.items() if gives_logits(page)}
"""The pages of models that generate."""


class Case(NamedTuple):
    architecture: str
    keys: dict[str, Any] = {}  # over SIZES; None takes one away
    tensors: tuple[str, ...] = ()  # the optional ones it has


CASES = {
    "llama": Case("llama", {}, UNTIED),
    "llama biases": Case("llama", {**ODD, **WIDE}, ALL),
    "llama window": Case("llama", WINDOW),
    "llama arrays": Case("llama", {**WIDE, **WINDOW, "attention.head_count": [6, 3, 4], "attention.head_count_kv": [2, 3, 1],
                                   "feed_forward_length": [160, 64, 96], "attention.sliding_window_pattern": [True, False, True]}),
    "llama factors": Case("llama", {"rope.freq_base": 500000.0}, ("rope_freqs.weight",)),
    "llama yarn": Case("llama", YARN),
    "llama linear": Case("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}),
    "qwen2": Case("qwen2", ODD, UNTIED),
    "qwen3": Case("qwen3", {**WIDE, "rope.freq_base": 1000000.0}),
    "qwen3 yarn": Case("qwen3", {**YARN, "attention.head_count": 5, "attention.head_count_kv": 1, **WIDE}, UNTIED),
    "smollm3": Case("smollm3", {"block_count": 5}),
    "seed_oss": Case("seed_oss", WIDE, UNTIED),
    "exaone": Case("exaone", {}, ("rope_freqs.weight",)),
    "exaone4": Case("exaone4", {**WINDOW, **WIDE, "block_count": 6, "nextn_predict_layers": 1}, UNTIED),
    "exaone4 small": Case("exaone4"),
    "arcee": Case("arcee", YARN, UNTIED),
    "hunyuan": Case("hunyuan-dense", WIDE),
    "ernie4_5": Case("ernie4_5", {}, (*QKV, "blk.*.attn_output.bias")),
    "gemma": Case("gemma", WIDE),
    "gemma2": Case("gemma2", {**WIDE, **WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "block_count": 4}),
    "gemma2 27b": Case("gemma2", {**WIDE, **WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "block_count": 46}),
    "gemma3": Case("gemma3", {**WIDE, **WINDOW, "rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "block_count": 7}),
    "gemma3 pattern": Case("gemma3", {**WIDE, **WINDOW, "rope.freq_base": 1000000.0, "rope.freq_base_swa": 5000.0,
                                      "attention.sliding_window_pattern": [False, True, True]}),
    "gemma4": Case("gemma4", {**WINDOW, **GEMMA4, "block_count": 8, "attention.sliding_window_pattern": [True, False, True, True, False, True, True, False],
                              "attention.shared_kv_layers": 3, "feed_forward_length": [160] * 5 + [320] * 3, "attention.head_count_kv": 2,
                              "embedding_length_per_layer_input": 32}, ("blk.*.layer_output_scale.weight", "blk.*.attn_v.weight", "rope_freqs.weight")),
    "gemma4 v is k": Case("gemma4", {**WINDOW, **GEMMA4, "block_count": 7, "attention.head_count_kv": [3, 3, 3, 3, 3, 1, 3]},
                          ("blk.*.layer_output_scale.weight", "rope_freqs.weight")),
    "gemma4 experts": Case("gemma4", {**WINDOW, **GEMMA4, **EXPERTS, "block_count": 3, "attention.head_count_kv": [3, 1, 3], "expert_used_count": 3,
                                      "embedding_length_per_layer_input": 32, "expert_feed_forward_length": 64,
                                      "attention.sliding_window_pattern": [True, False, True]},
                           ("blk.*.layer_output_scale.weight", "rope_freqs.weight", "blk.*.ffn_gate_up_exps.weight")),
    "phi3": Case("phi3", {**WINDOW, "rope.dimension_count": 12}, ("blk.*.attn_qkv.weight", *UNTIED)),
    "phi3 long": Case("phi3", {"rope.dimension_count": 12, "rope.scaling.original_context_length": 128, "rope.scaling.attn_factor": 1.2},
                      ("blk.*.attn_qkv.weight", "rope_factors_long.weight", "rope_factors_short.weight")),
    "granite": Case("granite", {"embedding_scale": 3.0, "logit_scale": 4.0, "residual_scale": 0.4, "attention.scale": 0.11}, ALL),
    "mistral3": Case("mistral3", {**YARN, "rope.scaling.original_context_length": 24, "rope.scaling.yarn_log_multiplier": 1.0,
                                  "attention.temperature_scale": 0.4}),
    "olmo2": Case("olmo2", {}, UNTIED),
    "olmo3": Case("olmo2", {**WINDOW, **YARN, "attention.head_count_kv": 3, "rope.freq_base": 500000.0, "block_count": 5}, UNTIED),
    "glm4": Case("glm4", {"rope.dimension_count": 8, "block_count": 4, "nextn_predict_layers": 1}, (*QKV, *UNTIED)),
    "gpt2": Case("gpt2", {**LAYER_NORM, "attention.head_count_kv": None}, ("blk.*.attn_qkv.weight", *NORM_BIASES)),
    "gptneox": Case("gptneox", {**LAYER_NORM, "attention.head_count_kv": None, "rope.dimension_count": 4},
                    ("blk.*.attn_qkv.weight", *UNTIED, *NORM_BIASES)),
    "gptneox sequential": Case("gptneox", {**LAYER_NORM, "attention.head_count_kv": 3, "use_parallel_residual": False}, (*UNTIED, *NORM_BIASES)),
    "phi2": Case("phi2", {**LAYER_NORM, "rope.dimension_count": 8}, (*UNTIED, "output.bias", "blk.*.attn_norm.bias", "output_norm.bias")),
    "starcoder2": Case("starcoder2", {**LAYER_NORM, **WINDOW}, (*ALL, *NORM_BIASES)),
    "command-r": Case("command-r", {**LAYER_NORM, "logit_scale": 0.3}),
    "cohere2": Case("cohere2", {**LAYER_NORM, **WINDOW, "logit_scale": 0.3, "block_count": 5}),
    "stablelm": Case("stablelm", {**LAYER_NORM, "rope.dimension_count": 4}, (*QKV, *UNTIED, *NORM_BIASES)),
    "command-r plus": Case("command-r", {**LAYER_NORM, **ODD, "logit_scale": 0.3}, HEAD_NORMS),
    "stablelm 12b": Case("stablelm", {**LAYER_NORM, "rope.dimension_count": 8, "use_parallel_residual": True},
                         (*UNTIED, "blk.*.attn_norm.bias", "output_norm.bias", *HEAD_NORMS)),
    "stablelm parallel": Case("stablelm", {**LAYER_NORM, "rope.dimension_count": 8, "use_parallel_residual": True}, (*UNTIED, *NORM_BIASES)),
    "lfm2": Case("lfm2", {"attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3}),
    "lfm2 odd": Case("lfm2", {"attention.head_count_kv": [3, 0, 0, 3], "shortconv.l_cache": 4, "attention.head_count": 3, "block_count": 4}, UNTIED),
    "qwen35": Case("qwen35", {**DELTA, "block_count": 5, "full_attention_interval": 3, "nextn_predict_layers": 1}, UNTIED),
    "qwen35 wide": Case("qwen35", {**DELTA, "block_count": 2, "attention.recurrent_layers": [True, False], "ssm.state_size": 80, "ssm.inner_size": 160,
                                   "ssm.time_step_rank": 2}),
    "mixtral": Case("llama", {**EXPERTS, "expert_used_count": 3}, UNTIED),
    "qwen2moe": Case("qwen2moe", {**EXPERTS, "expert_feed_forward_length": 96, "expert_shared_feed_forward_length": 128}, UNTIED),
    "qwen3moe": Case("qwen3moe", {**WIDE, "expert_count": 20, "expert_used_count": 4, "expert_feed_forward_length": 64}),
    "qwen3moe sigmoid": Case("qwen3moe", {**WIDE, "expert_count": 12, "expert_used_count": 4, "expert_feed_forward_length": 32, "expert_gating_func": 2,
                                          "expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_scale": 2.5},
                             ("blk.*.exp_probs_b.bias", "blk.*.ffn_gate_up_exps.weight")),
    "lfm2moe": Case("lfm2moe", {"attention.head_count_kv": [0, 2, 0, 2], "shortconv.l_cache": 3, "block_count": 4, "leading_dense_block_count": 1,
                                **EXPERTS, "expert_count": 6, "expert_feed_forward_length": 96, "expert_gating_func": 2}, ("blk.*.exp_probs_b.bias",)),
    "qwen35moe": Case("qwen35moe", {**DELTA, "block_count": 4, "full_attention_interval": 3, **EXPERTS, "expert_feed_forward_length": 64,
                                    "expert_shared_feed_forward_length": 96}, (*UNTIED, "blk.*.ffn_gate_up_exps.weight")),
    "qwen3next": Case("qwen3next", {**DELTA, "block_count": 3, "full_attention_interval": 3, "rope.dimension_sections": None, **EXPERTS,
                                    "expert_feed_forward_length": 64, "expert_shared_feed_forward_length": 96}, UNTIED),
    "granitehybrid": Case("granitehybrid", {**MAMBA, **EXPERTS, "attention.head_count_kv": [0, 2, 0], "expert_used_count": 3, "embedding_scale": 3.0,
                                            "logit_scale": 4.0, "residual_scale": 0.4, "attention.scale": 0.11, "expert_shared_feed_forward_length": 96,
                                            "rope.scaling.finetuned": False}, (*UNTIED, "blk.*.ssm_conv1d.bias")),
    "granitehybrid dense": Case("granitehybrid", {**MAMBA, "block_count": 2, "attention.head_count_kv": [0, 3], "attention.head_count": 3, "logit_scale": 1.5,
                                                  "ssm.group_count": 1, "ssm.inner_size": 288, "ssm.time_step_rank": 3}),
    "nemotron_h": Case("nemotron_h", {**MAMBA, **WIDE, "block_count": 5, "attention.head_count_kv": [0, 0, 2, 0, 0],
                                      "feed_forward_length": [0, 160, 0, 160, 0]}, (*UNTIED, "blk.0.ssm_conv1d.bias", "blk.4.ssm_conv1d.bias")),
    "nemotron_h_moe": Case("nemotron_h_moe", {**MAMBA, **WIDE, "attention.head_count_kv": [0, 0, 2], "feed_forward_length": [0, 64, 0], "expert_count": 12,
                                              "expert_used_count": 4, "expert_feed_forward_length": 64, "expert_shared_feed_forward_length": 96,
                                              "expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_scale": 2.5},
                           (*UNTIED, "blk.1.exp_probs_b.bias")),
    "falcon-h1": Case("falcon-h1", {**MAMBA, **WIDE, "block_count": 2}, (*UNTIED, "blk.*.ssm_norm.weight", "blk.*.ssm_conv1d.bias")),
    "falcon-h1 plain": Case("falcon-h1", {**MAMBA, **WIDE, "block_count": 2, "ssm.group_count": 3}, UNTIED),
    "deepseek2": Case("deepseek2", {**LATENT, **EXPERTS, "leading_dense_block_count": 1, "expert_feed_forward_length": 64, "expert_shared_count": 2,
                                    "expert_weights_scale": 1.5, **YARN, "rope.scaling.yarn_log_multiplier": 0.07}, UNTIED),
    "deepseek2 sigmoid": Case("deepseek2", {**LATENT, **EXPERTS, "attention.head_count": 3, "attention.q_lora_rank": 64, "expert_count": 12,
                                            "expert_used_count": 4, "expert_feed_forward_length": 32, "expert_shared_count": 1, "expert_gating_func": 2,
                                            "expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_norm": True, "block_count": 2},
                              ("blk.*.exp_probs_b.bias",)),
    "olmoe": Case("olmoe", EXPERTS, UNTIED),
    "granitemoe": Case("granitemoe", {**EXPERTS, "embedding_scale": 3.0, "logit_scale": 4.0, "residual_scale": 0.4, "attention.scale": 0.11}),
    "granitemoe shared": Case("granitemoe", {**EXPERTS, "expert_count": 6, "expert_shared_feed_forward_length": 32, "logit_scale": 2.0}, UNTIED),
    "gpt-oss": Case("gpt-oss", {**WIDE, **WINDOW, **YARN, **EXPERTS, "expert_feed_forward_length": 96, "rope.freq_base": 150000.0, "block_count": 4}, UNTIED),
    "minicpm": Case("minicpm"),
    "minicpm scales": Case("minicpm", {"embedding_scale": 3.0, "residual_scale": 0.3, "logit_scale": 2.0}, UNTIED),
}


def write_case(path: Path, name: str, format: str = "F32", seed: int = 0) -> Path:
    case = CASES[name]
    return write_family(path, case.architecture, {**SIZES, **case.keys}, format, tensors=case.tensors, seed=seed)
