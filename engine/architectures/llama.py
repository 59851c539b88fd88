"""Llama 1 to 3, Code Llama, TinyLlama, Mistral: RMSNorm, RoPE on neighbouring pairs, SwiGLU (Touvron et al., arXiv 2302.13971).

Attention and feed-forward matrices may have biases, and Mistral 0.1's layers a sliding window."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("pairs"), window=k.windows(1)[i]),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("llama", "Llama 1-3, Code Llama, TinyLlama, Mistral", layer, hf=("LlamaForCausalLM", "MistralForCausalLM", "LLaMAForCausalLM"),
            hf_halves=True)
