"""True shapes of published models of other families than Llama: their keys, from which their pages tell the tensors. Weights and vocabulary are made up
(synthetic.py); the vocabulary is as large as theirs.

    FAMILY_SHAPES["qwen3-4b"].config()
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.architectures.config import ModelConfig, written_config


@dataclass(frozen=True)
class FamilyShape:
    """architecture: GGUF's name; keys: below it; tensors: the optional ones that the file has (output.weight if its output is not tied)."""

    architecture: str
    n_vocab: int
    keys: Mapping[str, Any]
    tensors: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        return {f"{self.architecture}.{key}": value for key, value in self.keys.items()}

    def config(self) -> ModelConfig:
        layers = range(self.keys["block_count"])
        names = [name.replace("*", str(i)) for name in self.tensors for i in (layers if "*" in name else layers[:1])]
        return written_config(self.architecture, self.metadata(), names, self.n_vocab)


def _keys(layers: int, dim: int, heads: int, kv_heads: int, head_dim: int, ffn: int, context: int, eps: float = 1e-6, **more: Any) -> dict[str, Any]:
    return {
        "block_count": layers, "embedding_length": dim, "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head_dim,
        "attention.value_length": head_dim, "feed_forward_length": ffn, "context_length": context, "attention.layer_norm_rms_epsilon": eps,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


FAMILY_SHAPES = {
    "qwen3-4b": FamilyShape("qwen3", 151936, _keys(36, 2560, 32, 8, 128, 9728, 40960, rope__freq_base=1e6)),
    "gemma3-1b": FamilyShape("gemma3", 262144, _keys(26, 1152, 4, 1, 256, 6912, 32768, attention__sliding_window=512, rope__freq_base=1e6)),
    "gemma3-4b": FamilyShape("gemma3", 262144, _keys(34, 2560, 8, 4, 256, 10240, 131072, attention__sliding_window=1024, rope__freq_base=1e6,
                                                     rope__scaling__type="linear", rope__scaling__factor=8.0)),
    "phi4-mini": FamilyShape("phi3", 200064, _keys(32, 3072, 24, 8, 128, 8192, 131072, 1e-5, rope__dimension_count=96, rope__scaling__attn_factor=1.1902381,
                                                   rope__scaling__original_context_length=4096),
                             ("blk.*.attn_qkv.weight", "rope_factors_long.weight", "rope_factors_short.weight")),
}
