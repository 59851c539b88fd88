"""Walk the header of one GGUF file (a shard), checking every count, length and offset against the file's size before it is believed.

    Header(path) -> .read() copies the header into memory as it goes -> .version, .alignment, .pairs (key -> value, or an unread Array), .tensors

Layout (github.com/ggml-org/ggml, docs/gguf.md), all little-endian:

    "GGUF"  u32 version  u64 tensor_count  u64 pair_count
    pair_count *   { string key  u32 type  value }            string: u64 length, UTF-8 bytes; array: u32 type  u64 count  values
    tensor_count * { string name  u32 n_dims  u64 dims[n_dims]  u32 format  u64 offset }      offset: from the data section's start
    padding to general.alignment (32 unless said otherwise), data section

GGUF lists dimensions innermost first; they are turned round here and nowhere else, so that a matrix is (rows, cols) as in NumPy.
The limits are far above any real file: they keep a hostile header from costing more than about a second and 100 MB.
"""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...kernels.formats.table import BY_ID, REMOVED, BlockFormat
from ..errors import FormatError, UnsupportedError, quoted
from ..files import StableFile, shown

MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY = (1 << 16) - 1  # bytes; GGUF's own limit
MAX_NAME = 1024  # bytes of a tensor's name; GGUF says 64, but longer ones exist
MAX_TEXT = 12 << 20  # bytes of all strings of a header; a 128,256-token vocabulary with its merges has about 5 MB
MAX_STRINGS = 1 << 20  # strings in all arrays of a header
MAX_NUMBERS = 1 << 22  # numbers in one array
MAX_HEADER = 1 << 26  # bytes of a header in all
ALIGNMENTS = tuple(1 << b for b in range(3, 21))  # bytes; GGUF asks for a multiple of 8, llama.cpp for a power of two

BOOL, STRING, ARRAY = 7, 8, 9
ELEMENTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
"""The other value types: number -> letter of struct, and of NumPy."""
_STRUCTS = {kind: struct.Struct("<" + letter) for kind, letter in ELEMENTS.items()}
_U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
_FIRST = 1 << 20  # bytes that are read before anything is known: most headers
LFS = b"version https://git-lfs.github.com/spec/"
_CUT = "the file is cut short or damaged, get it again"
_DAMAGED = "the header is damaged"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in NumPy order; the last dimension is whole blocks of `format`, one after the other."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    path: Path  # the shard that holds it
    offset: int  # bytes from the start of that shard
    n_bytes: int

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last; 1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1]


@dataclass(frozen=True)
class Array:
    """An array that has been checked but not taken apart: `count` elements of value type `kind`, from byte `start` of the header."""

    start: int
    count: int
    kind: int


def quote(value: object) -> str:
    """A name or value of the file for a message: quoted, on one line, of bounded length."""
    if isinstance(value, (np.ndarray, list, tuple)):
        value = [*value[:20], ...] if len(value) > 20 else list(value)
        value = [item.item() if isinstance(item, np.generic) else item[:80] if isinstance(item, str) else item for item in value]
    return quoted(value)


def refuse_pointer(path: Path, head: bytes) -> None:
    """FormatError if a file's first bytes are those of a Git LFS pointer: what `git clone` leaves where git-lfs is not installed."""
    if not head.startswith(LFS):
        return
    size = next((line[5:].decode() for line in head.splitlines() if line.startswith(b"size ") and line[5:].isdigit()), "?")
    raise FormatError(f"{path}: is a Git LFS pointer, a few lines of text in place of the file itself ({size} bytes): install git-lfs and run "
                      "'git lfs pull' in its folder, or get the file again (llamina pull hf:ORG/REPO fetches whole files)")


def open_source(path: Path) -> StableFile:
    """FileError if it can't be read or is no regular file, FormatError if it is empty."""
    source = StableFile(path, "a GGUF file")
    try:
        refuse_pointer(path, source.read(0, min(200, source.size)))
    except BaseException:
        source.close()
        raise
    return source


