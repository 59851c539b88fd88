"""Models larger than memory: experts that are read from the file when a token is sent to them, and kept until others need their place.

    router of a layer ─► which experts (Runtime) ─► ExpertArena.need(layer, experts) ─► places in memory ─► tables of addresses that the ops read

An expert's matrices are read by position and retiled as at loading (weights.py), by as many threads; the least recently used expert makes room. What is
computed does not depend on what was in place: only time does. Nothing is mapped: a file that changes meanwhile is an error of ours.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ...kernels.formats import registry
from ...kernels.matmul import ROWS
from ...kernels.route import ACTIVE, LIST_HEADER, LIST_N_ACTIVE
from ..architectures.config import ModelConfig
from ..architectures.expert_blocks import Experts
from ..architectures.spec import Matrix, Stage
from ..errors import FormatError
from ..gguf.file import GGUFFile
from .program import Placed
from .weights import Arena, expert_bytes, matrix_bytes

_PIECE = 1 << 19
"""Bytes of the file that a thread takes at a time."""


def expert_blocks(config: ModelConfig) -> Iterator[Experts]:
    return (block for block in config.blocks() if isinstance(block, Experts))


def all_experts(gguf: GGUFFile, config: ModelConfig) -> int:
    """Memory of all experts' matrices."""
    return sum(-(-matrix_bytes(gguf, m) // 128) * 128 for b in expert_blocks(config) for m in _matrices(b))


def place_bytes(gguf: GGUFFile, config: ModelConfig) -> int:
    """Memory of one expert's matrices, in the layer where they are largest."""
    return max(sum(expert_bytes(gguf, m) for m in _matrices(b)) for b in expert_blocks(config))


def least_places(config: ModelConfig) -> int:
    """All experts of a layer: a prompt may need them at once."""
    return max(b.experts for b in expert_blocks(config))


def _matrices(block: Experts) -> list[Matrix]:
    return list({m.key: m for m in (*block.readers(), block.down)}.values())


@dataclass
class Use:
    """How often an expert was wanted by a layer of a step, how often it was not in place and had to be read, and the bytes of that."""

    wanted: int = 0
    missed: int = 0
    bytes_read: int = 0


class ExpertArena:
    """Places for some experts. .at: {Matrix.key: int64 [experts]}, addresses (of those that are not in place: 0). .use: counts since loading."""

    def __init__(self, gguf: GGUFFile, config: ModelConfig, room: int, n_threads: int):
        """room: bytes, at least least_places * place_bytes."""
        self._gguf, self._size = gguf, place_bytes(gguf, config)
        self.places = min(room // self._size, sum(b.experts for b in expert_blocks(config)))
        assert self.places >= least_places(config)
        self._memory = Arena(self.places * self._size)
        self._free = [self._memory.take(self._size) for _ in range(self.places)]
        self._held: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._blocks = {b.layer: b for b in expert_blocks(config)}
        self.at = {m.key: np.zeros(m.experts, np.int64) for b in self._blocks.values() for m in _matrices(b)}
        self.use = Use()
        self._laid: list[tuple[str, int, np.ndarray, int]] = []  # (matrix, expert, place, first byte) of what is being read
        kinds = {gguf.tensors[m.tensor].format.name for b in self._blocks.values() for m in _matrices(b)}
        self._retile = {kind: registry.retiler(kind).ctypes for kind in kinds}
        self._threads = ThreadPoolExecutor(n_threads, "llamina-experts")

    def follow(self, stage: Stage, buffers: dict[str, np.ndarray]) -> None:
        """After a stage that grouped tokens by expert: have in place what the next ones read."""
        if stage.op in ("route", "gather"):
            block, lists = stage.args["experts"], buffers["expert_lists"].view(np.int64)
            first = LIST_HEADER + ACTIVE * block.experts
            self.need(block.layer, [int(e) for e in lists[first:first + int(lists[LIST_N_ACTIVE])]])

    def start_of(self, layer: list[Placed], run: Callable[..., None], buffers: dict[str, np.ndarray]) -> Placed:
        """Run a layer up to its router (Runtime._run), have in place what it chose -> the stage to go on with; the layer's first if it has no experts."""
        for i, placed in enumerate(layer):
            if placed.stage.op in ("route", "gather"):
                run(layer[0], placed, 0, 1, open=True)
                self.follow(placed.stage, buffers)
                return layer[i + 1]
        return layer[0]

    def need(self, layer: int, experts: Collection[int]) -> None:
        """Have these experts of a layer in place. FormatError: NaN or infinity among their weights; FileError: the file was changed meanwhile."""
        missing = []
        self.use.wanted += len(experts)
        for expert in experts:
            if (layer, expert) in self._held:
                self._held.move_to_end((layer, expert))
            else:
                missing.append(expert)
        if not missing:
            return
        wanted = {(layer, expert) for expert in experts}
        self._laid.clear()
        pieces = [piece for expert in missing for piece in self._pieces(layer, expert, self._place(wanted))]
        bad = [found for found in self._threads.map(self._read, pieces) if found]
        if bad:
            raise FormatError(f"{self._gguf.tensors[bad[0][0]].path}: tensor {bad[0][0]!r} holds NaN or infinity in row {bad[0][1]}: "
                              "the file is damaged, or its conversion overflowed")
        self._gguf.check()
        for matrix, expert, place, first in self._laid:
            self.at[matrix][expert] = place.ctypes.data + first
            self._held[layer, expert] = place
        self.use.missed += len(missing)
        self.use.bytes_read += len(missing) * sum(m.rows * self._gguf.tensors[m.tensor].format.row_bytes(m.columns) for m in _matrices(self._blocks[layer]))

    def _place(self, wanted: set[tuple[int, int]]) -> np.ndarray:
        """A free place, or the one of the expert that was used longest ago."""
        if self._free:
            return self._free.pop()
        layer, expert = oldest = next(key for key in self._held if key not in wanted)
        for m in _matrices(self._blocks[layer]):
            self.at[m.key][expert] = 0
        return self._held.pop(oldest)

    def _pieces(self, layer: int, expert: int, place: np.ndarray) -> Iterator[tuple[Matrix, int, int, int, np.ndarray]]:
        """(matrix, expert, first tile, last tile, where the retiled matrix is)."""
        first = 0
        for m in _matrices(self._blocks[layer]):
            size, row_bytes = expert_bytes(self._gguf, m), self._gguf.tensors[m.tensor].format.row_bytes(m.columns)
            target, tiles = place[first:first + size], -(-m.rows // ROWS)
            self._laid.append((m.key, expert, place, first))
            step = max(1, _PIECE // (ROWS * row_bytes))
            for tile in range(0, tiles, step):
                yield m, expert, tile, min(tile + step, tiles), target
            first += size

    def _read(self, piece: tuple[Matrix, int, int, int, np.ndarray]) -> tuple[str, int] | None:
        """Read and retile -> (tensor, row) of a NaN or infinity, or None."""
        m, expert, first, last, target = piece
        info = self._gguf.tensors[m.tensor]
        row_bytes, row = info.format.row_bytes(m.columns), expert * (m.whole or m.rows) + m.first
        rows = min(ROWS * last, m.rows) - ROWS * first
        buffer = np.empty(rows * row_bytes, np.uint8)
        self._gguf.read_into(m.tensor, (row + ROWS * first) * row_bytes, buffer)
        tile_bytes = registry.tiled_bytes(info.format.name, ROWS, m.columns)
        target[first * tile_bytes:last * tile_bytes] = 0  # retilers leave out what is padding
        bad = self._retile[info.format.name](buffer.ctypes.data - ROWS * first * row_bytes, row_bytes, m.rows, m.columns // info.format.columns, first, last,
                                             target.ctypes.data)
        return (m.tensor, row + bad) if bad >= 0 else None

    def close(self) -> None:
        self._threads.shutdown()
