"""What config.json may say, class by class: every field is read, without effect, or refused unless it is off; and what a class takes for one that is not there.

    config.json ──class_of──► ClassFields(defaults, …) ──settled──► Fields with the class's defaults filled in, checked

An absent field is not the same as a null one, and neither is "off": MistralConfig without sliding_window has a window of 4096, with null none. So the
defaults are transformers' own (configuration_*.py, version 5), and tests/test_sources_oracle.py compares both, field by field.
Fields that a class does not have are without effect there, as transformers keeps but never reads them; those that name a feature of another
architecture are refused all the same, because whoever wrote them meant something.
"""
from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from ...engine.architectures.pages import PAGES
from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from .base import Fields


@dataclass(frozen=True)
class ClassFields:
    """gguf: the architecture it becomes. defaults: field -> what the class takes if it is absent. reads: fields of `_OFF` that this class reads. renamed: its
    own name of a field -> the usual one."""

    model_type: str
    gguf: str
    architectures: tuple[str, ...]
    defaults: dict[str, Any]
    reads: frozenset[str] = frozenset()
    renamed: tuple[tuple[str, str], ...] = ()


_SHARED: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None,
    "intermediate_size": 11008, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_parameters": None, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}
_GEMMA: dict[str, Any] = {
    "vocab_size": 256000, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2, "tie_word_embeddings": True, "attention_bias": False}
_GEMMA_2: dict[str, Any] = {
    **_GEMMA, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": None}
_GEMMA_4: dict[str, Any] = {
    **_GEMMA, "vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30, "num_attention_heads": 8,
    "hidden_activation": "gelu_pytorch_tanh", "layer_types": None, "final_logit_softcapping": None, "attention_k_eq_v": False, "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False}
_GEMMA_4_READS = "per_layer_config global_head_dim num_global_key_value_heads"
_COHERE: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64, "logit_scale": 0.0625,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 255001, "tie_word_embeddings": True,
    "attention_bias": False}
_QWEN: dict[str, Any] = {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28, "layer_types": None, "bos_token_id": None, "eos_token_id": None}
_OLMO: dict[str, Any] = {"vocab_size": 50304, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 50279, "rms_norm_eps": 1e-5, "attention_bias": False}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_head": "auto", "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True,
    "mamba_proj_bias": False, "time_step_limit": None}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 512, "n_routed_experts": 64, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "routed_scaling_factor": 1.0, "v_head_dim": 128,
    "attention_bias": False, "mlp_bias": False}
_SPARSE: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": None, "norm_topk_prob": False}
_GRANITE_MOE: dict[str, Any] = {
    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "attention_bias": False,
    "num_local_experts": 8, "num_experts_per_tok": 2}


def _class(model_type: str, gguf: str, names: str, changes: dict[str, Any], without: str = "", reads: str = "",
           renamed: tuple[tuple[str, str], ...] = ()) -> ClassFields:
    """A class by what it has otherwise than `_SHARED`; reads: more fields that it reads, of those that others refuse."""
    defaults = {key: value for key, value in {**_SHARED, **changes}.items() if key not in without.split()}
    return ClassFields(model_type, gguf, tuple(names.split()), defaults, frozenset((*changes, *reads.split())), renamed)


