"""One family of exceptions for everything a user can run into.

Every message names the file, the tensor or option, what was expected, what was found and what to do. The command line prints it as one line on
stderr and exits with `exit_code`; the Python API raises the same types. Internal invariants use `assert` instead.
"""
from __future__ import annotations

import re

MOST = 2000
"""Characters of a message; of longer ones the middle is left out, so that file and remedy stay."""


def one_line(text: str) -> str:
    """On one line and printable: a path, a file's key or a library's message may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in re.sub(r"\s*\n\s*", " ", text.strip()))


def quoted(value: object, most: int = 120) -> str:
    """A value for a message: its repr on one line, of bounded length, whatever it is (repr itself fails for some: deep nesting, integers of thousands of
    digits)."""
    try:
        if isinstance(value, int) and value.bit_length() > 1000:
            return f"an integer of {value.bit_length()} bits"
        text = one_line(repr(value[:most] if isinstance(value, (str, bytes)) else value))
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= most + 2 and not (isinstance(value, (str, bytes)) and len(value) > most) else text[:most] + "..."


def why(error: BaseException, most: int = 200) -> str:
    """A library's message for one of ours: on one line, of bounded length, without advice for programmers."""
    text = one_line(str(error)) or type(error).__name__
    text = "it has an integer of thousands of digits" if "integer string conversion" in text else text
    return text if len(text) <= most else text[:most] + "..."


class LlaminaError(Exception):
    """Base of every error llamina raises on purpose. `str(error)` is one line of bounded length, fit for a user: control characters are escaped here."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(_message(arg) if isinstance(arg, str) else arg for arg in args))


def _message(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= MOST else text[:MOST * 2 // 3] + " ... " + text[-MOST // 3:]


class FileError(LlaminaError):
    """A path is missing, unreadable, a directory, or not writable."""


class FormatError(LlaminaError):
    """A file's content is damaged or inconsistent: it does not obey its own format."""


class UnsupportedError(LlaminaError):
    """A file is valid, but asks for something llamina does not implement; the message names it."""


class TokenizerError(LlaminaError):
    """A vocabulary cannot be used, or text/ids cannot be encoded/decoded."""


class OptionError(LlaminaError, ValueError):
    """An option or argument has an impossible value (temperature NaN, top_k < 0, ...)."""

    exit_code = 2


class ContextFullError(LlaminaError):
    """The prompt does not fit into the context; nothing was truncated."""


class OutOfMemoryError(LlaminaError, MemoryError):
    """The weights or the KV cache do not fit into the memory allowed."""


class NumericError(LlaminaError, ArithmeticError):
    """NaN or infinity appeared in the activations or logits; the message names the stage."""


class AbortedError(LlaminaError):
    """A step was aborted from another thread."""


class ClosedError(LlaminaError):
    """The model (or its thread team) was closed, or belongs to the parent of a fork."""


class InternalError(LlaminaError):
    """A fault of llamina's own, kept to the one answer of many that met it."""
