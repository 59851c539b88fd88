"""Names of a model's tensors in every kind of checkpoint. Hugging Face's names are the pages' (Tensor.hf), and so is the order of the rows of q and k:
engine/architectures/hf.py.

    HF "model.layers.3.self_attn.q_proj.weight", Meta and llama2.c "layers.3.attention.wq.weight" -> GGUF "blk.3.attn_q.weight"
"""
from __future__ import annotations

import re

from ..engine.architectures.config import ModelConfig
from ..engine.architectures.hf import hf_tensors, interleaved_order, of_text, row_orders
from ..engine.architectures.state_blocks import Delta

__all__ = ["META_SPLIT_AXIS", "from_meta", "hf_tensors", "interleaved_order", "is_hf", "norm_gains", "of_other_part", "of_text", "row_orders", "to_meta",
           "without_effect"]

_META_TOP = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "output.weight": "output.weight"}
_META_LAYER = {
    "attention_norm.weight": "attn_norm.weight", "attention.wq.weight": "attn_q.weight", "attention.wk.weight": "attn_k.weight",
    "attention.wv.weight": "attn_v.weight", "attention.wo.weight": "attn_output.weight", "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight", "feed_forward.w3.weight": "ffn_up.weight", "feed_forward.w2.weight": "ffn_down.weight",
}
META_SPLIT_AXIS = {
    "attn_q.weight": 0, "attn_k.weight": 0, "attn_v.weight": 0, "ffn_gate.weight": 0, "ffn_up.weight": 0, "output.weight": 0,
    "attn_output.weight": 1, "ffn_down.weight": 1,
}
"""Along which axis Meta's model-parallel shards cut a matrix (fairscale's ColumnParallelLinear cuts rows of the weight, RowParallelLinear columns).
tok_embeddings is cut along columns in Llama 1 and 2, along rows in Llama 3: meta.py looks at the shapes. Norms are in every shard."""

_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,5})\.(.+)")
_HF = re.compile(r"(model\.|backbone\.|gpt_neox\.|embed_out\.|language_model\.|transformer\.|lm_head\.)")
_WITHOUT_EFFECT = re.compile(
    r"((model|transformer)\.)?((layers|h)\.\d+\.(self_attn|attention|attn\.attention)\.)?"
    r"((rotary_emb|rotary)\.inv_freq|rope\.freqs|inner_attention\.rope\.freqs)|freqs_cos|freqs_sin|layers\.\d+\.attention\.mask")
"""Buffers that checkpoints hold beside the weights: RoPE frequencies and masks, which follow from the configuration."""


def without_effect(name: str) -> bool:
    return _WITHOUT_EFFECT.fullmatch(name) is not None


def is_hf(name: str) -> bool:
    """Whether a tensor's name is of Hugging Face's kind."""
    return _HF.match(name) is not None


def of_other_part(name: str) -> bool:
    """Whether a tensor of a model of several parts is not of its text part."""
    return name.removeprefix("model.").startswith((
        "vision_tower.", "multi_modal_projector.", "vision_model.", "visual.", "audio_tower.", "embed_vision.", "embed_audio.", "vision_embedder."))


def norm_gains(config: ModelConfig) -> set[str]:
    """Tensors that are gains of norms which a checkpoint may store less one: the delta rule's norm of heads never is."""
    heads = {r.head_norm.tensor for r in config.recurrents() if isinstance(r, Delta)}
    return ({norm.tensor for block in config.blocks() for norm in block.norms()} | {config.output.norm.tensor}) - heads


def from_meta(name: str) -> str | None:
    """GGUF's name of a tensor in Meta's naming, which llama2.c shares; None if it has none."""
    return _from(name, _META_TOP, _META_LAYER, "")


def to_meta(name: str) -> str:
    """As `to_hf`, for Meta's naming."""
    return _to(name, _META_TOP, _META_LAYER, "")


def _from(name: str, top: dict[str, str], layer: dict[str, str], prefix: str) -> str | None:
    if name in top:
        return top[name]
    match = _LAYER.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    part = layer.get(match[2]) if match else None
    return f"blk.{match[1]}.{part}" if match and part else None


def _to(name: str, top: dict[str, str], layer: dict[str, str], prefix: str) -> str:
    for theirs, ours in top.items():
        if ours == name:
            return theirs
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    return next((f"{prefix}layers.{match[1]}.{theirs}" for theirs, ours in layer.items() if match and ours == match[2]), name)  # type: ignore[index]
