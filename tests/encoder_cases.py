"""Small encoders of every page, as page_cases.py has them of models that generate: the cases that the tests of encoders run.

    path = write_encoder(tmp_path / "m.gguf", "modern-bert", "Q8_0");  rows = rows_of(runtime, IDS)
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from llamina.engine.run.runtime import Feed, Runtime
from page_cases import LAYER_NORM, SIZES, WIDE, Case
from small_models import write_family

OWN: dict[str, Any] = {**LAYER_NORM, "attention.head_count_kv": None, "attention.causal": False}
EMBEDDING_NORM = ("token_embd_norm.bias",)
BERT = (*EMBEDDING_NORM, "token_types.weight", *(f"blk.*.attn_{m}.bias" for m in ("q", "k", "v", "output")), "blk.*.ffn_up.bias", "blk.*.ffn_down.bias",
        "blk.*.attn_output_norm.bias", "blk.*.layer_output_norm.bias")
HEAD = ("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")
CASES = {
    "bert": Case("bert", {**OWN, "pooling_type": 1}, BERT),
    "bert odd": Case("bert", {**OWN, "attention.head_count": 3, "feed_forward_length": 224}, tuple(t for t in BERT if t != "token_types.weight")),
    "bert rank": Case("bert", {**OWN, "pooling_type": 4}, (*BERT, *HEAD)),
    "nomic-bert": Case("nomic-bert", {**OWN, "rope.freq_base": 1000.0}, (*EMBEDDING_NORM, "token_types.weight")),
    "modern-bert": Case("modern-bert", {**OWN, "attention.sliding_window": 40, "block_count": 5, "rope.freq_base": 160000.0, "rope.freq_base_swa": 10000.0},
                        ("blk.*.attn_qkv.weight",)),
    "modern-bert rank": Case("modern-bert", {**OWN, "attention.sliding_window": 24, "hidden_act": "silu", "pooling_type": 4,
                                             "attention.sliding_window_pattern": [True, False, True], "classifier.pooling_type": 1,
                                             "rope.freq_base": 160000.0, "rope.freq_base_swa": 10000.0},
                             ("blk.*.attn_qkv.weight", "cls.norm.weight", *HEAD)),
    "gemma-embedding": Case("gemma-embedding", {**WIDE, "attention.sliding_window": 40, "block_count": 7, "attention.causal": False,
                                                "rope.freq_base": 1000000.0}),
}
TYPES = [0] * 40 + [1] * 60
"""Of page_cases.IDS: a query of 40 tokens, a document of 60."""


def write_encoder(path: Path, name: str, format: str = "F32", **more: Any) -> Path:
    case = CASES[name]
    return write_family(path, case.architecture, {**SIZES, **case.keys}, format, tensors=case.tensors, **more)


def typed(name: str) -> bool:
    """Whether its token types are other than 0."""
    return name == "bert rank"


def rows_of(runtime: Runtime, ids: list[int], types: list[int] | None = None) -> np.ndarray:
    """float32 [tokens, dim], of a fresh sequence."""
    sequence = runtime.new_sequence()
    found = runtime.step([Feed(sequence, ids, "all", types=types)], hidden=True).copy()
    sequence.close()
    return found
