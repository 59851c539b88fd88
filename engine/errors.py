"""One family of exceptions for everything a user can run into.

Every message names the file, the tensor or option, what was expected, what was found and what to do. The command line prints it as one line on
stderr and exits with `exit_code`; the Python API raises the same types. Internal invariants use `assert` instead.
"""
from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class LlaminaError(Exception):
    """Base of every error llamina raises on purpose. `str(error)` is one line, fit for a user."""

    exit_code = 1


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


NO_MEMORY = "the system gives no more memory (see ulimit -v, or a container's limit): use a smaller context or a smaller quantisation"
