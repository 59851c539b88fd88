"""The program: a model's stages as one array of words, and what people call its parts.

    ModelConfig.fused / .open / .keeping ──► Stage (op, name, matrices, buffers …) ──► the op's `fill` writes its words ──► addresses for forward.py

First all layers' fused stages, then the end (close, final norm, logits), then the open stages, layer by layer. The keeping ones are an array of their own, made
when they are first asked for. Only ops that a program uses are compiled.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..architectures.blocks import Attention
from ..architectures.expert_blocks import Experts
from ..architectures.mamba_blocks import Mamba2
from ..architectures.spec import Matrix, Norm, Site, Stage
from ..architectures.state_blocks import Conv, Delta, journal_stage
from .layout import Layout
from .ops import keep
from .ops.common import FAULTS, NUMBER, OP, SIZE, SLOT, SLOTS
from .ops.table import OPS


@dataclass(frozen=True)
class Placed:
    """A stage and where its words are."""

    stage: Stage
    address: int
    end: int
    words: np.ndarray = field(compare=False)


class Program:
    """.layers: fused stages of each layer; .end: of the end; .open: of each layer, in open form; .scans: of recurrent layers
    alone, from what was kept of their rows; .slots: names that a profile tells apart."""

    def __init__(self, layout: Layout):
        fused, tail = layout.config.fused(layout.wants_records)
        opened = [layout.config.open(i, layout.wants_records) for i in range(layout.config.n_layers)]
        scans = [stage for r in layout.config.recurrents() for stage in (journal_stage(r, True), *r.scan())]
        stages = [stage for part in (*fused, tail, *opened, scans) for stage in part]
        self.slots = list(dict.fromkeys(stage.name for part in (*fused, tail) for stage in part))
        self.slots += [name for name in dict.fromkeys([*(stage.name for stage in stages), "keep"]) if name not in self.slots]
        self._layout, self._placed = layout, list[Placed]()
        parts = iter(self._place(stages))
        self.layers = [[next(parts) for _ in part] for part in fused]
        self.end = [next(parts) for _ in tail]
        self.open = [[next(parts) for _ in part] for part in opened]
        self.scans = [next(parts) for _ in scans]
        self._joins: dict[int, int] = {}
        self._join(self.layers)
        self._fill([p for part in (*self.layers, self.end, self.scans) for p in part])

    def _place(self, stages: list[Stage]) -> list[Placed]:
        """One after the other in memory."""
        sizes = [4 + OPS[stage.op].words for stage in stages]
        found, first, all_words = list[Placed](), 0, np.zeros(sum(sizes), np.int64)
        for stage, size in zip(stages, sizes):
            words = all_words[first:first + size]
            words[OP // 8], words[SIZE // 8], words[NUMBER // 8] = 0, 8 * size, len(self._placed) + len(found)
            words[SLOT // 8] = SLOTS + 8 * self.slots.index(stage.name)
            found.append(Placed(stage, words.ctypes.data, words.ctypes.data + 8 * size, words))
            first += size
        self._placed += found
        return found

    def _join(self, layers: list[list[Placed]]) -> None:
        """What adds what these layers leave waiting."""
        after = [*self.layers[1:], [self.end[-2]]]
        self._joins |= {here[-1].end: then[0].address for here, then in zip(layers, after) if here}

    @cached_property
    def keeping(self) -> list[list[Placed]]:
        """Stages of each layer in keeping form, none of a layer that has no such form."""
        layers = self._layout.config.keeping(self._layout.wants_records)
        parts = iter(self._place([stage for part in layers for stage in part]))
        found = [[next(parts) for _ in part] for part in layers]
        self._join(found)
        return found

    @cached_property
    def kept(self) -> list[dict[str, Site]]:
        """Sites of each layer's keeping form, by their names."""
        return [{site.name: site for placed in layer for site in placed.stage.after} for layer in self.keeping]

    def _fill(self, placed: list[Placed]) -> None:
        for p in placed:
            op, words = OPS[p.stage.op], p.words
            if not words[OP // 8]:
                assert self._placed[words[NUMBER // 8]] is p
                op.fill(words, p.stage, self._layout)
                words[OP // 8] = op.address(p.stage)

    def open_layer(self, layer: int) -> list[Placed]:
        """A layer's open stages, compiled and filled in when first wanted."""
        self._fill(self.open[layer])
        return self.open[layer]

    def aim(self, layer: int, rows: Mapping[str, np.ndarray]) -> None:
        """From now on a layer's keeping stages, compiled and filled in when first wanted, leave the rows at these sites here, and no others."""
        self._fill(self.keeping[layer])
        for placed in self.keeping[layer]:
            if placed.stage.after:
                keep.aim(placed, rows)

    def before_layers(self) -> list[Placed]:
        """Open stages of what layer 0 makes for all layers: a step that begins after it needs them, too."""
        stages = self.open_layer(0)
        return stages[:next((i + 1 for i, placed in enumerate(stages) if placed.stage.op == "per_layer_mix"), 0)]

    def next_join(self, last: Placed | None) -> int:
        """Address of the stage that adds what the stage `last`, the end of a fused layer, leaves waiting: the next layer's first, or the final norm."""
        return self._joins.get(last.end, 0) if last else 0

    def fault(self, code: int) -> tuple[int | None, str]:
        """What NOT_FINITE holds -> (layer, what was not finite)."""
        number, which = divmod(code - 1, FAULTS)
        stage = self._placed[number].stage
        return stage.layer, stage.faults[which] if which < len(stage.faults) else stage.name


def listing(stages: list[Stage], formats: dict[str, str]) -> list[dict[str, Any]]:
    """The stages for people: {"layer", "name", "op", "works_on"}. formats: of each tensor."""
    return [{"layer": s.layer, "name": s.name, "op": s.op, "works_on": ", ".join(filter(None, (_shown(k, v, formats) for k, v in s.args.items())))}
            for s in stages]


def _shown(name: str, value: Any, formats: dict[str, str]) -> str:
    if isinstance(value, Matrix):
        return f"{value.key.removesuffix('.weight')} {formats.get(value.tensor, '')} {value.rows}x{value.columns}" + (" + bias" if value.bias else "") + (
            f" of each of {value.experts} {'heads' if '.attn_' in value.tensor else 'experts'}" if value.experts else "")
    if isinstance(value, Experts):
        return f"{value.used} of {value.experts} experts, {value.gating.replace('_', ' ')}" + (", normed" if value.normalise else "")
    if isinstance(value, Norm):
        return f"{value.kind} norm {value.tensor.removesuffix('.weight')}"
    if isinstance(value, Attention):
        more = [f"{value.heads} heads of {value.head_dim}", f"{value.kv_heads} kv heads"]
        more += [f"{value.rope.dims} dimensions turned in {value.rope.kind}"] if value.rope else ["no positions"]
        more += [f"window {value.window}"] if value.window else []
        more += [f"soft cap {value.soft_cap:g}"] if value.soft_cap else []
        more += [f"{value.qk_norm} norms of q and k"] if value.qk_norm in ("head", "layer") else []
        return ", ".join(more)
    if isinstance(value, (Conv, Delta, Mamba2)):
        return f"state of {value.state_floats} numbers, {value.taps} taps" + (
            f", {value.value_heads} heads" if isinstance(value, Delta) else f", {value.heads} heads" if isinstance(value, Mamba2) else "")
    if name == "matrices":
        return ", ".join(_shown("", matrix, formats) for matrix, *_ in value)
    if name == "add":
        return ", ".join(f"+ {a.buffer}" + (f" by {a.norm.tensor.removesuffix('.weight')}" if a.norm else "") + (f" x {a.factor:g}" if a.factor != 1 else "")
                         for a in value)
    if isinstance(value, bool):
        return name if value and name == "records" else ""
    if isinstance(value, str):
        return value if name == "activation" else f"{name} {value}" if name in ("rows", "out") else ""
    return f"{name} {value:g}" if value and name in ("factor", "soft_cap") and value != 1 else ""
