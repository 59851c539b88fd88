"""Which matrices of a model an adapter may have pairs for, under which names: GGUF's tensor names, as in llama.cpp's adapters.

    "blk.0.attn_q.weight" ──► Target: rows, columns, and the Matrix it is, or the several that are its rows (fused q, k, v)
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import ModelConfig
from .expert_blocks import Experts
from .spec import Matrix

OUTPUT = "output.weight"
"""The output matrix, also where it is the embedding: an adapter's pair then counts for the logits alone."""


@dataclass(frozen=True)
class Target:
    """A tensor [rows, columns] with the matrices that are made of it."""

    rows: int
    columns: int
    matrices: tuple[Matrix, ...]

    def rows_of(self, matrix: Matrix) -> np.ndarray:
        """Which rows of the tensor the matrix has, in its order: int64 [matrix.rows]."""
        if not matrix.period:
            return matrix.first + np.arange(matrix.rows)
        blocks = matrix.first + matrix.period * np.arange(matrix.rows // matrix.block)
        return (blocks[:, None] + np.arange(matrix.block)).reshape(-1)


def targets(config: ModelConfig) -> dict[str, Target]:
    """Name -> matrix, in order of use. Experts, their routers and the embedding are none."""
    routers = {block.router.key for block in config.blocks() if isinstance(block, Experts)}
    found: dict[str, Target] = {}
    for matrix in config.matrices():
        if matrix.experts or matrix.key in routers:
            continue
        name = OUTPUT if matrix is config.output.matrix else matrix.tensor
        before = found[name].matrices if name in found else ()
        found[name] = Target(matrix.whole or matrix.rows, matrix.columns, (*before, matrix))
    return found


def why_not(config: ModelConfig, name: str) -> str:
    """Why a name is no target's, for a message."""
    tensors = {t.name: t for t in config.tensors()}
    if name == "token_embd.weight":
        return "llamina runs no adapters of embeddings"
    if name not in tensors:
        return f"the model (architecture {config.architecture}, {config.n_layers} layers) has no such tensor: the adapter is of another model"
    if len(tensors[name].shape) == 1:
        return "it is a vector: adapters are of matrices"
    return "llamina runs no adapters of experts and their routers"
