"""What a step's tokens begin with: their rows of the embedding, and of the per-layer table where a model has one.

    ids [M] ──► Weights.embed ──► the buffer "x";  ──► RowTable ──► the buffer "per_layer"
"""
from __future__ import annotations

import numpy as np

from ..architectures.config import ModelConfig
from ..gguf.file import GGUFFile
from .layout import Layout
from .row_table import RowTable
from .weights import Weights


class Embedding:
    """.table: the rows that stay in the file, or None."""

    def __init__(self, gguf: GGUFFile, config: ModelConfig, weights: Weights, layout: Layout):
        self._config, self._weights, self._buffers = config, weights, layout.buffers
        self.table = RowTable(gguf, config.per_layer) if config.per_layer else None

    def fill(self, ids: np.ndarray) -> None:
        """For the ids of a step. FormatError, and of the table FileError: nothing of the step has been computed yet."""
        scale, rows = self._config.embedding_scale, self._weights.embed(ids)
        self._buffers["x"][:len(ids), :self._config.dim] = rows if scale == 1 else rows * np.float32(scale)
        if self.table:
            self.table.fill(ids, self._buffers["per_layer"])

    def close(self) -> None:
        if self.table:
            self.table.close()
