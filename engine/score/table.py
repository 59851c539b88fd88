"""Rows of a .csv, .tsv or .jsonl file, or lines of text: read one by one, each with where it stands, so that what is wrong with one can be told.

    file -> lines (bounded) -> Row(number, line, fields)

A CSV file is comma-separated with quotes as RFC 4180 has them; a TSV file has no quotes at all. Their first line names the columns. Written the same way.
"""
from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..answers.batch_job import MAX_LINE, lines_of
from ..errors import FormatError, OptionError, quoted, why

FORMATS = ("csv", "tsv", "jsonl", "lines")
MAX_FIELD = 4 << 20


@dataclass(frozen=True)
class Row:
    """number: among the rows, from 0 on; line: where it begins in the file, from 1 on."""

    number: int
    line: int
    fields: dict[str, Any]


def format_of(path: str, asked: str | None = None) -> str:
    """By what was asked for, else by the name's end; text lines if that says nothing. OptionError."""
    if asked is not None:
        if asked not in FORMATS:
            raise OptionError(f"the format must be one of {', '.join(FORMATS)}, found {quoted(asked)}")
        return asked
    end = Path(path).suffix.lower().lstrip(".")
    return {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl"}.get(end, "lines")


@contextlib.contextmanager
def file_of(source: Any, what: str) -> Iterator[tuple[Path, bool]]:
    """(a file, whether it was made here): a path as it is; rows in memory go to a .jsonl file that is gone with the block, so that one reader serves both, and
    refuses the same. what: how messages name it. OptionError: it is neither, or a row is no mapping or can't be JSON."""
    if isinstance(source, (str, os.PathLike)):
        yield Path(source), False
        return
    if isinstance(source, (bytes, Mapping)) or not isinstance(source, Iterable):
        raise OptionError(f"{what} must be a file's path or a list of rows, found {type(source).__name__}")
    with tempfile.TemporaryDirectory(prefix="llamina-") as folder:
        path = Path(folder) / "rows.jsonl"
        with open(path, "w", encoding="ascii") as file:
            for i, row in enumerate(source):
                if not isinstance(row, Mapping):
                    raise OptionError(f"rows must be mappings, found {type(row).__name__} (row {i})")
                try:
                    file.write(json.dumps(dict(row), allow_nan=False) + "\n")
                except (TypeError, ValueError, RecursionError) as error:
                    raise OptionError(f"row {i} can't be written as JSON: {why(error)}") from None
        yield path, True


def digest_of(path: Path) -> str:
    """SHA-256 of the file in hexadecimal. FileError."""
    digest = hashlib.sha256()
    for _ in lines_of(path, digest.update):
        pass
    return digest.hexdigest()


def text_column(columns: Sequence[str], asked: str | None, name: str, other: str | None = None) -> str:
    """Which holds the text: the one asked for, "text", or the only one beside `other`. name: of the file. OptionError."""
    others = [c for c in columns if c != other]
    found = asked or ("text" if "text" in others else others[0] if len(others) == 1 else None)
    if found is None or found not in columns:
        which = f"has no column {quoted(found)}" if found else "has several columns, none of them named text"
        raise OptionError(f"{name}: {which}: say which holds the text with --text-column, one of {', '.join(columns)[:300]}")
    return found


def read_rows(path: Path, format: str, name: str | None = None, blank: bool = False) -> Iterator[Row]:
    """name: what the file is called in errors. Blank lines are skipped, unless `blank` makes them texts of a file of lines. FileError; FormatError names the
    line."""
    name = name or str(path)
    readers: dict[str, Callable[..., Iterator[tuple[int, dict[str, Any]]]]] = {"csv": _separated, "tsv": _separated, "jsonl": _objects, "lines": _texts}
    more: tuple[Any, ...] = {"csv": (",",), "tsv": ("\t",), "lines": (blank,)}.get(format, ())
    for number, (line, fields) in enumerate(readers[format](_decoded(path, name), name, *more)):
        yield Row(number, line, fields)


def _decoded(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """(line number from 1 on, text with its newline)"""
    for at, raw in lines_of(path):
        if len(raw) > MAX_LINE:
            raise FormatError(f"{name}, line {at + 1}: is longer than {MAX_LINE} bytes")
        try:
            yield at + 1, raw.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{name}, line {at + 1}: is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02X}): convert the file first") from None


def _texts(lines: Iterable[tuple[int, str]], name: str, blank: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in lines:
        if blank or text.strip():
            yield line, {"text": text.rstrip("\r\n")}


def _objects(lines: Iterable[tuple[int, str]], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in lines:
        if not text.strip():
            continue
        try:
            found = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{name}, line {line}: is not JSON: {why(error)}") from None
        if "\\ud" in text.lower():
            try:
                json.dumps(found, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise FormatError(f"{name}, line {line}: holds half a character (a lone surrogate, \\ud800 to \\udfff)") from None
        if isinstance(found, str):
            found = {"text": found}
        if not isinstance(found, dict):
            raise FormatError(f"{name}, line {line}: must be an object or a text, found {type(found).__name__}")
        yield line, found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _separated(lines: Iterable[tuple[int, str]], name: str, separator: str) -> Iterator[tuple[int, dict[str, Any]]]:
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for at, text in lines:  # noqa: B007 - told in errors
            yield text
    csv.field_size_limit(MAX_FIELD)
    source = texts()
    reader: Iterator[list[str]] = (csv.reader(source, strict=True) if separator == "," else
                                   (text.rstrip("\r\n").split("\t") for text in source))
    columns: list[str] | None = None
    while True:
        before = at
        try:
            values = next(reader, None)
        except csv.Error as error:
            upto = f" (read to line {at}: a quote that never ends?)" if at > before + 1 else ""
            raise FormatError(f"{name}, line {before + 1}: is no line of CSV: {why(error)}{upto}") from None
        if values is None:
            break
        if not any(value.strip() for value in values) and len(values) < 2:
            continue
        if columns is None:
            columns = values
            if twice := [c for c in columns if columns.count(c) > 1]:
                raise FormatError(f"{name}, line {at}: the column {quoted(twice[0])} is there twice: its first line must name the columns")
            continue
        if len(values) != len(columns):
            raise FormatError(f"{name}, line {before + 1}: has {len(values)} columns, its first line names {len(columns)} ({', '.join(columns)[:200]})")
        yield before + 1, dict(zip(columns, values))


def cells_of(row: Row, columns: Sequence[str]) -> list[str]:
    """A row's own values, for `written`: texts as they are, others as JSON, nothing where there is none."""
    return [v if isinstance(v, str) else "" if v is None else json.dumps(v, ensure_ascii=False) for v in map(row.fields.get, columns)]


def written(values: Sequence[str], format: str) -> str:
    """A line of a CSV or TSV file. In TSV, which has no quotes, tabs and newlines become spaces."""
    if format == "tsv":
        return "\t".join(" ".join(v.splitlines()).replace("\t", " ") for v in values) + "\n"
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
