"""Llama 1 to 3, Code Llama, TinyLlama, Mistral, Mixtral: RMSNorm, RoPE on neighbouring pairs, SwiGLU (Touvron et al., arXiv 2302.13971).

Attention and feed-forward matrices may have biases, and Mistral 0.1's layers a sliding window. Mixtral's feed-forward blocks are experts (arXiv 2401.04088)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .keys import MAX_EXPERTS
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    norm = k.norm(i, "ffn_norm", "post_attention_layernorm")
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("pairs"), window=k.windows(1)[i]),
        k.experts(i, "silu", norm=norm, normalise=True) if k.integer("expert_count", MAX_EXPERTS, 0, least=0) else k.glu(i, "silu", norm=norm),
    ]


PAGE = Page("llama", "Llama 1-3, Code Llama, TinyLlama, Mistral, Mixtral", layer,
            hf=("LlamaForCausalLM", "MistralForCausalLM", "LLaMAForCausalLM", "MixtralForCausalLM"), hf_halves=True,
            hf_renamed=(("mlp.gate.", "block_sparse_moe.gate."),))
