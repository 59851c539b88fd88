"""gpt-oss: every second layer sees a window, heads have a sink, everything has biases; experts are chosen by logit, their gate is clamped (arXiv 2508.10925).

GGUF calls the norm before the experts post_attention_norm, as Hugging Face does. YaRN's corrections are not rounded to whole pairs, as the model was trained
and Hugging Face and OpenAI's own code have it; llama.cpp rounds them."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves", rounded=False), window=k.windows(2)[i], biases="qkvo",
                    sinks=f"blk.{i}.attn_sinks.weight"),
        k.experts(i, "oai", norm=k.norm(i, "post_attention_norm", "post_attention_layernorm"), gating="softmax_of_chosen", biases=True),
    ]


PAGE = Page("gpt-oss", "gpt-oss 20B, 120B", layer, hf=("GptOssForCausalLM",), hf_renamed=(("mlp.gate.", "mlp.router."),))
