"""What all checkpoint readers share: stored tensors decoded by rows, the Source they make, and the check that a checkpoint is a whole model.

    reader: ModelConfig + {GGUF name: Rows} -> assemble() -> Source(metadata, tensors, ...)

`Rows` is anything with .shape, .dtype and .read(index) -> float32: a `Stored` tensor of a file, or a view of others (`Joined`, `Permuted`, `Scaled`). Rows
are read when asked for, never mapped: memory is that of the rows being worked on, and a file that shrinks meanwhile is an error of ours.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...engine.architectures.config import ModelConfig, RopeScaling
from ...engine.errors import FormatError, UnsupportedError, why
from ...engine.files import StableFile, Stamp, read_file
from ...engine.gguf.header import quote, refuse_pointer

if TYPE_CHECKING:
    from .vocabulary import Vocab

NOT_FLOAT = "weights in whole numbers need scales that only their quantiser knows; convert the unquantised checkpoint"
MAX_JSON = 1 << 28  # the largest tokenizer.json known have 20 MB

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2"), "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"),
}
"""Weight types that are decoded -> the type of their bits. Little-endian, as all these files are."""


@cache
def _float8(name: str) -> np.ndarray:
    """Values of the 256 codes, float32. E5M2 is the upper half of an F16. E4M3 is the "fn" kind: no infinities, 0x7F and 0xFF are NaN, bias 7
    (Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433)."""
    code = np.arange(256)
    if name == "F8_E5M2":
        return (code << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where((code & 127) == 127, np.nan, np.where(code > 127, -value, value)).astype(np.float32)


def _float16(raw: np.ndarray) -> np.ndarray:
    """F16 bits as float32, exact: moved to float32's place, the exponent is 112 too small, subnormals included. Twice as fast as NumPy's own."""
    bits = raw.astype(np.uint32)
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    bits &= np.uint32(0x7FFF)
    bits <<= np.uint32(13)
    special = bits >= np.uint32(0x7C00 << 13) if bits.size and bits.max() >= 0x7C00 << 13 else None
    value = bits.view(np.float32)
    value *= np.float32(2.0**112)
    if special is not None:  # infinities and NaN keep their exponent of all ones
        bits[special] |= np.uint32(0x7F800000)
    bits |= sign
    return value


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers of type `dtype`, given as `DTYPES[dtype]`, in float32: a copy, exact but for F64."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return _float16(raw)
    if dtype.startswith("F8"):
        return _float8(dtype)[raw]
    with np.errstate(over="ignore"):  # an F64 beyond float32 becomes infinite, and is reported as that
        return raw.astype(np.float32)


class SourceFile(StableFile):
    """A checkpoint's file with tensors. `kept`: the last tensor that doesn't lie row after row: (offset, its bytes), as each of its rows is all over it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kept: tuple[int, bytes] | None = None
        refuse_pointer(path, self.read(0, min(200, self.size)))

    def close(self) -> None:
        self.kept = None
        super().close()


