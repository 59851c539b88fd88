"""Tiny checkpoints of other families than Llama, with random weights, as transformers saves them: the oracle's inputs (extra `oracle`).

    folder, model = checkpoint("qwen3", tmp_path)                     the first variant of the family
    for name in VARIANTS: ...                                         "qwen3", "qwen3 tied", …

Sizes are odd on purpose (heads, widths), windows are shorter than the texts, and every scale is away from 1. Norm gains are not ones and biases not zeros, so
that a forgotten one shows.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

SIZES: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 160,
                         "vocab_size": 384, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "head_dim": 32,
                         "rms_norm_eps": 1e-5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA4: dict[str, Any] = {"global_head_dim": 64, "sliding_window": 40, "final_logit_softcapping": 3.0, "vocab_size_per_layer_input": 384}


LINEAR = "linear_attention"
MAMBA: dict[str, Any] = {"head_dim": None, "embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.4, "attention_multiplier": 0.11,
                         "mamba_n_heads": 6, "mamba_d_head": 32, "mamba_d_state": 24, "mamba_chunk_size": 16}
NEMOTRON: dict[str, Any] = {"num_hidden_layers": None, "rms_norm_eps": None, "layer_norm_epsilon": 1e-4, "ssm_state_size": 24, "mamba_num_heads": 6,
                            "mamba_head_dim": 40, "n_groups": 2, "chunk_size": 16, "time_step_min": 1e-30}
FALCON_H1: dict[str, Any] = {"mamba_d_ssm": 120, "mamba_n_heads": 6, "mamba_d_head": 20, "mamba_n_groups": 1, "mamba_d_state": 24, "mamba_chunk_size": 16}
LATENT: dict[str, Any] = {"head_dim": None, "num_key_value_heads": 6, "kv_lora_rank": 48, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 32,
                          "moe_intermediate_size": 48}
NO_GQA: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": None}


class Variant(NamedTuple):
    kind: str
    """transformers' class: {kind}ForCausalLM, {kind}Config."""
    config: dict[str, Any]
    """What differs from SIZES; None takes a field away."""


