"""From the file's rows to tiles: every matrix is retiled into the layout this CPU's kernels want, and the file's pages are let go.

    file ──pieces of about 1 MB──► retiler (all threads, 16-row tiles) ──► one anonymous arena with huge pages ◄── 8-word matrix descriptors (ops/common.py)

So peak resident memory is about the file's size, not twice. The pieces of all matrices are one queue that threads of our own work off while the caller
compiles, tokenises or lays out buffers; `wait` ends that. NaN or infinity among the weights or block scales is refused here, by tensor and row: int8
quantisation would turn it into plausible numbers later. Once loaded, nothing is read from the file any more, whatever becomes of it: rows of the token
embedding are taken out of the tiles again where it is the output matrix, too, and its format's tiles hold every bit (kernels/formats/untile.py); else they
are kept as the file has them. An embedding that is no output matrix is retiled into a thread's buffer, for that check alone.
"""
from __future__ import annotations

import contextlib
import mmap
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ...kernels.addresses import address
from ...kernels.formats import registry, untile
from ...kernels.formats.rows import decoder
from ...kernels.matmul import ROWS
from .. import units
from ..architectures.config import ModelConfig
from ..architectures.spec import Matrix
from ..errors import FormatError, NumericError, OutOfMemoryError
from ..gguf.file import GGUFFile
from .ops.common import BIAS, COLUMNS, FLOAT_INPUT, KERNEL, MATRIX_BYTES, TILES, WEIGHTS

EMBEDDING = "token_embd.weight"
_PIECE = 1 << 20
"""Bytes of the file that a thread takes at a time: they stay in its cache until they are in their tiles."""
_SWITCH = 5e-4
"""Seconds that Python lets a thread run while others wait, during loading: a loader is back in compiled code after some microseconds."""
_HUGE = 2 << 20
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Shared memory, which is mmap's default, gets no huge pages."""

Progress = Callable[[str, int, int], None]
"""(what, done, total): bytes while loading."""


def matrix_bytes(gguf: GGUFFile, matrix: Matrix) -> int:
    """Memory of a matrix once it is retiled."""
    return matrix.experts * expert_bytes(gguf, matrix) if matrix.experts else _tiled(gguf, matrix)


def _tiled(gguf: GGUFFile, matrix: Matrix) -> int:
    return registry.tiled_bytes(gguf.tensors[matrix.tensor].format.name, matrix.rows, matrix.columns)


