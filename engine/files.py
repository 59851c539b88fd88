"""Files as the engine writes and reads them, with errors of ours. Knows nothing but errors.py and how a file is written whole (kernels/new_file.py).

    with new_file(path) as new: new.file.write(...)        the old file or the new one, never a part of it
    read_file(path, limit), open_regular(path)             no folder, pipe or device is taken for a file, and nothing is read without bound
    StableFile(path): .read(at, n) ... .check()            a file that changes while it is read is told, not believed; it is never mapped: cutting a mapped
                                                           file short kills whoever looks at it (SIGBUS)
"""
from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..kernels.new_file import NewFile
from .errors import ClosedError, FileError, FormatError, LlaminaError
from .units import size

__all__ = ["NewFile", "StableFile", "Stamp", "bounded", "held", "is_path_error", "new_file", "open_regular", "paths", "read_file", "read_stream", "reason",
           "shown", "write_file", "writing"]

MAX_TEXT = 1 << 28
"""Bytes of a text from outside: more than any model reads, less than memory."""
_ADVICE = {errno.ENOSPC: "no space left: free some, or write to another disk", errno.EFBIG: "the file would be too large for the disk or a limit (ulimit -f)",
           errno.EACCES: "no permission to write there", errno.EPERM: "no permission to write there", errno.EROFS: "the disk is read-only",
           errno.ENOENT: "the folder does not exist", errno.ENOTDIR: "its folder is not a folder", errno.EDQUOT: "the disk quota is used up",
           errno.EEXIST: "exists already: choose another name", errno.ENAMETOOLONG: "the name is too long"}


def reason(error: BaseException) -> str:
    """Why a file can't be had, in a few words. For OSError, and the ValueError of a NUL or a lone surrogate in a path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def shown(path: object) -> str:
    """A path for a message: one that can't be printed, or is too long to, is quoted and cut."""
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    if len(text) > 1000:
        text = f"{text[:60]}…{text[-60:]}"
    return text if text.isprintable() else repr(text)


def is_path_error(error: BaseException) -> bool:
    """Whether an error says that a path can't be: too long, through a file, not encodable, with a zero byte, …"""
    return isinstance(error, OSError) and error.filename is not None or isinstance(error, UnicodeEncodeError) or \
        isinstance(error, ValueError) and not isinstance(error, LlaminaError) and "null byte" in str(error)


@contextlib.contextmanager
def paths(path: object) -> Iterator[None]:
    """What is wrong with a path that is looked at within the block becomes a FileError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LlaminaError) or not is_path_error(error):
            raise
        raise FileError(f"{shown(getattr(error, 'filename', None) or path)}: cannot be used ({reason(error)})") from None


# -- writing --------------------------------------------------------------------------------------------------------------------------------


def new_file(path: str | os.PathLike[str], private: bool = False, overwrite: bool = True) -> NewFile:
    """A file that appears at `path` when the `with` block ends, whole. private: for this user alone. FileError if it can't be begun; what happens in the
    block is the caller's: `writing` makes a FileError of it."""
    with writing(path):
        return NewFile(Path(path), 0o600 if private else 0o666, overwrite)


def write_file(path: str | os.PathLike[str], data: bytes | str, private: bool = False, overwrite: bool = True) -> None:
    """A whole file (text as UTF-8). FileError: then what was there before is unchanged."""
    with writing(path), new_file(path, private, overwrite) as new:
        new.file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], what: str = "") -> Iterator[None]:
    """What goes wrong with writing `path` within the block becomes a FileError. what: "the session", to name what can't be written."""
    try:
        yield
    except LlaminaError:
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL or a lone surrogate in the path
        why = _ADVICE.get(getattr(error, "errno", None) or 0) or reason(error)
        raise FileError(f"{shown(path)}: {what + ' ' if what else ''}cannot be written ({why}); what was there before is unchanged") from None


def held(fd: int) -> bool:
    """Whether this process alone holds an open file from now on, until it is closed: the lock goes with the process. Where files have no locks (Windows), it
    does."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# -- reading --------------------------------------------------------------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str], what: str = "a file") -> BinaryIO:
    """A regular file opened for reading. FileError: it is missing, can't be read, or is a folder, pipe or device, which could block or never end."""
    name = shown(path)
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise FileError(f"{name}: is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}: expected {what}")
            return os.fdopen(fd, "rb")
        except BaseException:
            os.close(fd)
            raise
    except FileNotFoundError:
        raise FileError(f"{name}: no such file") from None
    except IsADirectoryError:  # Windows says no permission
        raise FileError(f"{name}: is a directory: expected {what}") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{name}: cannot be read ({reason(error)})") from None


