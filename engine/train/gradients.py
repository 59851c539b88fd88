"""Gradients of an adapter on the very bytes and kernels that serve the model: the base stays as it is, quantised, and the arithmetic forward is the served one.

    rows ──► forward, streams kept ──► logits of targets, some at a time: their losses, their gradients ──► layer by layer from the last: once more forward in
    open form, then back ──► .arrays: running sums

Every element of a gradient is one chain over the tokens of an optimiser step in the order of the data (docs/exactness.md): how rows are divided into calls, how
many threads there are, and the CPU's instructions don't show in a bit.
"""
from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.backward.attention import room_bytes
from ...kernels.backward.gates import KINDS
from ...kernels.backward.weights import SCRATCH
from ...kernels.float_env import in_default_floats
from ..architectures.blocks import Attention, Mlp
from ..architectures.latent_blocks import Latent
from ..architectures.spec import round_up
from ..errors import NumericError, OptionError, UnsupportedError, quoted
from ..run.kv_cache import PAGE
from ..sampling.arithmetic import log
from .backward import Backward, own_columns
from .factors import Factors, Parts
from .factors import back as back_of
from .forward import Batch, Forward
from .ops import Ops, rows_of
from .options import BACKWARD
from .philox import dropout_mask
from .rows import Row, RowLosses
from .store import Store, columns_of, default_keep, layers_kept

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..architectures.config import ModelConfig
    from ..run.adapters import Adapters
    from ..run.runtime import Runtime
    from .adapter import Adapter
    from .full import Sums


def why_not(config: ModelConfig) -> str:
    """What of a model can't be gone through backwards, or ""."""
    if not config.causal or config.output.matrix is None:
        return "it is an encoder"
    for i, blocks in enumerate(config.layers):
        where = f"layer {i}"
        a, m = blocks if len(blocks) == 2 else (None, None)
        if not isinstance(a, Attention) or not isinstance(m, Mlp):
            kinds = ", ".join(type(block).__name__ for block in blocks if not isinstance(block, (Attention, Mlp)))
            return f"{where} has blocks that training does not know: {kinds or 'in another order'}"
        found: list[tuple[object, str]] = [
            (a.gate, "an output gate"), (not (a.k and a.v), "keys and values of another layer"), (a.value_norm, "norms of values"),
            (a.ahead, "attention to later positions"), (a.qk_norm == "layer", "LayerNorms of heads"), (isinstance(a, Latent), "latent attention"),
            (a.replaces or m.replaces, "norms that replace the stream"), (m.stream_scale, "a scale of the stream"),
            (m.activation not in KINDS, f"the activation {m.activation}")]
        for has, what in found:
            if has:
                return f"{where} has {what}, which training does not know"
    return ""


def ends(path: str, ops: Ops, batch: Batch, store: Store, stream: np.ndarray, divisor: float, sums: Sums | None = None) -> tuple[RowLosses, np.ndarray]:
    """Losses of the targets, and the gradient of the stream at the end; some rows of logits at a time. sums: to which the output matrix's and the final norm's
    gradients are added."""
    runtime = ops.runtime
    output, n, most = runtime.config.output, len(batch.targets), runtime.max_logits
    assert output.matrix is not None
    nll, hits, d = np.zeros(n, np.float64), 0, rows_of(*stream.shape) if divisor else np.zeros((0, 0), np.float32)
    for start in range(0, n, most):
        places, targets = batch.places[start:start + most], batch.targets[start:start + most].copy()
        x = rows_of(len(places), runtime.config.dim)
        x[:] = stream[places]
        normed = runtime.normed(x[:, :runtime.config.dim]) if divisor and sums else x
        logits = runtime.unembed_padded(x[:, :runtime.config.dim], (), partial(store.rows, "logits"))
        numbers = ops.cross_entropy(logits, targets, runtime.config.n_vocab, divisor, output.soft_cap, output.factor).astype(np.float64)
        nll[start:start + most] = [(m - right) + log(total) for m, total, right, _ in numbers.tolist()]
        hits += int(numbers[:, 3].sum())
        if divisor:
            dn, dx = rows_of(*x.shape), rows_of(*x.shape)
            ops.through_weights(output.matrix, logits, dn)
            if sums:
                sums.backward(normed, [(output.matrix, logits)])
                sums.norm(output.norm, x, dn)
            ops.norm_back(output.norm, x, dn, dx)
            d[places] = dx
    if not np.isfinite(nll).all():
        raise NumericError(f"{path}: the loss is not finite")
    return RowLosses(nll, hits, n), d


def _remove(adapters: Adapters, name: str) -> None:
    if name in adapters.by_name:
        adapters.remove(name)


def check(model: Core) -> None:
    """UnsupportedError unless the model can be gone through backwards."""
    if why := why_not(model.config):
        raise UnsupportedError(f"{model.path}: can't be trained: {why}; dense models of attention and feed-forward blocks can")


