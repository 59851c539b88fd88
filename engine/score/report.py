"""Tables of numbers for people: of the command line, and of a notebook (picture.py)."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_error(found: Mapping[str, Any], digits: int = 4) -> str:
    """A mean and its standard error."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:.{digits}f}" + (f" ± {found['stderr']:.{digits}f}" if found.get("stderr") is not None else "")


def confusion_lines(matrix: Mapping[str, Any], most: int = 12) -> list[str]:
    """{"labels", "counts"} as a table: a row for each right label."""
    labels, counts = [str(label) for label in matrix["labels"]], matrix["counts"]
    if len(labels) > most:
        return [f"(a confusion matrix of {len(labels)} labels: see the results file)"]
    width = max(8, *(min(20, len(label)) for label in labels)) + 2
    head = f"{'right, given':<{width}}" + "".join(f"{label[:20]:>{width}}" for label in labels)
    return [head, *(f"{label[:20]:<{width}}" + "".join(f"{n:>{width}}" for n in row) for label, row in zip(labels, counts))]


def eval_lines(result: Mapping[str, Any]) -> list[str]:
    """What `llamina eval` found."""
    metrics, task = result["metrics"], result["task"]
    shots = result["options"]["shots"]
    n = metrics["errors"]
    out = [f"{task['name']}: {metrics['rows']} rows of {task['kind']}, {shots} shots" + (f", {n} error{'' if n == 1 else 's'}" if n else "")]
    for name, value in named(result):
        out.append(f"{name:<22}" + "  ".join(f"{v:<20}" for v in value).rstrip())
    if "against" in result:
        a = result["against"]
        out.append(f"{'answers changed':<22}{with_error(a['answers_changed'])}" +
                   (f"  ({a['right_to_wrong']} right to wrong, {a['wrong_to_right']} wrong to right)" if "right_to_wrong" in a else ""))
        if "kl" in a:
            out.append(f"{'KL of choices':<22}{with_error(a['kl'], 6)} nats")
    if "confusion" in metrics:
        out += confusion_lines(metrics["confusion"])
    return out


_ROWS: list[tuple[str, tuple[str, ...]]] = [
    ("accuracy", ("accuracy",)), ("by characters", ("accuracy_by_length", "characters")), ("by bytes", ("accuracy_by_length", "bytes")),
    ("by tokens", ("accuracy_by_length", "tokens")), ("macro F1", ("macro_f1",)), ("Matthews", ("matthews",)), ("Brier", ("brier",)),
    ("calibration error", ("calibration_error",)), ("accuracy, calibrated", ("calibrated", "accuracy")), ("macro F1, calibrated", ("calibrated", "macro_f1")),
    ("NLL of the right one", ("nll",)), ("bits per byte", ("bits_per_byte",)), ("BLEU", ("bleu",)), ("chrF", ("chrf",)),
    ("tokens of an answer", ("answer_tokens",)),
]


def named(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(what, its value, and the reference's) of all that was measured; with a reference, the models' names first."""
    columns = [("", result["metrics"])]
    if "reference" in result:
        columns = [(result["model"]["name"], result["metrics"]), (f"against {result['reference']['name']}", result["reference"]["metrics"])]
    found = [("", [name for name, _ in columns])] if len(columns) > 1 else []
    for name, keys in _ROWS:
        values = []
        for _, metrics in columns:
            value: Any = metrics
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            values.append(value)
        if any(v is not None for v in values):
            found.append((name, [_number(v) for v in values]))
    return found


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{value['value']:.2f}  {value['signature']}" if "signature" in value and value["value"] is not None else with_error(value)
    return f"{value:.4f}"
