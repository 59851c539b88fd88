"""A page: the specification of one architecture. Everything that llamina must know of a family follows from it: keys and defaults, tensors and shapes, names in
Hugging Face's checkpoints, stages, sites, memory.

    layer(k, i) -> the blocks of layer i, composed from `Keys`'s helpers (keys.py) or written out (blocks.py)
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .blocks import Block, Output
from .keys import Keys


def _output(k: Keys) -> Output:
    return k.output(k.norm(None, "output_norm", "norm"))


def _one(k: Keys) -> float:
    return 1.0


@dataclass(frozen=True)
class Page:
    """architecture: GGUF's name (general.architecture); models: which are of it, for people; hf: Hugging Face's class names.

    output: the final norm and the matrix of logits. embedding_scale: what embedding rows are multiplied by."""

    architecture: str
    models: str
    layer: Callable[[Keys, int], list[Block]]
    hf: tuple[str, ...] = ()
    output: Callable[[Keys], Output] = _output
    embedding_scale: Callable[[Keys], float] = _one
