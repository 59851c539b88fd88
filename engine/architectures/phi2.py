"""Phi 1, 1.5 and 2: LayerNorm with biases, RoPE on halves of a part of each head, GELU without a gate; both sublayers read the same normed rows and stand side
by side; the logits have a bias (arXiv 2309.05463)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .gpt2 import output
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    mlp = k.mlp(i, "gelu_tanh", norm=None, parallel=True, biases=("up", "down"))
    norm = k.norm(i, "attn_norm", "input_layernorm", kind="layer")
    return [k.attention(i, norm=norm, rope=k.rope("halves", partial=True), parallel=True, beside=mlp.readers(), biases=("qkv", "q", "k", "v", "o")), mlp]


PAGE = Page("phi2", "Phi 1, 1.5 and 2", layer, hf=("PhiForCausalLM",), output=output, hf_renamed=(
    ("self_attn.o_proj.", "self_attn.dense."), ("mlp.up_proj.", "mlp.fc1."), ("mlp.down_proj.", "mlp.fc2."), ("model.norm.", "model.final_layernorm.")))
