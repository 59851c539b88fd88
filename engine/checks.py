"""Arguments as people give them -> what the engine takes, or an OptionError that names the argument. Knows nobody."""
from __future__ import annotations

import operator
from typing import Any

import numpy as np

from .errors import OptionError, quoted


def count(name: str, value: Any) -> int | None:
    """A positive whole number or None."""
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and operator.index(value) > 0:
            return operator.index(value)
    except TypeError:
        pass
    raise OptionError(f"{name} must be a whole number above 0, found {quoted(value)}")


def check_max_tokens(max_tokens: Any) -> int | None:
    """None or -1 (until the context is full) -> None; else a count from 0 on. OptionError."""
    if max_tokens is None:
        return None
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer)) or max_tokens < -1:
        raise OptionError(f"max_tokens must be a whole number from 0 on, or -1 (until the context is full), found {quoted(max_tokens)}")
    return None if max_tokens == -1 else int(max_tokens)


def check_keep(context_shift: bool, keep: Any, n_prompt: int | None, default: int) -> int | None:
    """How many of a prompt's first tokens a context shift keeps; None: no context shift. OptionError."""
    if not context_shift:
        if keep is not None:
            raise OptionError("keep is for context shifts: ask for context_shift, too")
        return None
    if keep is None:
        return default
    if isinstance(keep, bool) or not isinstance(keep, (int, np.integer)) or keep < 0 or n_prompt is not None and keep > n_prompt:
        raise OptionError(f"keep must be a whole number from 0 to the length of the prompt, found {quoted(keep)}")
    return int(keep)
