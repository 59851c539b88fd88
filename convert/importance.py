"""Importance of a matrix's columns: the mean squared activation that meets each, measured on a text by our own engine.

    collect(model, text) -> {tensor name: Columns(sums of squares float32 [columns], count)} -> write / read (llama.cpp's imatrix GGUF) -> encoders' weights

Every matrix of the model names the site whose rows it reads (ModelConfig.matrices), and the runtime shows them (Runtime.step's `observe`). File formats:
llama.cpp, tools/imatrix (general.type "imatrix", per tensor `NAME.in_sum2` [columns] and `NAME.counts` [1], float32).
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..engine.architectures.expert_blocks import Experts
from ..engine.errors import FileError, FormatError, OptionError
from ..engine.files import new_file, writing
from ..engine.gguf.file import open_gguf
from ..engine.gguf.writer import write_arrays
from ..engine.run.runtime import Feed
from ..engine.score.perplexity import windows
from ..kernels.float_env import in_default_floats

if TYPE_CHECKING:
    from ..engine.model import Model

RANGE = 40  # powers of two that a largest weight may be from 1
RUN = 16  # columns of the smallest block that has a scale of its own
Importance = dict[str, np.ndarray]
"""Tensor name -> float32 [columns], mean squared activation; of a matrix of experts [experts, columns], each one's over the tokens that it served."""


class Columns(NamedTuple):
    """Sum of squared activations per column (float64 while collecting), over `count` tokens; of experts [experts, columns] and [experts]."""

    sums: np.ndarray
    count: Any  # type: ignore[assignment]  # int, or int64 [experts]

    @property
    def most(self) -> int:
        return int(np.max(self.count))

    def means(self) -> np.ndarray:
        """Mean squares, float32: what weighs an encoder's errors."""
        return _means(self.sums, np.atleast_1d(np.asarray(self.count, np.float64))).astype(np.float32)


class Collector:
    """Adds up squared activations; `observers` are handed to Runtime.step."""

    def __init__(self, model: Model):
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}
        self.count = 0
        readers: dict[str, list[str]] = {}
        for matrix in model.config.matrices():
            if matrix.experts:
                continue
            names = readers.setdefault(matrix.site, [])
            if matrix.tensor not in names:
                names.append(matrix.tensor)
        self.observers: dict[str, Callable[[np.ndarray], None]] = {site: functools.partial(self._add, names) for site, names in readers.items()}
        for block in model.config.blocks():
            if isinstance(block, Experts):
                layer = _ExpertLayer(self, block)
                at, site = f"blocks.{block.layer}.", block.up.site
                plain = self.observers.get(site)
                self.observers[site] = functools.partial(layer.see_rows, plain)
                self.observers[at + "mlp.hook_expert_indices"], self.observers[block.down.site] = layer.see_choice, layer.see_activation

    def columns(self) -> dict[str, Columns]:
        """The sums so far."""
        return {name: Columns(sums, self.counts.get(name, self.count)) for name, sums in self.sums.items()}

    def add_expert(self, names: list[str], experts: int, indices: np.ndarray, rows: np.ndarray) -> None:
        """rows: [n, columns]; indices: [n], the expert that each went to."""
        columns, squares = rows.shape[1], np.square(rows, dtype=np.float64)
        for name in names:
            sums = self.sums.setdefault(name, np.zeros((experts, columns)))
            np.add.at(sums, indices, squares)
            self.counts[name] = self.counts.get(name, np.zeros(experts, np.int64)) + np.bincount(indices, minlength=experts)

    def _add(self, names: list[str], x: np.ndarray) -> None:
        squares = np.square(x, dtype=np.float64).sum(axis=0)
        for name in names:
            self.sums[name] = self.sums[name] + squares if name in self.sums else squares


