"""How the KV cache's pages are divided: layers that see all positions, and windowed layers, whose pages can be given back.

    ModelConfig, KV type, context, tokens of a step ──► kv_layout() ──► KVLayout: bytes of a unit, units of a page of each group, where each layer lies

A model whose layers all see everything has one group; its unit is a page of 64 positions of all layers. In a model with windowed layers the largest layer's
part of 64 positions is a unit, and smaller layers share one (Gemma 4's full layers have other heads than its windowed ones), with its own row in the table of
addresses, so that memory goes from one group to the other without being cut anew. Two
groups share the 64 positions of a page: the layers that see all, and the windowed ones, of which a sequence holds what some query may still see.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...kernels.attention import KVType
from ...kernels.elementwise import PAGE
from ..architectures.config import ModelConfig

SLACK = 64
"""Positions before the window that are kept, too: going back over so few (guesses, a banned text) needs nothing computed again."""

STATES = 2
"""States of a sequence: the present one, and the one before, from which the next is made."""


def pages_of(length: int) -> int:
    """Pages that `length` positions take."""
    return -(-length // PAGE)


@dataclass(frozen=True)
class KVLayout:
    """unit: bytes of a unit. whole, windowed: units that 64 positions take in each group. window: positions that a query of a windowed layer sees, 0: no
    windows. step: most tokens of a step. places: {layer that has keys and values: (row of the table of addresses, its offset in a unit)}.
    state_bytes: of a state of all recurrent layers; state_places: {layer: where its numbers begin}."""

    unit: int
    whole: int = 1
    windowed: int = 0
    window: int = 0
    step: int = PAGE
    places: tuple[tuple[int, tuple[int, int]], ...] = ()
    state_bytes: int = 0
    state_places: tuple[tuple[int, int], ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the table of addresses; those of the windowed layers come last."""
        return self.whole + self.windowed

    @property
    def most(self) -> int:
        """Windowed pages of a sequence that gives back what it can, at most: its window and slack, what a step adds, and a page cut at either end."""
        return (self.window + SLACK + self.step) // PAGE + 2

    @property
    def slot(self) -> int:
        """Units that a state counts for, 0 for models without recurrent layers."""
        return -(-self.state_bytes // self.unit) if self.state_bytes else 0

    def first(self, length: int) -> int:
        """The first page that queries from position `length` on see."""
        return max(0, length - self.window + 1) // PAGE

    def units(self, length: int) -> int:
        """Units that a sequence of `length` positions takes at most while it grows to them."""
        return self.whole * pages_of(length) + self.windowed * min(pages_of(length), self.most) + STATES * self.slot

    def bytes(self, length: int) -> int:
        return self.units(length) * self.unit

    def positions(self, units: int, most: int) -> int:
        """The longest sequence, in whole pages, that so many units hold; none longer than `most` positions if there is no end to it."""
        units -= STATES * self.slot
        pages = units // self.rows
        if self.windowed and pages > self.most:
            pages = (units - self.windowed * self.most) // self.whole if self.whole else pages_of(most)
        return pages * PAGE


def kv_layout(config: ModelConfig, kv: KVType, context: int, step: int) -> KVLayout:
    """Of sequences of up to `context` positions and steps of up to `step` tokens. Windows that would give nothing back in so short a context only mask."""
    sizes = {a.layer: kv.layer_bytes(a.kv_heads, a.head_dim, a.value_dim) for a in config.attentions() if a.kv_layer == a.layer}
    if not config.causal:  # a text is one step, layer by layer, and no other follows: all layers use one place in turn
        return KVLayout(max(sizes.values()), step=step, places=tuple((layer, (0, 0)) for layer in sizes))
    windows: dict[int, int] = {}
    for a in config.attentions():  # a layer without keys of its own may look further back into another's
        windows[a.kv_layer] = 0 if not a.window or windows.get(a.kv_layer) == 0 else max(a.window, windows.get(a.kv_layer, 0))
    window = max(windows.values())
    places, floats = [], 0
    for r in config.recurrents():
        places.append((r.layer, floats))
        floats += -(-r.state_floats // 16) * 16
    states: dict[str, Any] = {"state_bytes": 4 * floats, "state_places": tuple(places)}
    found = KVLayout(0, window=window, step=step)
    if not window or pages_of(context) <= found.most:
        offsets, at = [], 0
        for layer, n in sizes.items():
            offsets.append((layer, (0, at)))
            at += n
        return KVLayout(at, step=step, places=tuple(offsets), **states)
    unit = max(sizes.values())
    whole, windowed = (_packed({layer: n for layer, n in sizes.items() if (windows[layer] > 0) is seen}, unit) for seen in (False, True))
    rows = len(whole)
    found_places = [(layer, (row + rows * late, at)) for late, group in enumerate((whole, windowed)) for row, held in enumerate(group) for layer, at in held]
    return KVLayout(unit, len(whole), len(windowed), window, step, tuple(found_places), **states)


def _packed(sizes: dict[int, int], unit: int) -> list[list[tuple[int, int]]]:
    """Layers into units: of each unit, the layers it holds and where they begin. A layer goes into the first unit that has room for it."""
    units: list[list[tuple[int, int]]] = []
    used: list[int] = []
    for layer, n in sizes.items():
        at = next((i for i, taken in enumerate(used) if taken + n <= unit), len(units))
        if at == len(units):
            units.append([])
            used.append(0)
        units[at].append((layer, used[at]))
        used[at] += n
    return units