def expert_bytes(gguf: GGUFFile, matrix: Matrix) -> int:
    """Memory of one expert's part of a matrix of experts: they lie one after the other, each on a cache line."""
    return -(-_tiled(gguf, matrix) // 128) * 128


def matrix_names(config: ModelConfig) -> list[str]:
    """Tensors that are retiled, in the order of use."""
    return list(dict.fromkeys(m.tensor for m in config.matrices()))


def weight_bytes(gguf: GGUFFile, config: ModelConfig) -> int:
    """Memory of the retiled matrices, and of the embedding's rows where they are kept."""
    sizes = [matrix_bytes(gguf, m) for m in config.matrices()]
    return sum(-(-size // 128) * 128 for size in [*sizes, gguf.tensors[EMBEDDING].n_bytes * keeps_rows(gguf, config)])


def keeps_rows(gguf: GGUFFile, config: ModelConfig) -> bool:
    """Whether the embedding's rows are kept as the file has them."""
    return not config.tied_output or gguf.tensors[EMBEDDING].format.name not in untile.REVERSIBLE


class Arena:
    """Zeroed, page-aligned anonymous memory, backed by huge pages where the system has them; matrices are laid one after the other."""

    def __init__(self, size: int, what: str = "the weights", huge: bool = True):
        try:
            self._map = mmap.mmap(-1, size + _HUGE, **_PRIVATE)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemoryError(f"cannot reserve {units.size(size)} for {what}: {error}") from None
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without transparent huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._next = -self._bytes.ctypes.data % _HUGE

    def take(self, size: int) -> np.ndarray:
        """uint8 [size], 128-byte aligned."""
        start = self._next
        self._next += -(-size // 128) * 128
        return self._bytes[start:start + size]


class _Piece(NamedTuple):
    """Tiles [first, last) of a matrix: `rows` rows of a tensor, from `row` on."""

    name: str
    row: int
    rows: int
    first: int
    last: int
    to: int | None
    """Address of the whole retiled matrix; None: it is only looked at."""


class Loader:
    """Threads that retile pieces. A damaged piece stops them; `wait` tells."""

    def __init__(self, gguf: GGUFFile, pieces: list[_Piece], n_threads: int, embedding: np.ndarray | None):
        """embedding: uint8, where the bytes of that tensor are put on the way, or None."""
        self._gguf, self._pieces, self._lock, self._embedding = gguf, iter(pieces), threading.Lock(), embedding
        self._moved = threading.Condition()
        self._done = self._running = 0
        self._bad: tuple[str, int] | BaseException | None = None
        self._stop = False
        self._retile = {kind: registry.retiler(kind).ctypes for kind in dict.fromkeys(gguf.tensors[p.name].format.name for p in pieces)}
        self._threads = [threading.Thread(target=self._work, name=f"llamina-load-{i}") for i in range(n_threads)]
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch, _SWITCH))
        self._running = n_threads
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        try:
            buffer, thrown_away = np.empty(_PIECE + (1 << 17), np.uint8), np.empty(0, np.uint8)
            while not self._stop:
                with self._lock:
                    piece = next(self._pieces, None)
                if piece is None:
                    break
                info = self._gguf.tensors[piece.name]
                rows, row_bytes = piece.rows, info.format.row_bytes(info.cols)
                first, size = ROWS * piece.first * row_bytes, (min(ROWS * piece.last, rows) - ROWS * piece.first) * row_bytes
                start = piece.row * row_bytes
                if len(buffer) < size:
                    buffer = np.empty(size, np.uint8)
                self._gguf.read_into(piece.name, start + first, buffer[:size])
                if piece.name == EMBEDDING and self._embedding is not None:
                    self._embedding[first:first + size] = buffer[:size]
                source, to = buffer.ctypes.data - first, piece.to
                if to is None:
                    tile_bytes = registry.tiled_bytes(info.format.name, ROWS, info.cols)
                    if len(thrown_away) < (piece.last - piece.first) * tile_bytes:
                        thrown_away = np.zeros((piece.last - piece.first) * tile_bytes, np.uint8)
                    to = thrown_away.ctypes.data - piece.first * tile_bytes
                bad = self._retile[info.format.name](source, row_bytes, rows, info.cols // info.format.columns, piece.first, piece.last, to)
                if bad >= 0:
                    self._fail((piece.name, piece.row + bad))
                with self._moved:
                    self._done += size
                    self._moved.notify()
        except BaseException as error:
            self._fail(error)
        finally:
            with self._moved:
                self._running -= 1
                self._moved.notify()

    def _fail(self, why: tuple[str, int] | BaseException) -> None:
        with self._lock:
            self._bad = self._bad or why
            self._stop = True

    def wait(self, progress: Progress | None, total: int) -> tuple[str, int] | None:
        """Until all is retiled -> (tensor, row) of a NaN or infinity, or None. What happened to a thread is raised here."""
        try:
            while True:
                with self._moved:
                    self._moved.wait_for(lambda: not self._running, 0.05)
                    running, done = self._running, self._done
                if progress:
                    progress("loading", done, total)
                if not running:
                    break
        finally:
            self.close()
        if isinstance(self._bad, BaseException):
            raise self._bad
        return self._bad

    def close(self) -> None:
        """Stop, wherever they are. Harmless twice."""
        self._stop = True
        for thread in self._threads:
            thread.join()
        if self._switch:
            sys.setswitchinterval(self._switch)
            self._switch = 0.0


class Weights:
    """All of a model's weights; ready for the forward pass after `wait`.

    .descriptors: {Matrix.key: int64 [8]} of every matrix (ops/common.py's layout); .gains: {tensor: float32 row} of the norms, padded to 32;
    .kept: {tensor: float32 rows} of what no kernel reads; .biases: {Matrix.key: float32 row, or one for each expert};
    .experts_at: {Matrix.key: int64 [experts]}, addresses of each expert's part; .nbytes: memory of the retiled matrices, and of the embedding's rows where
    they are kept.
    """

    def __init__(self, gguf: GGUFFile, config: ModelConfig, n_threads: int, experts_at: dict[str, np.ndarray] | None = None):
        """experts_at: addresses of matrices of experts that are not loaded here, but by an arena (expert_arena.py)."""
        self._gguf, self.config, self._elsewhere = gguf, config, experts_at or {}
        matrices = [m for m in config.matrices() if m.key not in self._elsewhere]
        self.nbytes = weight_bytes(gguf, config) - sum(-(-matrix_bytes(gguf, m) // 128) * 128 for m in config.matrices() if m.key in self._elsewhere)
        self._arena = Arena(self.nbytes)
        embedding = gguf.tensors[EMBEDDING]
        rows = self._arena.take(embedding.n_bytes) if keeps_rows(gguf, config) else None
        self._embedding: np.ndarray | untile.Rows | None = None if rows is None else rows.reshape(embedding.rows, -1)
        self._embedding_format = embedding.format.name
        only_seen = [] if config.tied_output else [Matrix(EMBEDDING, config.n_vocab, config.dim)]
        self._total = sum(max(1, m.experts) * m.rows * gguf.tensors[m.tensor].format.row_bytes(m.columns) for m in (*matrices, *only_seen))
        targets = {m.key: self._arena.take(matrix_bytes(gguf, m)) for m in matrices}
        pieces = [piece for m in (*matrices, *only_seen) for piece in self._pieces(m, targets.get(m.key))]
        self._loader = Loader(gguf, pieces, n_threads, rows)
        try:
            self._prepare(targets)
        except BaseException:
            self._loader.close()
            raise

    def _prepare(self, targets: dict[str, np.ndarray]) -> None:
        """What is small, while the loader runs."""
        config = self.config
        self.gains = {name: self.vector(name, n) for name, n in config.vectors()}
        for norm in config.norms():
            if norm.factor != 1:
                self.gains[norm.tensor] *= np.float32(norm.factor)
        self.gains |= {r.kernel.name: self.kernel(r.kernel.name) for r in config.recurrents()}
        self.kept = {tensor.name: self._rows(tensor.name) for tensor in config.kept()}
        self.biases: dict[str, np.ndarray] = {}
        self.experts_at = {m.key: targets[m.key].ctypes.data + expert_bytes(self._gguf, m) * np.arange(m.experts, dtype=np.int64)
                           for m in config.matrices() if m.experts and m.key in targets} | self._elsewhere
        self.descriptors = {m.key: self._descriptor(m, targets.get(m.key)) for m in config.matrices()}
        if self._embedding is None:
            self._embedding = untile.Rows(self._embedding_format, targets[EMBEDDING].ctypes.data, config.dim)

    def wait(self, progress: Progress | None = None) -> None:
        """Until everything is in place. FormatError: NaN or infinity among the weights; FileError: the file was changed while it was read."""
        bad = self._loader.wait(progress, self._total)
        if bad is not None:
            raise self._refuse(*bad)
        self._gguf.check()

    def close(self) -> None:
        """End a loading that nobody waits for any more."""
        self._loader.close()

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """Token embeddings: int [M] -> float32 [M, dim]. FormatError: finite scales whose product with a block's is not, which loading lets pass."""
        assert self._embedding is not None
        rows = registry.decode(self._embedding_format, self._embedding[ids])
        if not np.isfinite(rows).all():
            bad = ids[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise self._refuse("token_embd.weight", int(bad))
        return rows

    def embedder(self, ids: np.ndarray, x: np.ndarray, scale: float) -> Callable[[int], None]:
        """What writes the embeddings of the first n of `ids` (int64), times `scale`, into the first rows of x (float32 [rows, dim or more]). FormatError."""
        decode, factor, embedding = decoder(self._embedding_format), np.float32(scale), self._embedding
        if decode is None:
            def plain(n: int) -> None:
                found = self.embed(ids[:n])
                x[:n, :found.shape[1]] = found if factor == 1 else found * factor
            return plain
        assert embedding is not None
        size = self._gguf.tensors[EMBEDDING].format
        blocks, decode_rows = self.config.dim // size.columns, decode.ctypes
        row_bytes, to, ld, named = blocks * size.bytes, x.ctypes.data, x.shape[1], ids.ctypes.data
        self._counted = np.arange(len(ids))  # here: what compiled code reads must live
        fixed, in_order = embedding.ctypes.data if isinstance(embedding, np.ndarray) else 0, self._counted.ctypes.data

        def compiled(n: int) -> None:
            if fixed:
                bad = decode_rows(fixed, row_bytes, named, n, blocks, to, ld, factor)
            else:  # out of the tiles: there they stand in the order of ids
                taken = embedding[ids[:n]]
                bad = decode_rows(address(taken), row_bytes, in_order, n, blocks, to, ld, factor)
            if bad:
                raise self._refuse(EMBEDDING, int(ids[bad - 1]))
        return compiled

    def rewrite(self, name: str, values: np.ndarray) -> None:
        """Other numbers for a tensor of a model whose matrices are F32, between two steps: float32 of its shape, C-contiguous; everything that was made of it
        when it was loaded is made again, where it is. NumericError: NaN or infinity."""
        if not np.isfinite(values).all():
            raise NumericError(f"{self._gguf.path}: tensor {name!r} would hold NaN or infinity")
        for m in self.config.matrices():
            if m.tensor == name:
                assert self._gguf.tensors[name].format.name == "F32" and not m.experts and not m.period
                to = int(self.descriptors[m.key][WEIGHTS // 8])
                registry.retiler("F32").ctypes(address(values) + 4 * m.first * m.columns, 4 * m.columns, m.rows, m.columns, 0, -(-m.rows // ROWS), to)
            if m.bias == name:
                self.biases[m.key][:m.rows] = values[m.first:m.first + m.rows]
        if name == EMBEDDING and isinstance(self._embedding, np.ndarray):
            self._embedding[:] = values.view(np.uint8)
        factors = {norm.tensor: norm.factor for norm in self.config.norms()}
        if name in self.gains:
            self.gains[name][:values.size] = values.reshape(-1)
            if factors.get(name, 1.0) != 1:
                self.gains[name] *= np.float32(factors[name])
        if name in self.kept:
            self.kept[name][:] = values

    def _rows(self, name: str) -> np.ndarray:
        """A whole tensor, float32, in its shape."""
        info = self._gguf.tensors[name]
        rows: np.ndarray = registry.decode(info.format.name, self._gguf.data(name)).reshape(info.shape).astype(np.float32)
        if not (finite := np.isfinite(rows.reshape(-1, info.shape[-1])).all(axis=1)).all():
            raise self._refuse(name, int(np.argmin(finite)))
        return rows

    def _refuse(self, name: str, row: int) -> FormatError:
        self._gguf.check()  # or what is wrong is that somebody writes it
        return FormatError(f"{self._gguf.tensors[name].path}: tensor {name!r} holds NaN or infinity in row {row}: "
                           "the file is damaged, or its conversion overflowed")

    def vector(self, name: str, n: int, first: int = 0, to: int = 32) -> np.ndarray:
        """Numbers [first, first + n) of a vector, padded with zeros to a multiple of `to`. FormatError: NaN or infinity."""
        row = np.zeros(-(-n // to) * to, np.float32)
        row[:n] = registry.decode(self._gguf.tensors[name].format.name, self._gguf.data(name).reshape(1, -1))[0][first:first + n]
        if not np.isfinite(row).all():
            raise self._refuse(name, 0)
        return row

    def kernel(self, name: str) -> np.ndarray:
        """A convolution's kernel [channels, taps], turned: float32 [taps, channels padded with zeros to a multiple of 32]. FormatError: NaN or infinity."""
        info = self._gguf.tensors[name]
        values = registry.decode(info.format.name, self._gguf.data(name))
        turned = np.zeros((info.shape[1], -(-info.shape[0] // 32) * 32), np.float32)
        turned[:, :info.shape[0]] = values.reshape(info.shape).T
        if not np.isfinite(turned).all():
            raise self._refuse(name, int(np.argmin(np.isfinite(values).all(axis=1))))
        return turned

    def _pieces(self, matrix: Matrix, target: np.ndarray | None) -> Iterator[_Piece]:
        info = self._gguf.tensors[matrix.tensor]
        if matrix.period:
            tiles, bytes_ = matrix.block // ROWS, registry.tiled_bytes(info.format.name, matrix.block, matrix.columns)
            assert target is not None and matrix.block % ROWS == 0
            for i in range(matrix.rows // matrix.block):
                yield _Piece(matrix.tensor, matrix.first + i * matrix.period, matrix.block, 0, tiles, target.ctypes.data + i * bytes_)
            return
        tiles, tile_bytes = -(-matrix.rows // ROWS), ROWS * info.format.row_bytes(matrix.columns)
        step = max(1, _PIECE // tile_bytes)
        to = None if target is None else target.ctypes.data
        for expert in range(max(1, matrix.experts)):
            row = matrix.first + expert * (matrix.whole or matrix.rows)
            here = to + expert * expert_bytes(self._gguf, matrix) if to and expert else to
            for tile in range(0, tiles, step):
                yield _Piece(matrix.tensor, row, matrix.rows, tile, min(tile + step, tiles), here)

    def format_of(self, matrix: Matrix) -> str:
        return self._gguf.tensors[matrix.tensor].format.name

    def _descriptor(self, matrix: Matrix, target: np.ndarray | None) -> np.ndarray:
        kind = self.format_of(matrix)
        words = np.zeros(MATRIX_BYTES // 8, np.int64)
        words[KERNEL // 8] = registry.kernel(kind).address
        words[WEIGHTS // 8] = target.ctypes.data if target is not None else 0
        words[COLUMNS // 8], words[TILES // 8] = matrix.columns, -(-matrix.rows // ROWS)
        words[FLOAT_INPUT // 8] = registry.takes_floats(kind)
        if matrix.bias and matrix.experts:
            rows, tiles = matrix.whole or matrix.rows, -(-matrix.rows // ROWS)
            whole = self.vector(matrix.bias, matrix.experts * rows, 0, 1).reshape(matrix.experts, rows)
            padded = np.zeros((matrix.experts, ROWS * tiles), np.float32)
            padded[:, :matrix.rows] = whole[:, matrix.first:matrix.first + matrix.rows]
            self.biases[matrix.key] = padded
            words[BIAS // 8] = padded.ctypes.data
        elif matrix.bias:
            self.biases[matrix.key] = self.vector(matrix.bias, matrix.rows, matrix.first, ROWS)
            words[BIAS // 8] = self.biases[matrix.key].ctypes.data
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
