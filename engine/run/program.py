"""The program: a model's stages as one array of words, and what people call its parts.

    ModelConfig.fused / .open / .keeping ──► Stage (op, name, matrices, buffers …) ──► the op's `fill` writes its words ──► addresses for forward.py

First all layers' fused stages, then the end (close, final norm, logits), then the open stages, layer by layer, then the keeping ones. Only ops that a program
uses are compiled.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..architectures.blocks import Attention
from ..architectures.expert_blocks import Experts
from ..architectures.mamba_blocks import Mamba2
from ..architectures.spec import Matrix, Norm, Stage
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


class Program:
    """.layers: fused stages of each layer; .end: of the end; .open: of each layer, in open form; .keeping: in keeping form, if it has one; .kept: its
    sites; .scans: of recurrent layers alone, from what was kept of their rows; .slots: names that a profile tells apart."""

    def __init__(self, layout: Layout):
        fused, tail = layout.config.fused(layout.wants_records)
        opened = [layout.config.open(i, layout.wants_records) for i in range(layout.config.n_layers)]
        scans = [stage for r in layout.config.recurrents() for stage in (journal_stage(r, True), *r.scan())]
        keeping = layout.config.keeping(layout.wants_records)
        self._stages = [stage for part in (*fused, tail, *opened, scans, *keeping) for stage in part]
        self.slots = list(dict.fromkeys(stage.name for part in (*fused, tail) for stage in part))
        self.slots += [name for name in dict.fromkeys(stage.name for stage in self._stages) if name not in self.slots]
        sizes = [4 + OPS[stage.op].words for stage in self._stages]
        self._words = np.zeros(sum(sizes), np.int64)
        self._layout = layout
        placed, first = [], 0
        for i, (stage, size) in enumerate(zip(self._stages, sizes)):
            words = self._words[first:first + size]
            placed.append(Placed(stage, words.ctypes.data, words.ctypes.data + 8 * size))
            words[OP // 8], words[SIZE // 8], words[NUMBER // 8] = 0, 8 * size, i
            words[SLOT // 8] = SLOTS + 8 * self.slots.index(stage.name)
            first += size
        self._placed = placed
        parts = iter(placed)
        self.layers = [[next(parts) for _ in part] for part in fused]
        self.end = [next(parts) for _ in tail]
        self.open = [[next(parts) for _ in part] for part in opened]
        self.scans = [next(parts) for _ in scans]
        self.keeping = [[next(parts) for _ in part] for part in keeping]
        self.kept = [{site.name: site for stage in part for site in stage.after} for part in keeping]
        after = [*self.layers[1:], [self.end[-2]]]
        self._joins = {here[-1].end: then[0].address for form in (self.layers, self.keeping) for here, then in zip(form, after) if here}
        self._fill([p for part in (*self.layers, self.end, self.scans) for p in part])

    def _fill(self, placed: list[Placed]) -> None:
        for p in placed:
            op, words = OPS[p.stage.op], self._words_of(p)
            if not words[OP // 8]:
                assert self._placed[words[NUMBER // 8]] is p
                op.fill(words, p.stage, self._layout)
                words[OP // 8] = op.address(p.stage)

    def open_layer(self, layer: int) -> list[Placed]:
        """A layer's open stages, compiled and filled in when first wanted."""
        self._fill(self.open[layer])
        return self.open[layer]

    def _words_of(self, placed: Placed) -> np.ndarray:
        first = (placed.address - self._words.ctypes.data) // 8
        return self._words[first:first + (placed.end - placed.address) // 8]

    def aim(self, layer: int, rows: Mapping[str, np.ndarray]) -> None:
        """From now on a layer's keeping stages, compiled and filled in when first wanted, leave the rows at these sites here, and no others."""
        self._fill(self.keeping[layer])
        for placed in self.keeping[layer]:
            if placed.stage.after:
                keep.aim(placed, self._words_of(placed), rows)

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
        stage = self._stages[number]
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
