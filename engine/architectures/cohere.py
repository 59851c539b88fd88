"""Command R and R7B, Aya: LayerNorm without biases, RoPE on neighbouring pairs, SwiGLU; both sublayers read the same normed rows and stand side by side; logits
are scaled. Command R+ has LayerNorms of each head's queries and keys. Cohere 2's layers see a window, every fourth everything; these have no positions
(arXiv 2412.04261)."""
from __future__ import annotations

from .blocks import Block, Output
from .builder import Builder
from .page import Page
from .spec import Rope


def _layer(k: Builder, i: int, rope: Rope | None, window: int) -> list[Block]:
    glu = k.glu(i, "silu", norm=None, parallel=True)
    norm = k.norm(i, "attn_norm", "input_layernorm", kind="layer")
    qk_norm = "layer" if k.has(f"blk.{i}.attn_q_norm.weight") else ""
    return [k.attention(i, norm=norm, rope=rope, window=window, qk_norm=qk_norm, parallel=True, beside=glu.readers()), glu]


def command_r_layer(k: Builder, i: int) -> list[Block]:
    return _layer(k, i, k.rope("pairs"), 0)


def cohere2_layer(k: Builder, i: int) -> list[Block]:
    window, rope = k.windows(4)[i], k.rope("pairs")
    return _layer(k, i, rope if window else None, window)


def output(k: Builder) -> Output:
    return k.output(k.norm(None, "output_norm", "norm", kind="layer"), factor=k.positive("logit_scale", 1.0))


COMMAND_R = Page("command-r", "Command R 35B, Command R+ 104B, Aya 8B", command_r_layer, hf=("CohereForCausalLM",), output=output)
COHERE2 = Page("cohere2", "Command R7B, Aya Expanse, Tiny Aya", cohere2_layer, hf=("Cohere2ForCausalLM",), output=output)