def check_row(row: Row) -> None:
    """OptionError: its ids and its mask are no row."""
    ids, mask = np.asarray(row.ids), np.asarray(row.loss_mask)
    if ids.ndim != 1 or mask.shape != ids.shape or mask.dtype != np.bool_:
        raise OptionError(f"{row.name or 'a row'}: ids and loss_mask must be equally long and of one dimension, found {list(ids.shape)} and {list(mask.shape)}")
    if len(mask) and mask[0]:
        raise OptionError(f"{row.name or 'a row'}: its first token is a target, but nothing is before it: begin with BOS, or do not count it")


def most_pages(runtime: Runtime) -> int:
    """Of 64 positions, for which the KV cache has room."""
    return max(1, runtime._pool.free_pages // runtime.plan.layout.rows)


def memory_of(runtime: Runtime, tokens: int, longest: int | None, rows: int, first_layer: int, threads: int | None, drops: bool = False) -> int:
    """Bytes that a micro-batch of so many tokens takes to go back to first_layer, its KV pages included, without layers that are kept. longest: of its at most
    so many rows. drops: whether inputs of pairs drop out."""
    config, most = runtime.config, min(longest or tokens, tokens)
    ld = round_up(config.dim)
    widest: dict[str, int] = {}
    for i in range(first_layer, config.n_layers):
        for name, columns in (*columns_of(runtime, i).items(), *own_columns(config.layers[i]).items()):
            widest[name] = max(widest.get(name, 0), round_up(columns))
    matrices = max(round_up(max(m.rows, m.columns)) for block in config.blocks() for m in block.matrices())
    kept = 4 * tokens * ((config.n_layers - first_layer + 2) * ld + sum(widest.values()) + (4 if drops else 0) * matrices)
    threads = threads or runtime.n_threads
    heads = max(room_bytes(most, a.head_dim, a.value_dim, a.window, threads) for a in config.attentions())
    logits = min(tokens, runtime.max_logits) * 4 * (round_up(config.n_vocab) + 4 * ld)
    pages = min((tokens + min(rows, tokens) * (PAGE - 1)) // PAGE, most_pages(runtime))
    return kept + max(threads * SCRATCH, heads) + 2 * logits + pages * runtime.plan.layout.rows * runtime.page_bytes


class RowGradients(ABC):
    """What adds up rows' gradients, in parts of a step."""

    _model: Core
    _store: Store
    _first_layer: int
    _threads: int | None

    def accumulate(self, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        """Add the gradients of the rows' mean loss to `arrays` -> what the model thought of their targets. divisor: targets of the whole optimiser step.

        step: of the optimiser; the numbers that are trained are read when it changes, and after `zero`. Calls for parts of a step, in the order of the
        data, give the bits of one call for all of it. A loss that isn't finite is NumericError, and `arrays` are then undefined."""
        return self._go(rows, divisor, step)

    def losses(self, rows: Sequence[Row]) -> RowLosses:
        """What the model, with the numbers as they are now, thinks of the rows' targets, by the same arithmetic, without dropout."""
        return self._go(rows, 0.0, -1)

    def run(self, entry: int, args: int) -> int:
        """Compiled work on the threads that this has (Team.run)."""
        with self._model.scheduler.alone() as runtime:
            return int(runtime.team.run(entry, args, self._threads))

    @abstractmethod
    def _go(self, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        """As `accumulate`; divisor 0: losses only, of the numbers as they are now."""

    @property
    def most_pages(self) -> int:
        """Of 64 positions, for which the KV cache has room: a micro-batch's rows take whole ones."""
        return most_pages(self._model.runtime)

    @property
    def keep(self) -> int:
        """Most bytes for what layers leave in the first pass; those that don't fit are computed a second time on the way back. Changes no number."""
        return self._store.most

    @keep.setter
    def keep(self, most: int) -> None:
        self._store = Store(most)

    def layers(self) -> int:
        """How many are gone back through."""
        return self._model.config.n_layers - self._first_layer

    def kept(self, tokens: int, most: int | None = None) -> tuple[int, int]:
        """(layers, bytes) that are kept of a micro-batch of so many tokens. most: bytes, None: `keep`."""
        layers, size = layers_kept(self._model.runtime, tokens, self._first_layer, self.keep if most is None else most)
        return len(layers), size


class Gradients(RowGradients):
    """Of one adapter of a model. .arrays: {"blk.0.attn_q.weight.lora_a": float32, the shape of the pair's a, …}: running sums, zero at first.

    dropout: of what a pair's A reads, from Philox keyed by (seed, step, matrix, the token's number in the step). threads: None: as many as the model has.
    keep: bytes (see .keep), None: up to 900 MB of what is free. backward: "bfloat16": where gradients go through the base's matrices, but for F32 and F16 ones,
    both are rounded to it; "float32".
    UnsupportedError: a model with blocks that can't be trained. OptionError.
    """

    def __init__(self, model: Core, adapter: Adapter, *, dropout: float = 0.0, seed: int = 0, threads: int | None = None,
                 keep: int | None = None, backward: str = "bfloat16") -> None:
        config = model.config
        check(model)
        if not 0 <= dropout < 1:
            raise OptionError(f"dropout must be at least 0 and below 1, found {dropout:g}")
        if backward not in BACKWARD:
            raise OptionError(f"backward must be one of {', '.join(BACKWARD)}, found {quoted(backward)}")
        self._model, self._adapter, self._threads, self._dropout, self._seed = model, adapter, threads, dropout, seed
        self._rounded = backward == "bfloat16"
        self._store = Store(default_keep() if keep is None else keep)
        self._name, self._taken = f"training {id(self)}", -1
        adapter.check(config)
        layers = {m.tensor: i for i, blocks in enumerate(config.layers) for block in blocks for m in block.matrices()}
        for name in adapter.pairs:
            if name not in layers:
                raise UnsupportedError(f"{model.path}: {quoted(name)} can't be trained: it is no matrix of a layer, such as {next(iter(layers))}")
        self._first_layer = min((layers[name] for name in adapter.pairs), default=config.n_layers)
        self.arrays: dict[str, np.ndarray] = {}
        for name, pair in adapter.pairs.items():
            self.arrays[f"{name}.lora_a"], self.arrays[f"{name}.lora_b"] = np.zeros(pair.a.shape, np.float32), np.zeros(pair.b.shape, np.float32)

        with model.scheduler.alone() as runtime:
            runtime.adapters.add(self._name, adapter)
        self._remove = weakref.finalize(self, _remove, runtime.adapters, self._name)

    def close(self) -> None:
        """The model gets the memory back that the adapter takes in it. Whoever has let go of this has closed it, but not before the collector comes."""
        self._remove()
        self.keep = 0

    def zero(self) -> None:
        """The sums begin again, and the adapter's numbers are read again."""
        self._taken = -1
        for array in self.arrays.values():
            array.fill(0)

    @in_default_floats
    def _go(self, rows: Sequence[Row], divisor: float, step: int) -> RowLosses:
        for row in rows:
            check_row(row)
        with self._model.scheduler.alone() as runtime:
            batch = Batch(rows, runtime.max_batch)
            if not batch.n:
                return RowLosses(np.zeros(0, np.float64), 0, 0)
            ops, names = Ops(runtime, self._threads, self._rounded), runtime.adapters
            if self._taken != step or step < 0:
                names.update(self._name)
                self._taken = step
            drops, taken = self._dropout > 0 and divisor != 0, names.by_name[self._name]
            use = () if drops else names.chosen({self._name: 1.0})

            def factors(tensor: str) -> Factors | None:
                pair = self._adapter.pairs.get(tensor)
                if pair is None:
                    return None
                mask = partial(self._mask, batch, step, tensor, pair.a.shape[1]) if drops else None
                return Factors(ops, pair, self.arrays[f"{tensor}.lora_a"], self.arrays[f"{tensor}.lora_b"], mask, taken.turned(tensor))

            def learned(tensors: dict[str, Parts], x: np.ndarray, dx: np.ndarray | None) -> None:
                back_of(ops, [(found, parts) for tensor, parts in tensors.items() if (found := factors(tensor))], x, dx)
            with Forward(ops, batch, use, factors if drops else lambda tensor: None, self._first_layer, self._store) as forward:
                forward.run(keep=divisor != 0)
                found, d = ends(str(self._model.path), ops, batch, self._store, forward.streams.pop(runtime.config.n_layers), divisor)
                if divisor == 0:
                    return found
                back = Backward(ops, batch, learned, runtime.kv_name, store=self._store)
                for layer in range(runtime.config.n_layers - 1, self._first_layer - 1, -1):
                    back.layer(runtime.config.layers[layer], forward.again(layer), forward.streams.pop(layer), d, layer > self._first_layer)
        return found

    def _mask(self, batch: Batch, step: int, tensor: str, width: int, at: int, n: int) -> np.ndarray:
        """Of tokens [at, at + n) of a micro-batch."""
        numbers = batch.first_token[at:at + n]
        cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1), n]
        return np.concatenate([dropout_mask(self._seed, step, tensor, int(numbers[a]), b - a, width, self._dropout) for a, b in pairwise(cuts)])

    def memory(self, tokens: int, longest: int | None = None, rows: int = 1) -> int:
        """Bytes that a micro-batch of so many tokens takes beside model, adapter and `arrays`, its KV pages included, of which each row has its own. longest:
        of its at most so many rows."""
        return memory_of(self._model.runtime, tokens, longest, rows, self._first_layer, self._threads, self._dropout > 0)
