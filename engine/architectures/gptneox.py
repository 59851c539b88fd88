"""GPT-NeoX and Pythia: LayerNorm with biases, RoPE on halves of a part of each head, GELU without a gate; the sublayers stand side by side, each with its own
norm of the same stream (Black et al., arXiv 2204.06745)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .gpt2 import output
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    parallel = k.flag("use_parallel_residual", True)
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm", kind="layer"), rope=k.rope("halves", partial=True), parallel=parallel,
                    biases=("qkv", "q", "k", "v", "o")),
        k.mlp(i, "gelu_erf", norm=k.norm(i, "ffn_norm", "post_attention_layernorm", kind="layer"), parallel=parallel, biases=("up", "down")),
    ]


PAGE = Page("gptneox", "GPT-NeoX 20B, Pythia", layer, hf=("GPTNeoXForCausalLM",), output=output, hf_heads_fused=True, hf_renamed=(
    ("model.embed_tokens.", "gpt_neox.embed_in."), ("model.layers.", "gpt_neox.layers."), ("self_attn.qkv_proj.", "attention.query_key_value."),
    ("self_attn.o_proj.", "attention.dense."), ("mlp.up_proj.", "mlp.dense_h_to_4h."), ("mlp.down_proj.", "mlp.dense_4h_to_h."),
    ("model.norm.", "gpt_neox.final_layer_norm."), ("lm_head.", "embed_out.")))
