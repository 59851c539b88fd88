"""Files as the engine writes and reads them, with errors of ours. Knows nothing but errors.py and how a file is written whole (kernels/new_file.py).

    with new_file(path) as new: new.file.write(...)        the old file or the new one, never a part of it
    read_file(path, limit), open_regular(path)             no folder, pipe or device is taken for a file, and nothing is read without bound
    Stamp.of(fd, path) ... .check()                        a file that changes while it is read is told, not believed
"""
from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..kernels.new_file import NewFile
from .errors import FileError, LlaminaError

__all__ = ["NewFile", "Stamp", "new_file", "open_regular", "read_file", "reason", "shown", "write_file", "writing"]

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
        raise FileError(f"{shown(path)}: has more than {limit >> 20} MiB: expected {what}")
    return data


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
