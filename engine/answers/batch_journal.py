"""What a batch job has done so far, on disk: killed anywhere, the next run goes on from it, and the result is the same file.

    records, in whatever order they come -> OUTPUT.journal, a line each -> when all are there: OUTPUT, in the input's order, by rename

A journal line is number, CRC-32 and record; its first line binds it to input, model and options. Every line is handed to the system at once, so that a kill
loses none that was finished; every few seconds, and before the rename, the disk is asked to keep them (fsync), so that a power cut loses seconds.
"""
from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import FileError, FormatError, OptionError
from ..files import NewFile, held, reason, shown

SYNC_SECONDS = 5.0
VERSION = 2
"""Of what a journal holds, and of the rules by which its answers were drawn: 2 numbers random numbers on across context shifts."""
MAX_HEADER = 4 << 20
MAX_RECORD = 1 << 28
_BEGINNING = b'{"llamina_batch": '


class Journal:
    """A context manager. `done`: numbers of records it holds, from 0 on. FileError: output or journal can't be written, exists, or is in use."""

    def __init__(self, output: Path) -> None:
        try:
            if output.is_dir():
                raise FileError(f"{shown(output)}: is a directory: expected a file's name")
            self.output, self.path = output, output.with_name(output.name + ".journal")
            begun = os.path.lexists(self.path)
            exists = os.path.lexists(output)
        except (OSError, ValueError) as error:
            raise FileError(f"{shown(output)}: cannot be written ({reason(error)})") from None
        self._offsets: dict[int, tuple[int, int]] = {}
        self._file: io.FileIO | None = None  # unbuffered: what was written is the system's
        self._end, self._synced = 0, time.monotonic()
        self.header: dict[str, Any] | None = None
        """Of an earlier run that this one goes on with."""
        if begun and (self.path.is_symlink() or not self.path.is_file()):
            raise FileError(f"{shown(self.path)}: is not a regular file: move it away")
        if exists and not begun:
            raise FileError(f"{shown(output)}: exists already: move it away, or choose another name")
        try:
            self._file = open(self.path, "r+b" if begun else "x+b", buffering=0, opener=_open_no_link)  # noqa: SIM115 - closed by close()
        except (OSError, ValueError) as error:
            lacking = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
            raise FileError(f"{shown(output)}: cannot be written (the folder does not exist)" if lacking
                            else f"{shown(self.path)}: cannot be written ({reason(error)})") from None
        try:
            if not held(self._file.fileno()):
                raise FileError(f"{self.path}: another run is writing it: wait for it, or choose another output")
            self._read()
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> Set[int]:
        return self._offsets.keys()

    def begin(self, header: Mapping[str, Any]) -> None:
        """Bind the journal to a job, or check that it is bound to this one. OptionError names what differs."""
        bound: dict[str, Any] = json.loads(json.dumps({"llamina_batch": VERSION, **header}))
        if self.header is None:
            self._append(json.dumps(bound, ensure_ascii=False).encode() + b"\n")
            self._sync(True)
            self.header = bound
            return
        if different := difference(self.header, bound):
            keys, values = different
            raise OptionError(f"{self.path}: was begun with other {': '.join(keys)} ({values}): go on as it was begun, or remove it")

    def records(self) -> Iterator[dict[str, Any]]:
        """Those it holds. FormatError: one of them is none, though its checksum is right."""
        with open(self.path, "rb") as file:
            for number, (offset, length) in self._offsets.items():
                file.seek(offset)
                try:
                    record = json.loads(file.read(length))
                except (ValueError, RecursionError):
                    record = None
                if not isinstance(record, dict):
                    raise FormatError(f"{shown(self.path)}: line {number} is no record of a batch job: move the file away, and the job begins anew")
                yield record

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        text = json.dumps(record, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
        head = b"%d\t%08x\t" % (number, zlib.crc32(text))
        self._offsets[number] = (self._end + len(head), len(text))
        self._append(head + text + b"\n")
        self._sync(False)

    def ordered(self, count: int, first: int = 0) -> Iterator[bytes]:
        """Records first to first + count - 1, which are all there, as JSON."""
        with open(self.path, "rb") as journal:
            for number in range(first, first + count):
                offset, length = self._offsets[number]
                journal.seek(offset)
                yield journal.read(length)

    def finish(self, count: int, write: Callable[[BinaryIO], object] | None = None) -> None:
        """Write the output, when records 0 to count - 1 are all there; the journal goes. write: what it is made of; by default the records, a line each."""
        assert self._file is not None and len(self._offsets) == count
        try:
            self._sync(True)
            with NewFile(self.output) as new:
                if write is not None:
                    write(new.file)
                else:
                    new.file.writelines(record + b"\n" for record in self.ordered(count))
            self._file.close()
            self.path.unlink()
        except OSError as error:
            raise FileError(f"{self.output}: cannot be written ({reason(error)}); {self.path} keeps what was done: run again") from None

    def close(self) -> None:
        if self._file is not None and not self._file.closed:
            with contextlib.suppress(FileError):
                self._sync(True)
            self._file.close()
            if self.header is None:  # nothing was begun
                with contextlib.suppress(OSError):
                    self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- the file -------------------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """What an earlier run left; a line that was cut off by its end goes."""
        assert self._file is not None
        with open(self.path, "rb") as file:
            self._scan(file)
        try:
            self._file.truncate(self._end)
            self._file.seek(self._end)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _scan(self, file: BinaryIO) -> None:
        first = file.readline(MAX_HEADER)
        if first.endswith(b"\n"):
            try:
                header = json.loads(first)
            except (ValueError, RecursionError):
                header = None
            if not isinstance(header, dict) or header.get("llamina_batch") != VERSION:
                raise FormatError(f"{self.path}: is not the journal of a batch job of this version of llamina: move it away")
            self.header = header
            self._end = len(first)
            for number, offset, length, end in self._entries(file):
                self._offsets[number] = (offset, length)
                self._end = end
        elif first[:len(_BEGINNING)] != _BEGINNING[:len(first)] or len(first) == MAX_HEADER:  # else the run was killed before its first line was whole
            raise FormatError(f"{self.path}: is not the journal of a batch job: move it away")

    def _entries(self, file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
        """(number, offset and length of the record, end of the line) up to the first line that is not whole."""
        end = self._end
        while line := file.readline(MAX_RECORD):
            parts = line[:-1].split(b"\t", 2)
            if not line.endswith(b"\n") or len(parts) != 3 or not parts[0].isdigit() or len(parts[0]) > 18 or parts[1] != b"%08x" % zlib.crc32(parts[2]):
                return
            offset = end + len(line) - 1 - len(parts[2])
            end += len(line)
            yield int(parts[0]), offset, len(parts[2]), end

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({error.strerror}): what was done so far is kept: run again") from None
        self._end += len(data)

    def _sync(self, now: bool) -> None:
        assert self._file is not None
        if now or time.monotonic() - self._synced > SYNC_SECONDS:
            with contextlib.suppress(OSError):  # not every file system can
                os.fsync(self._file.fileno())
            self._synced = time.monotonic()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], str] | None:
    """The first thing that a run does otherwise than the one that it would go on with: its key, and of an object that of what differs in it; both values, for
    people. None: nothing. Of JSON's values."""
    keys: list[str] = []
    old: Any = was
    new: Any = now
    while len(keys) < 2 and isinstance(old, Mapping) and isinstance(new, Mapping):
        key = next((key for key in {**new, **old} if new.get(key) != old.get(key)), None)
        if key is None:
            return None
        keys.append(key)
        old, new = old.get(key), new.get(key)
    return keys, f"{_brief(old)}, now {_brief(new)}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