class Header:
    """One shard: the open file, and its header, walked from the first byte by `read`, which raises FormatError or UnsupportedError.

    .source: the file; .file: bytes of its beginning, at least the header."""

    def __init__(self, path: Path) -> None:
        self.path, self.source = path, open_source(path)
        self.size, self.at = self.source.size, 0
        self.file = b""
        self.text = self.strings = 0  # bytes and count so far, against MAX_TEXT and MAX_STRINGS
        self.pairs: dict[str, Any] = {}
        self.tensors: list[TensorInfo] = []

    def close(self) -> None:
        self.source.close()

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{shown(self.path)}: {message}")

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{shown(self.path)}: {message}")

    def _have(self, end: int) -> bytes:
        """`file`, with all bytes before `end`, which lies within the file."""
        have = len(self.file)
        if end > have:
            if end > MAX_HEADER:
                self.fail(f"its header passes {MAX_HEADER} bytes, more than any model needs: {_DAMAGED}")
            self.file += self.source.read(have, min(self.size, MAX_HEADER, max(end, 2 * have, _FIRST)) - have)
        return self.file

    def integer(self, key: str, default: int) -> int:
        """A whole-number key that concerns this shard alone."""
        value = self.pairs.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"key {key!r} must be a whole number, found {quote(value)}")
        return value

    def read(self) -> None:
        self._read_magic()
        n_tensors, n_pairs = self._u64("the tensor count"), self._u64("the count of metadata keys")
        for count, limit, least_bytes, what in (n_tensors, MAX_TENSORS, 24, "tensors"), (n_pairs, MAX_PAIRS, 13, "metadata keys"):
            if count > limit or count * least_bytes > self.size - self.at:
                self.fail(f"claims {count} {what}, which cannot fit (file of {self.size} bytes, limit {limit}): {_DAMAGED} or cut short")
        for _ in range(n_pairs):
            self._read_pair()
        self.alignment = self.integer("general.alignment", 32)
        if self.alignment not in ALIGNMENTS:
            self.fail(f"key 'general.alignment' must be a power of two from {ALIGNMENTS[0]} to {ALIGNMENTS[-1]}, found {self.alignment}")
        names: set[str] = set()
        infos = [self._read_tensor(names) for _ in range(n_tensors)]
        self._place(infos)
        self.file = self.file[:self.at]
        self.source.check()

    def _read_magic(self) -> None:
        magic = self._have(min(4, self.size))[:4]
        if magic in (b"lmgg", b"fmgg", b"tjgg"):
            self.refuse(f"is a llama.cpp file from before GGUF ({magic[::-1].decode()}): convert it to GGUF first")
        if magic != b"GGUF":
            self.fail(f"is not a GGUF file: expected it to begin with b'GGUF', found {magic!r}")
        self.at = 4
        self.version = self._u32("the version")
        if self.version and self.version & 0xFFFF == 0:
            self.refuse("is a big-endian GGUF file (its version is byte-swapped): get or convert the little-endian one")
        if self.version not in (2, 3):
            self.refuse(f"is GGUF version {self.version}, expected 2 or 3: convert the model again with a current tool")

    def _take(self, n: int, what: str) -> int:
        """Where the next `n` bytes begin; FormatError if the file does not hold them."""
        start = self.at
        if n > self.size - start:
            self.fail(f"{what} needs {n} bytes at byte {start}, but the file ends at {self.size}: {_CUT}")
        self.at = start + n
        self._have(self.at)
        return start

    def _u32(self, what: str) -> int:
        start = self._take(4, what)
        return _U32.unpack_from(self.file, start)[0]

    def _u64(self, what: str) -> int:
        start = self._take(8, what)
        return U64.unpack_from(self.file, start)[0]

    def _string(self, what: str, limit: int) -> str:
        n = self._u64(f"the length of {what}")
        if n > limit:
            self.fail(f"{what} claims {n} bytes at byte {self.at}, limit {limit}: {_DAMAGED}")
        start = self._take(n, what)
        self._count_text(n, what)
        try:
            return self.file[start : self.at].decode()
        except UnicodeDecodeError as error:
            self.fail(f"{what} at byte {start} is not UTF-8 ({error.reason}): {_DAMAGED}")

    def _count_text(self, n: int, what: str) -> None:
        self.text += n
        if self.text > MAX_TEXT:
            self.fail(f"the header's text passes {MAX_TEXT} bytes at {what}, more than any vocabulary needs: {_DAMAGED}")

    def _read_pair(self) -> None:
        key = self._string(f"key {len(self.pairs)}", MAX_KEY)
        if not key:
            self.fail(f"key {len(self.pairs)} has no name: {_DAMAGED}")
        if key in self.pairs:
            self.fail(f"key {quote(key)} is there twice: {_DAMAGED}")
        what = f"key {quote(key)}"
        kind = self._u32(f"the type of {what}")
        if kind == STRING:
            self.pairs[key] = self._string(f"the value of {what}", MAX_TEXT)
        elif kind == ARRAY:
            self.pairs[key] = self._read_array(what)
        elif kind in _STRUCTS:
            start = self._take(_STRUCTS[kind].size, f"the value of {what}")
            if kind == BOOL and self.file[start] > 1:
                self.fail(f"{what} is a bool, so 0 or 1, found {self.file[start]}")
            self.pairs[key] = _STRUCTS[kind].unpack_from(self.file, start)[0]
        else:
            self.fail(f"{what} has the unknown value type {kind}, expected 0 to 12: {_DAMAGED}")

    def _read_array(self, what: str) -> Array:
        kind, count = self._u32(f"the element type of {what}"), self._u64(f"the element count of {what}")
        if kind == ARRAY:
            self.refuse(f"{what} is an array of arrays, which llamina does not read: remove or flatten it")
        if kind == STRING:
            return self._walk_strings(what, count)
        if kind not in _STRUCTS:
            self.fail(f"{what} has the unknown element type {kind}, expected 0 to 12: {_DAMAGED}")
        if count > MAX_NUMBERS:
            self.fail(f"{what} claims {count} elements, limit {MAX_NUMBERS}: {_DAMAGED}")
        start = self._take(count * _STRUCTS[kind].size, f"an array of {count} elements in {what}")
        if kind == BOOL and count and (worst := int(np.frombuffer(self.file, np.uint8, count, start).max())) > 1:
            self.fail(f"{what} is an array of bools, so 0 or 1, found {worst}")
        return Array(start, count, kind)

    def _walk_strings(self, what: str, count: int) -> Array:
        """Step over `count` strings by their lengths, without decoding: this loop is most of the time that opening a file takes."""
        self.strings += count
        if self.strings > MAX_STRINGS or count * 8 > self.size - self.at:
            self.fail(f"{what} claims {count} strings, which cannot fit (file of {self.size} bytes, limit {MAX_STRINGS}): {_DAMAGED}")
        file, start, position, length_at = self.file, self.at, self.at, U64.unpack_from
        left = iter(range(count))
        while True:
            try:
                for _ in left:
                    position += 8 + length_at(file, position)[0]
                break
            except (struct.error, OverflowError):  # a length leads out of what is in memory, or out of the file
                if position + 8 > self.size:
                    position = self.size + 1
                    break
                file = self._have(position + 8)
                position += 8 + length_at(file, position)[0]  # that one's turn is taken already
        if position > self.size:
            self.fail(f"the strings of {what} pass the file's end at byte {self.size}: {_CUT}")
        self._have(position)
        self._count_text(position - start - 8 * count, what)
        self.at = position
        return Array(start, count, STRING)

    def _read_tensor(self, names: set[str]) -> tuple[str, tuple[int, ...], BlockFormat, int, int]:
        """(name, shape, format, offset in the data section, bytes) of the next tensor."""
        name = self._string(f"the name of tensor {len(names)}", MAX_NAME)
        what = f"tensor {quote(name)}"
        if name in names:
            self.fail(f"{what} is there twice: {_DAMAGED}")
        names.add(name)
        n_dims = self._u32(f"the dimension count of {what}")
        if not 1 <= n_dims <= 4:
            self.fail(f"{what} must have 1 to 4 dimensions, found {n_dims}")
        start = self._take(8 * n_dims, f"the dimensions of {what}")
        shape = struct.unpack_from(f"<{n_dims}Q", self.file, start)[::-1]
        number, offset = self._u32(f"the format of {what}"), self._u64(f"the offset of {what}")
        if number in REMOVED:
            self.refuse(f"{what} is stored as {REMOVED[number]}, a format that llama.cpp has removed: quantise the model again")
        if number not in BY_ID:
            self.refuse(f"{what} has format number {number}, which this llamina does not know: get the model in another format")
        format = BY_ID[number]
        if 0 in shape:
            self.fail(f"{what} has a dimension of 0: shape {list(shape)}")
        if shape[-1] % format.columns:
            self.fail(f"{what} has rows of {shape[-1]}, which is not a whole number of {format.name} blocks of {format.columns}")
        n_bytes = math.prod(shape[:-1]) * format.row_bytes(shape[-1])
        if n_bytes > self.size:
            self.fail(f"{what} of shape {list(shape)} in {format.name} needs {n_bytes} bytes, more than the file's {self.size}: {_CUT}")
        if offset % self.alignment:
            self.fail(f"{what} begins at offset {offset}, which is not a multiple of the alignment {self.alignment}")
        return name, shape, format, offset, n_bytes

    def _place(self, infos: list[tuple[str, tuple[int, ...], BlockFormat, int, int]]) -> None:
        """Turn offsets into positions in the file; refuse tensors that lie outside the file or over each other."""
        data = -(-self.at // self.alignment) * self.alignment
        for name, shape, format, offset, n_bytes in infos:
            if data + offset + n_bytes > self.size:
                self.fail(f"tensor {quote(name)} ends at byte {data + offset + n_bytes}, but the file at {self.size}: {_CUT}")
            self.tensors.append(TensorInfo(name, shape, format, self.path, data + offset, n_bytes))
        in_order = sorted(self.tensors, key=lambda t: t.offset)
        for before, after in zip(in_order, in_order[1:]):
            if after.offset < before.offset + before.n_bytes:
                self.fail(f"tensors {quote(before.name)} and {quote(after.name)} overlap at byte {after.offset}: {_DAMAGED}")
