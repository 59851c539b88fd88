"""The forward pass of training: the served arithmetic, with the stream before every layer kept; and one layer again, with all that its way back needs.

    rows ──► steps of the runtime, sequence after sequence ──► streams [layer] float32 [tokens, ld]
    layer i: the same steps of that layer alone, in open form, from its stream ──► Kept: {site: float32 [tokens, ld]}

A micro-batch's tokens stand in the order of its rows; of each row those that some target needs: the last token predicts nothing, nor do others after the last
target. Steps take as many as the runtime allows, whatever rows they are of.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..architectures.blocks import Attention, Mlp
from ..run.feed import Feed, Keep, Part
from .factors import Factors, FactorsOf
from .ops import Ops, padded
from .store import Store, columns_of, read_back

if TYPE_CHECKING:
    from ..architectures.spec import Matrix
    from ..run.adapters import Use
    from ..run.kv_cache import Sequence as Text
    from .rows import Row

Kept = dict[str, np.ndarray]
"""Last part of a site's name -> its rows."""
Observers = dict[str, Callable[[np.ndarray], None]]


def needed(row: Row) -> int:
    """Tokens of a row that are computed: up to the one before the last target."""
    found = np.flatnonzero(row.loss_mask)
    return int(found[-1]) if len(found) else 0


@dataclass(frozen=True)
class Span:
    """Tokens [first, last) of row `row`, whose first token is number `at` of the step's."""

    row: int
    first: int
    last: int


class Batch:
    """The tokens of some rows and the steps that compute them. lengths: tokens of each row. items: int64 [rows, 2], first token, how many."""

    def __init__(self, rows: Sequence[Row], most: int) -> None:
        self.ids = [np.asarray(row.ids[:needed(row)], np.int64) for row in rows]
        self.lengths = [len(ids) for ids in self.ids]
        ends = np.cumsum([0, *self.lengths])
        self.n = int(ends[-1])
        self.items = np.ascontiguousarray(np.stack([ends[:-1], self.lengths], axis=1)[np.array(self.lengths) > 0], np.int64)
        self.positions = np.concatenate([np.arange(n) for n in self.lengths] or [np.zeros(0, np.int64)]).astype(np.int64)
        self.first_token = np.concatenate([row.first_token + np.arange(n) for row, n in zip(rows, self.lengths)] or [np.zeros(0, np.int64)]).astype(np.int64)
        """Each token's number in the optimiser step."""
        places, targets = [], []
        for row, start in zip(rows, ends):
            wanted = np.flatnonzero(row.loss_mask)
            places.append(start + wanted - 1)
            targets.append(np.asarray(row.ids)[wanted])
        self.places = np.concatenate(places or [np.zeros(0)]).astype(np.int64)
        """Tokens whose logits count, in order."""
        self.targets = np.ascontiguousarray(np.concatenate(targets or [np.zeros(0)]), np.int64)
        self.steps: list[list[Span]] = []
        room = 0
        for i, n in enumerate(self.lengths):
            at = 0
            while at < n:
                if room == 0:
                    self.steps.append([])
                    room = most
                taken = min(room, n - at)
                self.steps[-1].append(Span(i, at, at + taken))
                at, room = at + taken, room - taken