VARIANTS = {
    "llama": Variant("Llama", {}),
    "llama biases": Variant("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral window": Variant("Mistral", {"sliding_window": 50}),
    "qwen2": Variant("Qwen2", {"head_dim": None}),
    "qwen2 tied": Variant("Qwen2", {"head_dim": None, "tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "qwen3": Variant("Qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "qwen3 tied yarn": Variant("Qwen3", {"tie_word_embeddings": True, "rope_parameters": YARN, "head_dim": 40}),
    "qwen3 bias": Variant("Qwen3", {"attention_bias": True}),
    "smollm3": Variant("SmolLM3", {"num_hidden_layers": 5, "head_dim": None, "no_rope_layer_interval": 4, "no_rope_layers": None,
                                   "layer_types": ["full_attention"] * 5}),
    "smollm3 untied": Variant("SmolLM3", {"head_dim": None, "tie_word_embeddings": False, "num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}),
    "seed_oss": Variant("SeedOss", {"attention_bias": True, "head_dim": 48}),
    "arcee": Variant("Arcee", {"rope_parameters": YARN}),
    "arcee biases": Variant("Arcee", {"attention_bias": True, "mlp_bias": True}),
    "hunyuan": Variant("HunYuanDenseV1", {}),
    "hunyuan tied": Variant("HunYuanDenseV1", {"tie_word_embeddings": True, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "ernie4_5": Variant("Ernie4_5", {"tie_word_embeddings": True}),
    "ernie4_5 biases": Variant("Ernie4_5", {"use_bias": True, "tie_word_embeddings": False}),
    "gemma": Variant("Gemma", {"head_dim": 48}),
    "gemma2": Variant("Gemma2", {"query_pre_attn_scalar": 20, "sliding_window": 40, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0,
                                 "num_hidden_layers": 4}),
    "gemma2 27b": Variant("Gemma2", {"query_pre_attn_scalar": 144, "sliding_window": 70, "num_attention_heads": 8, "num_key_value_heads": 4}),
    "gemma3": Variant("Gemma3Text", {"query_pre_attn_scalar": 256, "sliding_window": 40, "num_hidden_layers": 7, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}}}),
    "gemma3 plain": Variant("Gemma3Text", {"query_pre_attn_scalar": 32, "sliding_window": 130, "num_hidden_layers": 2, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": {"rope_type": "default", "rope_theta": 1000000.0}}}),
    "gemma2 uncapped": Variant("Gemma2", {"query_pre_attn_scalar": 256, "final_logit_softcapping": None, "attention_bias": True, "sliding_window": 33,
                                          "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    "gemma3 pattern": Variant("Gemma3Text", {"sliding_window": 11, "num_hidden_layers": 3, "final_logit_softcapping": 5.0, "tie_word_embeddings": False,
                                             "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    "gemma4": Variant("Gemma4Text", {
        **GEMMA4, "num_hidden_layers": 8, "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 24, "layer_types": [
            SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL]}),
    "gemma4 v is k": Variant("Gemma4Text", {
        **GEMMA4, "num_hidden_layers": 7, "num_key_value_heads": 3, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": None, "tie_word_embeddings": False, "sliding_window": 130}),
    "gemma4 experts": Variant("Gemma4Text", {
        **GEMMA4, "num_hidden_layers": 4, "num_key_value_heads": 3, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
        "enable_moe_block": True, "num_experts": 10, "top_k_experts": 3, "moe_intermediate_size": 48, "layer_types": [SLIDING, FULL, SLIDING, FULL]}),
    "gemma4 plain": Variant("Gemma4Text", {**GEMMA4, "num_hidden_layers": 3, "hidden_size_per_layer_input": 32, "layer_types": [FULL, SLIDING, FULL],
                                           "rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
                                                               FULL: {"rope_type": "proportional", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}}}),
    "phi3": Variant("Phi3", {"head_dim": None}),
    "phi3 window": Variant("Phi3", {"head_dim": None, "sliding_window": 60}),
    "phi3 long": Variant("Phi3", {"head_dim": None, "hidden_size": 192, "original_max_position_embeddings": 128, "max_position_embeddings": 1024,
                                  "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                                                      "original_max_position_embeddings": 128, "long_factor": [1.0 + 0.3 * i for i in range(12)],
                                                      "short_factor": [1.0 + 0.05 * i for i in range(12)]}}),
    "granite": Variant("Granite", {"head_dim": None, "embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.4,
                                   "attention_multiplier": 0.11}),
    "granite tied biases": Variant("Granite", {"head_dim": None, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
                                               "residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "attention_multiplier": 0.2}),
    "ministral3": Variant("Ministral3", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}}),
    "ministral3 mscale": Variant("Ministral3", {"tie_word_embeddings": True, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 8.0, "original_max_position_embeddings": 32, "mscale": 0.8, "mscale_all_dim": 1.3,
        "llama_4_scaling_beta": 0.3}}),
    "olmo2": Variant("Olmo2", {"head_dim": None}),
    "olmo3": Variant("Olmo3", {"head_dim": None, "num_hidden_layers": 5, "sliding_window": 40, "num_key_value_heads": 3, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0}, "full_attention": {**YARN, "rope_theta": 500000.0}}}),
    "exaone4": Variant("Exaone4", {"num_hidden_layers": 5, "sliding_window": 40, "sliding_window_pattern": 4}),
    "exaone4 long window": Variant("Exaone4", {"sliding_window": 2000, "sliding_window_pattern": 2}),
    "exaone4 small": Variant("Exaone4", {"sliding_window": None, "sliding_window_pattern": None, "tie_word_embeddings": True,
                                         "layer_types": ["full_attention"] * 3}),
    "lfm2": Variant("Lfm2", {"head_dim": None, "rms_norm_eps": None, "norm_eps": 1e-4, "num_hidden_layers": 5, "conv_L_cache": 3, "block_multiple_of": 16,
                             "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
                             "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]}),
    "lfm2 untied": Variant("Lfm2", {"head_dim": None, "rms_norm_eps": None, "num_hidden_layers": 3, "conv_L_cache": 5, "block_auto_adjust_ff_dim": False,
                                    "hidden_size": 84, "tie_word_embeddings": False, "full_attn_idxs": [1],
                                    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "qwen35": Variant("Qwen3_5", {"num_hidden_layers": 5, "full_attention_interval": 3, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
                                  "linear_key_head_dim": 24, "linear_value_head_dim": 24, "head_dim": 64}),
    "qwen35 tied": Variant("Qwen3_5", {"num_hidden_layers": 4, "linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_key_head_dim": 80,
                                       "linear_value_head_dim": 80, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
                                       "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.5}}),
    "glm4": Variant("Glm4", {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "mixtral": Variant("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3}),
    "mixtral window": Variant("Mixtral", {"num_local_experts": 4, "sliding_window": 50}),
    "qwen2_moe": Variant("Qwen2Moe", {"head_dim": None, "num_experts": 10, "num_experts_per_tok": 4, "moe_intermediate_size": 48,
                                      "shared_expert_intermediate_size": 80}),
    "qwen2_moe normed": Variant("Qwen2Moe", {"head_dim": None, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "qkv_bias": False,
                                             "shared_expert_intermediate_size": 64, "norm_topk_prob": True, "tie_word_embeddings": True}),
    "lfm2_moe": Variant("Lfm2Moe", {"head_dim": None, "rms_norm_eps": None, "norm_eps": 1e-4, "num_hidden_layers": 5, "num_dense_layers": 2, "num_experts": 8,
                                    "num_experts_per_tok": 3, "moe_intermediate_size": 48, "routed_scaling_factor": 1.7,
                                    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
                                    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]}),
    "qwen35_moe": Variant("Qwen3_5Moe", {"num_hidden_layers": 4, "full_attention_interval": 3, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
                                         "linear_key_head_dim": 24, "linear_value_head_dim": 24, "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 3,
                                         "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80}),
    "qwen3_next": Variant("Qwen3Next", {"num_hidden_layers": 4, "full_attention_interval": 3, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
                                        "linear_key_head_dim": 24, "linear_value_head_dim": 24, "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 3,
                                        "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80}),
    "qwen3_moe": Variant("Qwen3Moe", {"num_experts": 20, "num_experts_per_tok": 4, "moe_intermediate_size": 48, "norm_topk_prob": True}),
    "qwen3_moe unnormed": Variant("Qwen3Moe", {"num_experts": 8, "num_experts_per_tok": 8, "moe_intermediate_size": 32, "attention_bias": True}),
    "olmoe": Variant("Olmoe", {"head_dim": None, "num_experts": 8, "num_experts_per_tok": 3}),
    "olmoe normed": Variant("Olmoe", {"head_dim": None, "num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True, "attention_bias": True}),
    "granitemoe": Variant("GraniteMoe", {"head_dim": None, "num_local_experts": 8, "num_experts_per_tok": 3, "embedding_multiplier": 3.0,
                                         "logits_scaling": 4.0, "residual_multiplier": 0.4, "attention_multiplier": 0.11}),
    "granitemoe shared": Variant("GraniteMoeShared", {"head_dim": None, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 72,
                                                      "attention_multiplier": 0.2}),
    "granite hybrid": Variant("GraniteMoeHybrid", {
        **MAMBA, "num_hidden_layers": 4, "layer_types": [LINEAR, LINEAR, FULL, LINEAR], "num_local_experts": 8, "num_experts_per_tok": 3,
        "shared_intermediate_size": 72, "mamba_n_groups": 3}),
    "granite hybrid dense": Variant("GraniteMoeHybrid", {
        **MAMBA, "layer_types": [LINEAR, FULL, LINEAR], "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 160,
        "position_embedding_type": "rope", "tie_word_embeddings": True, "mamba_conv_bias": False}),
    "nemotron_h": Variant("NemotronH", {**NEMOTRON, "layers_block_type": [LINEAR, "mlp", FULL, "mlp", LINEAR, FULL], "n_routed_experts": None,
                                        "num_experts_per_tok": None}),
    "nemotron_h experts": Variant("NemotronH", {**NEMOTRON, "layers_block_type": [LINEAR, "moe", FULL, "moe"], "n_routed_experts": 12, "num_experts_per_tok": 3,
                                                "n_group": 4, "topk_group": 2, "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 80,
                                                "routed_scaling_factor": 2.5}),
    "falcon_h1": Variant("FalconH1", {
        **FALCON_H1, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_n_groups": 2, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.3,
        "mlp_multipliers": [0.6, 1.7], "key_multiplier": 0.7, "attention_out_multiplier": 0.8, "attention_in_multiplier": 1.3,
        "ssm_multipliers": [0.5, 0.8, 1.4, 0.6, 1.2], "ssm_in_multiplier": 1.1, "ssm_out_multiplier": 0.6}),
    "falcon_h1 plain": Variant("FalconH1", FALCON_H1),
    "deepseek_v2": Variant("DeepseekV2", {
        **LATENT, "q_lora_rank": None, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3,
        "routed_scaling_factor": 1.5, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    "glm4 lite": Variant("Glm4MoeLite", {
        **LATENT, "q_lora_rank": 40, "n_routed_experts": 12, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2}),
    "gpt_oss": Variant("GptOss", {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 40, "num_hidden_layers": 4, "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 150000.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False}}),
    "gpt_oss pattern": Variant("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 4, "sliding_window": 20, "rope_parameters": None, "head_dim": 64,
                                          "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    "gpt2": Variant("GPT2", {**NO_GQA, "layer_norm_epsilon": 1e-4, "n_inner": 160, "intermediate_size": None}),
    "gpt2 plain": Variant("GPT2", {**NO_GQA, "intermediate_size": None, "hidden_size": 64, "num_attention_heads": 2}),
    "gpt_neox": Variant("GPTNeoX", {**NO_GQA, "layer_norm_eps": 1e-4, "rope_parameters": {
        "rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25}}),
    "gpt_neox sequential": Variant("GPTNeoX", {**NO_GQA, "use_parallel_residual": False, "tie_word_embeddings": True}),
    "phi2": Variant("Phi", {"head_dim": None, "rms_norm_eps": None, "layer_norm_eps": 1e-4, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "starcoder2": Variant("Starcoder2", {"head_dim": None, "rms_norm_eps": None, "norm_epsilon": 1e-4}),
    "starcoder2 window": Variant("Starcoder2", {"head_dim": None, "rms_norm_eps": None, "sliding_window": 50, "use_bias": False}),
    "cohere": Variant("Cohere", {"head_dim": None, "rms_norm_eps": None, "layer_norm_eps": 1e-4, "logit_scale": 0.3}),
    "cohere2": Variant("Cohere2", {"head_dim": None, "rms_norm_eps": None, "logit_scale": 0.3, "sliding_window": 40, "num_hidden_layers": 5}),
    "stablelm": Variant("StableLm", {"head_dim": None, "rms_norm_eps": None, "layer_norm_eps": 1e-4, "use_qkv_bias": True}),
    "cohere plus": Variant("Cohere", {"head_dim": None, "rms_norm_eps": None, "layer_norm_eps": 1e-3, "logit_scale": 0.3, "use_qk_norm": True,
                                      "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 120}),
    "stablelm 12b": Variant("StableLm", {"head_dim": None, "rms_norm_eps": None, "layer_norm_eps": 1e-3, "use_parallel_residual": True, "qk_layernorm": True}),
    "stablelm parallel": Variant("StableLm", {"head_dim": None, "rms_norm_eps": None, "use_parallel_residual": True}),
}


def class_of(kind: str) -> str:
    """The model's class of a variant's kind."""
    return "GPT2LMHeadModel" if kind == "GPT2" else kind.removesuffix("Text") + "ForCausalLM"


def tokenizer_json(n_vocab: int) -> dict[str, Any]:
    """A byte-level BPE of exactly n_vocab tokens (at least 260) with Llama 3's split: three special tokens, 256 bytes, merges of letters, the rest unused."""
    letters = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    every = letters + [chr(256 + i) for i in range(256 - len(letters))]
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {c: 3 + i for i, c in enumerate(every)}
    merges = []
    for a in "etaoinshrdlu":
        for b in "etaoinshrdlu":
            if len(vocab) < n_vocab:
                merges.append([a, b])
                vocab[a + b] = len(vocab)
    split = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, t in enumerate(("<pad>", "<s>", "</s>"))]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
            "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                      "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges}}


def checkpoint(name: str, folder: Path, seed: int = 0, **changes: Any) -> tuple[Path, Any]:
    """The variant's checkpoint in `folder`, and the float32 model that was saved. changes: further fields of its configuration."""
    import torch
    import transformers

    variant = VARIANTS[name]
    fields = {k: v for k, v in {**SIZES, **variant.config, **changes}.items() if v is not None}
    if name.startswith("exaone4 small"):
        fields["sliding_window"] = None
    kind = variant.kind
    torch.manual_seed(seed)
    config = getattr(transformers, kind + ("TextConfig" if kind in ("Qwen3_5", "Qwen3_5Moe") else "Config"))(**fields, attn_implementation="eager")
    model = getattr(transformers, class_of(kind))(config).float().eval()
    plus_one = kind.startswith(("Gemma", "Qwen3_5", "Qwen3Next")) and not kind.startswith("Gemma4")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key and key.endswith("weight"):
                weight.copy_((0.0 if plus_one and "linear_attn" not in key else 1.0) + 0.3 * torch.randn_like(weight))
                if kind.startswith("Gemma4") and ("q_norm" in key or "k_norm" in key):
                    weight.mul_(0.4)  # scores aren't scaled otherwise: softmaxes so sharp would only multiply the rounding
            elif "sinks" in key:
                weight.copy_(2.0 + 2.0 * torch.randn_like(weight))
            elif weight.dim() == 1 or key.endswith("_bias"):
                weight.copy_(0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
        for key, buffer in model.named_buffers():
            if key.endswith("layer_scalar"):
                buffer.fill_(float(1 + 0.3 * torch.randn(())))
            if key.endswith(("expert_bias", "e_score_correction_bias")):
                buffer.copy_(0.2 * torch.randn_like(buffer))
    save(model, folder)
    return folder, model


def save(model: Any, folder: Path) -> None:
    """As a Hugging Face folder, with a tokenizer of its size."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(model.config.vocab_size)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                                                             "pad_token": "<pad>", "add_bos_token": False}), encoding="utf-8")
