"""OLMo 2 and 3: norms only after the sublayers, queries and keys normed over whole projections; OLMo 3 has windows (arXiv 2501.00656)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    window = k.windows(4)[i]
    rope = k.rope("halves", base="rope.freq_base_swa", default_base=k.rope("halves").base, scaled=False) if window else k.rope("halves")
    return [
        k.attention(i, norm=None, rope=rope, window=window, qk_norm="whole", post_norm=k.norm(i, "post_attention_norm", "post_attention_layernorm")),
        k.glu(i, "silu", norm=None, post_norm=k.norm(i, "post_ffw_norm", "post_feedforward_layernorm")),
    ]


PAGE = Page("olmo2", "OLMo 2, OLMo 3", layer, hf=("Olmo2ForCausalLM", "Olmo3ForCausalLM"))
