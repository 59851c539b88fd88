"""Attention of chosen layers and heads over a text: maps, or what can be said of them without holding them (entropy, the strongest keys, averages).

    text ──► at each layer's hook_z: rows of the map, a few queries at a time ──► entropy, top k, averages by distance and over heads; the map itself if wanted
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import count
from ..errors import OptionError, quoted
from ..run.watch import Callback
from .hooks import map_rows
from .lens import layers_of
from .names import Place, catalogue
from .reading import texts_of
from .spans import Positions, Span, spans
from .texts import ids_of, run

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.runtime import Feed

_AT_ONCE = 4 << 20
"""Weights that are held at once unless the maps are wanted."""


@dataclass
class Attention:
    """Of a text of n tokens: L layers, their heads H (each layer's own number; `heads` if some were chosen), Q queries at `positions`.

    entropy[layer]: float64 [H, Q], nats. top_keys[layer]: int64 [H, Q, k], the positions with most weight (-1 where
    there are fewer), top_weights[layer]: float32.
    by_distance[layer]: float64 [H, n]: mean weight of the position d before a query, over the queries that have one. mean[layer]: float32 [Q, n], over heads.
    maps[layer]: float32 [H, Q, n], if they were asked for.
    """

    ids: list[int]
    tokens: list[str]
    layers: list[int]
    heads: dict[int, list[int]]
    positions: np.ndarray
    entropy: dict[int, np.ndarray]
    top_keys: dict[int, np.ndarray]
    top_weights: dict[int, np.ndarray]
    by_distance: dict[int, np.ndarray]
    mean: dict[int, np.ndarray]
    maps: dict[int, np.ndarray]

    def __repr__(self) -> str:
        return f"<Attention of {len(self.ids)} tokens, layers {', '.join(map(str, self.layers))}>"

    def _repr_html_(self) -> str:
        from .pictures import attention_html
        return attention_html(self)

    def html(self, layer: int | None = None, head: int | None = None) -> str:
        """The picture, with one head enlarged (default: the least spread one)."""
        from .pictures import attention_html
        return attention_html(self, layer, head)

    def plot(self, layer: int | None = None, **options: Any) -> Any:
        """A matplotlib figure (extra `plot`)."""
        from .plots import attention_figure
        return attention_figure(self, layer, **options)


class _Gathering:
    """One layer's numbers, as its rows come."""

    def __init__(self, place: Place, heads: list[int], n: int, positions: np.ndarray, top: int, maps: bool, mean: bool) -> None:
        queries = len(positions)
        self.place, self.heads = place, np.array(heads, np.int64)
        self.entropy = np.zeros((len(heads), queries))
        self.top_keys = np.full((len(heads), queries, top), -1, np.int64)
        self.top_weights = np.zeros((len(heads), queries, top), np.float32)
        self.sums, self.counts = np.zeros((len(heads), n)), np.zeros(n)
        self.mean = np.zeros((queries, n), np.float32) if mean else np.zeros((0, n), np.float32)
        self.map = np.zeros((len(heads), queries, n), np.float32) if maps else None
        self._at = 0

    def take(self, rows: np.ndarray, positions: np.ndarray) -> None:
        """float32 [heads, queries, keys] of these positions."""
        at, n = slice(self._at, self._at + rows.shape[1]), rows.shape[2]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.entropy[:, at] = -np.where(rows > 0, rows * np.log(rows), 0).sum(axis=2, dtype=np.float64)
        if k := min(self.top_keys.shape[2], n):
            best = np.argpartition(-rows, k - 1, axis=2)[:, :, :k] if k < n else np.broadcast_to(np.arange(n), rows.shape)
            weights = np.take_along_axis(rows, best, axis=2)
            order = np.lexsort((best, -weights), axis=2)
            best, weights = np.take_along_axis(best, order, axis=2), np.take_along_axis(weights, order, axis=2)
            self.top_keys[:, at, :k], self.top_weights[:, at, :k] = np.where(weights > 0, best, -1), weights
        for i, p in enumerate(positions):
            self.sums[:, :p + 1] += rows[:, i, p::-1]
            self.counts[:p + 1] += 1
        if len(self.mean):
            self.mean[at, :n] = rows.mean(axis=0)
        if self.map is not None:
            self.map[:, at, :n] = rows
        self._at += rows.shape[1]


def attention(model: Core, text: Any, layers: Any = None, heads: Any = None, positions: Any = None, top: int = 5, maps: bool = True,
              mean: bool = True) -> Attention:
    """See `Model.attention`."""
    ids, places, wanted = ids_of(model, text), catalogue(model.config), Positions(positions)
    rows = wanted.of(len(ids))
    k = count("top", top + 1 if isinstance(top, int) and not isinstance(top, bool) and top == 0 else top) or 1
    chosen = {layer: places[name] for layer in _asked(model, layers) if (name := f"blocks.{layer}.attn.hook_pattern") in places}
    gathering = {layer: _Gathering(place, _heads(heads, layer, place.shape[0]), len(ids), rows, 0 if top == 0 else k, maps, mean)
                 for layer, place in chosen.items()}

    def observe(feeds: list[Feed], whose: list[int]) -> Mapping[str, Callback]:
        (span,) = spans(feeds)
        which = np.flatnonzero(np.isin(span.positions, rows))

        def take(g: _Gathering, _: np.ndarray) -> None:
            _take(model, g, span, which)
        return {g.place.site.name: partial(take, g) for g in gathering.values()}
    for _ in run(model, [ids], observe, max(chosen)):
        pass
    return Attention(ids, texts_of(model, ids), list(chosen), {i: [int(h) for h in g.heads] for i, g in gathering.items()}, rows,
                     {i: g.entropy for i, g in gathering.items()}, {i: g.top_keys for i, g in gathering.items()},
                     {i: g.top_weights for i, g in gathering.items()},
                     {i: g.sums / np.maximum(g.counts, 1) for i, g in gathering.items()}, {i: g.mean for i, g in gathering.items()},
                     {i: g.map for i, g in gathering.items() if g.map is not None})


def _take(model: Core, g: _Gathering, span: Span, which: np.ndarray) -> None:
    if not len(which):
        return
    size = max(1, _AT_ONCE // max(1, len(g.heads) * (int(span.positions[-1]) + 1)))
    for start in range(0, len(which), size):
        part = which[start:start + size]
        g.take(map_rows(model.runtime, g.place, span, part, g.heads), span.positions[part])


def _asked(model: Core, layers: Any) -> list[int]:
    """Layers with attention; OptionError if one that was named has none."""
    have = {a.layer for a in model.config.attentions() if f"blocks.{a.layer}.attn.hook_z" in model.runtime.sites}
    if layers is None:
        asked = sorted(have)
    else:
        asked = layers_of(model, layers)
        if missing := [layer for layer in asked if layer not in have]:
            raise OptionError(f"{model.path}: layer {missing[0]} has no attention over positions; those that have: {_ranges(sorted(have))}")
    if not asked:
        raise OptionError(f"{model.path}: has no layer with attention over positions")
    return asked


def _ranges(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _heads(asked: Any, layer: int, n: int) -> list[int]:
    """Of a layer of n heads. OptionError."""
    if asked is None:
        return list(range(n))
    given = [asked] if isinstance(asked, (int, np.integer)) else asked
    try:
        found = list(given)
    except TypeError:
        raise OptionError(f"heads must be numbers, found {quoted(asked)}") from None
    for head in found:
        if isinstance(head, (bool, np.bool_)) or not isinstance(head, (int, np.integer)) or not 0 <= head < n:
            raise OptionError(f"heads must be numbers from 0 to {n - 1} in layer {layer}, found {quoted(head)}")
    if not found:
        raise OptionError("no head was named")
    return sorted({int(head) for head in found})