class _ExpertLayer:
    """One layer's experts, seen in the order of the pass: the normed rows, which experts they go to (or first this), what these make of them."""

    def __init__(self, collector: Collector, block: Experts):
        self.collector, self.block = collector, block
        self.rows: np.ndarray = np.empty(0)
        self.indices: np.ndarray = np.empty(0, np.int64)

    def see_rows(self, plain: Callable[[np.ndarray], None] | None, x: np.ndarray) -> None:
        self.rows = x.copy()
        if plain:
            plain(x)
        if self.block.router_norm:  # the choice was made before the experts' norm
            self._add_rows()

    def see_choice(self, indices: np.ndarray) -> None:
        self.indices = indices.astype(np.int64).ravel()
        if not self.block.router_norm:
            self._add_rows()

    def _add_rows(self) -> None:
        b = self.block
        self.collector.add_expert(list(dict.fromkeys(m.tensor for m in b.readers())), b.experts, self.indices, np.repeat(self.rows, b.used, axis=0))

    def see_activation(self, x: np.ndarray) -> None:
        b = self.block
        self.collector.add_expert([b.down.tensor], b.experts, self.indices, x.reshape(len(x) * b.used, -1)[:, :b.width])


def collect(model: Model, text: str, context: int = 512, most: int | None = None,
            progress: Callable[[str, int, int], None] | None = None, special: bool = False) -> dict[str, Columns]:
    """Run the model over a text's windows (perplexity.py's; `special`, too) -> sums of squares of each matrix's input. OptionError if it is too short."""
    found: dict[str, Columns] = {}
    for i, n, columns in collecting(model, text, context, most, special):
        found = columns
        if progress:
            progress("windows", i, n)
    return found


def collecting(model: Model, text: str, context: int = 512, most: int | None = None, special: bool = False) -> Iterator[tuple[int, int, dict[str, Columns]]]:
    """The same window by window: (windows so far, in all, sums so far). Whoever stops early has those of whole windows."""
    collector, cut = Collector(model), windows(model, text, context, most, special)
    for i, ids in enumerate(cut):
        _observe_window(model, collector, ids)
        yield i + 1, len(cut), collector.columns()


@in_default_floats
def _observe_window(model: Model, collector: Collector, ids: np.ndarray) -> None:
    runtime = model.runtime
    sequence = runtime.new_sequence()
    try:
        for start in range(0, len(ids), runtime.max_batch):
            part = [int(t) for t in ids[start:start + runtime.max_batch]]
            runtime.step([Feed(sequence, part, "none")], collector.observers)
            collector.count += len(part)
    finally:
        sequence.close()