class Rows(Protocol):
    """A matrix [rows, cols] whose rows can be read, in any order."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    def read(self, index: np.ndarray) -> np.ndarray:
        """Rows `index`, int64 [n], decoded: float32 [n, cols], the caller's own. A vector is one row."""


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it. The maker has checked that it lies within the file."""

    file: SourceFile
    name: str  # in the file
    dtype: str
    shape: tuple[int, ...]  # () counts as one element; of three, [experts, rows, columns], rows are counted through
    offset: int  # bytes into the file
    strides: tuple[int, ...] | None = None  # in elements; None: C order

    def read(self, index: np.ndarray) -> np.ndarray:
        if self.dtype not in DTYPES:
            raise UnsupportedError(f"{self.file.path}: tensor {quote(self.name)} is {self.dtype}, expected one of {', '.join(DTYPES)}")
        bits = DTYPES[self.dtype]
        rows, cols = math.prod(self.shape[:-1]), (*self.shape[-1:], 1)[0]
        strides = self.strides or ((cols, 1) if len(self.shape) >= 2 else (1,))
        if len(strides) > 2:
            if strides != tuple(math.prod(self.shape[i + 1:]) for i in range(len(self.shape))):
                raise UnsupportedError(f"{self.file.path}: tensor {quote(self.name)} {list(self.shape)} does not lie row after row: save it contiguous")
            strides = (cols, 1)
        steps = tuple(bits.itemsize * s for s in (strides if len(strides) == 2 else (cols, *strides, 1)[:2]))
        if not len(index) or not cols:
            return np.empty((len(index), cols), np.float32)
        first, last = int(index.min()), int(index.max()) + 1
        if steps != (cols * bits.itemsize, bits.itemsize):
            return to_float32(self._strided(rows, cols, bits, steps)[index], self.dtype)
        if last - first > 4 * len(index) + 256:  # far apart: one by one
            return np.concatenate([self.read(index[i:i + 1]) for i in range(len(index))])
        view = np.frombuffer(self.file.read(self.offset + first * steps[0], (last - first) * steps[0]), bits).reshape(-1, cols)
        ordered = last - first == len(index) and bool((np.diff(index) == 1).all())
        return to_float32(view if ordered else view[index - first], self.dtype)

    def _strided(self, rows: int, cols: int, bits: np.dtype, steps: tuple[int, ...]) -> np.ndarray:
        """All of a tensor that is transposed, say."""
        extent = (rows - 1) * steps[0] + (cols - 1) * steps[1] + bits.itemsize
        kept = self.file.kept
        if kept is None or kept[0] != self.offset or len(kept[1]) != extent:
            kept = self.file.kept = self.offset, self.file.read(self.offset, extent)
        return np.ndarray((rows, cols), bits, kept[1], 0, steps)


@dataclass(frozen=True)
class Constant:
    """A vector made here rather than read."""

    values: np.ndarray  # float32 [n]
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.values[None, :][index]


@dataclass(frozen=True)
class Permuted:
    """`base` with its rows in another order: row i is the base's row order[i]."""

    base: Rows
    order: np.ndarray  # int64 [rows]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.base.read(self.order[index])


@dataclass(frozen=True)
class Shifted:
    """`base` plus a number: gains of norms that a checkpoint stores less one."""

    base: Rows
    by: float
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.base.read(index) + np.float32(self.by)


@dataclass(frozen=True)
class Mapped:
    """A function of each number of `base`."""

    base: Rows
    function: Callable[[np.ndarray], np.ndarray]
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.function(self.base.read(index))


class PermutedVector(Permuted):
    """A vector with its elements in another order: element i is the base's element order[i]."""

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.base.read(index)[:, self.order]


@dataclass(frozen=True)
class Joined:
    """Equal parts of a matrix, side by side (axis 1) or one below the other (axis 0)."""

    parts: Sequence[Rows]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, cols = self.parts[0].shape
        n = len(self.parts)
        return (rows * n, cols) if self.axis == 0 else (rows, cols * n)

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    def read(self, index: np.ndarray) -> np.ndarray:
        if self.axis == 1:
            return np.concatenate([part.read(index) for part in self.parts], axis=1)
        which, within = np.divmod(index, self.parts[0].shape[0])
        values = np.empty((len(index), self.shape[1]), np.float32)
        for i in np.unique(which):
            values[which == i] = self.parts[i].read(within[which == i])
        return values


