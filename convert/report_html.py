"""A conversion's report in a notebook: Report -> one bar, divided by formats, its figures, and a table of the tensors."""
from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING

from ..engine.answers.display import table

if TYPE_CHECKING:
    from .convert import Report

_WIDTH = 600  # of the bar, in pixels
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#ff9da6", "#9d755d")


def report_html(report: Report) -> str:
    """HTML, whatever the names hold."""
    shares: Counter[str] = Counter()
    for tensor in report.tensors:
        shares[tensor.format] += tensor.bytes
    whole, x, parts, legend = max(1, sum(shares.values())), 0.0, [], []
    for i, (name, size) in enumerate(shares.most_common()):
        width, colour = _WIDTH * size / whole, _COLOURS[i % len(_COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="18" fill="{colour}"><title>{escape(name)}: {size} bytes</title></rect>')
        legend.append(f'<span style="color: {colour}">&#9632;</span> {escape(name)} {100 * size / whole:.1f} %')
        x += width
    rows = [(t.name, " × ".join(map(str, t.shape)), t.source, t.format + (f" (instead of {t.wanted})" if t.wanted else ""), t.bytes) for t in report.tensors]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    bar = f'<svg width="{_WIDTH}" height="18" role="img">{"".join(parts)}</svg><div>{" &nbsp; ".join(legend)}</div>'
    tensors = f"<details><summary>{len(rows)} tensors</summary>{table(('tensor', 'shape', 'from', 'to', 'bytes'), rows)}</details>"
    return f'<div><div>{escape(repr(report).strip("<>"))}</div>{bar}{f"<ul>{notes}</ul>" if notes else ""}{tensors}</div>'
