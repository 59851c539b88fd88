"""Checkpoints of every kind in, GGUF out. The package can be called: `llamina.convert(source, out, type)` is `convert.convert`."""
from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`llamina.convert` is this folder, and what people want to call by the same name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from .convert import convert
        return convert(*args, **options)


sys.modules[__name__].__class__ = _Callable
