"""Processes that want the same function compiled at once: one compiles it, the others wait for its file.

Two programs that start together on an empty compile cache would each compile all that both need, in twice the time where they share the cores. What one
compiles it holds meanwhile: a byte of the folder's marker file, locked as POSIX has it, so that a process that ends in any way lets go of it. Waiting is
never needed for being right: who has waited too long, or has no such locks, compiles too, and whichever file comes last stays.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 60.0
"""Seconds to wait for one function: many times what any takes, but a process may be stopped."""
PAUSE = 0.01

_files: dict[Path, int] = {}
"""Descriptors, which stay open: closing any that a process has of a file lets go of all its locks on it."""


def _try(file: int, place: int, lock: bool = True) -> bool | None:
    """Whether the byte is ours now; None where there are no such locks."""
    try:
        import fcntl
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB if lock else fcntl.LOCK_UN, 1, place)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return None
    return True


@contextlib.contextmanager
def turn(folder: Path | None, marker: str, name: str) -> Iterator[bool]:
    """While `name` is compiled for the folder -> whether another process was at it meanwhile, so that it may be there now."""
    file, place = _open(folder / marker) if folder else None, int.from_bytes(hashlib.sha256(name.encode()).digest()[:5], "little")
    ours, waited, end = None, False, time.monotonic() + PATIENCE
    while file is not None and (ours := _try(file, place)) is False and time.monotonic() < end:
        waited = True
        time.sleep(PAUSE)
    try:
        yield waited
    finally:
        if file is not None and ours:
            _try(file, place, lock=False)


def _open(path: Path) -> int | None:
    """Anew where the folder was removed meanwhile and came back."""
    try:
        if path not in _files or os.fstat(_files[path]).st_nlink == 0:
            _files[path] = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None
    return _files[path]
