"""GPT-2: LayerNorm with biases, learned positions, GELU without a gate, biases everywhere, q, k and v in one matrix (Radford et al. 2019)."""
from __future__ import annotations

from .blocks import Block, Output
from .builder import Builder
from .page import Page
from .spec import Added, Tensor


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm", kind="layer"), rope=None, biases=("qkv", "q", "k", "v", "o")),
        k.mlp(i, "gelu_tanh", norm=k.norm(i, "ffn_norm", "post_attention_layernorm", kind="layer"), biases=("up", "down")),
    ]


def output(k: Builder) -> Output:
    return k.output(k.norm(None, "output_norm", "norm", kind="layer"))


def positions(k: Builder) -> tuple[Added, ...]:
    return (Added(Tensor("position_embd.weight", (k.context_length, k.dim), "transformer.wpe.weight"), True),)


PAGE = Page("gpt2", "GPT-2", layer, hf=("GPT2LMHeadModel",), output=output, added=positions, hf_turned=(
    "c_attn.weight", "c_proj.weight", "c_fc.weight"), hf_renamed=(
    ("model.embed_tokens.", "transformer.wte."), ("model.layers.", "transformer.h."), ("input_layernorm.", "ln_1."), ("post_attention_layernorm.", "ln_2."),
    ("self_attn.qkv_proj.", "attn.c_attn."), ("self_attn.o_proj.", "attn.c_proj."), ("mlp.up_proj.", "mlp.c_fc."), ("mlp.down_proj.", "mlp.c_proj."),
    ("model.norm.", "transformer.ln_f.")))
