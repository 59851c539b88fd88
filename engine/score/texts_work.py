"""What embedding and reranking a file's texts share: which column holds the text, what is wrong with a row, and with which line.

    .csv, .tsv, .jsonl, lines -> Row -> text_of -> records (embed_work.py, rerank_work.py)

In a file of lines every line is a text, an empty one too: row i of what comes out is line i of what went in.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ContextFullError, FormatError, OptionError
from .job import Work
from .table import Row, digest_of, read_rows, text_column

if TYPE_CHECKING:
    from ..answers.core import Core

T = TypeVar("T")


@dataclass
class TextsWork(Work):
    """source: the file; name: what it is called in errors; format, out_format: of table.FORMATS, or "npy". text: the column (None: "text", or the only one).
    cut: shorten what is too long, and count it; else it is an error."""

    source: Path
    name: str
    format: str
    out_format: str
    text: str | None = None
    cut: bool = False
    count: int = 0
    digest: str = ""
    columns: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Look at every row. FileError, FormatError (naming file and line), OptionError."""
        self.digest = digest_of(self.source)
        for row in self.rows():
            if not self.count:
                self.columns = list(row.fields)
                self.text = text_column(self.columns, self.text, self.name)
            self.text_of(row)
            self.count += 1
        if not self.count:
            raise FormatError(f"{self.name}: has no rows")

    def text_of(self, row: Row) -> str:
        text = row.fields.get(self.text or "text")
        if not isinstance(text, str):
            problem = f"has no text in {self.text!r}" if text is None else f"{self.text!r} must be a text, found {type(text).__name__}"
            raise FormatError(f"{self.name}, line {row.line}: {problem}")
        return text

    def rows(self) -> Iterator[Row]:
        return read_rows(self.source, self.format, self.name, blank=True)

    def bound(self) -> Mapping[str, Any]:
        return {"input": self.digest, "text": self.text, "cut": self.cut, "formats": [self.format, self.out_format]}

    def at_line(self, row: Row, find: Callable[[str], T]) -> T:
        """find(the row's text); what is wrong with the text is told with its line."""
        text = self.text_of(row)
        try:
            return find(text)
        except (ContextFullError, OptionError) as error:
            raise type(error)(f"{self.name}, line {row.line}: {error}") from None

    @abstractmethod
    def check(self, model: Core, rows: Iterable[Row]) -> Iterator[int]:
        """Look whether the model takes every text, before any is computed: how many were looked at, after each. ContextFullError, OptionError."""
