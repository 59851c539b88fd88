"""An adapter: low-rank pairs beside a model's matrices (LoRA, Hu et al., arXiv 2106.09685), in memory and as llama.cpp's GGUF file.

    Adapter.read(file or PEFT folder) ──► .pairs {"blk.0.attn_q.weight": Pair(a, b, scale)} ──► .check(config) ──► model.add_adapter(…)      .save(file)

For a matrix W [n_out, n_in] a pair is a [rank, n_in] and b [n_out, rank]: what is computed is W x + scale * b (a x), in the order that docs/exactness.md has.
The file: general.type "adapter", adapter.type "lora", adapter.lora.alpha, tensors NAME.lora_a and NAME.lora_b; a pair's scale is alpha / its rank.
"""
from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.formats import registry
from ...kernels.low_rank import ORDER
from ..architectures.adapted import targets, why_not
from ..errors import FormatError, OptionError, UnsupportedError, quoted
from ..files import new_file, paths, shown, writing
from ..gguf.file import GGUFFile, open_gguf
from ..gguf.writer import write_arrays

if TYPE_CHECKING:
    from ..architectures.config import ModelConfig

FORMATS = ("F32", "F16", "BF16")
_ENDS = (".lora_a", ".lora_b")


def scale_of(alpha: float, rank: int, rslora: bool = False) -> float:
    """What a pair's product is multiplied by: alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732). A float32: divided as a file's alpha is."""
    return float(np.float32(alpha * rank**0.5 if rslora else alpha) / np.float32(rank))


