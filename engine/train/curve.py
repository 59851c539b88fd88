"""The loss curve: a sparkline for a terminal, a picture in a file (matplotlib, extra `plot`), SVG for a notebook, which needs nothing."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..files import writing
from ..score.plot import need_matplotlib

_BARS = "▁▂▃▄▅▆▇█"
History = Sequence[Mapping[str, Any]]


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A line of at most `width` bars, each the mean of some values in order."""
    n = min(width, len(values))
    if not n:
        return ""
    cuts = [len(values) * i // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:])]
    low, high = min(means), max(means)
    return "".join(_BARS[int((m - low) / (high - low) * (len(_BARS) - 1) + 0.5) if high > low else 0] for m in means)


def losses(history: History) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """((step, loss) of training, of validation)"""
    return [(r["step"], r["loss"]) for r in history if "loss" in r], [(r["step"], r["valid_loss"]) for r in history if "valid_loss" in r]


def draw(history: History, path: str) -> None:
    """A picture in a file whose name says its format. UnsupportedError, FileError."""
    sheet = need_matplotlib().Figure(figsize=(7, 4), layout="constrained")
    axes = sheet.subplots()
    for points, label, style in zip(losses(history), ("training", "validation"), ("-", "o-")):
        if points:
            axes.plot(*zip(*points), style, label=label, markersize=4, linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats a token)", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    with writing(path):
        sheet.savefig(path)


def described(training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> str:
    """The curve in words, for who doesn't see it."""
    parts = [f"{name} from {points[0][1]:.4f} (step {points[0][0]}) to {points[-1][1]:.4f} (step {points[-1][0]})"
             for name, points in (("training loss", training), ("validation loss", validation)) if points]
    return f"Loss in nats a token by step: {'; '.join(parts)}."


def html(history: History, title: str) -> str:
    """For a notebook: the curve, and the validations as a table."""
    training, validation = losses(history)
    points = training + validation
    if not points:
        return f"<p>{escape(title)}</p>"
    last, most = max(step for step, _ in points) or 1, max(loss for _, loss in points) or 1.0
    width, height = 480, 160

    def at(step: int, loss: float) -> tuple[str, str]:
        return f"{width * step / last:.1f}", f"{height * (1 - loss / most):.1f}"
    many = training[::max(1, len(training) // 400)]
    line = f'<polyline fill="none" stroke="#1a6fc4" points="{" ".join(",".join(at(*p)) for p in many)}"><title>training loss</title></polyline>' if many else ""
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="#d66e00"><title>step {step}: validation loss {loss:.4f}</title></circle>'
                   for step, loss in validation[-200:] for x, y in [at(step, loss)])
    rows = "".join(f"<tr><td>{r['step']}</td><td>{r['valid_loss']:.4f}</td><td>{100 * r['valid_accuracy']:.1f} %</td></tr>"
                   for r in history if "valid_loss" in r)
    table = f"<table><tr><th>step</th><th>validation loss</th><th>accuracy</th></tr>{rows}</table>" if rows else ""
    return (f'<div role="figure" aria-label="{escape(title, quote=True)}"><p>{escape(title)}</p><svg width="{width + 10}" height="{height + 10}" '
            f'viewBox="-5 -5 {width + 10} {height + 10}" role="img"><title>{escape(title)}</title>'
            f'<desc>{escape(described(training, validation))}</desc><rect width="{width}" height="{height}" fill="none" stroke="grey"/>{line}{dots}'
            f'<text x="4" y="14" font-size="12" fill="currentColor">{most:.2f}</text></svg>{table}</div>')
