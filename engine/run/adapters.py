"""The adapters of an open model: where their numbers lie, which rows of a step have which, what a sequence that uses some is called by.

    pairs {"blk.0.attn_q.weight": a, b, scale} ──► packed for the kernels (kernels/low_rank.py) ──► each matrix's table: slot ──► words of a pair
    a step's feeds (Sequence.adapters) ──► `plan` ──► runs of rows (ops/low_rank.py)

Every matrix has a table from the beginning, so that nothing of the program changes when an adapter comes or goes. An adapter that was removed stays as long as
sequences use it.
"""
from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...kernels import low_rank as kernels
from ...kernels.formats.registry import kernel_beside
from ...kernels.matmul import ROWS
from ..architectures.adapted import targets
from ..architectures.config import ModelConfig
from ..errors import OptionError, OutOfMemoryError, quoted
from .adapter_memory import Reserve
from .layout import aligned
from .ops import low_rank as f
from .ops.common import LOW_RANK
from .watch import merged
from .weights import Arena

if TYPE_CHECKING:
    from .page_pool import PagePool
    from .weights import Weights

SLOTS = 256
"""Most adapters at once."""
FEW_ROWS = 32
"""So few rows' u is made by parts of the columns, if there are not groups of tokens for all threads."""


PAIR = 16
"""Words from a pair's to the next one's: two lines, which are fetched together."""
HUGE = 2 << 20
"""Bytes from which on an adapter lies in huge pages, so that reading it does not wait for addresses."""


class PairLike(Protocol):
    """engine/train/adapter.py's Pair."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    stored: str


class AdapterLike(Protocol):
    """engine/train/adapter.py's Adapter, which has been checked against the model."""

    pairs: Any

    @property
    def digest(self) -> str: ...


class Loaded:
    """An adapter in its slot. name: what requests call it; scale: its factor where they give none; ld: floats of a row's u."""

    def __init__(self, slot: int, name: str, source: AdapterLike, scale: float, path: str):
        self.slot, self.name, self.source, self.scale, self.path = slot, name, source, scale, path
        self.ld, self.nbytes = 0, 0
        self._digest: str | None = None
        self._parts: dict[str, tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray | None]], str]] = {}

    def forget_source(self) -> None:
        """Its numbers are here, packed: the ones that were read from a file need not stay."""
        self._digest = self.digest
        self.source.pairs = {}

    def turned(self, key: str) -> np.ndarray | None:
        """A of a pair as it is kept, float32 [tiles of 16 ranks, columns rounded up to 32, 16]; None if that is halves."""
        a = self._parts[key][0]
        return a if a.dtype == np.float32 else None

    @property
    def digest(self) -> str:
        """Of names, shapes, numbers and scales (Adapter.digest), as they were taken last."""
        if self._digest is None:
            self._digest = self.source.digest
        return self._digest


Use = tuple[tuple[Loaded, float], ...]
"""Adapters of a sequence with their factors, in the order of their digests, which is the order that their products are added in."""


