"""`llamina classify` as work on a file's rows: texts in, the same rows with label and probabilities out.

    .csv, .tsv, .jsonl, lines -> Row -> Classifier.many -> record -> the row's own columns, label, probability of each label

What is wrong with the file (columns, labels that aren't among the labels) is told before anything is computed; a text that is too long gets an error
instead of a label.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import FormatError, quoted
from . import metrics
from .classify import Classifier, check_abstain, check_calibration, check_labels
from .job import Records, Work
from .table import Row, cells_of, digest_of, read_rows, text_column, written
from .template import check_template, fields_of

if TYPE_CHECKING:
    from ..answers.core import Core


@dataclass
class ClassifyWork(Work):
    """source: the file; name: what it is called in errors; format, out_format: of table.FORMATS. text, gold: columns ("": the only one; None: none)."""

    source: Path
    name: str
    format: str
    out_format: str
    labels: Mapping[str, str]
    template: str
    calibrate: str = "none"
    abstain: float | None = None
    delimiter: str = " "
    text: str | None = None
    gold: str | None = None
    count: int = 0
    digest: str = ""
    columns: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    """What was measured, once the output is written."""

    def prepare(self) -> None:
        """Look at every row. FileError, FormatError (naming file and line), OptionError."""
        check_labels(self.labels)
        check_template(self.template)
        check_calibration(self.calibrate)
        check_abstain(self.abstain)
        self.digest = digest_of(self.source)
        for row in read_rows(self.source, self.format, self.name):
            if not self.count:
                self.columns = list(row.fields)
                self._choose_text(row)
            self._fields(row)
            if self.gold is not None:
                self._gold(row)
            self.count += 1
        if not self.count:
            raise FormatError(f"{self.name}: has no rows")

    def _choose_text(self, row: Row) -> None:
        """The text's column, if nobody said which: "text", or the only one that isn't the label's. None if the template asks for other columns."""
        if self.text is None and "text" not in fields_of(self.template):
            return
        self.text = text_column(self.columns, self.text, self.name, self.gold)

    def _fields(self, row: Row) -> dict[str, Any]:
        """What the template sees."""
        text = row.fields.get(self.text or "text")
        if self.text is not None and not isinstance(text, str):
            raise self._bad(row, f"has no text in {quoted(self.text)}" if text is None else f"{quoted(self.text)} must be a text, found {type(text).__name__}")
        if missing := [name for name in fields_of(self.template) if name != "text" and name not in row.fields]:
            raise self._bad(row, f"has no {quoted(missing[0])}, which the template asks for")
        return row.fields if self.text is None else {**row.fields, "text": text}

    def _gold(self, row: Row) -> str:
        found = row.fields.get(self.gold or "")
        label = found if isinstance(found, str) else json.dumps(found)
        if found is None or label not in self.labels:
            raise self._bad(row, f"{quoted(self.gold)} is {quoted(found)}: expected one of the labels, {', '.join(self.labels)[:300]}" if found is not None else
                            f"has no {quoted(self.gold)}, where its right label should be")
        return label

    def _bad(self, row: Row, problem: str) -> FormatError:
        return FormatError(f"{self.name}, line {row.line}: {problem}")

    # -- Work -----------------------------------------------------------------------------------------------------------------------------

    def bound(self) -> Mapping[str, Any]:
        return {"command": "classify", "input": self.digest, "labels": dict(self.labels), "template": self.template, "calibrate": self.calibrate,
                "abstain": self.abstain, "delimiter": self.delimiter, "text": self.text, "gold": self.gold, "formats": [self.format, self.out_format]}

    def rows(self) -> Iterator[Row]:
        return read_rows(self.source, self.format, self.name)

    def records(self, model: Core, rows: Iterable[Row]) -> Records:
        numbers: dict[int, Row] = {}

        def texts() -> Iterator[dict[str, Any]]:
            for index, row in enumerate(rows):
                numbers[index] = row
                yield self._fields(row)
        classifier = self.of_model(model, lambda model: Classifier(model, self.labels, self.template, calibrate=self.calibrate, abstain=self.abstain,
                                                                   delimiter=self.delimiter))
        for index, found in classifier.many(texts(), ordered=False):
            row = numbers.pop(index)
            if found.error is not None:
                yield row.number, self.failed(row, found.error)
            else:
                yield row.number, {"label": found.label, "p": list(found.probabilities.values()), "logprobs": list(found.logprobs.values())}

    def write(self, file: BinaryIO, records: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self.found = self.measured(records())
        errors = self.found["errors"] > 0
        name = "label" if "label" not in self.columns else "predicted"
        if self.out_format == "jsonl":
            for row, record in zip(self.rows(), records()):
                own: dict[str, Any] = {"error": record["error"]} if "error" in record else {
                    name: record["label"], "probabilities": dict(zip(self.labels, record["p"])), "logprobs": dict(zip(self.labels, record["logprobs"]))}
                file.write(json.dumps({**row.fields, **own}, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            return
        head = [*self.columns, name, *(f"p_{label}" for label in self.labels), *(["error"] if errors else [])]
        file.write(written(head, self.out_format).encode())
        for row, record in zip(self.rows(), records()):
            cells = cells_of(row, self.columns)
            if "error" in record:
                cells += [""] * (1 + len(self.labels)) + [record["error"]]
            else:
                cells += [record["label"] or "", *map(repr, record["p"]), *([""] if errors else [])]
            file.write(written(cells, self.out_format).encode(errors="backslashreplace"))

    def measured(self, records: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """How good the labels are, if the right ones are known: see metrics.py. Rows with errors are wrong; so are abstentions, which are counted beside."""
        found = list(records)
        given = [record.get("label") for record in found]
        counts = {"rows": len(found), "errors": sum("error" in r for r in found), "abstained": sum("error" not in r and r["label"] is None for r in found)}
        if self.gold is None:
            return counts
        gold = [self._gold(row) for row in self.rows()]
        answered = [(g, s) for g, s in zip(gold, given) if s is not None]
        kept = [(max(r["p"]), g == s) for r, g, s in zip(found, gold, given) if s is not None]
        error, _ = metrics.calibration([p for p, _ in kept], [right for _, right in kept])
        return {**counts, **metrics.of_labels(gold, given, list(self.labels)),
                "accuracy_of_answered": metrics.share(g == s for g, s in answered), "calibration_error": error}
