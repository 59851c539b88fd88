"""A page: the specification of one architecture. Everything that llamina must know of a family follows from it: keys and defaults, tensors and shapes, names in
Hugging Face's checkpoints, stages, sites, memory.

    layer(k, i) -> the blocks of layer i, composed from `Builder`'s helpers (builder.py) or written out (blocks.py)
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .blocks import Block, Output
from .builder import Builder
from .spec import Added


def _output(k: Builder) -> Output:
    return k.output(k.norm(None, "output_norm", "norm"))


def _nothing(k: Builder) -> tuple[Added, ...]:
    return ()


def _one(k: Builder) -> float:
    return 1.0


@dataclass(frozen=True)
class Page:
    """architecture: GGUF's name (general.architecture); models: which are of it, for people; hf: Hugging Face's class names.

    output: the final norm and the matrix of logits. embedding_scale: what embedding rows are multiplied by. hf_halves: Hugging Face's rows of q and k pair
    halves where GGUF's pair neighbours, so that convert permutes them. hf_norm_plus_one: Hugging Face's gains of norms are stored less one. hf_heads_fused:
    there, rows of attn_qkv are a head's of q, of k and of v, then the next head's. hf_turned: ends of names of matrices that are stored there as
    [columns, rows]. hf_renamed: parts of the usual Hugging Face names, and what they are called here. predictors: the last blocks may be heads that predict
    further tokens (nextn_predict_layers): they are left out. added: rows that join the embedding's, in this order.
    """

    architecture: str
    models: str
    layer: Callable[[Builder, int], list[Block]]
    hf: tuple[str, ...] = ()
    output: Callable[[Builder], Output] = _output
    embedding_scale: Callable[[Builder], float] = _one
    hf_halves: bool = False
    hf_norm_plus_one: bool = False
    hf_heads_fused: bool = False
    hf_turned: tuple[str, ...] = ()
    hf_renamed: tuple[tuple[str, str], ...] = ()
    predictors: bool = False
    added: Callable[[Builder], tuple[Added, ...]] = _nothing
