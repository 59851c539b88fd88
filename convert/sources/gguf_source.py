"""GGUF files as sources: to requantise, merge or split. Metadata and names stay; rows can be copied as they are, or decoded by the reference decoders."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.architectures.config import ModelConfig, check_tensors
from ...engine.gguf.file import GGUFFile, TensorInfo, open_gguf
from ...kernels.formats.table import FORMATS
from .base import Source, SourceTensor, to_float32

PART_ROWS = 256
_OWN_KEYS = ("split.no", "split.count", "split.tensors.count", "general.alignment")
"""What says how the file is laid out rather than what it holds: the writer's to say."""


def open_gguf_source(path: Path) -> Source:
    """A whole or split (first shard) GGUF file of an architecture with a page, in formats with kernels.

    Errors as of open_gguf, ModelConfig.from_gguf and check_tensors."""
    file = open_gguf(path)
    try:
        config = ModelConfig.from_gguf(file)
        check_tensors(file, config)
        metadata: dict[str, Any] = {key: file.metadata[key] for key in file.metadata if key not in _OWN_KEYS}
        dropped = [name for name in file.tensors if name not in dict(config.tensor_shapes())]
        notes = [f"{len(dropped)} tensors without effect left out, such as {dropped[0]}"] if dropped else []
        if len(file.paths) > 1:
            notes.append(f"{len(file.paths)} shards merged")
        tensors = [_tensor(file, file.tensors[name], shape) for name, shape in config.tensor_shapes()]
    except BaseException:
        file.close()
        raise
    return Source("gguf", file.path, metadata, tensors, file.paths, notes, file.close, file.stamps)


def _tensor(file: GGUFFile, info: TensorInfo, shape: tuple[int, ...]) -> SourceTensor:
    return SourceTensor(info.name, shape, info.format.name, info.path, _reader(file, info.name), lambda first, last: file.data(info.name, first, last))


def _reader(file: GGUFFile, name: str) -> Callable[[np.ndarray], np.ndarray]:
    format = file.tensors[name].format.name

    def read(index: np.ndarray) -> np.ndarray:
        first, last = (int(index.min()), int(index.max()) + 1) if len(index) else (0, 0)
        raw = file.data(name, first, last)
        if last - first != len(index) or not (np.diff(index) == 1).all():
            raw = raw[index - first]
        if format in ("F32", "F16", "BF16"):
            return to_float32(raw.view({"F32": "<f4", "F16": "<u2", "BF16": "<u2"}[format]), format)
        from ...kernels.formats.registry import decode  # imports Numba

        columns = raw.shape[1] // FORMATS[format].bytes * FORMATS[format].columns
        values = np.empty((len(raw), columns), np.float32)
        for at in range(0, len(raw), PART_ROWS):  # the decoders make temporaries several times the size of their result
            values[at : at + PART_ROWS] = decode(format, raw[at : at + PART_ROWS])
        return values
    return read
