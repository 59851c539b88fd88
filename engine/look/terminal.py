"""What `llamina look` prints: a line a token, a lens or an attention map in characters.

    Trace, Lens, Attention ──► lines of text
"""
from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import escaped

if TYPE_CHECKING:
    from .attention import Attention
    from .lens import Lens
    from .trace import Trace

_BLOCKS = " \u2591\u2592\u2593\u2588"
"""From no weight to all of it."""


def visible(text: str) -> str:
    """A token on one line: blanks and line ends shown, control characters escaped."""
    return escaped(text.replace("\n", "\u21b5").replace("\t", "\u21e5").replace(" ", "\u00b7"))


def cell(text: str, width: int) -> str:
    """Cut or filled to so many columns of a terminal."""
    text, out, used = visible(text), "", 0
    for c in text:
        w = 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if used + w > width:
            out = out[:-1] + "\u2026" if used == width and out else out
            break
        out, used = out + c, used + w
    return out + " " * (width - used)


def bar(value: float, most: float, width: int = 8) -> str:
    """A bar for a value from 0 to most."""
    n = 0 if not np.isfinite(value) else int(round(max(0.0, min(1.0, value / most)) * width))
    return "\u2588" * n + "\u00b7" * (width - n)


def trace_lines(trace: Trace, top: int = 3) -> Iterator[str]:
    """A line a token: surprise, rank, entropy, the settling layer, what was expected."""
    yield f"{'token':<16} {'surprise':>8} {'':8} {'rank':>6} {'entropy':>7} {'settled':>7}  expected"
    for i, token in enumerate(trace.tokens):
        if i == 0:
            yield cell(token, 16).rstrip()
            continue
        expected = "  ".join(f"{visible(t)} {p:.0%}" for t, p in trace.expected(i)[:top])
        layer = "emb" if trace.settled[i] < 0 else str(trace.settled[i])
        yield f"{cell(token, 16)} {trace.surprise[i]:8.2f} {bar(trace.surprise[i], 8)} {trace.rank[i]:6d} {trace.entropy[i]:7.2f} {layer:>7}  {expected}"
    yield "next: " + "  ".join(f"{visible(t)} {p:.0%}" for t, p in trace.expected(len(trace.ids))[:top])
    if len(trace.ids) > 1:
        yield f"{np.nanmean(trace.surprise):.3f} nats a token"


def lens_lines(lens: Lens, width: int) -> Iterator[str]:
    """The first choice after every layer (the last on top) for the last positions that fit into so many columns, with how sure it is."""
    columns = max(1, min(len(lens.ids), (width - 6) // 11))
    first = len(lens.ids) - columns
    yield "after " + " ".join(cell(token, 10) for token in lens.tokens[first:])
    for i in range(len(lens.layers) - 1, -1, -1):
        cells = [_BLOCKS[min(4, int(lens.top_probs[i, p, 0] * 5))] + cell(lens.vocabulary[int(lens.top_ids[i, p, 0])], 9) for p in range(first, len(lens.ids))]
        yield f"{'emb' if lens.layers[i] < 0 else lens.layers[i]:>5} " + " ".join(cells).rstrip()


def attention_lines(a: Attention, layer: int, head: int | None, width: int) -> Iterator[str]:
    """One head's map in characters (each query's line: the keys that fit, the last ones), or of a layer a line a head: how spread it is, where it looks."""
    if head is None:
        yield f"layer {layer}: mean entropy, mean weight of the first token, of itself, of the one before"
        for j, h in enumerate(a.heads[layer]):
            near, first = a.by_distance[layer][j], float(a.maps[layer][j][:, 0].mean())
            yield f"head {h:3d} {a.entropy[layer][j].mean():7.3f} {first:7.3f} {near[0]:7.3f} {near[1] if len(near) > 1 else 0.0:7.3f}"
        return
    map = a.maps[layer][a.heads[layer].index(head)]
    columns = max(1, min(len(a.ids), width - 44))
    first = len(a.ids) - columns
    yield f"layer {layer}, head {head}: rows look at columns {first} to {len(a.ids) - 1}; the strongest keys beside"
    for q, p in enumerate(a.positions):
        line = "".join(_BLOCKS[min(4, int(np.sqrt(w) * 5))] for w in map[q, first:])
        keys = [(int(c), float(w)) for c, w in zip(a.top_keys[layer][a.heads[layer].index(head), q], a.top_weights[layer][a.heads[layer].index(head), q])]
        best = " ".join(f"{visible(a.tokens[c])[:10]} {w:.0%}" for c, w in keys[:2] if c >= 0)
        yield f"{cell(a.tokens[p], 12)} {line} {best}"
