"""Figures for papers, with matplotlib (extra `plot`): the same pictures as the notebook's, in colours that print in grey and for all eyes."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError
from .terminal import visible

if TYPE_CHECKING:
    from .attention import Attention
    from .attribution import Attribution
    from .change import Patching
    from .lens import Lens
    from .trace import Trace


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure that belongs to no window, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError("figures need matplotlib: pip install llamina[plot]") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _heat(values: np.ndarray, rows: list[str], columns: list[str], label: str, least: float, most: float, colours: str) -> Any:
    figure, axes = _figure(2.5 + 0.35 * len(columns), 1.2 + 0.22 * len(rows))
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=least, vmax=most, interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    figure.colorbar(image, label=label)
    return figure


def lens_figure(lens: Lens, what: str = "rank") -> Any:
    """Layers x positions of "rank" (log10), "entropy" or "logprob" of the next token."""
    choices = {"rank": np.log10(lens.rank), "entropy": lens.entropy, "logprob": lens.target_logprob}
    if what not in choices:
        raise OptionError(f"a lens shows {', '.join(choices)}, found {what!r}")
    values = choices[what][::-1]
    rows = ["embedding" if layer < 0 else str(layer) for layer in lens.layers[::-1]]
    label = {"rank": "log10 of the next token's rank", "entropy": "entropy, nats", "logprob": "ln p of the next token"}[what]
    return _heat(values, rows, [visible(t) for t in lens.tokens], label, float(values.min()), float(values.max()), "viridis")


def trace_figure(trace: Trace) -> Any:
    """Surprise of each token, as bars."""
    figure, axes = _figure(2 + 0.3 * len(trace.ids), 3)
    axes.bar(range(len(trace.ids)), np.nan_to_num(trace.surprise), color="#1a6fc4")
    axes.set_xticks(range(len(trace.ids)), [visible(t) for t in trace.tokens], rotation=90, parse_math=False)
    axes.set_ylabel("surprise, nats")
    return figure


def attribution_figure(a: Attribution, position: int = -1) -> Any:
    """What each part wrote of one position's logit."""
    values = a.parts[position]
    figure, axes = _figure(5, 1 + 0.18 * len(values))
    axes.barh(range(len(values)), values, color=["#1a6fc4" if v >= 0 else "#d66e00" for v in values])
    axes.set_yticks(range(len(values)), a.labels)
    axes.invert_yaxis()
    axes.set_xlabel(f"part of the logit {a.logits[position]:.2f}")
    return figure


def attention_figure(a: Attention, layer: int | None = None, head: int | None = None) -> Any:
    """One head's map (default: of the first layer, the least spread head)."""
    if not a.maps:
        raise OptionError("the maps were not kept: ask with maps=True")
    layer = a.layers[0] if layer is None else layer
    if layer not in a.maps:
        raise OptionError(f"layer {layer} is not among {', '.join(map(str, a.layers))}")
    heads = a.heads[layer]
    head = heads[int(a.entropy[layer].mean(axis=1).argmin())] if head is None else head
    if head not in heads:
        raise OptionError(f"head {head} is not among {', '.join(map(str, heads))}")
    tokens = [visible(t) for t in a.tokens]
    figure = _heat(a.maps[layer][heads.index(head)], [tokens[p] for p in a.positions], tokens, f"weight, layer {layer} head {head}", 0.0, 1.0, "Blues")
    return figure


def patching_figure(found: Patching, head: int | None = None) -> Any:
    """Recovered metric, places x positions; by heads: of one head, or the sum over heads."""
    values = found.recovered
    if found.heads is not None:
        if head is not None and head not in found.heads:
            raise OptionError(f"head {head} is not among {', '.join(map(str, found.heads))}")
        values = values.sum(axis=2) if head is None else values[:, :, found.heads.index(head)]
    return _heat(values, found.names, [visible(found.tokens[p]) for p in found.positions], "recovered (1: as clean)", -1.0, 1.0, "PuOr")
