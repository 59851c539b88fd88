"""From the file's rows to tiles: every matrix is retiled into the layout this CPU's kernels want, and the file's pages are let go.

    GGUFFile ──data(name)──► retiler (all threads, 16-row tiles) ──► one anonymous arena with huge pages ──► 8-word matrix descriptors (forward.py)

So peak resident memory is about the file's size, not twice. NaN or infinity among the weights or block scales is refused here, by tensor and row: int8
quantisation would turn it into plausible numbers later. The token embedding stays in the file; its rows are decoded as tokens need them.
"""
from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..kernels.formats import registry
from ..kernels.formats.table import FORMATS
from ..kernels.matmul import ROWS
from .config import ModelConfig
from .errors import FormatError, OutOfMemoryError
from .forward import COLUMNS, FLOAT_INPUT, KERNEL, MATRIX_BYTES, TILES, WEIGHTS
from .gguf import GGUFFile

LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_TILES_A_TASK = 32
_HUGE = 2 << 20

Progress = Callable[[str, int, int], None]
"""(what, done, total): bytes while loading."""


def matrix_names(config: ModelConfig) -> list[str]:
    """Tensors that are retiled, in the order of use."""
    names = [f"blk.{i}.{m}.weight" for i in range(config.n_layers) for m in LAYER_MATRICES]
    return [*names, "token_embd.weight" if config.tied_output else "output.weight"]


class Arena:
    """Zeroed, page-aligned anonymous memory, backed by huge pages where the system has them; matrices are laid one after the other."""

    def __init__(self, size: int):
        try:
            self._map = mmap.mmap(-1, size + _HUGE)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemoryError(f"cannot reserve {size >> 20} MiB for the weights: {error}") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without transparent huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._next = -self._bytes.ctypes.data % _HUGE

    def take(self, size: int) -> np.ndarray:
        """uint8 [size], 128-byte aligned."""
        start = self._next
        self._next += -(-size // 128) * 128
        return self._bytes[start:start + size]


class Weights:
    """All of a model's weights, ready for the forward pass.

    .descriptors: {name: int64 [8]} of every matrix (forward.py's layout); .gains: float32 rows of the norms, padded to `ld_dim`;
    .nbytes: memory of the retiled matrices.
    """

    def __init__(self, gguf: GGUFFile, config: ModelConfig, ld_dim: int, n_threads: int, progress: Progress | None = None):
        self._gguf, self.config = gguf, config
        names = matrix_names(config)
        self.nbytes = sum(-(-registry.tiled_bytes(t.format.name, *t.shape) // 128) * 128 for t in (gguf.tensors[n] for n in names))
        self._arena = Arena(self.nbytes)
        self.descriptors: dict[str, np.ndarray] = {}
        total, done = sum(gguf.tensors[n].n_bytes for n in names), 0
        with ThreadPoolExecutor(n_threads) as threads:
            for name in names:
                self.descriptors[name] = self._retile(name, threads, n_threads)
                done += gguf.tensors[name].n_bytes
                if progress:
                    progress("loading", done, total)
        norms = [f"blk.{i}.{n}.weight" for i in range(config.n_layers) for n in ("attn_norm", "ffn_norm")] + ["output_norm.weight"]
        self.gains = {name: self._gain(name, ld_dim) for name in norms}
        self._embedding = gguf.data("token_embd.weight")
        self._embedding_format = gguf.tensors["token_embd.weight"].format.name

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """Token embeddings: int [M] -> float32 [M, dim]. NumericError's cause, NaN in a row, is refused like in any other weight."""
        rows = registry.decode(self._embedding_format, self._embedding[ids])
        if not np.isfinite(rows).all():
            bad = ids[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise self._refuse("token_embd.weight", int(bad))
        return rows

    def _refuse(self, name: str, row: int) -> FormatError:
        return FormatError(f"{self._gguf.tensors[name].path}: tensor {name!r} holds NaN or infinity in row {row}: "
                           "the file is damaged, or its conversion overflowed")

    def _gain(self, name: str, ld_dim: int) -> np.ndarray:
        row = np.zeros(ld_dim, np.float32)
        row[:self.config.dim] = registry.decode(self._gguf.tensors[name].format.name, self._gguf.data(name).reshape(1, -1))[0]
        if not np.isfinite(row).all():
            raise self._refuse(name, 0)
        return row

    def _retile(self, name: str, threads: ThreadPoolExecutor, n_threads: int) -> np.ndarray:
        info, source = self._gguf.tensors[name], self._gguf.data(name)
        rows, columns = info.shape
        kind = info.format.name
        target = self._arena.take(registry.tiled_bytes(kind, rows, columns))
        retile = registry.retiler(kind).cfunc.ctypes
        tiles, blocks = -(-rows // ROWS), columns // FORMATS[kind].columns

        def task(tile: int) -> int:
            return retile(source.ctypes.data, info.format.row_bytes(columns), rows, blocks, tile, min(tile + _TILES_A_TASK, tiles), target.ctypes.data)
        for bad in threads.map(task, range(0, tiles, _TILES_A_TASK)):
            if bad >= 0:
                raise self._refuse(name, bad)
        self._gguf.release(name)
        words = np.zeros(MATRIX_BYTES // 8, np.int64)
        words[KERNEL // 8] = registry.kernel(kind).address
        words[WEIGHTS // 8] = target.ctypes.data
        words[COLUMNS // 8], words[TILES // 8] = columns, tiles
        words[FLOAT_INPUT // 8] = registry.takes_floats(kind)
        return words


def available_memory() -> int | None:
    """Bytes of memory that can be claimed without swapping, where the system tells (Linux)."""
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
