"""An evaluation for a notebook: its numbers as a table, confusion matrix and calibration as inline SVG, which need nothing from elsewhere.

Text and lines have the colour of the text around them, fields are one colour over what is behind: readable on light and on dark ground. Each picture says in
its title and description what it shows, for those who can't see it.
"""
from __future__ import annotations

import itertools
from collections.abc import Mapping
from html import escape
from typing import Any

from .report import named

MOST_LABELS = 30
COLOUR = "#3b82c4"
_STYLE = "font:12px system-ui,sans-serif;color:inherit;max-width:100%;height:auto;margin:0 1.5em .5em 0"
_numbers = itertools.count(1)
"""Of pictures of a process: their titles' ids must differ in a page."""


def html(result: Mapping[str, Any]) -> str:
    """result: results.py's."""
    metrics, task = result["metrics"], result["task"]
    errors = f", {metrics['errors']} errors" if metrics["errors"] else ""
    rows = "".join(f'<tr><th scope="row" style="text-align:left">{escape(name)}</th>' +
                   "".join(f'<td style="text-align:left">{escape(value)}</td>' for value in values) + "</tr>" for name, values in named(result))
    parts = [f"<table><caption>{escape(str(task['name']))}: {metrics['rows']} rows of {escape(task['kind'])}{errors}</caption>{rows}</table>"]
    if "confusion" in metrics and len(metrics["confusion"]["labels"]) <= MOST_LABELS:
        parts.append(confusion_svg(metrics["confusion"]))
    if any(b["count"] for b in metrics.get("calibration", ())):
        parts.append(calibration_svg(metrics["calibration"], metrics["calibration_error"]))
    return f'<div class="llamina-eval">{"".join(parts)}</div>'


def _svg(width: float, height: float, title: str, description: str, body: str) -> str:
    n = next(_numbers)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="llamina-t{n} llamina-d{n}" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" style="{_STYLE}" fill="currentColor">'
            f'<title id="llamina-t{n}">{escape(title)}</title><desc id="llamina-d{n}">{escape(description)}</desc>{body}</svg>')


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {more}>{escape(text)}</text>'


def confusion_svg(matrix: Mapping[str, Any]) -> str:
    """{"labels", "counts"}: a row for each right label, a column for each given one."""
    labels, counts = [_short(str(label)) for label in matrix["labels"]], matrix["counts"]
    most = max((n for row in counts for n in row), default=0) or 1
    cell = max(38.0, 14.0 + 7 * len(str(most)))
    left, top = 34 + 7.0 * max(map(len, labels)), 40 + 5.5 * max(map(len, labels))
    body = [_text(left + cell * len(labels) / 2, 12, "given", 'text-anchor="middle"'),
            _text(12, top + cell * len(labels) / 2, "right", f'text-anchor="middle" transform="rotate(-90 12 {top + cell * len(labels) / 2:g})"')]
    for j, label in enumerate(labels):
        x = left + cell * (j + 0.5)
        body.append(_text(x, top - 6, label, f'transform="rotate(-45 {x:g} {top - 6:g})"'))
    for i, (label, row) in enumerate(zip(labels, counts)):
        y = top + cell * i
        body.append(_text(left - 6, y + cell / 2 + 4, label, 'text-anchor="end"'))
        for j, n in enumerate(row):
            x = left + cell * j
            body.append(f'<rect x="{x:g}" y="{y:g}" width="{cell:g}" height="{cell:g}" fill="{COLOUR}" fill-opacity="{0.6 * n / most:.3f}" '
                        f'stroke="currentColor" stroke-opacity=".3"/>')
            body.append(_text(x + cell / 2, y + cell / 2 + 4, str(n), 'text-anchor="middle"'))
    said = "; ".join(f"right {label}: " + ", ".join(f"{n} given {other}" for n, other in zip(row, labels)) for label, row in zip(labels, counts))
    return _svg(left + cell * len(labels) + 5.5 * max(map(len, labels)) + 8, top + cell * len(labels) + 4, "confusion matrix", said, "".join(body))


def calibration_svg(bins: list[dict[str, Any]], error: float | None) -> str:
    """How often answers of some probability are right: bars; the line is where they would be the same."""
    side, left, top = 220.0, 44.0, 18.0
    body = [f'<rect x="{left:g}" y="{top:g}" width="{side:g}" height="{side:g}" fill="none" stroke="currentColor" stroke-opacity=".4"/>']
    for b in bins:
        if not b["count"]:
            continue
        x, height = left + side * b["from"], side * b["accuracy"]
        body.append(f'<rect x="{x + 2:g}" y="{top + side - height:.1f}" width="{side * (b["to"] - b["from"]) - 4:.1f}" height="{height:.1f}" fill="{COLOUR}" '
                    f'fill-opacity=".6"><title>{b["count"]} rows, right {b["accuracy"]:.3f}, probability {b["confidence"]:.3f}</title></rect>')
        body.append(_text(x + side * (b["to"] - b["from"]) / 2, top + side - height - 3, str(b["count"]), 'text-anchor="middle" font-size="9"'))
    body.append(f'<path d="M{left:g} {top + side:g}L{left + side:g} {top:g}" stroke="currentColor" stroke-opacity=".6" fill="none"/>')
    for value in (0, 0.5, 1):
        body.append(_text(left + side * value, top + side + 15, f"{value:g}", 'text-anchor="middle"'))
        body.append(_text(left - 6, top + side * (1 - value) + 4, f"{value:g}", 'text-anchor="end"'))
    middle = top + side / 2
    body += [_text(left + side / 2, top + side + 30, "probability of the answer", 'text-anchor="middle"'),
             _text(12, middle, "how often it is right", f'text-anchor="middle" transform="rotate(-90 12 {middle:g})"')]
    said = "; ".join(f"{b['count']} answers of probability {b['from']:g} to {b['to']:g}: {b['accuracy']:.3f} right" for b in bins if b["count"])
    return _svg(left + side + 14, top + side + 38, f"calibration, error {error:.4f}" if error is not None else "calibration", said, "".join(body))


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else text[:most - 1] + "…"