def write(path: Path, columns: dict[str, Columns], dataset: str, chunk: int, overwrite: bool = True) -> None:
    """llama.cpp's imatrix GGUF. FileError."""
    import gguf
    with writing(path), new_file(path, overwrite=overwrite) as new:
        writer = gguf.GGUFWriter(None, "")
        writer.kv_data[0].pop("general.architecture", None)
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [dataset])
        writer.add_uint32("imatrix.chunk_count", max(1, max(c.most for c in columns.values()) // chunk))
        writer.add_uint32("imatrix.chunk_size", chunk)
        arrays: dict[str, np.ndarray] = {}
        for name, c in sorted(columns.items()):
            arrays[name + ".in_sum2"] = np.ascontiguousarray(np.atleast_2d(c.sums), np.float32)
            arrays[name + ".counts"] = np.ascontiguousarray(np.atleast_1d(np.asarray(c.count, np.float32))[:, None])
        write_arrays(writer, new.file, [(name, "F32", a.shape, a) for name, a in arrays.items()])


def read(path: Path) -> Importance:
    """An importance matrix, ours or llama.cpp's (GGUF, or the .dat of before 2025) -> {tensor: mean squared activation}. FileError, FormatError."""
    result: Importance = {}
    if path.suffix == ".dat":
        return _read_dat(path)
    with open_gguf(path) as file:
        if file.metadata.get("general.type") != "imatrix":
            raise FormatError(f"{path}: is not an importance matrix (general.type is {file.metadata.get('general.type')!r}, expected 'imatrix')")
        for name in file.tensors:
            if not name.endswith(".in_sum2"):
                continue
            tensor = name.removesuffix(".in_sum2")
            sums = _floats(file, name, path)
            if tensor + ".counts" not in file.tensors:
                raise FormatError(f"{path}: tensor {tensor + '.counts'!r} is missing")
            counts = _floats(file, tensor + ".counts", path)
            count = counts.sum()
            if not count > 0 or (counts < 0).any() or sums.size % counts.size or not np.isfinite(sums).all() or (sums < 0).any():
                raise FormatError(f"{path}: tensor {name!r} holds negative, NaN or infinite sums, or has a count of {count:g}")
            with np.errstate(over="ignore"):
                result[tensor] = _means(sums, counts).astype(np.float32)
            if not np.isfinite(result[tensor]).all():
                raise FormatError(f"{path}: tensor {name!r} holds sums that are infinite by their count of {count:g}")
    if not result:
        raise FormatError(f"{path}: holds no importance (no tensor ends in .in_sum2)")
    return result


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of several counts, one an expert, [experts, columns]. An expert that the text never met counts as all the others together."""
    if counts.size == 1:
        return sums / counts[0]
    sums = sums.reshape(counts.size, -1)
    whole = sums.sum(axis=0) / counts.sum()
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], whole)


def _read_dat(path: Path) -> Importance:
    """int32 matrices; for each: int32 length, its name, int32 calls, int32 columns, float32 [columns]: mean squares times calls. The rest is about the text."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    at, result = 0, {}

    def take(n: int) -> bytes:
        nonlocal at
        if not 0 < n <= len(raw) - at:
            raise FormatError(f"{path}: is not an importance matrix, or cut short: {n} bytes are wanted at byte {at} of {len(raw)}")
        at += n
        return raw[at - n:at]

    def number() -> int:
        return int.from_bytes(take(4), "little", signed=True)

    for _ in range(number()):
        name = take(number()).decode("utf-8", "replace")
        calls, columns = number(), number()
        values = np.frombuffer(take(4 * columns), "<f4") / np.float32(max(calls, 1))
        if not np.isfinite(values).all() or (values < 0).any():
            raise FormatError(f"{path}: {name!r} holds negative, NaN or infinite sums")
        result[name] = values
    if not result:
        raise FormatError(f"{path}: holds no importance")
    return result


def _floats(file: Any, name: str, path: Path) -> np.ndarray:
    if file.tensors[name].format.name != "F32":
        raise FormatError(f"{path}: tensor {name!r} is {file.tensors[name].format.name}, expected F32")
    return np.ascontiguousarray(file.data(name)).view(np.float32).ravel().astype(np.float64)


def usable_weights(importance: Mapping[str, np.ndarray]) -> Importance:
    """The same, fit for the encoders' float32 sums, whatever the scale: only what columns weigh against each other counts.

    Each matrix's weights are scaled by a power of two, exactly, where they are very large or small. A run of columns that the text never met weighs a
    millionth of the mean, not nothing: an encoder asked to minimise no error at all would make such a block zero."""
    return {name: _usable(weights) if weights.ndim == 1 else np.array([_usable(row) for row in weights]) for name, weights in importance.items()}


def _usable(weights: np.ndarray) -> np.ndarray:
    if not weights.size or not np.isfinite(weights).all() or not float(weights.max()) > 0:
        return np.ones_like(weights) if np.isfinite(weights).all() else weights
    exponent = int(np.frexp(weights.max())[1])
    if abs(exponent) > RANGE:
        weights = np.ldexp(weights, -exponent)
    floor = np.float32(max(float(weights.mean(dtype=np.float64)) * 1e-6, 1e-30))
    low = np.maximum.reduceat(weights, np.arange(0, weights.size, RUN)) < floor * np.float32(1e-6)
    if low.any():
        weights = np.where(np.repeat(low, RUN)[:weights.size], floor, weights)
    return weights


def weights_for(importance: Mapping[str, np.ndarray], name: str, columns: int, experts: int = 0) -> np.ndarray | None:
    """The encoder's weights of a tensor's columns, or None if it was not measured; of a matrix of experts perhaps [experts, columns]. OptionError if it was
    measured for another width."""
    found = importance.get(name)
    if found is None:
        return None
    if experts and found.size == experts * columns:
        return found.reshape(experts, columns)
    if found.shape != (columns,):
        raise OptionError(f"the importance matrix has {found.size} columns for {name!r}, the tensor has {columns}: it belongs to another model")
    return found
