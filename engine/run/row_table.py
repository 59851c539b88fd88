"""A table that stays in the file: rows are read by position as tokens need them, decoded, and the last used are kept.

    ids [M] ──► kept rows | file (StableFile.read_into, then .check) ──► rows decoded ──► times sqrt(width) ──► the buffer "per_layer"

Gemma 4's per-layer embeddings: half of such a model's file, of which a token needs some kilobytes. Nothing is mapped: a file that is cut short or changed after
the model was loaded is a FileError of the step that notices, and no sequence has changed then.
"""
from __future__ import annotations

from collections import OrderedDict

import numpy as np

from ...kernels.formats import registry
from ..architectures.per_layer_blocks import PerLayerInputs, padded
from ..errors import FormatError
from ..gguf.file import GGUFFile

KEPT = 8 << 20
"""Bytes of decoded rows that are kept."""


def kept_rows(block: PerLayerInputs) -> int:
    """How many rows are kept."""
    return max(16, KEPT // (4 * block.layers * block.width))


class RowTable:
    """The rows of a model's per-layer table. .nbytes: of the tensor in the file; .reads: rows read of it so far."""

    def __init__(self, gguf: GGUFFile, block: PerLayerInputs):
        self._block, self._most, info = block, kept_rows(block), gguf.tensors[block.table]
        self._file, self._offset = gguf.file_of(block.table)
        self._format, self._row_bytes, self.nbytes = info.format.name, info.n_bytes // info.rows, info.n_bytes
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._scale = np.float32(np.sqrt(np.float32(block.width)))
        self.reads = 0

    def fill(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Rows of the table, times sqrt(width), into `rows`, float32 [M, at least layers * padded(width)], each layer's part at a multiple of padded(width).

        FileError: the file was cut short or changed. FormatError: NaN or infinity in a row."""
        b = self._block
        target = rows[:len(ids), :b.layers * padded(b.width)].reshape(len(ids), b.layers, padded(b.width))
        found = self._rows(list(dict.fromkeys(ids.tolist())))
        for m, token in enumerate(ids.tolist()):
            target[m, :, :b.width] = found[token]

    def _rows(self, wanted: list[int]) -> dict[int, np.ndarray]:
        found, missing = {}, []
        for token in wanted:
            row = self._kept.get(token)
            if row is None:
                missing.append(token)
            else:
                self._kept.move_to_end(token)
                found[token] = row
        if missing:
            found |= self._read(missing)
        return found

    def _read(self, tokens: list[int]) -> dict[int, np.ndarray]:
        b, raw = self._block, np.empty((len(tokens), self._row_bytes), np.uint8)
        for i in sorted(range(len(tokens)), key=tokens.__getitem__):
            self._file.read_into(self._offset + tokens[i] * self._row_bytes, raw[i].data)
        self._file.check()
        self.reads += len(tokens)
        decoded = registry.decode(self._format, raw) * self._scale
        if not np.isfinite(decoded).all():
            bad = tokens[int(np.argmin(np.isfinite(decoded).all(axis=1)))]
            raise FormatError(f"{self._file.path}: tensor {b.table!r} holds NaN or infinity in row {bad}: the file is damaged, or its "
                              "conversion overflowed")
        read = dict(zip(tokens, decoded.reshape(len(tokens), b.layers, b.width)))
        for token in tokens[-self._most:]:
            self._kept[token] = read[token].copy()
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return read

    def close(self) -> None:
        """Let go of the file. Harmless twice."""
        self._file.close()
