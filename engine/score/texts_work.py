"""What embedding and reranking a file's texts share: which column holds the text, what is wrong with a row, and with which line.

    .csv, .tsv, .jsonl, lines -> Row -> text_of -> records (embed_work.py, rerank_work.py)

In a file of lines every line is a text, an empty one too: row i of what comes out is line i of what went in.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ContextFullError, FormatError, OptionError
from .job import Records, Work
from .table import Row, digest_of, read_rows, text_column


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
    looking: bool = False
    """See look."""
    found: dict[str, int] = field(default_factory=dict)
    """What was counted, once the output is written."""

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

    def counted(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same records, which are counted on their way."""
        self.found = {"rows": self.count, "errors": 0, "cut": 0, "tokens": 0}
        for record in records:
            self.found["errors"] += "error" in record
            for name in "cut", "tokens":
                self.found[name] += record.get(name, 0)
            yield record

    def look(self) -> TextsWork:
        """The work of looking whether the model takes every text, before any is computed: a record is an error, or tells of none."""
        return replace(self, looking=True)

    def looked_at(self, rows: Iterable[Row], find: Callable[[str], object]) -> Records:
        """The records of `look`. find: raises what is wrong with a text."""
        for row in rows:
            try:
                find(self.text_of(row))
            except (ContextFullError, OptionError) as error:
                yield row.number, self.failed(row, error)
            else:
                yield row.number, {}
