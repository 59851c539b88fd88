"""Panics of Rust libraries (llguidance, tokenizers) as our errors.

A panic reaches Python as PanicException, which is a BaseException, so `except Exception` lets it through to the top. It is a fault of the library or of what
it was given, never a reason to end the program.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .errors import LlaminaError


@contextlib.contextmanager
def panics_are(kind: type[LlaminaError], what: str) -> Iterator[None]:
    """Inside, a panic is raised as `kind`, whose message begins with `what`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: the library gave up ({' '.join(str(error).split())[:200]})") from None
