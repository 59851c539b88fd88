"""Read GGUF files, versions 2 and 3, whole or split: typed metadata, a table of tensors, and their bytes, read when asked for.

    open_gguf(path) -> a checked gguf_header.Header per shard -> GGUFFile: .metadata (arrays are taken apart when asked for), .tensors,
    .data(name), .check()

Opening copies the headers, nothing else; a 32,000-token vocabulary takes about 5 ms. Nothing is mapped, so a file that is cut short or overwritten meanwhile
is an error of ours (`check`, or at once) and no SIGBUS; the metadata need the file no more. Own code, because the gguf package's reader takes over a second
for that, and can be made to hang by a file of a few bytes.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np

from ..errors import ClosedError, FileError, FormatError
from ..files import StableFile, Stamp
from .header import ELEMENTS, STRING, U64, Array, Header, TensorInfo, quote

__all__ = ["REQUIRED", "GGUFFile", "Metadata", "TensorInfo", "Value", "model_digest", "open_gguf"]

Value = str | int | float | bool | np.ndarray | list[str]
T = TypeVar("T")
D = TypeVar("D")
REQUIRED: Any = object()
"""Default of `GGUFFile.get`: the key must be there."""

_SAMPLE = 4096  # bytes of a tensor's beginning, middle and end that stand for all of it, where models are told apart
MAX_SHARDS = 4096  # each keeps a file descriptor
_KINDS = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "an array of strings",
    np.ndarray: "an array of numbers",
}


class Metadata(Mapping[str, Value]):
    """The header's key-value pairs, a read-only mapping. An array is taken out of the header when first looked up, and then kept: list[str] for
    strings (FormatError if one is not UTF-8), a NumPy array in memory of its own, of the file's element type, for numbers and bools."""

    def __init__(self, header: Header) -> None:
        self._path, self._file, self._pairs = header.path, header.file, header.pairs

    def __getitem__(self, key: str) -> Value:
        value = self._pairs[key]
        if isinstance(value, Array):
            value = self._pairs[key] = self._strings(key, value) if value.kind == STRING else self._numbers(value)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._pairs

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def array_length(self, key: str) -> int | None:
        """Number of elements of an array, without reading it; None if the key is absent or not an array."""
        value = self._pairs.get(key)
        if isinstance(value, Array):
            return value.count
        return len(value) if isinstance(value, (list, np.ndarray)) else None

    def _numbers(self, array: Array) -> np.ndarray:
        stored = np.dtype("<" + ELEMENTS[array.kind])
        return np.frombuffer(self._file, stored, array.count, array.start).astype(stored.newbyteorder("="))

    def _strings(self, key: str, array: Array) -> list[str]:
        file, position, length_at = self._file, array.start, U64.unpack_from
        strings: list[str] = []
        try:
            for _ in range(array.count):
                start = position + 8
                position = start + length_at(file, position)[0]
                strings.append(file[start:position].decode())
        except UnicodeDecodeError as error:
            raise FormatError(f"{self._path}: string {len(strings)} of key {quote(key)} is not UTF-8 ({error.reason})") from None
        return strings


