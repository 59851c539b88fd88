"""Gradients of all weights of a float32 model, on the kernels that serve it: every matrix, norm gain and bias, the embedding and the output.

    rows ──► forward, streams kept ──► logits of targets ──► layer by layer back (backward.py) ──► .arrays: running sums
    dW[r, c] += dY[m, r] × X[m, c]          db[r] += dY[m, r]          dg[c] += dY[m, c] × (x̂[m, c] × the gain's factor)          dE[id of m] += dX[m] × scale

Each element is one chain over the tokens of an optimiser step in the order of the data; of a norm that heads share, over a token's heads in their order. Where
the embedding is the output matrix, too, its rows go on after the last of the output's. x̂ is float64 inside, rounded once, its sums are chains over the columns.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.float_env import in_default_floats
from ..architectures.spec import round_up
from .backward import Backward
from .factors import Parts
from .forward import Batch, Forward
from .gradients import RowGradients, check_row, ends, memory_of
from .ops import Ops, Product, rows_of
from .rows import Row, RowLosses
from .store import Store, default_keep

if TYPE_CHECKING:
    from ..architectures.spec import Norm
    from .model_weights import ModelWeights

EMBEDDING = "token_embd.weight"


class Sums:
    """What a way back adds to the sums. arrays: by tensor."""

    def __init__(self, ops: Ops, arrays: dict[str, np.ndarray]) -> None:
        self._ops, self._arrays = ops, arrays

    def of_tensors(self, tensors: dict[str, Parts], x: np.ndarray, dx: np.ndarray | None) -> None:
        """What a way back calls (Learned)."""
        self.backward(x, [part for parts in tensors.values() for part in parts])

    def backward(self, x: np.ndarray, parts: Parts) -> None:
        """Matrices that read x, and the gradients of what they made."""
        self._ops.products([[Product(dy, 4, dy.strides[0], x, self._arrays[matrix.tensor][matrix.first:matrix.first + matrix.rows], matrix.rows,
                                     matrix.columns, len(x))] for matrix, dy in parts], [])
        for matrix, dy in parts:
            if matrix.bias:
                self._ops.sums(dy, self._arrays[matrix.bias][matrix.first:matrix.first + matrix.rows])

    def norm(self, norm: Norm, x: np.ndarray, dy: np.ndarray) -> None:
        """A norm's gain and bias: x, the rows that it read; dy, the gradients of those that it made."""
        dim = norm.dim
        products = rows_of(len(x), dim)
        np.multiply(dy[:, :dim], normalised(x[:, :dim], norm), out=products[:, :dim])
        self._ops.sums(products, self._arrays[norm.tensor])
        if norm.bias:
            self._ops.sums(dy, self._arrays[norm.bias])


def normalised(x: np.ndarray, norm: Norm) -> np.ndarray:
    """Rows without gain and bias, times the factor that the gain has: float32 [n, dim]."""
    wide, n = x.astype(np.float64), np.float64(norm.dim)
    if norm.kind == "layer":
        wide -= _sums(wide)[:, None] / n
    r = 1.0 / np.sqrt(_sums(wide * wide) / n + norm.eps)
    return (wide * r[:, None] * norm.factor).astype(np.float32)


def _sums(rows: np.ndarray) -> np.ndarray:
    """Of each row, one chain over its columns."""
    total: np.ndarray = np.add.accumulate(rows, axis=1)[:, -1]
    return total


class FullGradients(RowGradients):
    """Of a model's own weights. .arrays: {tensor: float32 of its shape}: running sums, zero at first. The model has the weights' numbers while it is trained;
    they are read again when a step begins, and after `zero`. threads: None: as many as the model has. keep: as of Gradients. .step_rows: of an optimiser step,
    for `memory`, where a micro-batch has fewer."""

    def __init__(self, weights: ModelWeights, *, threads: int | None = None, keep: int | None = None) -> None:
        self._model, self._weights, self._threads, self._taken = weights.model, weights, threads, -1
        self._store, self._first_layer = Store(default_keep() if keep is None else keep), 0
        self._arrays = {name: np.zeros(array.shape, np.float32) for name, array in weights.arrays.items()}
        self.step_rows = 1
        self._late: list[tuple[np.ndarray, np.ndarray]] = []
        """(ids, gradients of their rows) of a tied embedding, which wait for the output's last."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The sums so far. Asked for when a step's rows are all there: what is added to a tied embedding afterwards would stand in another order."""
        for ids, rows in self._late:
            self._embedded(ids, rows)
        self._late = []
        return self._arrays

    def zero(self) -> None:
        """The sums begin again, and the weights' numbers are taken over again."""
        self._taken, self._late = -1, []
        for array in self._arrays.values():
            array.fill(0)

    @in_default_floats
    def _go(self, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        for row in rows:
            check_row(row)
        with self._model.scheduler.alone() as runtime:
            if self._taken != step or step < 0:
                runtime.rewrite(self._weights.arrays)
                self._taken = step
            config, batch = runtime.config, Batch(rows, runtime.max_batch)
            if not batch.n:
                return RowLosses(np.zeros(0, np.float64), 0, 0)
            ops = Ops(runtime, self._threads)
            sums = Sums(ops, self._arrays)
            with Forward(ops, batch, (), lambda tensor: None, 0, self._store) as forward:
                forward.run(keep=divisor != 0)
                found, d = ends(str(self._model.path), ops, batch, self._store, forward.streams.pop(config.n_layers), divisor, sums)
                if divisor == 0:
                    return found
                back = Backward(ops, batch, sums.of_tensors, runtime.kv_name, sums.norm, self._store)
                for layer in range(config.n_layers - 1, -1, -1):
                    back.layer(config.layers[layer], forward.again(layer), forward.streams.pop(layer), d, True)
            ids = np.concatenate(batch.ids)
            for added in config.added:
                for at, row in zip(batch.positions.tolist() if added.by_position else [0] * len(ids), d[:, :config.dim]):
                    self._arrays[added.tensor.name][at] += row
            by = np.float32(config.embedding_scale)
            d = d[:, :config.dim] * by if by != 1 else d[:, :config.dim]
            if config.tied_output:
                self._late.append((ids, d))
            else:
                self._embedded(ids, d)
        return found

    def _embedded(self, ids: np.ndarray, rows: np.ndarray) -> None:
        to = self._arrays[EMBEDDING]
        for id, row in zip(ids.tolist(), rows):
            to[id] += row

    def memory(self, tokens: int, longest: int | None = None, rows: int = 1) -> int:
        """Bytes that a micro-batch of so many tokens takes beside model, weights and `arrays`, its KV pages included. longest: of its at most so many rows.
        The gradients of a tied embedding's rows wait for the step's end (`arrays`): of as many tokens as all its rows have."""
        config = self._model.config
        widest = max(norm.dim for norm in config.norms())
        waiting = max(tokens, max(rows, self.step_rows) * (longest or tokens)) * (4 * round_up(config.dim) + 4) if config.tied_output else 0
        return memory_of(self._model.runtime, tokens, longest, rows, 0, self._threads) + tokens * 4 * (10 * widest + config.dim) + waiting
