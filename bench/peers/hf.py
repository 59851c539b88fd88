"""Peers that don't run the file at hand but a model of the same shape with random weights, and ctransformers.

Hugging Face transformers on PyTorch, CPU, unquantised (hf_child.py), by this Python or $LLAMINA_PEER_TRANSFORMERS; onnxruntime-genai, 4 bits (ort_child.py),
by the Python that $LLAMINA_PEER_ONNXRUNTIME names.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ...engine.architectures.config import ModelConfig
from ...engine.gguf.file import open_gguf
from .child import Child, PeerError

VARIABLE = "LLAMINA_PEER_TRANSFORMERS"


def shape_of(c: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of transformers' LlamaConfig."""
    return {"hidden_size": c.dim, "intermediate_size": c.ffn_dim, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "vocab_size": c.n_vocab, "max_position_embeddings": 4096,
            "tie_word_embeddings": c.tied_output}


class _Peer(Child):
    """A child with one way to run: no settings to choose the best of."""

    def __init__(self, python: str, script: str, name: str):
        super().__init__([python, str(Path(__file__).with_name(script))], name)
        self.best: dict[str, dict[str, Any]] = {}

    def measure(self, what: str, n: int, sequences: int = 8) -> dict[str, Any]:
        return self.ask("measure", what=what, n=n, sequences=sequences)


class _SameShape(_Peer):
    """Its `load` takes the keyword arguments of transformers' LlamaConfig."""

    more: dict[str, Any] = {}

    def ask(self, do: str, **arguments: Any) -> Any:
        if do == "load":
            with open_gguf(arguments.pop("model")) as gguf:
                arguments |= {**self.more, "shape": shape_of(ModelConfig.from_gguf(gguf))}
        return super().ask(do, **arguments)


class Transformers(_SameShape):
    def __init__(self, dtype: str):
        super().__init__(os.environ.get(VARIABLE) or sys.executable, "hf_child.py", f"transformers {dtype}")
        self.more = {"dtype": dtype}


class OnnxRuntime(_SameShape):
    def __init__(self) -> None:
        super().__init__(_python("onnxruntime-genai", "LLAMINA_PEER_ONNXRUNTIME"), "ort_child.py", "onnxruntime-genai int4")


def _python(name: str, variable: str) -> str:
    python = os.environ.get(variable)
    if not python:
        raise PeerError(f"where is {name}? Name its environment's Python with {variable}")
    return python


class CTransformers(_Peer):
    """ctransformers, by the Python that $LLAMINA_PEER_CTRANSFORMERS names."""

    def __init__(self) -> None:
        super().__init__(_python("ctransformers", "LLAMINA_PEER_CTRANSFORMERS"), "ctransformers_child.py", "ctransformers")
