"""The log of a training run: a .jsonl file, its head first, then a line for each step and each validation. It holds no times, so a run that was killed and
begun again writes the same bytes.

    head, history of the checkpoint ─► file (whole) ─► records appended as they are made
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import FileError
from ..files import NewFile, open_regular, paths, shown, writing

_BEGINNING = b'{"llamina_train": '


class Log:
    """A context manager. FileError: it can't be written, or is a file that no training run wrote."""

    def __init__(self, path: str | Path, head: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> None:
        self.path = Path(path)
        with paths(path):
            there = self.path.exists()
        if there:
            with open_regular(path, "a log") as old:
                beginning = old.read(len(_BEGINNING))
            if beginning and beginning != _BEGINNING:
                raise FileError(f"{shown(path)}: exists already, and is no log of a training run: move it away, or choose another name")
        with writing(path, "the log"), NewFile(self.path) as new:
            new.file.write(_line({"llamina_train": 1, **head}))
            new.file.writelines(_line(record) for record in history)
        with writing(path, "the log"):
            self._file: BinaryIO = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__

    def add(self, record: Mapping[str, Any]) -> None:
        """A line, handed to the system at once."""
        with writing(self.path, "the log"):
            rest = memoryview(_line(record))
            while rest:
                rest = rest[self._file.write(rest):]

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace") + b"\n"
