"""All weights of a float32 model as arrays that are trained, and the file that they are written to.

    GGUF file, F32 ──► .arrays {tensor: float32} ──► optimiser changes them ──► Runtime.rewrite: the model computes with them ──► .save: the file's own header,
                                                                                                                                  their numbers
"""
from __future__ import annotations

import contextlib
import hashlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ClosedError, FileError, OutOfMemoryError, UnsupportedError
from ..files import NewFile, shown, writing
from ..gguf.file import model_digest, open_gguf
from ..run.weights import available_memory
from ..units import size
from .gradients import check

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..architectures.config import ModelConfig


def trained_tensors(config: ModelConfig) -> list[str]:
    """Names of all that is trained: matrices, their biases, norms' gains and biases, the embedding, and what joins it; in the order of the model."""
    known = {"token_embd.weight", *(added.tensor.name for added in config.added)}
    for matrix in config.matrices():
        known |= {matrix.tensor, matrix.bias}
    for norm in config.norms():
        known |= {norm.tensor, norm.bias}
    return [tensor.name for tensor in config.tensors() if tensor.name in known]


def why_not(model: Core) -> str:
    """What of a model keeps all of its weights from being trained (beside what no adapter can go through, either), or ""."""
    config, gguf = model.config, model.runtime.gguf
    if other := next((t for t in gguf.tensors.values() if t.format.name != "F32"), None):
        return (f"tensor '{other.name}' is {other.format.name}: all weights of models in F32 can be trained; make one from the original, or from this file: "
                f"llamina convert {Path(model.path).name} model.f32.gguf --type f32")
    if len(gguf.paths) > 1:
        return f"it is in {len(gguf.paths)} files: make one of them: llamina convert {Path(model.path).name} model.gguf --type keep"
    if sinks := next((a.sinks for a in config.attentions() if a.sinks), ""):
        return f"it has '{sinks}', which training of all weights does not know"
    if part := next((m for m in config.matrices() if m.period), None):
        return f"rows of several matrices alternate in '{part.tensor}', which training of all weights does not know"
    return ""


class ModelWeights:
    """Of one model. .arrays: {tensor: float32, its shape}, C-contiguous. The model's own file stays as it is. copies: how many of all of them there will be:
    weights, gradients, moments. UnsupportedError; FileError; OutOfMemoryError: so many don't fit."""

    def __init__(self, model: Core, copies: int = 1) -> None:
        check(model)
        if why := why_not(model):
            raise UnsupportedError(f"{shown(model.path)}: {why}")
        self.model, self._gguf = model, open_gguf(model.runtime.gguf.path)  # the model has closed its own
        if model_digest(self._gguf) != model.runtime.digest:
            raise FileError(f"{shown(model.path)}: was changed since it was loaded: load it again")
        shapes = dict(model.config.tensor_shapes())
        names, free = trained_tensors(model.config), available_memory()
        needed = 4 * copies * sum(math.prod(shapes[name]) for name in names)
        if free is not None and needed > free:
            raise OutOfMemoryError(f"{shown(model.path)}: training all weights takes {size(needed)} beside the model ({copies} numbers for each weight), and "
                                   f"{size(free)} are free: train an adapter, or a smaller model")
        self.arrays = {name: self._read(name, shapes[name]) for name in names}

    def _read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self._gguf.data(name).view("<f4").astype(np.float32).reshape(shape)

    @property
    def n_parameters(self) -> int:
        return sum(array.size for array in self.arrays.values())

    @property
    def digest(self) -> str:
        """SHA-256 of all numbers, in the order of the names."""
        found = hashlib.sha256()
        for name in sorted(self.arrays):
            found.update(np.ascontiguousarray(self.arrays[name], "<f4").data)
        return found.hexdigest()

    def put_back(self) -> None:
        """The model has the numbers of its file again. Nothing where it was closed."""
        with contextlib.suppress(ClosedError), self.model.scheduler.alone() as runtime:
            for name, array in self.arrays.items():
                runtime.rewrite({name: self._read(name, array.shape)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """A GGUF file: the model's own, byte for byte, with the trained numbers in their places. FileError."""
        gguf, path = self._gguf, Path(path)
        with writing(path), NewFile(path) as new:
            for piece in gguf.before_data(gguf.path):
                new.file.write(piece)
            for info in sorted(gguf.tensors.values(), key=lambda info: info.offset):
                new.file.write(b"\0" * (info.offset - new.file.tell()))
                array = self.arrays.get(info.name)
                new.file.write(gguf.data(info.name).data if array is None else np.ascontiguousarray(array, "<f4").data)
            new.file.write(b"\0" * (-new.file.tell() % gguf.alignment))
            gguf.check()

    def __repr__(self) -> str:
        return f"<llamina.train.ModelWeights of {Path(self.model.path).name}: {len(self.arrays)} tensors, {self.n_parameters:,} numbers>"
