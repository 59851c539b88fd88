"""One family of exceptions for everything a user can run into.

Every message names the file, the tensor or option, what was expected, what was found and what to do. The command line prints it as one line on
stderr and exits with `exit_code`; the Python API raises the same types. Internal invariants use `assert` instead.
"""
from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

MOST = 2000
"""Characters of a message; of longer ones the middle is left out, so that file and remedy stay."""


def one_line(text: str) -> str:
    """On one line and printable: a path, a file's key or a library's message may hold anything."""
    return escaped(" ".join(text.split()))


def escaped(text: str, keep: str = "") -> str:
    """What can't be printed, but for the characters of `keep`, as Python writes it: a terminal obeys nothing that comes out of a file."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


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
    if isinstance(doc := getattr(error, "doc", None), str) and "\n" not in (doc := doc.strip("\r\n")):  # JSON of one line, which our message names
        text = f"{error.msg} ({f'character {error.pos + 1}' if error.pos < len(doc) else 'at its end'})"  # type: ignore[attr-defined]
    text = "it has an integer of thousands of digits" if "integer string conversion" in text else text
    return text if len(text) <= most else text[:most] + "..."


class LlaminaError(Exception):
    """Base of every error llamina raises on purpose. `str(error)` is one line of bounded length, fit for a user: control characters are escaped here."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(_message(arg) if isinstance(arg, str) else arg for arg in args))


def _message(text: str) -> str:
    text = escaped(re.sub(r"\s*\n\s*", " ", text.strip()))  # but a path's spaces stay
    return text if len(text) <= MOST else text[:MOST * 2 // 3] + " ... " + text[-MOST // 3:]


class LlaminaWarning(UserWarning):
    """Something the user should know, though it goes on: one line."""


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
    """The prompt does not fit into the context; nothing was truncated. tokens, context: how many there are and how many fit, where known."""

    tokens: int | None = None
    context: int | None = None

    @classmethod
    def of(cls, message: str, tokens: int, context: int) -> ContextFullError:
        error = cls(message)
        error.tokens, error.context = tokens, context
        return error


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


def is_memory(error: BaseException | None) -> bool:
    """Whether an error means that the system gave no memory, whatever its type: an allocation, a thread's stack, a library that couldn't be mapped."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM \
                or isinstance(error, RuntimeError) and "can't start new thread" in text \
                or isinstance(error, (OSError, ImportError)) and ("failed to map segment" in text or "annot allocate memory" in text):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Whatever says within the block that there is no memory becomes OutOfMemoryError: "WHAT needs more memory than ..."."""
    try:
        yield
    except LlaminaError:
        raise
    except (MemoryError, OSError, ImportError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise OutOfMemoryError(f"{what}: {NO_MEMORY}") from error


NO_MEMORY = "the system gives no more memory (see ulimit -v, or a container's limit): use a smaller context (--context) or a smaller quantisation"
