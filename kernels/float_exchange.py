"""The compiled half of float_env.py: one function that sets a thread's float environment and says what it was."""
from __future__ import annotations

from .atomics import default_float_env, get_float_env, set_float_env
from .compile_cache import compiled


@compiled("int64(int64)")
def exchange(value):
    """Set this thread's environment, the default one for -1 -> what it was."""
    before = get_float_env()
    set_float_env(default_float_env() if value < 0 else value)
    return before