class GGUFFile:
    """An open GGUF file with all its shards, made by `open_gguf`; a context manager. Only `close` changes it, so threads may share it.

    .path: the first shard; .paths: all; .version: 2 or 3; .alignment: bytes; .metadata: the first shard's; .tensors: all, in file order.
    """

    def __init__(self, shards: list[Header]) -> None:
        first = shards[0]
        self.path, self.version, self.alignment = first.path, first.version, first.alignment
        self.paths = [s.path for s in shards]
        self.metadata = Metadata(first)
        self.tensors: dict[str, TensorInfo] = {}
        for info in (info for s in shards for info in s.tensors):
            if info.name in self.tensors:
                other = self.tensors[info.name].path.name
                raise FormatError(f"{info.path}: tensor {quote(info.name)} is also in {other}: the shards do not belong together")
            self.tensors[info.name] = info
        self._headers = {s.path: s.file for s in shards}
        self._files: dict[Path, StableFile] | None = {s.path: s.source for s in shards}

    def data(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Rows first <= i < last (default: all) of the tensor, read now: uint8 [rows, bytes per row]. KeyError if there is no such tensor, ClosedError after
        `close`, FileError if the file was cut short meanwhile."""
        info = self.tensors[name]
        row_bytes = info.n_bytes // info.rows
        rows = np.empty(((info.rows if last is None else last) - first, row_bytes), np.uint8)
        self.read_into(name, first * row_bytes, rows)
        rows.flags.writeable = False
        return rows

    def read_into(self, name: str, at: int, into: np.ndarray) -> None:
        """Fill a C-contiguous array with the tensor's bytes from byte `at` of it on; from any thread. Raises like `data`."""
        info = self.tensors[name]
        assert at >= 0 and at + into.nbytes <= info.n_bytes
        if into.nbytes:
            self._file_of(info).read_into(info.offset + at, into.reshape(-1).view(np.uint8).data)

    def file_of(self, name: str) -> tuple[StableFile, int]:
        """(the file that holds the tensor, open for itself also after `close`; where in it the tensor begins). ClosedError after `close`."""
        info = self.tensors[name]
        return self._file_of(info).duplicate(), info.offset

    def before_data(self, path: Path) -> Iterator[bytes]:
        """All bytes before the first tensor of one of `.paths`, in pieces; the header is not read again. Raises like `data`."""
        at, end = len(self._headers[path]), min((info.offset for info in self.tensors.values() if info.path == path), default=0)
        yield self._headers[path]
        while at < end:
            if self._files is None:
                raise ClosedError(f"{self.path}: the file was closed: open it again")
            yield (piece := self._files[path].read(at, min(end - at, 1 << 20)))
            at += len(piece)

    def check(self) -> None:
        """FileError if one of the files was changed since it was opened: what was read is of no file at all, then."""
        for file in (self._files or {}).values():
            file.check()

    @property
    def stamps(self) -> list[Stamp]:
        """What the files were like when they were opened."""
        return [file.stamp for file in (self._files or {}).values()]

    def _file_of(self, info: TensorInfo) -> StableFile:
        if self._files is None:
            raise ClosedError(f"{self.path}: the file was closed: open it again to read tensor {quote(info.name)}")
        return self._files[info.path]

    @overload
    def get(self, key: str, kind: type[T]) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: D) -> T | D: ...
    def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        """The value of `key`, which must be of `kind`: str, int, float (a whole number will do), bool, list (of strings) or np.ndarray.
        FormatError if it is of another kind, or if it is absent and no default is given."""
        if key not in self.metadata:
            if default is REQUIRED:
                raise FormatError(f"{self.path}: key {quote(key)} is missing, expected {_KINDS[kind]}: convert the model again")
            return default
        value = self.metadata[key]
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) and kind is not bool:
            found = _KINDS[type(value)] if isinstance(value, (list, np.ndarray)) else quote(value)
            raise FormatError(f"{self.path}: key {quote(key)} must be {_KINDS[kind]}, found {found}")
        return float(value) if isinstance(value, int) and kind is float else value

    def close(self) -> None:
        """Let go of the files. What `data` gave and the metadata stay valid."""
        files, self._files = self._files, None
        for file in (files or {}).values():
            file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file, or a split one by its first shard (name-00001-of-00003.gguf), and check all of its header; no tensor data is read.

    FileError: the path or a shard is missing, unreadable, a directory, not a regular file, or a shard other than the first.
    FormatError: damaged. UnsupportedError: another GGUF version, big-endian, or a tensor format that llamina does not know."""
    shards = [Header(Path(path))]
    try:
        shards[0].read()
        for later in _later_shards(shards[0]):
            shards.append(later)
            later.read()
        _check_split(shards)
        return GGUFFile(shards)
    except BaseException:
        for s in shards:
            s.close()
        raise


def model_digest(gguf: GGUFFile) -> str:
    """What tells a model file from others: BLAKE2b of its header (metadata, tensor names, shapes, formats) and of 4 KiB from the beginning, the middle and
    the end of each tensor. Not of all of it, which would take seconds per gigabyte at every start; a file that differs elsewhere only is not noticed."""
    found = blake2b(digest_size=32)
    for path in gguf.paths:
        for piece in gguf.before_data(path):
            found.update(piece)
    sample = np.empty(_SAMPLE, np.uint8)
    for info in gguf.tensors.values():
        middle = max(0, info.n_bytes // 2 - _SAMPLE // 2)
        for start in 0, middle, max(0, info.n_bytes - _SAMPLE):
            part = sample[:min(_SAMPLE, info.n_bytes - start)]
            gguf.read_into(info.name, start, part)
            found.update(part.data)
    return found.hexdigest()


def _later_shards(first: Header) -> Iterator[Header]:
    """Shards 2, 3, ... of a split file, opened one by one; nothing for a file that is not split. Names are llama.cpp's (gguf-split)."""
    count, number = first.integer("split.count", 1), first.integer("split.no", 0) + 1
    if count <= 1:
        return
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", first.path.name)
    names = [f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, min(count, MAX_SHARDS) + 1)]
    if number != 1:
        raise FileError(f"{first.path}: is shard {number} of {count}: open the first one, {names[0]}, instead")
    if first.path.name != names[0]:
        raise FileError(f"{first.path}: is the first of {count} shards, so it must be called {names[0]}, beside the others: rename it")
    if count > MAX_SHARDS:
        first.fail(f"key 'split.count' is {count}, expected at most {MAX_SHARDS}")
    for i, name in enumerate(names[1:], 2):
        path = first.path.with_name(name)
        if not os.path.exists(path):
            raise FileError(f"{path}: shard {i} of {count} is missing: put it beside {first.path.name}")
        yield Header(path)


def _check_split(shards: list[Header]) -> None:
    """FormatError unless every shard of a split file says which one it is, and the tensors are as many as the first one promises."""
    count = len(shards)
    if count == 1:
        return
    for i, s in enumerate(shards):
        for key, expected in ("split.no", i), ("split.count", count):
            if (found := s.integer(key, -1)) != expected:
                s.fail(f"key {key!r} must be {expected} in shard {i + 1} of {count}, found {found}: the shards do not belong together")
    held = sum(len(s.tensors) for s in shards)
    promised = shards[0].integer("split.tensors.count", held)
    if promised != held:
        shards[0].fail(f"key 'split.tensors.count' is {promised}, the {count} shards hold {held}: the shards do not belong together")
