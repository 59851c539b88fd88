"""ModernBERT: an encoder with norms before its sublayers, rotary positions, GeGLU, and windows to both sides in two layers of three (arXiv 2412.13663).

The embedding is normed once, for the stream and for the first layer alike.
"""
from __future__ import annotations

from .blocks import Block, Output
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    k.encoder()
    sees = k.symmetric_windows(3, dense_first=True)[i]
    base = k.rope("halves", default_base=160000.0).base
    rope = k.rope("halves", base="rope.freq_base_swa", default_base=base, scaled=False) if "window" in sees else k.rope("halves")
    norm = k.norm(i, "attn_norm", "attn_norm", kind="layer") if i else k.norm(None, "token_embd_norm", "embeddings.norm", kind="layer")
    act = {"gelu": "gelu_erf", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}.get(found := k.text("hidden_act", "gelu"))
    if act is None:
        k.refuse(f"asks for a feature that llamina lacks: {k.name('hidden_act')} = {found!r:.40}")
    return [
        k.attention(i, norm=norm, rope=rope, replaces=i == 0, **sees),
        k.glu(i, act, norm=k.norm(i, "ffn_norm", "mlp_norm", kind="layer"), fused=True),
    ]


def output(k: Builder) -> Output:
    return k.rows(k.norm(None, "output_norm", "final_norm", kind="layer"))


PAGE = Page("modern-bert", "ModernBERT, granite-embedding R2, gte-modernbert", layer,
            hf=("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"), output=output,
            hf_renamed=(("model.embed_tokens.", "model.embeddings.tok_embeddings."), ("self_attn.qkv_proj", "attn.Wqkv"), ("self_attn.o_proj", "attn.Wo"),
                        ("mlp.gate_up_proj", "mlp.Wi"), ("mlp.down_proj", "mlp.Wo")))
