"""StableLM 2 (and 3B): LayerNorm with biases, RoPE on halves of a quarter of each head; the 12B's sublayers stand side by side, and its
heads' queries and keys go through LayerNorms of their own (arXiv 2402.17834)."""
from __future__ import annotations

from .blocks import Block, Output
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    norm, rope = k.norm(i, "attn_norm", "input_layernorm", kind="layer"), k.rope("halves", partial=True)
    qk_norm = "layer" if k.has(f"blk.{i}.attn_q_norm.weight") else ""
    asked = k.file.get(k.name("use_parallel_residual"), bool, False)
    if not k.has(f"blk.{i}.ffn_norm.weight") if k.whole else asked:  # a file's tensors decide, as in llama.cpp
        glu = k.glu(i, "silu", norm=None, parallel=True)
        return [k.attention(i, norm=norm, rope=rope, qk_norm=qk_norm, parallel=True, beside=glu.readers()), glu]
    return [k.attention(i, norm=norm, rope=rope, qk_norm=qk_norm), k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm", kind="layer"))]


def output(k: Builder) -> Output:
    return k.output(k.norm(None, "output_norm", "norm", kind="layer"))


PAGE = Page("stablelm", "StableLM 2, StableLM 3B", layer, hf=("StableLmForCausalLM",), output=output)