class Adapters:
    """Of a runtime. .by_name: {name: Loaded}; .default: what sequences have that ask for none of their own."""

    def __init__(self, config: ModelConfig, weights: Weights, pool: PagePool, n_threads: int, reserve: Reserve):
        self._config, self._targets, self._pool, self._n_threads = config, targets(config), pool, n_threads
        self._reserve, self._format = reserve, weights.format_of
        self.by_name: dict[str, Loaded] = {}
        self.default: Use = ()
        self._free = list(range(SLOTS))[::-1]
        self._tables: dict[str, np.ndarray] = {}
        keys = [matrix.key for target in self._targets.values() for matrix in target.matrices]
        words = np.zeros((SLOTS, len(keys)), np.int64)  # what an op reads of one adapter lies side by side, in few pages
        self._apart = words.strides[0]
        for i, key in enumerate(keys):
            self._tables[key] = words[:, i]
            weights.descriptors[key][LOW_RANK // 8] = words.ctypes.data + 8 * i
        self._parts = -(-max((target.columns for target in self._targets.values()), default=0) // kernels.PART)
        self._words, self._u = np.zeros(f.WORDS, np.int64), aligned(0)
        self._planned: tuple[Any, ...] = ()
        self._control: dict[str, Any] = {}
        self.control_digest = ""
        """What tells control vectors apart; "": there are none."""

    # -- control vectors --------------------------------------------------------------------------------------------------------------------

    def control(self, additions: Mapping[str, np.ndarray]) -> None:
        """From the next step on, float32 [dim] is added to every row at these sites. Between two steps. Texts under way become private."""
        self._control = {site: partial(_add_to, vector=np.ascontiguousarray(vector, np.float32)) for site, vector in sorted(additions.items())}
        found = hashlib.sha256()
        for site, vector in sorted(additions.items()):
            found.update(site.encode() + np.ascontiguousarray(vector, "<f4").tobytes())
        self.control_digest = found.hexdigest() if additions else ""
        self._pool.era += 1

    def observers(self, observe: Any) -> Any:
        """A step's observers, after the control vectors."""
        return merged([self._control, observe or {}]) if self._control else observe

    # -- coming and going -----------------------------------------------------------------------------------------------------------------

    def add(self, name: str, source: AdapterLike, scale: float = 1.0, path: str = "") -> Loaded:
        """Between two steps. source: checked against the model. OptionError: the name is taken, or there are too many. OutOfMemoryError."""
        if name in self.by_name:
            raise OptionError(f"there is an adapter called {quoted(name)} already: give another name, or remove it first")
        if not self._free:
            raise OptionError(f"{SLOTS} adapters are loaded, and no more are taken: remove one first")
        scale, size = factor(scale, name), memory_of(source, self._config)
        self._reserve.take(size, name)
        try:
            memory = Arena(size, f"adapter {quoted(name)}", huge=size >= HUGE)
        except OutOfMemoryError:
            self._reserve.give(size)
            raise
        loaded = Loaded(self._free.pop(), name, source, scale, path)
        weakref.finalize(loaded, _let_go, loaded.slot, self._tables, self._free, self._reserve, size)
        of_pairs = iter(aligned(8 * PAIR * sum(len(self._targets[key].matrices) for key in source.pairs)).view(np.int64).reshape(-1, PAIR))
        for key, pair in source.pairs.items():
            kind = _kind(pair)
            dtype, rank, target = kernels.KINDS[kind][0], len(pair.a), self._targets[key]
            a = _zeros(memory, (-(-rank // ROWS), -(-target.columns // 32) * 32, ROWS), dtype)
            parts = []
            for matrix in target.matrices:
                b, words = _zeros(memory, (-(-matrix.rows // ROWS), rank, ROWS), dtype), next(of_pairs)
                rows = None if len(target.matrices) == 1 and not matrix.period else target.rows_of(matrix)
                for word, value in ((f.DOWN, kernels.down(kind).address), (f.UP, kernels.up(kind).address), (f.A, a.ctypes.data), (f.B, b.ctypes.data),
                                    (f.BLOCKS, a.shape[1] // 32), (f.TILES, len(a)), (f.RANK, rank), (f.SIZE, dtype.itemsize)):
                    words[word // 8] = value
                beside = kernel_beside(self._format(matrix), kind)
                words[f.KERNEL_BESIDE // 8] = beside.address if beside else 0
                parts.append((b, words, rows))
                loaded.nbytes += b.nbytes
                self._tables[matrix.key][loaded.slot] = words.ctypes.data
            loaded._parts[key] = a, parts, kind
            loaded.nbytes += a.nbytes
            loaded.ld = max(loaded.ld, ROWS * len(a))
        self._take_numbers(loaded)
        self.by_name[name] = loaded
        return loaded

    def update(self, name: str) -> None:
        """Take its numbers over again, whose shapes are what they were. Between two steps; sequences keep the keys and values that the old ones gave, so
        texts under way become private."""
        if self[name].source.pairs:  # else it was read from a file, and has its numbers here only
            self._take_numbers(self[name])
            self._pool.era += 1

    def _take_numbers(self, loaded: Loaded) -> None:
        loaded._digest = None
        for key, (a, parts, _) in loaded._parts.items():
            pair: PairLike = loaded.source.pairs[key]
            kernels.pack_a(pair.a, a)
            for b, words, rows in parts:
                kernels.pack_b(pair.b if rows is None else pair.b[rows], b)
                words.view(np.float32)[f.SCALE // 4] = pair.scale

    def use_by_default(self, loaded: Loaded, scale: float) -> None:
        """Sequences that ask for none of their own have it from now on; a scale of 0: no longer."""
        others = [use for use in self.default if use[0] is not loaded]
        self.default = ordered([*others, *([(loaded, scale)] if scale else [])])

    def remove(self, name: str) -> None:
        """Sequences that use it still do."""
        loaded = self[name]
        del self.by_name[name]
        self.default = tuple(use for use in self.default if use[0] is not loaded)

    def __getitem__(self, name: str | int) -> Loaded:
        """By name, or by number in the order that they were added in. OptionError."""
        if isinstance(name, int) and 0 <= name < len(self.by_name):
            return list(self.by_name.values())[name]
        if name not in self.by_name:
            others = ", ".join(map(quoted, self.by_name)) or "none"
            raise OptionError(f"there is no adapter called {quoted(name)} (loaded: {others})")
        return self.by_name[str(name)]

    # -- what a sequence has ----------------------------------------------------------------------------------------------------------------

    def chosen(self, asked: Any) -> Use:
        """adapters={"name": scale} or ["name", …] of a request (None: the default; a Use: that) -> a sequence's. Factors of 0 are none at all. OptionError."""
        if asked is None:
            return self.default
        if isinstance(asked, tuple) and all(isinstance(use, tuple) for use in asked):
            return asked
        if isinstance(asked, str):
            asked = [asked]
        if isinstance(asked, Mapping):
            pairs = [(self[name], factor(scale, str(name))) for name, scale in asked.items()]
        elif isinstance(asked, Sequence) and all(isinstance(name, str) for name in asked):
            pairs = [(self[name], self[name].scale) for name in dict.fromkeys(asked)]
        else:
            raise OptionError(f"adapters must be names, or a mapping of names to scales, found {quoted(asked)}")
        return ordered([(loaded, scale) for loaded, scale in pairs if scale != 0])

    # -- a step -------------------------------------------------------------------------------------------------------------------------------

    def plan(self, rows: list[tuple[int, Use]]) -> int:
        """rows: how many of a step's in a row have which adapters -> address for the step's word ADAPTERS; 0: none has one."""
        if not any(use for _, use in rows):
            return 0
        key = [(n, [(loaded.slot, loaded.ld, scale) for loaded, scale in use]) for n, use in rows]  # names nobody: who is let go of is gone
        if self._planned and self._planned[1] == key:
            return self._words.ctypes.data
        runs, at, total = [], 0, 0
        merged: list[tuple[int, Use]] = []
        for n, use in rows:
            if merged and merged[-1][1] == use:
                merged[-1] = merged[-1][0] + n, use
            else:
                merged.append((n, use))
        for n, use in merged:
            for loaded, scale in use:
                runs.append((at, at + n, self._apart * loaded.slot, int(np.float32(scale).view(np.uint32)), total, loaded.ld))
                total += n * loaded.ld
            at += n
        rows_of_u = sum(n * len(use) for n, use in merged)
        groups = sum(-(-n // kernels.TOKENS) * len(use) for n, use in merged)
        parted = rows_of_u <= FEW_ROWS and groups < 2 * self._n_threads
        u = 4 * f.MOST * total
        own = 8 * f.OWN_WORDS + parted * u + -u % 64
        size = own * self._n_threads + u * (self._parts if parted else 1)
        if len(self._u) < size:
            self._u = aligned(size)
        table = np.array(runs, np.int64)
        self._planned = table, key
        at_u = self._u.ctypes.data
        for word, value in ((f.N_RUNS, len(runs)), (f.RUNS, table.ctypes.data), (f.TOTAL, total), (f.PARTED, parted), (f.SHARED, at_u + own * self._n_threads),
                            (f.OWN, at_u), (f.OWN_BYTES, own), (f.BEGIN, f.low_rank_begin.address), (f.FETCH, f.low_rank_fetch.address),
                            (f.ADD, f.low_rank_add.address), (f.BESIDE, f.low_rank_beside.address)):
            self._words[word // 8] = value
        return self._words.ctypes.data


def _add_to(rows: np.ndarray, vector: np.ndarray) -> None:
    rows += vector


def ordered(uses: list[tuple[Loaded, float]]) -> Use:
    return tuple(sorted(uses, key=lambda use: use[0].digest)) if len(uses) > 1 else tuple(uses)


def key_of(use: Use, control: str = "") -> bytes:
    """What tells texts computed with these adapters and control vectors from others: b"" for none."""
    return hashlib.blake2b(repr((described(use), control)).encode(), digest_size=32).digest() if use or control else b""


def described(use: Use) -> list[list[Any]]:
    """[[digest, scale], …], for journals, sessions and fingerprints."""
    return [[loaded.digest, float(np.float32(scale))] for loaded, scale in use]


def factor(scale: Any, name: str) -> float:
    """A scale of a request, rounded to float32. OptionError."""
    if isinstance(scale, (bool, np.bool_)) or not isinstance(scale, (int, float, np.integer, np.floating)) or not np.isfinite(np.float32(scale)):
        raise OptionError(f"the scale of adapter {quoted(name)} must be a finite number, found {quoted(scale)}")
    return float(np.float32(scale))


def _let_go(slot: int, tables: dict[str, np.ndarray], free: list[int], reserve: Reserve, size: int) -> None:
    for table in tables.values():
        table[slot] = 0
    free.append(slot)
    reserve.give(size)


def memory_of(source: AdapterLike, config: ModelConfig) -> int:
    """Bytes that its numbers take once they are packed."""
    return sum(size for key, pair in source.pairs.items() for size in _sizes(pair, targets(config)[key]))


def _sizes(pair: PairLike, target: Any) -> list[int]:
    """Bytes of A, then of each matrix's B, each on a cache line."""
    dtype, rank = kernels.KINDS[_kind(pair)][0], len(pair.a)
    shapes = [(-(-rank // ROWS), -(-target.columns // 32) * 32), *((-(-matrix.rows // ROWS), rank) for matrix in target.matrices)]
    return [-(-n * m * ROWS * dtype.itemsize // 128) * 128 for n, m in shapes]


def _kind(pair: PairLike) -> str:
    return pair.stored if pair.stored in kernels.KINDS else "F32"


def _zeros(memory: Arena, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return memory.take(int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
