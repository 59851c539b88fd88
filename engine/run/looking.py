"""What a runtime computes for whoever looks inside, beside its steps: logits of any rows of the stream, a part of a layer again, attention's maps, matrix rows.

    rows float32 [n, dim] ──► final norm, output matrix ──► logits, or what they say (ops/summary.py)
    rows at one site ──► the open stages after it ──► rows at another site of the layer
    queries of the step under way and the KV pages ──► weights or scores (ops/pattern.py)

All of it uses the buffers of a step, so it is for between two steps, or, maps, for between two stages of an open layer. Scheduler.alone says whose turn it is.
"""
from __future__ import annotations

import ctypes
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.team import ABORTED
from ..architectures.blocks import Attention
from ..architectures.spec import Matrix, Site, Stage
from ..errors import AbortedError
from .feed import Keep
from .kv_groups import pages_of
from .ops import common as f
from .ops import pattern, unpack
from .ops.table import OPS

if TYPE_CHECKING:
    from ...kernels.team import Team
    from ..architectures.config import ModelConfig
    from .adapters import Adapters, Use
    from .layout import Layout
    from .page_pool import PagePool
    from .program import Placed, Program
    from .weights import Weights


Observer = Callable[[np.ndarray], None]
Room = Callable[[int, int], np.ndarray]


@dataclass
class Said:
    """Of n rows of logits. log_sum, entropy, target: float64 [n], natural logarithms: log of the sum of exp, entropy of the softmax, the target's logit;
    rank: int64 [n], the target's, 1 for the most likely; top_ids int64 [n, k], top_logits float32 [n, k]: the most likely tokens, the first ones first."""

    log_sum: np.ndarray
    entropy: np.ndarray
    target: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_logits: np.ndarray

    @staticmethod
    def joined(parts: list[Said]) -> Said:
        return Said(*(np.concatenate([getattr(part, name) for part in parts]) for name in Said.__dataclass_fields__))


