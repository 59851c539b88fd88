"""A task for `llamina eval`: the rows of a .jsonl (or .csv, .tsv) file, which say by their keys what is asked.

    {context, choices, answer}    the right one of some choices; answer: its number from 0 on, or its text
    {text, label}                 a label, one of --labels or of those in the file
    {prompt, target}              what the model generates is compared with the target (answers.py)
    {source, reference}           a translation; reference: a text, or a list of them

All rows of a file are of one kind. Every row is looked at before anything is computed, and what is wrong with one is told by file and line.
"""
from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, OptionError, quoted
from ..sampling.arithmetic import uniform
from .answers import check_target
from .table import Row, digest_of, format_of, read_rows
from .template import fields_of

KINDS = {"choices": ("choices", "answer"), "label": ("label",), "target": ("target",), "translation": ("reference",)}
"""Kind -> keys that its rows have, and that tell it, the first that fits."""
TEMPLATES = {"choices": "{context}", "label": "{text}", "target": "{prompt}", "translation": "{source}"}
"""Kind -> how its rows are asked, unless a template says otherwise."""
SCORED = ("choices", "label")


@dataclass(frozen=True)
class Item:
    """What a row asks. fields: for the template; choices: to choose from, empty if the answer is generated; right: the number of the right one, -1 if it is
    generated; gold: the right answer's text, or texts."""

    fields: dict[str, Any]
    choices: Sequence[str]
    right: int
    gold: Sequence[str]


@dataclass
class Task:
    """name: what the file is called in errors. labels: name -> text, of a file of labels. match: how generated answers are compared. limit: so many rows are
    asked; shots may be drawn from the others, too."""

    source: Path
    name: str
    template: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    match: str = "exact"
    limit: int | None = None
    format: str = "jsonl"
    kind: str = ""
    count: int = 0
    digest: str = ""
    sample: list[Row] = field(default_factory=list)
    """Rows drawn by lot, for shots."""

    @classmethod
    def open(cls, path: str, *, name: str | None = None, kind: str | None = None, draw: int = 0, seed: int = 0, labels: Mapping[str, str] | None = None,
             **options: Any) -> Task:
        """Look at every row. draw: how many to draw by lot. kind: that it must be of. labels: given ones; else those in the file. FileError, FormatError
        (naming file and line), OptionError."""
        task = cls(Path(path), name or path, **options)
        format = format_of(name or path)
        task.format = "jsonl" if format == "lines" else format
        task.digest = digest_of(task.source)
        task.labels = dict(labels or {})
        seen: dict[str, None] = {}
        ids: dict[str, int] = {}
        lots: list[tuple[float, int, Row]] = []
        for row in read_rows(task.source, task.format, task.name):
            inside = task.limit is None or row.number < task.limit
            if not (inside or draw):
                break
            if not task.kind:
                task.kind = kind or task._kind(row)
                if task.template is None:
                    task.template = TEMPLATES[task.kind]
            if task.kind == "label" and not labels:
                seen[task._label(row)] = None
            else:
                task.item(row)
            task._check_id(row, ids)
            task.count += inside
            if draw:
                heapq.heappush(lots, (-uniform(seed, row.number, 0, 1), row.number, row))
                if len(lots) > draw:
                    heapq.heappop(lots)
        if not task.count:
            raise FormatError(f"{task.name}: has no rows")
        if task.kind == "label" and not labels:
            task.labels = {label: label for label in sorted(seen)}
            if len(seen) < 2:
                raise FormatError(f"{task.name}: all its rows have the label {quoted(next(iter(seen)))}: name the labels to choose from with --labels")
            for row in (*task.rows(), *(row for _, _, row in lots)):
                task.item(row)
        task.sample = [row for _, _, row in sorted(lots, key=lambda lot: (-lot[0], lot[1]))]
        return task

    def rows(self) -> Iterator[Row]:
        """All of them, up to the limit. FormatError."""
        for row in read_rows(self.source, self.format, self.name):
            if self.limit is not None and row.number >= self.limit:
                return
            yield row

    def bad(self, row: Row, problem: str) -> FormatError:
        """An error that names the row."""
        return FormatError(f"{self.name}, line {row.line}: {problem}")

    def _kind(self, row: Row) -> str:
        for kind, keys in KINDS.items():
            if all(key in row.fields for key in keys):
                return kind
        raise self.bad(row, 'has neither "choices" and "answer", nor "label", nor "target", nor "reference": what is asked? (see docs/eval.md)')

    def _check_id(self, row: Row, ids: dict[str, int]) -> None:
        if "id" in row.fields:
            id = json.dumps(row.fields["id"])
            if id in ids:
                raise self.bad(row, f'has the same "id" as line {ids[id]}, {quoted(row.fields["id"])}')
            ids[id] = row.line

    # -- one row --------------------------------------------------------------------------------------------------------------------------

    def item(self, row: Row) -> Item:
        """FormatError names what is wrong with it."""
        for key in KINDS[self.kind]:
            if key not in row.fields:
                raise self.bad(row, f'has no "{key}", which rows of the kind "{self.kind}" have')
        for name in fields_of(self.template or ""):
            if name not in row.fields:
                raise self.bad(row, f'has no "{name}", which the template asks for')
        if self.kind == "choices":
            choices = self._choices(row)
            right = self._answer(row, choices)
            return Item(row.fields, choices, right, [choices[right]])
        if self.kind == "label":
            label = self._label(row)
            if label not in self.labels:
                raise self.bad(row, f'the label {quoted(label)} is none of the labels, {", ".join(self.labels)[:300]}')
            return Item(row.fields, list(self.labels.values()), list(self.labels).index(label), [self.labels[label]])
        if self.kind == "target":
            target = row.fields["target"]
            match = self.match_of(row)
            try:
                check_target(match, target)
            except OptionError as error:
                raise self.bad(row, str(error)) from None
            return Item(row.fields, (), -1, [target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)])
        reference = row.fields["reference"]
        texts = [reference] if isinstance(reference, str) else reference
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise self.bad(row, f'"reference" must be a text or a list of texts, found {quoted(reference)}')
        return Item(row.fields, (), -1, texts)

    def match_of(self, row: Row) -> str:
        """How its generated answer is compared: as it says itself, or as all are."""
        return str(row.fields.get("match", self.match))

    def _choices(self, row: Row) -> list[str]:
        choices = row.fields["choices"]
        if isinstance(choices, str) and self.format != "jsonl":
            choices = choices.split("|")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise self.bad(row, f'"choices" must be a list of at least two texts, found {quoted(choices)}')
        return choices

    def _answer(self, row: Row, choices: Sequence[str]) -> int:
        answer = row.fields["answer"]
        if isinstance(answer, str):
            if answer in choices:
                return choices.index(answer)
            if answer.strip().isascii() and answer.strip().isdigit() and len(answer) < 20:
                answer = int(answer)
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise self.bad(row, f'"answer" must be one of the choices, or its number from 0 to {len(choices) - 1}, found {quoted(row.fields["answer"])}')
        return answer

    def _label(self, row: Row) -> str:
        if row.fields.get("label") is None:
            raise self.bad(row, 'has no "label"')
        label = row.fields["label"]
        return label if isinstance(label, str) else json.dumps(label)
