"""`Model.evaluate`: a task's rows measured in memory, with the numbers that `llamina eval` writes.

    a file, or rows -> Prompts (prompts.py) -> EvalWork.records -> results.py -> Evaluation
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import check_max_tokens
from ..errors import OptionError, quoted
from . import report, results
from .classify import check_calibration, check_labels
from .eval_work import EvalWork
from .prompts import Prompts
from .table import file_of

if TYPE_CHECKING:
    from ..answers.core import Core


@dataclass(repr=False)
class Evaluation:
    """What `Model.evaluate` found. results: all of it, as `llamina eval -o` writes it; samples: each row with its prompt's ids, scores, answer."""

    results: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers."""
        found: dict[str, Any] = self.results["metrics"]
        return found

    @property
    def accuracy(self) -> float | None:
        """None where there is none: of translations, or without rows."""
        found: float | None = self.metrics.get("accuracy", {}).get("value")
        return found

    def json(self) -> str:
        """What `llamina eval -o` writes, byte for byte."""
        return results.text_of(self.results)

    def __str__(self) -> str:
        return "\n".join(report.eval_lines(self.results))

    def __repr__(self) -> str:
        return f"<llamina.Evaluation {self.results['task']['name']}, {self.metrics['rows']} rows, accuracy {self.accuracy}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        from .picture import html
        return html(self.results)


def evaluate(model: Core, task: Any, *, against: Core | None = None, max_tokens: int = 256, stop: str | Iterable[str] | None = None, calibrate: str = "none",
             labels: Any = None, chat: bool = False, name: str | None = None, **options: Any) -> Evaluation:
    """See `Model.evaluate`."""
    check_max_tokens(max_tokens)
    check_calibration(calibrate)
    if unknown := [o for o in options if o not in ("shots", "shots_from", "seed", "system", "delimiter", "template", "match", "limit")]:
        raise OptionError(f"evaluate has no option {quoted(unknown[0])}")
    if (limit := options.get("limit")) is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise OptionError(f"limit must be a whole number above 0, found {quoted(limit)}")
    with file_of(task, "a task") as (path, made):
        known_as = "rows.jsonl" if made else None
        prompts = Prompts.open(str(path), name=name or known_as, chat=chat, labels=None if labels is None else check_labels(labels), **options)
        if prompts.task.kind == "translation":
            results.need_sacrebleu()
        if calibrate != "none" and prompts.task.kind != "label":
            raise OptionError(f"{prompts.task.name}: calibrate is for labels, which these rows lack")
        ends = ([] if chat else ["\n\n"]) if stop is None else [stop] if isinstance(stop, str) else list(stop)
        work = EvalWork(prompts, max_tokens, ends, calibrate, samples=True)
        parts, models = [], []
        for one in (model, *(() if against is None else (against,))):
            found = dict(work.records(one, work.rows()))
            parts.append([found[n] for n in sorted(found)])
            models.append({"name": Path(one.path).name, "sha256": one.digest, "kv": one.runtime.kv_name})
        result = results.results_of(work, models, [part.__iter__ for part in parts])
        if name or known_as:
            result["task"]["name"] = name or known_as
        return Evaluation(result, list(results.samples(work, iter(parts[0]))))