class Looking(ABC):
    """A part of Runtime."""

    config: ModelConfig
    program: Program
    team: Team
    adapters: Adapters
    n_threads: int
    max_batch: int
    max_logits: int
    _layout: Layout
    _weights: Weights
    _step: np.ndarray
    _step_address: int
    _entry: int
    _x: np.ndarray
    _tokens: np.ndarray
    _pool: PagePool
    _logit_columns: int

    def _parts(self, observe: Mapping[str, Observer], n: int, first: int, last: int, close: bool) -> tuple[list[tuple[str, int, int]], dict[str, Observer]]:
        """Layers [first, last) of a step of n tokens in parts that run at once, (form, first, last + 1), and the observers that are left to be called. close:
        whether to take keeping forms, where nobody wants more. Between two layers the stream is in its buffer: who looks at no more costs no open form."""
        looked: dict[int, list[str]] = {}
        close &= any(isinstance(one, Keep) for one in observe.values())
        for name in observe:
            layer = self.sites[name][0]
            if layer is not None and first <= layer < last:
                looked.setdefault(layer, []).append(name)
        forms, stops, left = ["fused"] * last, {first, last}, dict(observe)
        for layer, names in looked.items():
            stages, can_keep = self.program.open[layer], self.program.kept[layer] if close else {}
            ends = {site.name: stop for sites, stop in ((stages[0].stage.before, layer), (stages[-1].stage.after, layer + 1)) for site in sites
                    if site.buffer == "x"}
            kept = {name: one.rows for name in names if name in can_keep and isinstance(one := observe[name], Keep) and one.fits(n, can_keep[name].columns)}
            if any(name not in ends for name in names):
                forms[layer] = "open"
                if all(name in kept or name in ends for name in names):
                    forms[layer], names = "keeping", [name for name in names if name not in kept]
                    self.program.aim(layer, kept)
                    for name in kept:
                        del left[name]
            stops |= {ends[name] for name in names if name in ends}
        stops |= {i for i in range(first + 1, last) if "open" in forms[i - 1:i + 1] or forms[i - 1] != forms[i]}
        return [(forms[layer], layer, stop) for layer, stop in itertools.pairwise(sorted(stops))], left

    def rows_at(self, site: Site, n: int) -> np.ndarray:
        """The rows at a site of the stages that ran last, in their buffer, padding included: float32 [n, columns rounded up to 32]."""
        ld = self._layout.ld_of(site)
        return self._layout.buffers[site.buffer].reshape(-1)[:n * ld].reshape(n, ld)

    def _visit(self, sites: tuple[Site, ...], n: int, observe: Mapping[str, Observer]) -> None:
        for site in sites:
            if site.name in observe:
                observe[site.name](self.rows_at(site, n)[:, :site.columns])

    @cached_property
    def sites(self) -> dict[str, tuple[int | None, Site]]:
        """Of the model: see ModelConfig.sites."""
        return self.config.sites()

    def unembed(self, rows: np.ndarray) -> np.ndarray:
        """Logits of rows of the residual stream, float32 [n, dim], n at most max_logits -> float32 [n, n_vocab]: what the model would say if the stream ended
        there. The bits are those of a step."""
        return self.unembed_padded(rows)[:, :self.config.n_vocab]

    def unembed_padded(self, rows: np.ndarray, use: Use | None = None, room: Room | None = None) -> np.ndarray:
        """The same with the columns of the matrix's last tile, which mean nothing past the vocabulary. use: adapters (None: the model's default). room: makes
        float32 [n, at least so many columns], where the logits are left; None: fresh memory, which costs the system more time than it seems."""
        n, columns = len(rows), self._logit_columns
        return self._end_of(rows, use, False, room(n, columns) if room else np.empty((n, columns), np.float32))[:, :columns]

    def normed(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the stream after the final norm, float32 [n, dim rounded up to 32]: what the output matrix reads. The bits are those of a step."""
        return self._end_of(rows, (), True, np.empty((len(rows), self._layout.ld), np.float32))

    def rewrite(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Other numbers for tensors of an F32 model (Weights.rewrite). Between two steps; what the prefix cache knows is forgotten, and texts under way become
        private: they go on with the keys and values that the old numbers gave."""
        for name, values in tensors.items():
            self._weights.rewrite(name, values)
        self._pool.era += 1
        self._pool.clear_prefix_cache()

    def _end_of(self, rows: np.ndarray, use: Use | None, hidden: bool, out: np.ndarray) -> np.ndarray:
        n, s = len(rows), self._step
        assert 0 < n <= self.max_logits and len(out) == n
        self._x[:n, :self.config.dim] = rows
        self._tokens[3, :n] = np.arange(n)
        s[f.N_TOKENS // 8], s[f.LOGITS // 8], s[f.LD_LOGITS // 8], s[f.HIDDEN // 8], s[f.NOT_FINITE // 8] = n, out.ctypes.data, out.shape[1], hidden, 0
        s[f.OWN // 8], s[f.ADAPTERS // 8] = 0, self.adapters.plan([(n, self.adapters.default if use is None else use)])
        self.team.clear_abort()
        self._run(None, None, n, 1, noted=False)
        s[f.N_TOKENS // 8] = 0  # the next step writes all that hangs on it
        return out

    def say(self, rows: np.ndarray, targets: np.ndarray, k: int) -> Said:
        """What the logits of rows of the stream, float32 [n, dim], say of the targets, int [n], and their k largest."""
        parts = []
        for start in range(0, len(rows), self.max_logits):
            parts.append(self.summary(self.unembed_padded(rows[start:start + self.max_logits]), targets[start:start + self.max_logits], k))
        return Said.joined(parts)

    def summary(self, logits: np.ndarray, targets: np.ndarray, k: int) -> Said:
        """Of float32 [n, at least n_vocab] rows of logits."""
        n, n_vocab = len(logits), self.config.n_vocab
        assert 1 <= k <= n_vocab and logits.dtype == np.float32 and logits.strides[1] == 4 and n == len(targets)
        numbers, ranks = np.zeros((n, 4), np.float32), np.zeros(n, np.int64)
        top_ids, top_logits, targets = np.zeros((n, k), np.int64), np.zeros((n, k), np.float32), np.ascontiguousarray(targets, np.int64)
        self._run_alone("summary", {"rows": logits, "n_vocab": n_vocab, "targets": targets, "numbers": numbers, "ranks": ranks, "top_ids": top_ids,
                                    "top_values": top_logits})
        m, total, weighted, target = numbers.astype(np.float64).T
        log_total = np.log(total)
        return Said(m + log_total, np.maximum(log_total - weighted / total, 0.0), target, ranks, top_ids, top_logits)

    def map_of(self, attention: Attention, rows: np.ndarray, heads: np.ndarray, last: int, length: int, scores: bool = False) -> np.ndarray:
        """Attention's weights (or scores: scaled, capped, -infinity where nothing is seen) of tokens `rows` of the step under way, for query heads `heads`:
        float32 [heads, rows, keys], keys: what the one at position `last`, the last of them, sees. length: of their sequence, with this step. Within the
        callback of the layer's hook_z, before which the queries are in their buffer and the keys in the pages."""
        keys = min(last + 1 + attention.ahead, length)
        pages = pages_of(keys)
        out = np.full((len(heads), len(rows), 64 * pages), -np.inf if scores else 0.0, np.float32)
        room = np.zeros((self.n_threads, pattern.room_bytes(self._layout.kv, attention.head_dim, pages)), np.uint8)
        self._run_alone("pattern", {"attention": attention, "scores": scores, "rows": np.ascontiguousarray(rows, np.int64),
                                    "heads": np.ascontiguousarray(heads, np.int64), "out": out, "room": room, "length": length})
        return out[:, :, :keys]

    def again(self, layer: int, after: str, until: str, rows: np.ndarray) -> np.ndarray:
        """Other rows, float32 [n, columns], at the site `after` of a layer -> what the site `until` of that layer holds then, float32 [n, columns]. Only
        for stages between that read nothing but the rows (matrices, activations: not attention)."""
        placed, first, last = self._between(layer, after, until)
        source = next(site for site in placed[first].stage.after if site.name == after)
        target = next(site for site in placed[last].stage.after if site.name == until)
        out, s = np.empty((len(rows), target.columns), np.float32), self._step
        self.team.clear_abort()
        for start in range(0, len(rows), self.max_batch):
            part = rows[start:start + self.max_batch]
            s[f.N_TOKENS // 8], s[f.NOT_FINITE // 8], s[f.ADAPTERS // 8] = len(part), 0, self.adapters.plan([(len(part), self.adapters.default)])
            self.rows_at(source, len(part))[:, :source.columns] = part
            self._run(placed[first + 1], placed[last], 0, 1, open=True)
            out[start:start + self.max_batch] = self.rows_at(target, len(part))[:, :target.columns]
        s[f.N_TOKENS // 8] = 0
        return out

    def ops_between(self, layer: int, after: str, until: str) -> list[str]:
        """The ops between two sites of a layer."""
        placed, first, last = self._between(layer, after, until)
        return [p.stage.op for p in placed[first + 1:last + 1]]

    def _between(self, layer: int, after: str, until: str) -> tuple[list[Placed], int, int]:
        placed = self.program.open_layer(layer)
        first, last = (next(i for i, p in enumerate(placed) if any(site.name == name for site in p.stage.after)) for name in (after, until))
        return placed, first, last

    def output_bias(self, ids: np.ndarray) -> np.ndarray:
        """What the output matrix adds to these tokens' logits: float32 [n]."""
        matrix = self.config.output.matrix
        assert matrix is not None
        address = int(self._layout.matrix(matrix)[f.BIAS // 8])
        if not address:
            return np.zeros(len(ids), np.float32)
        return np.frombuffer((ctypes.c_float * self.config.n_vocab).from_address(address), np.float32)[ids]  # type: ignore[call-overload]

    def matrix_rows(self, matrix: Matrix, rows: np.ndarray) -> np.ndarray:
        """Rows of a matrix as its kernel sees them, dequantised: int [n] -> float32 [n, columns]."""
        words, columns = self._layout.matrix(matrix), matrix.columns
        ld, many = -(-columns // 32) * 32, 256
        tiles, where = np.unique(np.asarray(rows, np.int64) // 16, return_inverse=True)
        found = np.empty((len(tiles), 16, columns), np.float32)
        for start in range(0, columns, many):
            n = min(many, columns - start)
            x = np.zeros((3 * n + 24, ld), np.float32)  # ones, then their records
            x[np.arange(n), start + np.arange(n)] = 1.0
            if not words[f.FLOAT_INPUT // 8]:
                unpack.record_rows.ctypes(x.ctypes.data, ld, n)
            out = np.empty((n, 16), np.float32)
            for i, tile in enumerate(tiles):
                unpack.unpack_tile.ctypes(words.ctypes.data, int(tile), x.ctypes.data, ld, n, out.ctypes.data)
                found[i, :, start:start + n] = out.T
        return found[where, np.asarray(rows, np.int64) % 16]

    def gain(self, name: str, n: int) -> np.ndarray:
        """Numbers of a vector of the model's: float32 [n]."""
        return self._weights.gains[name][:n]

    def vocabulary_rows(self, ids: np.ndarray) -> np.ndarray:
        """The output matrix's rows of these tokens, dequantised: float32 [n, dim]."""
        if self.config.tied_output:
            return self._weights.embed(np.asarray(ids, np.int64))
        assert self.config.output.matrix is not None
        return self.matrix_rows(self.config.output.matrix, ids)

    def _run_alone(self, op: str, args: dict[str, Any]) -> None:
        """One stage that is no part of the program, on all threads."""
        stage, s = Stage(op, op, None, args), self._step
        words = np.zeros(4 + OPS[op].words, np.int64)
        OPS[op].fill(words, stage, self._layout)
        words[f.OP // 8], words[f.SIZE // 8], words[f.SLOT // 8] = OPS[op].address(stage), words.nbytes, f.SLOTS
        s[f.FIRST // 8], s[f.LAST // 8] = words.ctypes.data, words.ctypes.data + words.nbytes
        s[f.TAIL // 8] = s[f.END // 8]
        s[f.OWN // 8] = 0
        if self.team.run(self._entry, self._step_address, self.n_threads) & ABORTED:
            raise AbortedError("the step was aborted")

    @abstractmethod
    def _run(self, first: Placed | None, last: Placed | None, n_wanted: int, layers: int, open: bool = False, noted: bool = True) -> None:
        """Stages on all threads (Runtime)."""