@dataclass
class Pair:
    """a: float32 [rank, n_in], b: float32 [n_out, rank], both C-contiguous; scale: of b (a x). stored: what a file keeps them as, a name of FORMATS."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    stored: str = "F32"

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass
class Adapter:
    """An adapter of a model of an architecture (GGUF's name). path: where it was read, for messages."""

    architecture: str
    pairs: dict[str, Pair]
    alpha: float = 0.0
    rslora: bool = False
    path: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    """More of the file's text keys (general.name, …), kept by `save`."""

    @staticmethod
    def read(path: str | os.PathLike[str], config: ModelConfig | None = None) -> Adapter:
        """Read llama.cpp's GGUF file, or a PEFT folder, which needs the configuration of the model it is of: that says what its tensors are. FileError,
        FormatError, UnsupportedError."""
        with paths(path):
            is_folder = Path(path).is_dir()
        if is_folder:
            from .peft import read_peft
            return read_peft(Path(path), config)
        with open_gguf(path) as file:
            return _of_gguf(file)

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes, numbers and scales, in order of names, and of the order of their sums: what tells adapters apart, however they are
        stored."""
        found = hashlib.sha256(f"{self.architecture}\0{ORDER}".encode())
        for name, pair in sorted(self.pairs.items()):
            found.update(f"\0{name}\0{list(pair.a.shape)}{list(pair.b.shape)}".encode() + struct.pack("<f", pair.scale))
            found.update(np.ascontiguousarray(pair.a, "<f4").data)
            found.update(np.ascontiguousarray(pair.b, "<f4").data)
        return found.hexdigest()

    @property
    def n_parameters(self) -> int:
        return sum(pair.a.size + pair.b.size for pair in self.pairs.values())

    def check(self, config: ModelConfig) -> None:
        """FormatError unless it is an adapter of this model: architecture, names, shapes, ranks, finite float32 numbers."""
        where = shown(self.path) if self.path else "the adapter"
        if self.architecture != config.architecture:
            raise FormatError(f"{where}: is an adapter of architecture {quoted(self.architecture)}, the model is of {config.architecture}: "
                              "use it with the model that it was trained on")
        if not self.pairs:
            raise FormatError(f"{where}: holds no pairs of matrices")
        known = targets(config)
        for name, pair in self.pairs.items():
            if name not in known:
                raise UnsupportedError(f"{where}: has a pair for {quoted(name)}: {why_not(config, name)}")
            target, most = known[name], min(known[name].rows, known[name].columns)
            if pair.a.ndim != 2 or pair.b.ndim != 2 or pair.a.dtype != np.float32 or pair.b.dtype != np.float32:
                raise FormatError(f"{where}: {name}: a and b must be float32 matrices, found {pair.a.dtype} {list(pair.a.shape)} and "
                                  f"{pair.b.dtype} {list(pair.b.shape)}")
            if not 1 <= pair.rank <= most:
                raise FormatError(f"{where}: {name}: rank is {pair.rank}, expected 1 to {most} for a matrix of {target.rows} x {target.columns}")
            if pair.a.shape[1] != target.columns or pair.b.shape != (target.rows, pair.rank):
                raise FormatError(f"{where}: {name}: a {list(pair.a.shape)} and b {list(pair.b.shape)} do not fit the model's {target.rows} x "
                                  f"{target.columns}: the adapter is of another model")
            if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all() and np.isfinite(np.float32(pair.scale))):
                raise FormatError(f"{where}: {name}: holds NaN or infinity")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as llama.cpp's file: whole, or not at all. Where one alpha can't say all scales, they are multiplied into b. FileError."""
        import gguf
        alpha, folded = self._one_alpha()
        writer: Any = gguf.GGUFWriter(None, self.architecture)
        for key, value in {**self.metadata, "general.type": "adapter", "adapter.type": "lora"}.items():
            writer.add_string(key, value)
        writer.add_float32("adapter.lora.alpha", alpha)
        tensors: list[tuple[str, str, tuple[int, ...], np.ndarray]] = []
        for name, pair in self.pairs.items():
            b = pair.b * np.float32(pair.scale / scale_of(alpha, pair.rank)) if folded else pair.b
            tensors += [(name + end, pair.stored, values.shape, _bits(values, pair.stored)) for end, values in zip(_ENDS, (pair.a, b))]
        with paths(path), writing(path), new_file(path) as new:
            write_arrays(writer, new.file, tensors)

    def _one_alpha(self) -> tuple[float, bool]:
        """-> (alpha of the file, whether scales must go into b)."""
        pairs = list(self.pairs.values())
        ranks = [p.rank for p in pairs]
        for alpha in (self.alpha, float(np.float32(self.alpha * ranks[0]**0.5)), float(np.float32(pairs[0].scale * ranks[0]))) if pairs else ():
            if alpha and all(scale_of(alpha, p.rank) == float(np.float32(p.scale)) for p in pairs):
                return alpha, False
        return float(max(ranks, default=1)), True

    def __repr__(self) -> str:
        ranks = sorted({pair.rank for pair in self.pairs.values()})
        return f"<Adapter of {self.architecture}: {len(self.pairs)} pairs of rank {', '.join(map(str, ranks))}>"


def _bits(values: np.ndarray, stored: str) -> np.ndarray:
    """float32 as a file keeps them, rounded to even."""
    values = np.ascontiguousarray(values, np.float32)
    if stored == "F16":
        return values.astype("<f2")
    if stored == "BF16":
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")
    return values.astype("<f4", copy=False)


def _of_gguf(file: GGUFFile) -> Adapter:
    where = shown(file.path)
    kind, of = file.get("general.type", str, "model"), file.get("adapter.type", str, "")
    if kind != "adapter":
        raise FormatError(f"{where}: holds a {quoted(kind)} (general.type), expected an adapter")
    if of != "lora":
        raise UnsupportedError(f"{where}: is an adapter of type {quoted(of)} (adapter.type), llamina runs 'lora'")
    for key in file.metadata:
        if key.startswith("adapter.alora"):
            raise UnsupportedError(f"{where}: key {quoted(key)}: is an adapter that begins with a text of its own (aLoRA), which llamina does not run")
    alpha, found = file.get("adapter.lora.alpha", float), dict[str, dict[str, tuple[np.ndarray, str]]]()
    for name, values, stored in _matrices(file):
        base, end = name[:-len(_ENDS[0])], name[-len(_ENDS[0]):]
        if end not in _ENDS:
            raise UnsupportedError(f"{where}: tensor {quoted(name)} is no matrix of a pair (NAME.lora_a, NAME.lora_b): whole tensors of an adapter are not run")
        found.setdefault(base, {})[end] = values, stored
    pairs = {}
    for name, both in found.items():
        if missing := [end for end in _ENDS if end not in both]:
            raise FormatError(f"{where}: tensor {quoted(name + missing[0])} is missing: the adapter is not whole")
        (a, stored), (b, stored_b) = both[_ENDS[0]], both[_ENDS[1]]
        if a.shape[0] != b.shape[1] or not len(a):
            raise FormatError(f"{where}: {quoted(name)}: a {list(a.shape)} and b {list(b.shape)} have no rank in common")
        rank = len(a)
        pairs[name] = Pair(a, b, scale_of(alpha, rank) if alpha else 1.0, stored if stored == stored_b else "F32")
    texts = {key: value for key, value in file.metadata.items() if key.startswith("general.") and isinstance(value, str)
             and key not in ("general.architecture", "general.type")}
    return Adapter(file.get("general.architecture", str), pairs, alpha, path=str(file.path), metadata=texts)


def _matrices(file: GGUFFile) -> Iterator[tuple[str, np.ndarray, str]]:
    for name, info in file.tensors.items():
        where = f"{shown(info.path)}: tensor {quoted(name)}"
        if len(info.shape) != 2 or info.format.name not in FORMATS:
            raise FormatError(f"{where} must be a matrix of {', '.join(FORMATS)}, found {info.format.name} {list(info.shape)}")
        values = registry.decode(info.format.name, file.data(name)).reshape(info.shape)
        if not np.isfinite(values).all():
            raise FormatError(f"{where} holds NaN or infinity")
        yield name, np.ascontiguousarray(values, np.float32), info.format.name
    file.check()


def given(source: Any, config: ModelConfig) -> Adapter:
    """An Adapter, or what `Adapter.read` reads, checked against the model."""
    if not isinstance(source, Adapter) and not isinstance(source, (str, os.PathLike)):
        raise OptionError(f"an adapter must be a path or an Adapter, found {quoted(source)}")
    adapter = source if isinstance(source, Adapter) else Adapter.read(source, config)
    adapter.check(config)
    return adapter