CLASSES = (
    _class("llama", "llama", "LlamaForCausalLM LLaMAForCausalLM", {"attention_bias": False, "mlp_bias": False}),
    _class("mistral", "llama", "MistralForCausalLM", {
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}),
    _class("qwen2", "qwen2", "Qwen2ForCausalLM", _QWEN, "head_dim"),
    _class("qwen3", "qwen3", "Qwen3ForCausalLM Qwen3Model", {**_QWEN, "head_dim": 128, "attention_bias": False}),
    _class("smollm3", "smollm3", "SmolLM3ForCausalLM", {
        "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
        "max_position_embeddings": 32768, "pad_token_id": 128004, "bos_token_id": 128000, "eos_token_id": 128001, "use_sliding_window": False,
        "sliding_window": None, "no_rope_layers": None, "no_rope_layer_interval": 4, "layer_types": None, "tie_word_embeddings": True, "attention_bias": False,
        "mlp_bias": False}, "head_dim"),
    _class("seed_oss", "seed_oss", "SeedOssForCausalLM", {
        "vocab_size": 155136, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 80, "num_key_value_heads": 8,
        "max_position_embeddings": 524288, "pad_token_id": 1, "bos_token_id": 0, "attention_bias": True, "attention_out_bias": False, "mlp_bias": False,
        "head_dim": 128}),
    _class("arcee", "arcee", "ArceeForCausalLM", {
        "hidden_size": 2560, "intermediate_size": 18432, "hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "bos_token_id": 128000, "eos_token_id": 128001, "attention_bias": False, "mlp_bias": False}),
    _class("hunyuan_v1_dense", "hunyuan-dense", "HunYuanDenseV1ForCausalLM", {
        "vocab_size": 290943, "rms_norm_eps": 1e-5, "pad_token_id": 0, "eod_token_id": 3, "attention_bias": False}),
    _class("ernie4_5", "ernie4_5", "Ernie4_5ForCausalLM Ernie4_5_ForCausalLM", {
        "vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18, "num_attention_heads": 16, "num_key_value_heads": 2,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "pad_token_id": 0, "tie_word_embeddings": True, "use_bias": False, "head_dim": 128}),
    _class("gemma", "gemma", "GemmaForCausalLM", {
        **_GEMMA, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh", "use_bidirectional_attention": None}, reads="hidden_activation"),
    _class("gemma2", "gemma2", "Gemma2ForCausalLM", {
        **_GEMMA_2, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "use_bidirectional_attention": None}, "hidden_act", "hidden_act"),
    _class("gemma3_text", "gemma3", "Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma3TextModel", {
        **_GEMMA_2, "vocab_size": 262208, "max_position_embeddings": 131072, "final_logit_softcapping": None, "attn_logit_softcapping": None,
        "use_bidirectional_attention": False}, "hidden_act", "hidden_act rope_local_base_freq sliding_window_pattern"),
    _class("gemma4_text", "gemma4", "Gemma4ForCausalLM Gemma4ForConditionalGeneration", {
        **_GEMMA_4, "max_position_embeddings": 131072, "sliding_window": 512, "use_bidirectional_attention": None, "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256, "enable_moe_block": False, "num_experts": None, "top_k_experts": None,
        "moe_intermediate_size": None}, "hidden_act", _GEMMA_4_READS),
    _class("gemma4_unified_text", "gemma4", "Gemma4UnifiedForCausalLM Gemma4UnifiedForConditionalGeneration", {
        **_GEMMA_4, "max_position_embeddings": 262144, "sliding_window": 1024, "use_bidirectional_attention": "vision"}, "hidden_act", _GEMMA_4_READS),
    _class("phi3", "phi3", "Phi3ForCausalLM", {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "eos_token_id": 32000, "pad_token_id": 32000, "sliding_window": None}, "head_dim", "partial_rotary_factor"),
    _class("granite", "granite", "GraniteForCausalLM", {
        "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "attention_bias": False,
        "mlp_bias": False}, "head_dim"),
    _class("ministral3", "mistral3", "Ministral3ForCausalLM Mistral3ForConditionalGeneration", {
        "vocab_size": 131072, "intermediate_size": 14336, "num_hidden_layers": 34, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "pad_token_id": 11, "sliding_window": None}),
    _class("olmo2", "olmo2", "Olmo2ForCausalLM", _OLMO, "head_dim"),
    _class("olmo3", "olmo2", "Olmo3ForCausalLM", {**_OLMO, "sliding_window": 4096, "layer_types": None}, "head_dim"),
    _class("exaone4", "exaone4", "Exaone4ForCausalLM", {
        "vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "bos_token_id": 0, "sliding_window": 4096,
        "sliding_window_pattern": 4, "layer_types": None}, "head_dim"),
    _class("glm4", "glm4", "Glm4ForCausalLM", {
        "vocab_size": 151552, "intermediate_size": 13696, "num_hidden_layers": 40, "num_key_value_heads": 2, "head_dim": 128,
        "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-07, "pad_token_id": 151329, "eos_token_id": None, "bos_token_id": None,
        "attention_bias": True}, reads="partial_rotary_factor"),
    _class("lfm2", "lfm2", "Lfm2ForCausalLM", {
        "vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_key_value_heads": 8, "max_position_embeddings": 128000, "rms_norm_eps": 1e-5,
        "pad_token_id": 0, "tie_word_embeddings": True, "conv_bias": False, "conv_L_cache": 3, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True, "full_attn_idxs": None, "layer_types": None}, "head_dim hidden_act",
        renamed=(("norm_eps", "rms_norm_eps"), ("tie_embedding", "tie_word_embeddings"))),
    _class("qwen3_5_text", "qwen35", "Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration", {
        "vocab_size": 248320, "intermediate_size": 12288, "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
        "bos_token_id": None, "eos_token_id": None, "head_dim": 256, "attention_bias": False, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "layer_types": None}, "",
        "partial_rotary_factor full_attention_interval"),
    _class("lfm2_moe", "lfm2moe", "Lfm2MoeForCausalLM", {
        "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 7168, "num_key_value_heads": 8, "max_position_embeddings": 128000, "rms_norm_eps": 1e-5,
        "pad_token_id": 0, "tie_word_embeddings": True, "conv_bias": False, "conv_L_cache": 3, "layer_types": None, "moe_intermediate_size": 1792,
        "num_dense_layers": 2, "num_experts_per_tok": 4, "num_experts": 32, "use_expert_bias": True, "routed_scaling_factor": 1.0, "norm_topk_prob": True},
        "head_dim hidden_act", renamed=(("norm_eps", "rms_norm_eps"), ("tie_embedding", "tie_word_embeddings"), ("num_local_experts", "num_experts"))),
    _class("qwen3_5_moe_text", "qwen35moe", "Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration", {
        "vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "intermediate_size": 512, "num_attention_heads": 16, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None, "head_dim": 256, "attention_bias": False, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "layer_types": None,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8, "num_experts": 256}, "",
        "partial_rotary_factor full_attention_interval", (("num_local_experts", "num_experts"),)),
    _class("qwen3_next", "qwen3next", "Qwen3NextForCausalLM", {
        **_SPARSE, "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "intermediate_size": 5632, "num_attention_heads": 16,
        "num_key_value_heads": 2, "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None, "head_dim": 256, "attention_bias": False,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "layer_types": None, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512,
        "norm_topk_prob": True}, "", "partial_rotary_factor full_attention_interval"),
    _class("granitemoehybrid", "granitehybrid", "GraniteMoeHybridForCausalLM", {
        **_GRANITE_MOE, **_MAMBA, "shared_intermediate_size": 1024, "position_embedding_type": None, "layer_types": None}, "head_dim"),
    _class("nemotron_h", "nemotron_h", "NemotronHForCausalLM", {
        "vocab_size": 131072, "num_hidden_layers": None, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096, "intermediate_size": 21504,
        "rms_norm_eps": 1e-5, "pad_token_id": 0, "attention_bias": False, "mlp_bias": False, "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu",
        "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True, "mamba_proj_bias": False,
        "layers_block_type": None, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688, "moe_latent_size": None, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "use_bias": False}, "hidden_act rope_parameters",
        renamed=(("layer_norm_epsilon", "rms_norm_eps"), ("layer_types", "layers_block_type"))),
    _class("falcon_h1", "falcon-h1", "FalconH1ForCausalLM", {
        **_MAMBA, "vocab_size": 128000, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "pad_token_id": 0, "mamba_d_ssm": 1024, "mamba_norm_before_gate": True, "mamba_rms_norm": False, "projectors_bias": False, "lm_head_multiplier": 1.0,
        "embedding_multiplier": 1.0, "mlp_multipliers": None, "key_multiplier": 1.0, "attention_out_multiplier": 1.0, "attention_in_multiplier": 1.0,
        "ssm_multipliers": None, "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0, "attention_bias": False, "mlp_bias": False}),
    _class("deepseek_v2", "deepseek2", "DeepseekV2ForCausalLM", {
        **_LATENT, "vocab_size": 102400, "q_lora_rank": 1536, "n_group": None, "n_shared_experts": 2, "topk_group": None, "topk_method": "greedy",
        "norm_topk_prob": False, "num_experts_per_tok": None, "moe_intermediate_size": 1407, "first_k_dense_replace": 0}, "head_dim"),
    _class("glm4_moe_lite", "deepseek2", "Glm4MoeLiteForCausalLM", {
        **_LATENT, "vocab_size": 154880, "hidden_size": 2048, "intermediate_size": 10240, "moe_intermediate_size": 1536, "num_hidden_layers": 47,
        "num_attention_heads": 20, "num_key_value_heads": 20, "n_shared_experts": 1, "routed_scaling_factor": 1.8, "q_lora_rank": 768, "v_head_dim": 256,
        "qk_nope_head_dim": 192, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 4, "norm_topk_prob": True, "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 1, "rope_interleave": True, "mlp_layer_types": None}, "head_dim"),
    _class("mixtral", "llama", "MixtralForCausalLM", {
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "sliding_window": None,
        "num_experts_per_tok": 2, "num_local_experts": 8}, renamed=(("num_experts", "num_local_experts"),)),
    _class("qwen2_moe", "qwen2moe", "Qwen2MoeForCausalLM", {
        **_QWEN, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4, "num_experts": 60, **_SPARSE, "qkv_bias": True}),
    _class("qwen3_moe", "qwen3moe", "Qwen3MoeForCausalLM", {
        **_QWEN, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4, "attention_bias": False,
        "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128, **_SPARSE}, "max_window_layers layer_types",
        renamed=(("num_local_experts", "num_experts"),)),
    _class("olmoe", "olmoe", "OlmoeForCausalLM", {
        **_OLMO, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "max_position_embeddings": 4096,
        "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False, "clip_qkv": None}, renamed=(("num_local_experts", "num_experts"),)),
    _class("granitemoe", "granitemoe", "GraniteMoeForCausalLM", _GRANITE_MOE),
    _class("granitemoeshared", "granitemoe", "GraniteMoeSharedForCausalLM", {**_GRANITE_MOE, "shared_intermediate_size": 0}),
    _class("gpt_oss", "gpt-oss", "GptOssForCausalLM", {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": None, "sliding_window": 128,
        "layer_types": None, "attention_bias": True, "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        renamed=(("num_experts", "num_local_experts"), ("experts_per_token", "num_experts_per_tok"))),
    _class("gpt2", "gpt2", "GPT2LMHeadModel", {
        "vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": None, "hidden_act": "gelu_new",
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 50256, "eos_token_id": 50256,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        "num_key_value_heads head_dim rope_parameters", "activation_function n_inner", renamed=(
            ("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads"), ("n_positions", "max_position_embeddings"),
            ("n_inner", "intermediate_size"), ("layer_norm_epsilon", "rms_norm_eps"), ("activation_function", "hidden_act"))),
    _class("gpt_neox", "gptneox", "GPTNeoXForCausalLM", {
        "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64, "intermediate_size": 24576, "hidden_act": "gelu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 0, "use_parallel_residual": True, "attention_bias": True},
        "num_key_value_heads head_dim", "partial_rotary_factor", renamed=(
            ("layer_norm_eps", "rms_norm_eps"), ("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta"))),
    _class("phi", "phi2", "PhiForCausalLM", {
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5,
        "qk_layernorm": False}, "head_dim", "partial_rotary_factor", renamed=(("layer_norm_eps", "rms_norm_eps"),)),
    _class("starcoder2", "starcoder2", "Starcoder2ForCausalLM", {
        "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "bos_token_id": 50256, "eos_token_id": 50256,
        "sliding_window": None, "use_bias": True, "tie_word_embeddings": True}, "head_dim", renamed=(("norm_epsilon", "rms_norm_eps"),)),
    _class("stablelm", "stablelm", "StableLmForCausalLM", {
        "vocab_size": 50304, "intermediate_size": 6912, "hidden_size": 2560, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "bos_token_id": 0, "eos_token_id": 0, "use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False}, "head_dim",
        "partial_rotary_factor", renamed=(("layer_norm_eps", "rms_norm_eps"),)),
    _class("cohere", "command-r", "CohereForCausalLM", {**_COHERE, "use_qk_norm": False}, "head_dim", renamed=(("layer_norm_eps", "rms_norm_eps"),)),
    _class("cohere2", "cohere2", "Cohere2ForCausalLM", {**_COHERE, "sliding_window": 4096, "layer_types": None}, "head_dim",
           renamed=(("layer_norm_eps", "rms_norm_eps"),)),
    # classes that come with their checkpoints: configuration_exaone.py, configuration_minicpm.py
    _class("exaone", "exaone", "ExaoneForCausalLM", {
        "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": None, "rms_norm_eps": 1e-5, "bos_token_id": 0}, reads="activation_function",
        renamed=(("num_layers", "num_hidden_layers"), ("layer_norm_epsilon", "rms_norm_eps"), ("activation_function", "hidden_act"))),
    _class("minicpm", "minicpm", "MiniCPMForCausalLM", {
        "scale_emb": 1.0, "scale_depth": 1.0, "dim_model_base": 1, "attention_bias": False, "tie_word_embeddings": True}),
)
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NULLABLE = frozenset((
    "num_key_value_heads", "head_dim", "intermediate_size", "rope_parameters", "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id", "eod_token_id",
    "sliding_window",
    "layer_types", "no_rope_layers", "final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention", "sliding_window_pattern",
    "full_attn_idxs", "block_ffn_dim_multiplier",
    "mlp_only_layers", "clip_qkv", "num_experts", "top_k_experts", "moe_intermediate_size", "mamba_d_ssm",
    "n_routed_experts", "num_experts_per_tok", "moe_shared_expert_intermediate_size"))
"""Fields for which null is a value."""
READ = frozenset(key for c in CLASSES for key in c.defaults) | {
    "architectures", "model_type", "rope_theta", "rope_scaling", "original_max_position_embeddings", "quantization_config", "layer_types", "auto_map",
    "transformers_weights", "sliding_window", "use_sliding_window"}
WITHOUT_EFFECT = frozenset((
    "initializer_range", "use_cache", "attention_dropout", "hidden_dropout", "residual_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop",  # training
    "pretraining_tp", "chunk_size_feed_forward", "output_hidden_states", "output_attentions", "return_dict", "tie_last_hidden_states",  # how it is computed
    "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "id2label", "label2id", "problem_type", "num_labels",
))
"""Fields of these classes that change no logit."""
_OFF: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1, 1.0), "num_local_experts": (0, 1),
    "num_experts": (0, 1), "n_routed_experts": (0,), "use_qk_norm": (False,), "qk_norm": (False,), "attn_logit_softcapping": (), "final_logit_softcapping": (),
    "embedding_multiplier": (1, 1.0), "residual_multiplier": (1, 1.0), "attention_multiplier": (), "logits_scaling": (1, 1.0), "logit_scale": (1, 1.0),
    "clip_qkv": (), "no_rope_layers": ([],), "use_bias": (False,), "bias": (False,), "is_decoder": (True, False), "add_cross_attention": (False,),
    "cross_attention_layers": ([],), "is_encoder_decoder": (False,), "position_embedding_type": ("rope", "rotary"), "alibi": (False,), "mup": (False,),
    "scale_attn_weights": (True,), "use_parallel_residual": (False,), "parallel_attn": (False,), "per_layer_config": ({},), "pruned_heads": ({},),
    "num_nextn_predict_layers": (0,), "tie_encoder_decoder": (False,), "use_bidirectional_attention": (False,), "scale_emb": (1, 1.0),
    "scale_depth": (), "dim_model_base": (), "query_pre_attn_scalar": (), "hidden_activation": ("silu", "swish"), "activation_function": ("silu", "swish"),
    "attention_out_bias": (False,), "use_mla": (False,), "sparse_config": (), "altup_num_inputs": (), "use_cla": (False,),
}
"""Fields of features that llamina lacks -> the values that turn them off (null and absence do too)."""
REFUSED = frozenset(_OFF)


def flattened(fields: Fields) -> tuple[Fields, str]:
    """The text part of a configuration of several parts (Gemma 3, Mistral 3 with a vision part), and that model's class; ("") for others."""
    text = fields.get("text_config", dict, None)
    if text is None:
        return fields, ""
    names, kind = fields.get("architectures", list, []), fields.get("model_type", str, "")
    outer = {"gemma3": "Gemma3ForConditionalGeneration", "gemma4": "Gemma4ForConditionalGeneration",
             "gemma4_unified": "Gemma4UnifiedForConditionalGeneration", "mistral3": "Mistral3ForConditionalGeneration",
             "qwen3_5": "Qwen3_5ForConditionalGeneration", "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration"}.get(kind or "")
    if outer is None or names not in ([], [outer]):
        raise UnsupportedError(f"{fields.path}: is of architecture {quote(names[0] if names else kind)}; {_known(names[0] if names else kind)}")
    above = {key: fields.values[key] for key in ("tie_word_embeddings", "quantization_config", "transformers_weights", "auto_map") if key in fields.values}
    inner = {key: value for key, value in text.items() if key != "architectures"}
    return Fields(fields.path, {"model_type": {"mistral3": "mistral"}.get(kind, f"{kind}_text"), **inner, **above}), outer


def _known(asked: object) -> str:
    """What convert takes, for people: those whose names come near, of the classes that pages name."""
    names = [name for page in PAGES.values() for name in page.hf]
    near = difflib.get_close_matches(str(asked), names, 3, 0.7)
    return f"llamina converts {len(names)} others (docs/models.md lists them)" + (f", by names like it {', '.join(near)}" if near else "")


def class_of(fields: Fields) -> tuple[ClassFields, str | None]:
    """The class that transformers would make (by model_type; by architectures where that is absent), and a remark if the two disagree.
    UnsupportedError: another architecture."""
    names, kind = fields.get("architectures", list, []), fields.get("model_type", str, None)
    named = next((c for c in CLASSES if len(names) == 1 and names[0] in c.architectures), None)
    typed = next((c for c in CLASSES if c.model_type == kind), None)
    if names and named is None or kind is not None and typed is None and named is None:
        raise UnsupportedError(f"{fields.path}: is of architecture {quote(names[0] if names else kind)}; {_known(names[0] if names else kind)}")
    if kind is not None and typed is None:
        raise UnsupportedError(f"{fields.path}: field 'model_type' is {quote(kind)}, 'architectures' {quote(names[0])}: they contradict each other")
    found = typed or named or CLASSES[0]
    if named and typed and named is not typed:
        return found, f"config.json says model_type {kind} and architecture {names[0]}: read as {found.architectures[0]}, as transformers does"
    return found, None


def settled(fields: Fields, cls: ClassFields) -> Fields:
    """`fields` with the class's defaults where they are absent. FormatError: null for what can't be; UnsupportedError: a feature that llamina lacks."""
    values = {dict(cls.renamed).get(key, key): value for key, value in fields.values.items()}
    for key, default in cls.defaults.items():
        if key in values and values[key] is None and default is not None and key not in _NULLABLE:
            raise FormatError(f"{fields.path}: field '{key}' is null, expected a value (absent, it would be {default})")
    for key, off in _OFF.items():
        value = values.get(key)
        if key == "num_nextn_predict_layers" and PAGES[cls.gguf].predictors:  # layers after the last one, which are left out
            continue
        if value is not None and value not in off and key not in cls.reads:
            raise UnsupportedError(f"{fields.path}: asks for a feature that llamina lacks: {key} = {quote(value)}")
    return Fields(fields.path, {**cls.defaults, **values})
