"""StarCoder 2: LayerNorm and matrices with biases, RoPE on halves, GELU without a gate, a sliding window if the file gives one (arXiv 2402.19173)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .gpt2 import output
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm", kind="layer"), rope=k.rope("halves"), window=k.windows(1)[i]),
        k.mlp(i, "gelu_tanh", norm=k.norm(i, "ffn_norm", "post_attention_layernorm", kind="layer")),
    ]


PAGE = Page("starcoder2", "StarCoder 2 3B, 7B, 15B", layer, hf=("Starcoder2ForCausalLM",), output=output,
            hf_renamed=(("mlp.up_proj.", "mlp.c_fc."), ("mlp.down_proj.", "mlp.c_proj.")))
