"""The log of a training run: a .jsonl file, its head first, then a line for each step and each validation. It holds no times, so a run that was killed and
begun again writes the same bytes.

    head, history of the checkpoint ─► file (whole) ─► records appended as they are made; held (flock) meanwhile
"""
from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import FileError
from ..files import NewFile, held, open_regular, paths, shown, writing

_BEGINNING = b'{"llamina_train": '
_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Log:
    """A context manager that holds the file: a second run that names it is refused, instead of lines that get lost. FileError: it can't be written, is a file
    that no training run wrote, or is being written by another run."""

    def __init__(self, path: str | Path, head: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> None:
        self.path = Path(path)
        with paths(path):
            there = self.path.exists()
        with contextlib.ExitStack() as stack:  # the old file stays held until the new one, held from its beginning, has its name
            if not there:
                with writing(path, "the log"), contextlib.suppress(FileExistsError):
                    os.close(os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666))
                    stack.callback(self._take_away_if_empty)
            self._hold_old(stack)
            with writing(path, "the log"), NewFile(self.path) as new:
                new.file.write(_line({"llamina_train": 1, **head}))
                new.file.writelines(_line(record) for record in history)
                new.file.flush()
                if os.name != "nt":  # a lock is the open file's: it outlives the name it was made under
                    self._file: BinaryIO = open(os.dup(new.file.fileno()), "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
            if os.name == "nt":
                with writing(path, "the log"):
                    self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__

    def _hold_old(self, stack: contextlib.ExitStack) -> None:
        """What the path names now, until the stack ends."""
        while True:
            with open_regular(self.path, "a log") as old:
                beginning = old.read(len(_BEGINNING))
            if beginning and beginning != _BEGINNING:
                raise FileError(f"{shown(self.path)}: exists already, and is no log of a training run: move it away, or choose another name")
            with writing(self.path, "the log"):
                fd = os.open(self.path, _FLAGS)
            if os.name == "nt":  # where open files can't be renamed over
                os.close(fd)
                return
            stack.callback(os.close, fd)
            if not held(fd):
                raise FileError(f"{shown(self.path)}: another training run is writing it: wait for it, or choose another name")
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return

    def _take_away_if_empty(self) -> None:
        """The place that was taken for a log which then could not be written."""
        with contextlib.suppress(OSError):
            if not os.stat(self.path).st_size:
                os.unlink(self.path)

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
