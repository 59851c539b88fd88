"""EXAONE 3 and 3.5: Llama with RoPE on halves (arXiv 2412.04862). Hugging Face's checkpoints have GPT-2's names."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "ln_1"), rope=k.rope("halves")),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "ln_2")),
    ]


PAGE = Page("exaone", "EXAONE 3 and 3.5", layer, hf=("ExaoneForCausalLM",), hf_renamed=(
    ("model.layers.", "transformer.h."), ("self_attn.o_proj", "attn.attention.out_proj"), ("self_attn.", "attn.attention."), ("mlp.gate_proj", "mlp.c_fc_0"),
    ("mlp.up_proj", "mlp.c_fc_1"), ("mlp.down_proj", "mlp.c_proj"), ("model.embed_tokens", "transformer.wte"), ("model.norm", "transformer.ln_f")))