class Forward:
    """Of one micro-batch. use: the adapter, as the runtime computes it; factors: of tensors whose pairs are added here instead, since their inputs drop out."""

    def __init__(self, ops: Ops, batch: Batch, use: Use, factors: FactorsOf, first_layer: int, store: Store | None = None) -> None:
        self._ops, self._runtime, self.batch, self._use, self._factors, self.first_layer = ops, ops.runtime, batch, use, factors, first_layer
        self._store, self._layers = store or Store(0), dict[int, Kept]()
        self.streams: dict[int, np.ndarray] = {}
        """By layer (n_layers: the end), from first_layer on: the stream before it."""
        self._texts: list[Text] = []

    def __enter__(self) -> Forward:
        self._texts = [self._runtime.new_sequence(adapters=self._use) for _ in self.batch.ids]
        return self

    def __exit__(self, *exception: object) -> None:
        for text in self._texts:
            text.close()

    def run(self, keep: bool = True) -> None:
        """All layers. keep: the streams before the layers, not the end's alone."""
        config = self._runtime.config
        n_layers = config.n_layers
        for layer in [*(range(self.first_layer, n_layers) if keep else ()), n_layers]:
            self.streams[layer] = self._store.rows(f"stream {layer}", self.batch.n, config.dim)
        self._layers = self._store.layers(self._runtime, self.batch.n, self.first_layer) if keep else {}

        def observers(at: int, n: int) -> Observers:
            found: Observers = {}
            for i in range(n_layers):
                copies: Observers = {f"blocks.{i}.{name}": Keep(rows[at:at + n]) for name, rows in self._layers.get(i, {}).items()}
                found |= {**copies, **self._adding(i, copies, at, n)}
            for layer, stream in self.streams.items():
                name = f"blocks.{layer}.hook_resid_pre" if layer < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"
                found[name] = Keep(stream[at:at + n])
            return found
        self._steps(observers)

    def again(self, layer: int) -> Kept:
        """What a layer leaves at its sites: what was kept of it, or, from its stream, computed a second time. Valid until the next call."""
        kept = self._layers.pop(layer, None)
        return self._second(layer) if kept is None else self._completed(layer, kept)

    def _completed(self, layer: int, kept: Kept) -> Kept:
        """With what one stage makes of what was kept."""
        stream, (attention, mlp) = self.streams[layer], self._runtime.config.layers[layer]
        assert isinstance(attention, Attention) and isinstance(mlp, Mlp)
        norms = {"ln1.hook_normalized": (attention.norm, stream), "ln2.hook_normalized": (mlp.norm, kept.get("hook_resid_mid", stream))}
        for name, columns in columns_of(self._runtime, layer).items():
            if name in kept:
                continue
            norm, rows = norms.get(name, (None, kept["mlp.hook_pre"]))
            if name in norms and norm is None:
                kept[name] = rows
                continue
            kept[name] = self._store.rows(name, self.batch.n, columns)
            if norm is None:
                self._ops.activated(mlp.activation, rows, kept.get("mlp.hook_pre_linear"), kept[name])
            else:
                self._ops.normed(norm, rows, kept[name])
        return kept

    def _second(self, layer: int) -> Kept:
        """Computed once more; where one step has all the tokens, most of it is not copied."""
        runtime = self._runtime
        prefix, names, kept, stay = f"blocks.{layer}.", read_back(runtime.config.layers[layer]), Kept(), []
        made = [site for placed in runtime.program.open_layer(layer) for site in placed.stage.after]
        wanted = [i for i, site in enumerate(made) if site.name.removeprefix(prefix) in names]
        last, one = wanted[-1], len(self.batch.steps) == 1
        odd = any(a.head_dim % 32 or a.value_dim % 32 for a in runtime.config.layers[layer] if isinstance(a, Attention))  # read past a row's end
        for i in wanted:
            name, site = made[i].name.removeprefix(prefix), made[i]
            if one and not (odd and name.startswith("attn.")) and all(later.buffer != site.buffer for later in made[i + 1:last + 1]):
                stay.append((name, site))
            else:
                kept[name] = self._store.rows(name, self.batch.n, site.columns)
        for text in self._texts:
            text.truncate(0)

        def observers(at: int, n: int) -> Observers:
            copies: Observers = {prefix + name: Keep(rows[at:at + n]) for name, rows in kept.items()}
            return {**copies, **self._adding(layer, copies, at, n)}
        self._steps(observers, layer, made[last].name)
        for name, site in stay:
            kept[name] = runtime.rows_at(site, self.batch.n)
        return kept

    def _steps(self, observers: Callable[[int, int], Observers], layer: int | None = None, until: str = "") -> None:
        at = 0
        for spans in self.batch.steps:
            feeds = [Feed(self._texts[s.row], self.batch.ids[s.row][s.first:s.last], "none") for s in spans]
            n = sum(s.last - s.first for s in spans)
            part = None if layer is None else Part(layer, layer + 1, self.streams[layer][at:at + n, :self._runtime.config.dim], until)
            self._runtime.step(feeds, observers(at, n), part=part)
            at += n

    def _adding(self, layer: int, others: Observers, at: int, n: int) -> Observers:
        """Observers of a layer that add the pairs' parts to what its matrices made of tokens [at, at + n); called before others at the same site."""
        prefix, found = f"blocks.{layer}.", Observers()
        inputs: dict[str, np.ndarray] = {}
        for source, results in outputs_of(self._runtime.config.layers[layer]):
            wanted = [(site, matrix, factors) for site, matrix in results if (factors := self._factors(matrix.tensor))]
            if not wanted:
                continue

            def read(rows: np.ndarray, source: str = source) -> None:
                inputs[source] = padded(rows)
            found[prefix + source] = _both(read, others.get(prefix + source))
            for site, matrix, factors in wanted:
                def add(rows: np.ndarray, matrix: Matrix = matrix, factors: Factors = factors, source: str = source,
                        last: bool = matrix is wanted[-1][1]) -> None:
                    factors.forward(inputs.pop(source) if last else inputs[source], [(matrix, rows)], at)
                found[prefix + site] = _both(add, others.get(prefix + site))
        return found


def outputs_of(blocks: tuple[object, ...]) -> list[tuple[str, list[tuple[str, Matrix]]]]:
    """(site of the rows that matrices read, [(site of what one made, it)]) of a layer."""
    found: list[tuple[str, list[tuple[str, Matrix]]]] = []
    for block in blocks:
        if isinstance(block, Attention):
            assert block.k and block.v
            found.append(("ln1.hook_normalized", [("attn.hook_q", block.q), ("attn.hook_k", block.k), ("attn.hook_v", block.v)]))
            found.append(("attn.hook_z", [("hook_attn_out", block.output)]))
        elif isinstance(block, Mlp):
            source = "ln2.hook_normalized" if block.norm or not block.parallel else "ln1.hook_normalized"
            made = [("mlp.hook_pre", block.gate), ("mlp.hook_pre_linear", block.up)] if block.gate else [("mlp.hook_pre", block.up)]
            found.append((source, [(site, matrix) for site, matrix in made if matrix]))
            found.append(("mlp.hook_post", [("hook_mlp_out", block.down)]))
    merged: dict[str, list[tuple[str, Matrix]]] = {}
    for source, results in found:
        merged.setdefault(source, []).extend(results)
    return list(merged.items())


def _both(first: Callable[[np.ndarray], None], second: Callable[[np.ndarray], None] | None) -> Callable[[np.ndarray], None]:
    def call(rows: np.ndarray) -> None:
        first(rows)
        if second:
            second(rows)
    return call
