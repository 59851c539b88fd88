"""Pictures of an evaluation's results in files: the confusion matrix and the calibration, by matplotlib (extra `plot`). A notebook's are picture.py's."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UnsupportedError, quoted
from ..files import shown, writing

MOST_LABELS = 30


def need_matplotlib(path: str | None = None) -> Any:
    """matplotlib.figure, or UnsupportedError that says what to install, or that no picture is called like this."""
    try:
        from matplotlib import backend_bases, figure
    except ImportError:
        raise UnsupportedError('pictures are drawn by matplotlib, which is not installed: pip install "llamina[plot]"') from None
    known = backend_bases.FigureCanvasBase.get_supported_filetypes()
    if path is not None and (end := Path(path).suffix.lower().lstrip(".")) and end not in known:
        raise UnsupportedError(f"{shown(path)}: no picture is drawn as {quoted(end)}: choose from {', '.join(sorted(known))}")
    return figure


def draw(results: dict[str, Any], path: str) -> None:
    """A picture of `results` (results.py) in a file whose name says its format. UnsupportedError: there is nothing to draw; FileError."""
    figure, metrics = need_matplotlib(), results["metrics"]
    parts = [name for name in ("confusion", "calibration") if name in metrics and not (name == "confusion" and len(metrics[name]["labels"]) > MOST_LABELS)]
    if not parts:
        raise UnsupportedError("there is nothing to draw: pictures show choices and labels")
    sheet = figure.Figure(figsize=(5 * len(parts), 4.4), layout="constrained")
    for axes, name in zip(sheet.subplots(1, len(parts), squeeze=False)[0], parts):
        (_confusion if name == "confusion" else _calibration)(axes, metrics[name])
    with writing(path):
        sheet.savefig(path)


def _confusion(axes: Any, matrix: dict[str, Any]) -> None:
    labels, counts = matrix["labels"], matrix["counts"]
    axes.imshow(counts, cmap="Blues")
    axes.set(xlabel="given", ylabel="right", xticks=range(len(labels)), yticks=range(len(labels)), title="confusion")
    axes.set_xticklabels(labels, rotation=45, ha="right")
    axes.set_yticklabels(labels)
    most = max((n for row in counts for n in row), default=0)
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            axes.text(j, i, str(n), ha="center", va="center", color="white" if n > most / 2 else "black")


def _calibration(axes: Any, bins: list[dict[str, Any]]) -> None:
    there = [b for b in bins if b["count"]]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.bar([(b["from"] + b["to"]) / 2 for b in there], [b["accuracy"] for b in there], width=0.09)
    axes.set(xlabel="probability of the answer", ylabel="how often it is right", xlim=(0, 1), ylim=(0, 1), title="calibration")
    for b in there:
        axes.annotate(str(b["count"]), ((b["from"] + b["to"]) / 2, b["accuracy"]), ha="center", va="bottom", fontsize=7)