@dataclass(frozen=True)
class Scaled:
    """An FP8 matrix times its scales: scale [r, c] counts for `block` = (rows, cols) weights, from the upper left corner."""

    base: Rows
    scale: np.ndarray  # float32 [ceil(rows / block[0]), ceil(cols / block[1])]
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def read(self, index: np.ndarray) -> np.ndarray:
        columns = np.arange(self.shape[1]) // self.block[1]
        return self.base.read(index) * self.scale[index // self.block[0]][:, columns]


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a model, under its GGUF name."""

    name: str
    shape: tuple[int, ...]  # NumPy order: a matrix is [rows, cols] = [outputs, inputs], a vector [n]
    dtype: str  # as stored: F32, F16, BF16, F64, F8_E4M3, F8_E5M2, I8 (llama2.c v2), or a GGUF format's name
    path: Path  # the file that holds it (one of them, if several), for messages
    read: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    copy: Callable[[int, int | None], np.ndarray] | None = field(default=None, repr=False)

    @property
    def n_rows(self) -> int:
        """1 for a vector; of a matrix of experts, all of theirs."""
        return math.prod(self.shape[:-1])

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows first <= i < last, float32 [last - first, cols], the caller's own; a vector is one row. q and k are in GGUF's order already.
        Several threads may read at once. NaN and infinity are passed on."""
        assert 0 <= first <= last <= self.n_rows
        return self.read(np.arange(first, last))

    def raw(self, first: int = 0, last: int | None = None) -> np.ndarray | None:
        """The encoded rows first <= i < last (default: all), uint8 [n, row bytes], if the source is a GGUF file; else None."""
        return self.copy(first, last) if self.copy else None


@dataclass
class Source:
    """An open checkpoint; a context manager. Closing it makes its tensors unreadable."""

    kind: str  # "hf", "meta", "pytorch", "llama2c" or "gguf"
    path: Path
    metadata: dict[str, Any]  # GGUF keys; values int, float, bool, str, list[str] or NumPy arrays
    tensors: list[SourceTensor]  # embedding, layer by layer, output
    files: list[Path]  # everything that was read, in a fixed order
    notes: list[str] = field(default_factory=list)  # one-line remarks for the user
    closing: Callable[[], None] = field(default=lambda: None, repr=False)
    open_files: Sequence[Stamp] = field(default=(), repr=False)
    vocabulary: Vocab | None = None  # with the file it was read from; None: the metadata's own (GGUF)

    def check(self) -> None:
        """FileError if a file with weights was changed since it was opened, or another took its place."""
        for stamp in self.open_files:
            stamp.check()

    def close(self) -> None:
        self.closing()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def assemble(
    kind: str, path: Path, config: ModelConfig, found: Mapping[str, Rows], maps: Sequence[SourceFile], vocabulary: Vocab, files: Sequence[Path],
    notes: Sequence[str], general: Mapping[str, Any] | None = None, theirs: Callable[[str], str] = str, keys: Mapping[str, Any] | None = None,
) -> Source:
    """A Source, once every tensor that `config` implies is there with its shape, in a type that can be decoded, and no other is.

    found: GGUF name -> rows; theirs: GGUF name -> name in the checkpoint, for messages; maps: closed with the source; keys: the architecture's (default: a
    Llama model's of `config`)."""
    from .hf_experts import copies
    expected = dict(config.tensor_shapes())
    tensors = []
    n_weights = 0
    for name, shape in expected.items():
        called = quote(theirs(name))
        if name not in found:
            raise FormatError(f"{path}: tensor {called} {list(shape)} is missing: the checkpoint is not a whole model of architecture {config.architecture}")
        rows = found[name]
        if tuple(rows.shape) != shape:
            raise FormatError(f"{path}: tensor {called} must have shape {list(shape)} by the configuration, found {list(rows.shape)}")
        leaves = list(_leaves(rows))
        for leaf in leaves:
            if leaf.dtype not in DTYPES:
                raise UnsupportedError(f"{leaf.file.path}: tensor {called} is {leaf.dtype}, expected one of {', '.join(DTYPES)}: {NOT_FLOAT}")
        tensors.append(copies(SourceTensor(name, shape, rows.dtype, leaves[0].file.path if leaves else path, rows.read), rows))
        n_weights += int(np.prod(shape))
    for name in found:
        if name not in expected:
            raise FormatError(f"{path}: tensor {quote(theirs(name))} is not part of a model of this configuration ({config.n_layers} layers)")
    metadata = {"general.architecture": config.architecture, "general.type": "model", "general.name": config.name, "general.size_label": size_label(n_weights)}
    metadata.update(general or {})
    metadata.update({key: value for key, value in keys.items() if not key.startswith("general.")} if keys else llama_metadata(config))
    metadata.update(vocabulary.metadata())

    def close() -> None:
        for map in maps:
            map.close()
    return Source(kind, path, metadata, tensors, list(files), [*notes, *vocabulary.notes], close, [map.stamp for map in maps], vocabulary)


def _leaves(rows: Rows) -> Iterator[Stored]:
    """The stored tensors that `rows` is made of."""
    if isinstance(rows, Stored):
        yield rows
    for part in getattr(rows, "parts", ()):
        yield from _leaves(part)
    if base := getattr(rows, "base", None):
        yield from _leaves(base)


def llama_metadata(config: ModelConfig) -> dict[str, Any]:
    """The keys below `llama.` that describe `config` (github.com/ggml-org/ggml, docs/gguf.md)."""
    c = config
    keys: dict[str, Any] = {
        "vocab_size": c.n_vocab, "context_length": c.context_length, "embedding_length": c.dim, "block_count": c.n_layers, "feed_forward_length": c.ffn_dim,
        "attention.head_count": c.n_heads, "attention.head_count_kv": c.n_kv_heads, "attention.key_length": c.head_dim, "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": float(c.rms_eps), "rope.dimension_count": c.rope_dim, "rope.freq_base": float(c.rope_base),
    }
    keys |= scaling_keys(config.rope_scaling)
    return {"llama." + key: value for key, value in keys.items()}


def scaling_keys(scaling: RopeScaling) -> dict[str, Any]:
    """GGUF's rope.scaling.* of a way to scale rotary positions, as far as it is not the default."""
    keys: dict[str, Any] = {}
    if scaling.kind != "none":
        keys["rope.scaling.type"] = scaling.kind
    if scaling.kind in ("linear", "yarn"):
        keys["rope.scaling.factor"] = float(scaling.factor)
    if scaling.kind in ("yarn", "longrope"):
        keys["rope.scaling.original_context_length"] = scaling.original_context
    if scaling.kind == "yarn":
        keys |= {"rope.scaling.yarn_beta_fast": float(scaling.beta_fast), "rope.scaling.yarn_beta_slow": float(scaling.beta_slow)}
        if scaling.log_multiplier:
            keys["rope.scaling.yarn_log_multiplier"] = float(scaling.log_multiplier)
    if scaling.attn_factor != 1:
        keys["rope.scaling.attn_factor"] = float(scaling.attn_factor)
    return keys


def size_label(n_weights: int) -> str:
    """"7B", "1.1B", "656K": two digits or more, as llama.cpp's converter has it."""
    scale, suffix = next(((s, x) for s, x in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if n_weights > s), (1e3, "K"))
    scaled = n_weights / scale
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. FileError: unreadable; FormatError: too large, or no JSON object."""
    try:
        raw = read_file(path, MAX_JSON, "JSON")
        refuse_pointer(path, raw[:200])
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not valid JSON: {why(error, 120)}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: must hold a JSON object, found {quote(value)}")
    return value


class Fields:
    """Typed, bounded look-ups in a configuration file's object. FormatError names file and field."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """The value, or `default` if it is absent or null; `...`: it must be there."""
        value = self.values.get(key)
        if value is None:
            if default is ...:
                raise FormatError(f"{self.path}: field '{key}' is missing")
            return default
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise FormatError(f"{self.path}: field '{key}' must be {wanted}, found {quote(value)}")
        return value

    def integer(self, key: str, most: int, default: Any = ..., least: int = 1) -> int:
        value = self.get(key, int, default)
        if value is not None and not least <= value <= most:
            raise FormatError(f"{self.path}: field '{key}' must be from {least} to {most}, found {quote(value)}")
        return value

    def number(self, key: str, default: Any = ...) -> Any:
        """A positive number that float32 holds, as a float, or the default."""
        value = self.get(key, (int, float), default)
        if value is None:
            return value
        if not 1e-37 < value < 3.4e38:
            raise FormatError(f"{self.path}: field '{key}' must be a positive number, found {quote(value)}")
        return float(value)
