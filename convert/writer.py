"""Write a GGUF file, whole or in shards, tensor by tensor, so that a file under its own name is always a finished one.

    Output(path, metadata, tensors, split) -> .write(bytes in order) ... -> .patch(key, text) -> .finish()        or .abort()

Everything goes into `.NAME.partial-PID` beside the target; `finish` brings it to the disk and renames it, shards before the first shard, without which no
reader takes the others. The gguf package writes the headers, so that they are llama.cpp's own; data goes past it, in pieces of any size.
"""
from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..engine.errors import FileError, OptionError
from ..kernels.formats.table import FORMATS

ALIGNMENT = 32
_ADVICE = {errno.ENOSPC: "no space left: free some, or write to another disk", errno.EFBIG: "the file would be too large for the disk or a limit (ulimit -f)",
           errno.EACCES: "no permission to write there", errno.EROFS: "the disk is read-only", errno.ENOENT: "the folder does not exist",
           errno.ENOTDIR: "its folder is not a folder", errno.EDQUOT: "the disk quota is used up"}


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
    partial: Path
    tensors: list[OutTensor]
    file: BinaryIO | None = None
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


def check_target(path: Path, sources: Sequence[Path]) -> None:
    """Refuse a target that is a source or cannot be written, before any work. FileError, OptionError."""
    try:
        if path.is_dir():
            raise FileError(f"{path}: is a directory: give the name of the .gguf file to write")
        if path.exists() and not path.is_file():  # a device, which renaming would replace
            raise FileError(f"{path}: is not a regular file: give the name of the .gguf file to write")
        if not path.parent.is_dir():
            raise FileError(f"{path}: the folder {path.parent} does not exist: make it first")
        for source in sources:
            if path.exists() and source.exists() and path.samefile(source):
                raise OptionError(f"{path}: is the source itself ({source}): a conversion never overwrites what it reads, give another name")
    except OptionError:  # a ValueError, too
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise FileError(f"{str(path)!r}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


class Output:
    """A GGUF file being written; abort() or finish() ends it. All errors are FileError, and leave nothing behind."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], tensors: Sequence[OutTensor], split: int | None = None, sources: Sequence[Path] = ()) -> None:
        """metadata: GGUF keys with general.architecture; ints become uint32 (if they fit), floats float32, lists strings, NumPy arrays their own type.
        split: most bytes of data in a shard. sources: files that must not be overwritten."""
        groups = divide(tensors, split)
        paths = shard_paths(path, len(groups))
        for p in paths:
            check_target(p, sources)
        self.paths = paths
        self.shards = [_Shard(p, p.with_name(f".{p.name}.partial-{os.getpid()}"), group) for p, group in zip(paths, groups)]
        self._current, self._left = 0, -1
        try:
            for i, shard in enumerate(self.shards):
                self._open(shard, metadata if i == 0 else {}, str(metadata["general.architecture"]), i, len(tensors))
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError):
                self._fail(error)
            raise

    def _open(self, shard: _Shard, metadata: Mapping[str, Any], architecture: str, number: int, n_tensors: int) -> None:
        import gguf
        kind = gguf.GGUFValueType
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
        try:
            writer.open_output_file(shard.partial)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            for file in writer.fout or []:
                with contextlib.suppress(OSError):
                    file.close()
        shard.file = open(shard.partial, "r+b")  # noqa: SIM115 - closed by finish or abort
        shard.header = shard.file.seek(0, os.SEEK_END)
        shard.file.write(b"\0" * (-shard.header % ALIGNMENT))

    def write(self, data: np.ndarray) -> None:
        """The next bytes: uint8, C-contiguous, in the tensors' order, never across the end of a tensor."""
        while (shard := self.shards[self._current]).at == len(shard.tensors):
            self._current += 1
        tensor, file = shard.tensors[shard.at], shard.file
        assert file is not None
        if self._left < 0:
            self._left = tensor.n_bytes
        assert data.nbytes <= self._left, f"{tensor.name}: {data.nbytes} bytes, expected at most {self._left}"
        try:
            file.write(np.ascontiguousarray(data).data)
            self._left -= data.nbytes
            if self._left == 0:
                file.write(b"\0" * (-tensor.n_bytes % ALIGNMENT))
                shard.at, self._left = shard.at + 1, -1
        except OSError as error:
            self._fail(error)

    def patch(self, old: bytes, new: bytes) -> None:
        """Replace bytes that occur once in the first shard's header by as many others: values known only after the data."""
        assert len(old) == len(new)
        file = self.shards[0].file
        assert file is not None
        try:
            file.flush()
            end = file.tell()
            file.seek(0)
            header = file.read(self.shards[0].header)
            assert header.count(old) == 1
            file.seek(header.index(old))
            file.write(new)
            file.seek(end)
        except OSError as error:
            self._fail(error)

    def finish(self) -> list[Path]:
        """Bring everything to the disk, then to its names -> the files, the first shard first."""
        assert all(s.at == len(s.tensors) for s in self.shards)
        try:
            for shard in self.shards:
                assert shard.file is not None
                shard.file.flush()
                os.fsync(shard.file.fileno())
                shard.file.close()
            if len(self.shards) > 1:
                self.paths[0].unlink(missing_ok=True)  # an older set must not look finished while its shards are being replaced
            for shard in reversed(self.shards):
                os.replace(shard.partial, shard.path)
        except OSError as error:
            self._fail(error)
        with contextlib.suppress(OSError, AttributeError):  # so that the names survive a power cut; not every system can
            folder = os.open(self.paths[0].parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return self.paths

    def abort(self) -> None:
        """Remove what was written. Harmless after finish."""
        for shard in self.shards:
            with contextlib.suppress(OSError):
                if shard.file:
                    shard.file.close()
            with contextlib.suppress(OSError):
                shard.partial.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> NoReturn:
        self.abort()
        reason = _ADVICE.get(error.errno or 0) or error.strerror or str(error)
        raise FileError(f"{self.paths[0]}: cannot be written ({reason}); nothing was left there") from None

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
        writer.add_key_value(key, float(value), kind.FLOAT32)
    elif isinstance(value, str):
        writer.add_key_value(key, value, kind.STRING)
    elif isinstance(value, np.ndarray):
        name = {"f": "FLOAT", "i": "INT", "u": "UINT", "b": "BOOL"}[value.dtype.kind] + (str(8 * value.dtype.itemsize) if value.dtype.kind != "b" else "")
        if len(value):  # the format has no place for an empty array in llama.cpp's readers
            writer.add_key_value(key, value.tolist(), kind.ARRAY, kind[name])
    elif len(value):
        writer.add_key_value(key, list(value), kind.ARRAY, kind.STRING)
