"""One family of exceptions for everything a user can run into.

Every message names the file, the tensor or option, what was expected, what was found and what to do. The command line prints it as one line on
stderr and exits with `exit_code`; the Python API raises the same types. Internal invariants use `assert` instead.
"""
from __future__ import annotations


class LlaminaError(Exception):
    """Base of every error llamina raises on purpose. `str(error)` is one line, fit for a user."""

    exit_code = 1


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
    """The prompt does not fit into the context; nothing was truncated."""


class OutOfMemoryError(LlaminaError, MemoryError):
    """The weights or the KV cache do not fit into the memory allowed."""


class NumericError(LlaminaError, ArithmeticError):
    """NaN or infinity appeared in the activations or logits; the message names the stage."""


class RequestError(LlaminaError):
    """A request, or what its answer holds, met something nobody foresaw; others go on. The message names it."""


class AbortedError(LlaminaError):
    """A step was aborted from another thread."""


class ClosedError(LlaminaError):
    """The model (or its thread team) was closed, or belongs to the parent of a fork."""


def of_request(error: Exception) -> LlaminaError:
    """Whatever a request's own data led to, as an error of this family; one line, not endless."""
    if isinstance(error, LlaminaError):
        return error
    text = " ".join(str(error).split())[:300]
    found: LlaminaError = RequestError(f"the request can't be answered: {type(error).__name__}{f': {text}' if text else ''}")
    found.__cause__ = error
    return found
