"""A batch job's records to a stream, in the prompts' order, each as soon as those before it are there. Nothing is kept: interrupted, it begins anew.

    records, in whatever order they come -> held until their turn -> the stream, a line each
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO


class RecordStream:
    """What BatchJob wants of a Journal (batch_journal.py), without a file."""

    header: dict[str, Any] | None = None

    def __init__(self, stream: TextIO) -> None:
        self.path = "standard output"
        self.done: set[int] = set()
        """Numbers of the records that were given."""
        self._stream, self._next, self._held = stream, 0, dict[int, str]()

    def begin(self, header: Mapping[str, Any]) -> None:
        pass

    def records(self) -> Iterator[dict[str, Any]]:
        """Those of earlier runs: none."""
        return iter(())

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        """Keep a record until it is its turn. OSError: the stream can't be written."""
        self._held[number] = json.dumps(record, ensure_ascii=False)
        self.done.add(number)
        while (line := self._held.pop(self._next, None)) is not None:
            self._stream.write(line + "\n")
            self._next += 1
        self._stream.flush()

    def finish(self, lines: int) -> None:
        pass

    def __enter__(self) -> RecordStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass
