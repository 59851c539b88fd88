"""`Model.evaluate`: a task's rows measured in memory, with the numbers that `llamina eval` writes.

    a file, or rows -> Prompts (prompts.py) -> EvalWork.records -> results.py -> Evaluation
"""
from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import check_max_tokens
from ..errors import OptionError, quoted, why
from . import report, results
from .classify import check_calibration, check_labels
from .eval_work import EvalWork
from .prompts import Prompts

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
    with _file(task) as (path, known_as):
        prompts = Prompts.open(path, name=name or known_as, chat=chat, labels=None if labels is None else check_labels(labels), **options)
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


@contextlib.contextmanager
def _file(task: Any) -> Iterator[tuple[str, str | None]]:
    """(a task's file, what it is called instead of its name): rows go to one of their own."""
    if isinstance(task, (str, os.PathLike)):
        yield os.fspath(task), None
        return
    if isinstance(task, (bytes, Mapping)) or not isinstance(task, Iterable):
        raise OptionError(f"a task must be a file's path or a list of rows, found {type(task).__name__}")
    with tempfile.TemporaryDirectory(prefix="llamina-") as folder:
        path = Path(folder) / "rows.jsonl"
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            for i, row in enumerate(task):
                if not isinstance(row, Mapping):
                    raise OptionError(f"rows must be mappings, found {type(row).__name__} (row {i})")
                try:
                    file.write(json.dumps(dict(row), allow_nan=False) + "\n")
                except (TypeError, ValueError, RecursionError) as error:
                    raise OptionError(f"row {i} can't be written as JSON: {why(error)}") from None
        yield str(path), "rows.jsonl"
