"""Every operation on files that a run changes the disk by, one after the other, so that a test can stop, or refuse, any of them.

    with watched(on): ...      on("write"), on("fsync"), on("replace"), … is called before each; of a write, when half of it is there
"""
from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHANGES = ("mkdir", "fsync", "replace", "unlink", "rmdir")
TAKES_ROOM = ("mkdir", "open", "write", "fsync", "replace")
"""What fails on a full disk."""


class _File:
    """A file whose writes come in two halves."""

    def __init__(self, file: Any, on: Callable[[str], None]) -> None:
        self._file, self._on = file, on

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view[:len(view) // 2])
        self._file.flush()
        self._on("write")
        self._file.write(view[len(view) // 2:])
        return len(view)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def watched(on: Callable[[str], None]) -> Iterator[None]:
    """Of this process, as long as the block lasts. What `on` raises is what the operation raises."""
    with pytest.MonkeyPatch.context() as patch:
        def before(name: str) -> None:
            real = getattr(os, name)

            def call(*args: Any, **options: Any) -> Any:
                on(name)
                return real(*args, **options)
            patch.setattr(os, name, call)
        for name in CHANGES:
            before(name)
        real_os_open, real_fdopen, real_open = os.open, os.fdopen, builtins.open

        def os_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                on("open")
            return real_os_open(path, flags, *args, **options)

        def fdopen(fd: int, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = real_fdopen(fd, mode, *args, **options)
            return _File(file, on) if mode.startswith("w") else file

        def open(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = real_open(path, mode, *args, **options)
            return _File(file, on) if mode == "ab" else file
        patch.setattr(os, "open", os_open)
        patch.setattr(os, "fdopen", fdopen)
        patch.setattr(builtins, "open", open)
        yield
