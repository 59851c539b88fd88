"""How every file is written: beside its place under a name nobody can guess, synced, then renamed. Under its own name there is only ever a whole file.

    NewFile(target) -> .file (bytes, read and write) -> .finish(): fsync, rename      or .discard()

The name is made exclusively and never through a link. While it is written the file is locked (flock), and the lock goes with the process: so the next
run that writes into the folder knows what killed runs left there, and takes it away. Two writers of one target don't meet; the last to finish wins, whole.
Here for the compile cache, which imports nothing of the engine; all others use engine/files.py, which says what went wrong in an error of ours.
"""
from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

LEFTOVER = re.compile(r"\..*llamina-[0-9a-f]{24}\.part", re.DOTALL)
"""What we call a file that is not finished. Nobody else's files look like this."""
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_LONGEST = 180  # bytes of the target's name within ours: 255 are allowed

_swept: set[tuple[int, str]] = set()


class NewFile:
    """A file on its way to `target`; a context manager that finishes it, or discards it after an exception. Errors are OSError, and leave nothing behind.

    mode: permissions, less the umask; 0o600 for what is the user's alone. overwrite=False: FileExistsError at the end if `target` is there by then.
    sync=False: for caches, whose readers check what they read and whose loss costs little.
    """

    def __init__(self, target: Path, mode: int = 0o666, overwrite: bool = True, sync: bool = True) -> None:
        self.target, self.overwrite, self.sync = Path(target), overwrite, sync
        self._process = os.getpid()
        self._done = False
        sweep(self.target.parent)
        self.path, fd = _create(self.target, mode)
        self.file: BinaryIO = os.fdopen(fd, "w+b")

    def finish(self) -> None:
        """To the disk, then to its name. Harmless twice."""
        if self._done:
            return
        try:
            self.file.flush()
            if self.sync:
                os.fsync(self.file.fileno())
            if os.name == "nt":  # where open files can't be renamed
                self.file.close()
            if self.overwrite:
                os.replace(self.path, self.target)
            else:
                _link(self.path, self.target)
            self._done = True
        finally:
            if not self._done:
                self.discard()
        self.file.close()  # not before: the lock says that the file is alive
        if self.sync:
            sync_folder(self.target.parent)

    def discard(self) -> None:
        """Take it away. Harmless twice, after `finish`, and in the child of a fork."""
        if self._done or os.getpid() != self._process:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._done = True  # not before: Ctrl-C may come between
        with contextlib.suppress(OSError):  # a full disk complains once more
            self.file.close()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.discard()


def write_bytes(target: Path, data: bytes, mode: int = 0o666, overwrite: bool = True, sync: bool = True) -> None:
    """A whole file. OSError."""
    with NewFile(target, mode, overwrite, sync) as new:
        new.file.write(data)


def sync_folder(folder: Path) -> None:
    """So that a new name survives a power cut, where folders can be synced."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path, again: bool = False) -> None:
    """Remove what killed runs left in a folder: files with a name of ours, of this user, that nobody has locked. Once for each folder and process."""
    place = (os.getpid(), os.path.abspath(folder))
    if place in _swept and not again:
        return
    _swept.add(place)
    for path in _leftovers(folder):
        with contextlib.suppress(OSError):
            fd = os.open(path, _FLAGS | getattr(os, "O_NONBLOCK", 0))
            try:
                info = os.fstat(fd)
                if stat.S_ISREG(info.st_mode) and (not hasattr(os, "getuid") or info.st_uid == os.getuid()) and _lock(fd, wait=False) \
                        and os.path.samestat(info, os.stat(path, follow_symlinks=False)):
                    os.unlink(path)
            finally:
                os.close(fd)


def _leftovers(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if LEFTOVER.fullmatch(entry.name):
                yield entry.path


def _create(target: Path, mode: int) -> tuple[Path, int]:
    """A new, locked file beside the target -> its path and descriptor."""
    if target.exists() and not target.is_file():  # a device or a folder, which must not be replaced
        raise OSError(0, "is a directory" if target.is_dir() else "is not a regular file")
    name = f"{target.name}." if len(os.fsencode(target.name)) <= _LONGEST else ""
    while True:
        path = target.with_name(f".{name}llamina-{secrets.token_hex(12)}.part")
        try:
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue
        try:
            _lock(fd, wait=True)
            if os.fstat(fd).st_nlink or os.name == "nt":
                return path, fd
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        os.close(fd)  # another process's sweep came between: anew


def _lock(fd: int, wait: bool) -> bool:
    """Whether the file is locked for this process now. Where nothing can be locked nobody may sweep either."""
    try:
        import fcntl
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):  # Windows; a file system without locks; held
        return False
    return True


def _link(path: Path, target: Path) -> None:
    """Rename without overwriting. FileExistsError."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without links: the name is made first, exclusively, then taken over
        os.close(os.open(target, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(path, target)
    else:
        os.unlink(path)
