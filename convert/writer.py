"""Write a GGUF file, whole or in shards, tensor by tensor, so that a file under its own name is always a finished one.

    Output(path, metadata, tensors, split) -> .write(bytes in order) ... -> .patch(key, text) -> .finish()        or .abort()

Everything goes into new files beside the targets (engine/files.py); `finish` brings them to the disk and renames them, shards before the first shard, without
which no reader takes the others. The gguf package writes the headers, so that they are llama.cpp's own; data goes past it, in pieces of any size.
"""
from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.errors import FileError, OptionError
from ..engine.files import NewFile, new_file, reason, shown, writing
from ..engine.gguf.writer import write_through
from ..kernels.formats.table import FORMATS

ALIGNMENT = 32


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written: shape in NumPy order, `format` a key of FORMATS."""

    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * FORMATS[self.format].row_bytes(self.shape[-1])


@dataclass
class _Shard:
    path: Path  # once finished
    tensors: list[OutTensor]
    new: NewFile
    header: int = 0  # bytes before the data
    at: int = field(default=0)  # tensors completed


def shard_paths(path: Path, n: int) -> list[Path]:
    """Names of `n` shards as llama.cpp's gguf-split gives them; one keeps its name."""
    stem = path.name.removesuffix(".gguf")
    return [path] if n == 1 else [path.with_name(f"{stem}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]


def divide(tensors: Sequence[OutTensor], most: int | None) -> list[list[OutTensor]]:
    """Consecutive groups of at most `most` bytes of data each (a larger tensor is a group of its own)."""
    groups: list[list[OutTensor]] = [[]]
    held = 0
    for t in tensors:
        size = -(-t.n_bytes // ALIGNMENT) * ALIGNMENT
        if most and groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(t)
        held += size
    return groups


def check_target(path: Path, sources: Sequence[Path], overwrite: bool = True) -> None:
    """Refuse a target that is a source, cannot be written, or is there (not `overwrite`), before any work. FileError, OptionError."""
    name = shown(path)
    try:
        if path.is_dir():
            raise FileError(f"{name}: is a directory: give the name of the .gguf file to write")
        if path.exists() and not path.is_file():  # a device, which renaming would replace
            raise FileError(f"{name}: is not a regular file: give the name of the .gguf file to write")
        if not path.parent.is_dir():
            raise FileError(f"{name}: the folder {shown(path.parent)} does not exist: make it first")
        for source in sources:
            if path.exists() and source.exists() and path.samefile(source):
                raise OptionError(f"{name}: is the source itself ({source}): a conversion never overwrites what it reads, give another name")
        if not overwrite and path.exists():
            raise OptionError(f"{name}: exists already: give another name, or --overwrite to replace it")
    except OptionError:  # a ValueError, too
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise FileError(f"{name}: cannot be written ({reason(error)})") from None


class Output:
    """A GGUF file being written; abort() or finish() ends it. All errors are FileError, and leave nothing behind."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], tensors: Sequence[OutTensor], split: int | None = None, sources: Sequence[Path] = (),
                 overwrite: bool = True) -> None:
        """metadata: GGUF keys with general.architecture; ints become uint32 (if they fit), floats float32, lists strings, NumPy arrays their own type.
        split: most bytes of data in a shard. sources: files that must not be overwritten, nor any other without `overwrite`."""
        groups = divide(tensors, split)
        self.paths = shard_paths(path, len(groups))
        for p in self.paths:
            check_target(p, sources, overwrite)
        self.shards: list[_Shard] = []
        self._current, self._left = 0, -1
        try:
            with writing(path):
                for p, group in zip(self.paths, groups):
                    self.shards.append(_Shard(p, group, new_file(p, overwrite=overwrite)))
                for i in range(len(groups)):
                    self._header(i, metadata if i == 0 else {}, str(metadata["general.architecture"]), len(tensors))
        except BaseException:
            self.abort()
            raise

    def _header(self, number: int, metadata: Mapping[str, Any], architecture: str, n_tensors: int) -> None:
        import gguf
        kind, shard = gguf.GGUFValueType, self.shards[number]
        writer = gguf.GGUFWriter(None, architecture)
        for key, value in metadata.items():
            if key != "general.architecture":
                _add(writer, kind, key, value)
        if len(self.shards) > 1:
            writer.add_key_value("split.no", number, kind.UINT16)
            writer.add_key_value("split.count", len(self.shards), kind.UINT16)
            writer.add_key_value("split.tensors.count", n_tensors, kind.INT32)
        for t in shard.tensors:
            writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.n_bytes, gguf.GGMLQuantizationType[t.format])
        write_through(writer, shard.new.file)
        shard.header = shard.new.file.seek(0, os.SEEK_END)
        shard.new.file.write(b"\0" * (-shard.header % ALIGNMENT))

    def write(self, data: np.ndarray) -> None:
        """The next bytes: uint8, C-contiguous, in the tensors' order, never across the end of a tensor."""
        while (shard := self.shards[self._current]).at == len(shard.tensors):
            self._current += 1
        tensor, file = shard.tensors[shard.at], shard.new.file
        if self._left < 0:
            self._left = tensor.n_bytes
        assert data.nbytes <= self._left, f"{tensor.name}: {data.nbytes} bytes, expected at most {self._left}"
        with self._writing():
            file.write(np.ascontiguousarray(data).data)
            self._left -= data.nbytes
            if self._left == 0:
                file.write(b"\0" * (-tensor.n_bytes % ALIGNMENT))
                shard.at, self._left = shard.at + 1, -1

    def patch(self, old: bytes, new: bytes) -> None:
        """Replace bytes that occur once in the first shard's header by as many others: values known only after the data."""
        assert len(old) == len(new)
        shard = self.shards[0]
        with self._writing():
            file = shard.new.file
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            header = file.read(shard.header)
            assert header.count(old) == 1
            file.seek(header.index(old))
            file.write(new)
            file.seek(end)

    def finish(self) -> list[Path]:
        """Bring everything to the disk, then to its names -> the files, the first shard first."""
        assert all(s.at == len(s.tensors) for s in self.shards)
        with self._writing():
            for shard in self.shards:
                shard.new.file.flush()
                os.fsync(shard.new.file.fileno())  # all, before the first gets its name
            if len(self.shards) > 1 and self.shards[0].new.overwrite:
                self.paths[0].unlink(missing_ok=True)  # an older set must not look finished while its shards are being replaced
            for shard in reversed(self.shards):
                shard.new.finish()
        return self.paths

    def abort(self) -> None:
        """Remove what was written. Harmless after finish."""
        for shard in self.shards:
            shard.new.discard()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with writing(self.paths[0]):
                yield
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def _add(writer: Any, kind: Any, key: str, value: Any) -> None:
    """One metadata value under the type that llama.cpp expects of it."""
    if isinstance(value, (bool, np.bool_)):
        writer.add_key_value(key, bool(value), kind.BOOL)
    elif isinstance(value, (int, np.integer)):
        fits = kind.UINT32 if 0 <= value < 1 << 32 else kind.UINT64 if value >= 0 else kind.INT32 if value >= -(1 << 31) else kind.INT64
        writer.add_key_value(key, int(value), fits)
    elif isinstance(value, (float, np.floating)):
        number = float(value)
        fits32 = not np.isfinite(number) or abs(number) <= 3.4028234e38
        writer.add_key_value(key, number, kind.FLOAT32 if fits32 else kind.FLOAT64)
    elif isinstance(value, str):
        writer.add_key_value(key, value, kind.STRING)
    elif isinstance(value, np.ndarray):
        name = {"f": "FLOAT", "i": "INT", "u": "UINT", "b": "BOOL"}[value.dtype.kind] + (str(8 * value.dtype.itemsize) if value.dtype.kind != "b" else "")
        if len(value):  # the format has no place for an empty array in llama.cpp's readers
            writer.add_key_value(key, value.tolist(), kind.ARRAY, kind[name])
    elif len(value):
        writer.add_key_value(key, list(value), kind.ARRAY, kind.STRING)