def read_file(path: str | os.PathLike[str], limit: int, what: str = "a file") -> bytes:
    """A regular file's content. FileError, also if it has more than `limit` bytes."""
    with open_regular(path, what) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise FileError(f"{shown(path)}: cannot be read ({reason(error)})") from None
    if len(data) > limit:
        raise FileError(f"{shown(path)}: has more than {size(limit)}: expected {what}")
    return data


def read_stream(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> bytes:
    """What a file brings that may be a pipe, too (`-f <(program)`): at most `limit` bytes; of a named pipe that nobody has open for writing, nothing, rather
    than wait. FileError if it brings more; OSError, ValueError."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0))
    with os.fdopen(fd, "rb", buffering=0) as file:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            first = file.read(1)
        except BlockingIOError:  # somebody is going to write
            first = None
        if first == b"":
            return b""
        if hasattr(os, "set_blocking"):
            os.set_blocking(fd, True)
        return (first or b"") + bounded(file, path, limit)


def bounded(file: Any, name: object, limit: int = MAX_TEXT) -> bytes:
    """All that a binary stream brings. FileError if it is more than `limit` bytes."""
    parts, left = [], limit
    while part := file.read(min(left + 1, 1 << 20)):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise FileError(f"{shown(name)}: brings more than {limit >> 20} MiB: expected a text of that size at most")
    return b"".join(parts)


@dataclass(frozen=True)
class Stamp:
    """What a file was like when it was opened. A change of length, time of writing or identity afterwards means that what was read is of no file at all."""

    path: Path
    size: int
    written: int  # nanoseconds
    identity: tuple[int, int]

    @classmethod
    def of(cls, fd: int, path: Path) -> Stamp:
        """Of an open file."""
        info = os.fstat(fd)
        return cls(path, info.st_size, info.st_mtime_ns, (info.st_dev, info.st_ino))

    def check(self, fd: int | None = None) -> None:
        """FileError unless the open file (default: what the path names now) is what it was."""
        try:
            info = os.stat(self.path) if fd is None else os.fstat(fd)
        except OSError as error:
            raise FileError(f"{shown(self.path)}: went away while it was read ({reason(error)}): try again with a file that stays") from None
        now = (info.st_size, info.st_mtime_ns, (info.st_dev, info.st_ino))
        if now != (self.size, self.written, self.identity):
            raise FileError(f"{shown(self.path)}: was changed while it was read ({self.size} bytes, now {info.st_size}): try again when nobody writes it")


class StableFile:
    """A regular file opened once and read by position, from any thread; a context manager. FileError when it turns out that it changed meanwhile."""

    def __init__(self, path: str | os.PathLike[str], what: str = "a file") -> None:
        """FileError as of `open_regular`; FormatError if it is empty."""
        self._file: BinaryIO | None = open_regular(path, what)
        self._lock = threading.Lock()
        self.path = Path(path)
        self.stamp = Stamp.of(self._file.fileno(), self.path)
        self.size = self.stamp.size
        if not self.size:
            self.close()
            raise FormatError(f"{shown(path)}: is empty: expected {what}, get it again")

    def read(self, at: int, n: int) -> bytes:
        """The n bytes from byte `at` on, which lie within `size`."""
        data = bytearray(n)
        self.read_into(at, memoryview(data))
        return bytes(data)

    def read_into(self, at: int, into: Any) -> None:
        """Fill a writable, contiguous buffer of bytes."""
        file, into = self._open(), memoryview(into)
        while into:
            try:
                if hasattr(os, "preadv"):
                    n = os.preadv(file.fileno(), [into], at)
                else:
                    with self._lock:
                        os.lseek(file.fileno(), at, os.SEEK_SET)
                        data = os.read(file.fileno(), len(into))
                        into[:len(data)] = data
                        n = len(data)
            except OSError as error:
                raise FileError(f"{shown(self.path)}: cannot be read at byte {at} ({reason(error)})") from None
            if n <= 0:
                raise FileError(f"{shown(self.path)}: ended at byte {at} while it was read, it had {self.size}: try again when nobody writes it")
            into, at = into[n:], at + n

    def check(self) -> None:
        """FileError if it was changed since it was opened. A new file under its name is none of ours: the old one is still whole."""
        self.stamp.check(self._open().fileno())

    def duplicate(self) -> StableFile:
        """Another one of the same open file, for whoever reads on when this one has been closed."""
        other = StableFile.__new__(StableFile)
        other._file = os.fdopen(os.dup(self._open().fileno()), "rb")
        other._lock, other.path, other.stamp, other.size = self._lock, self.path, self.stamp, self.size
        return other

    def close(self) -> None:
        """Harmless twice; reading raises ClosedError afterwards."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open(self) -> BinaryIO:
        file = self._file
        if file is None:
            raise ClosedError(f"{shown(self.path)}: the file was closed: open it again")
        return file

    def __enter__(self) -> StableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()
