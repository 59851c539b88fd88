"""Long measurements over the rows of a file: what is done is journalled, so that a run that is killed goes on where it was, and ends in the same bytes.

    rows that the journal lacks -> Work.records(model, rows), here or on other machines -> journal (answers/batch_journal.py) -> the output, in the rows' order

A record depends on nothing but its row, the model and the options, and holds no time.
"""
from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ..errors import FileError, LlaminaError

if TYPE_CHECKING:
    from ..answers.batch_journal import Journal
    from ..answers.core import Core
    from .table import Row

Found = TypeVar("Found")
Records = Iterator[tuple[int, dict[str, Any]]]
"""(a row's number, what was found)"""


class Work(ABC):
    """What is done with each row of a file. Of plain data: it can be sent to other machines."""

    count: int
    """How many rows there are."""
    _known: Any = None
    """(a model, what `of_model` found of it); never sent to other machines."""

    @abstractmethod
    def bound(self) -> Mapping[str, Any]:
        """What the results depend on beside the model: the journal is bound to it."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """All rows. FormatError names a bad one."""

    @abstractmethod
    def records(self, model: Core, rows: Iterable[Row]) -> Records:
        """The record of each row, in any order; rows are taken as there is room."""

    def of_model(self, model: Core, find: Callable[[Core], Found]) -> Found:
        """What doesn't depend on the rows, such as a calibration: found once, however many chunks of rows the model is given."""
        if self._known is None or self._known[0] is not model:
            self._known = model, find(model)
        return self._known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_known"}

    def failed(self, row: Row, error: LlaminaError) -> dict[str, Any]:
        """The record of a row that can't be computed."""
        return {"error": f"line {row.line}: {error}"}

    @staticmethod
    def weight(row: Row) -> int:
        """Bytes of a row, roughly."""
        return sum(len(value) for value in row.fields.values() if isinstance(value, (str, list)))


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total` rows, `errors` of them errors; those of earlier runs, too, of which there are `resumed`."""

    done: int
    total: int
    errors: int
    resumed: int


class ScoreJob:
    """Runs a Work, with one model after the other: each is a part. header: what the results depend on beside the work, such as the models'
    fingerprints, to which the journal is bound."""

    def __init__(self, work: Work, journal: Journal, header: Mapping[str, Any], parts: int = 1):
        self.work, self.total = work, parts * work.count
        self._journal = journal
        self.resumed = len(journal.done)
        self._errors = sum("error" in record for record in journal.records())
        journal.begin({**work.bound(), **header})

    @property
    def progress(self) -> Progress:
        return Progress(len(self._journal.done), self.total, self._errors, self.resumed)

    def run(self, records: Callable[[Iterable[Row]], Records], part: int = 0) -> Iterator[Progress]:
        """Have the records of a part made that the journal lacks; yields after every one. Whatever stops it, the journal stays. FileError, ClosedError."""
        done, first = self._journal.done, part * self.work.count
        rows = (row for row in self.work.rows() if first + row.number not in done)
        for number, record in records(rows):
            self._errors += "error" in record
            self._journal.add(first + number, record)
            yield self.progress

    def records(self, part: int = 0) -> Iterator[dict[str, Any]]:
        """All of a part, in the rows' order."""
        return map(json.loads, self._journal.ordered(self.work.count, part * self.work.count))

    def finish(self, write: Callable[[BinaryIO], object]) -> None:
        """Write the output; the journal goes. FileError."""
        if len(self._journal.done) != self.total:
            raise FileError(f"the input has changed while it was read: remove {self._journal.path} and run again")
        self._journal.finish(self.total, write)
