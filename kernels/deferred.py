"""Numba only when something is compiled: importing it takes longer than everything else at a start that finds its machine code on disk.

`jit` and `intrinsic` stand for numba.njit (nogil, NumPy's division rules, no fastmath) and numba.extending.intrinsic: they remember the function, and make
the Numba object when Numba's type inference first meets it (Numba asks an object it doesn't know for `_numba_type_`), or when somebody calls it or looks
at it. `types` and `cgutils` are the modules of numba.core, imported when an attribute is first read, which must be inside a code generator.
"""
from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from .pipeline import kernel_compiler
from .room import NUMBA, need_room

JIT_OPTIONS = {"nogil": True, "error_model": "numpy"}

_when_numba_comes: list[Callable[[], None]] = []


def when_numba_comes(register: Callable[[], None]) -> Callable[[], None]:
    """Decorator: call this once, as soon as Numba is imported, before anything of this package is compiled (to register types and operators)."""
    _when_numba_comes.append(register)
    return register


def numba_ready() -> Any:
    """Import Numba and make everything known to it that has been defined so far -> its typing context. MemoryError where there isn't room for it."""
    if "numba.core.registry" not in sys.modules:
        need_room(NUMBA)
    from numba.core.registry import cpu_target
    while _when_numba_comes:
        _when_numba_comes.pop(0)()
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    return cpu_target.typing_context


def _for_compiled_callers_only(dispatcher: Any) -> None:
    """Spare a function that only compiled code calls what Python callers need: machine code and wrappers of its own, half of its compile time."""
    def customize(flags: Any) -> Any:
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        return flags

    def add(result: Any) -> None:
        library = result.library

        def finish() -> None:
            library._finalize_dynamic_globals()
            library._finalized = True

        # The caller's library, which it is linked into, is optimised and gets machine code. This one must not have any: the engine would take a function
        # that both define from the first it met, which is this one, as it was before optimisation
        library._optimize_final_module = lambda: None
        library._finalize_final_module = finish
        key = object()  # what stands for the function among the callable ones; Numba takes the machine code's entry point
        result.target_context.insert_user_function(key, result.fndesc, [library])
        dispatcher.overloads[tuple(result.signature.args)] = result._replace(entry_point=key)

    dispatcher._compiler._customize_flags = customize
    dispatcher.add_overload = add


class Deferred:
    """What `jit` or `intrinsic` made of a function. Reading any attribute not listed here makes the Numba object, and reads it there.

    .py_func: the function; .targetoptions: its options.
    """
    def __init__(self, function: Any, make: Callable[[Any], Any], options: dict[str, Any] | None = None):
        self.py_func, self.targetoptions, self._make = function, dict(options or {}), make
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, function.__module__
        self.name = function.__name__  # Numba's passes ask every callable for it

    @property
    def _defn(self) -> Any:
        """The function, by the name it has in Numba's intrinsics."""
        return self.py_func

    @functools.cached_property
    def numba(self) -> Any:
        """The dispatcher or intrinsic."""
        numba_ready()
        return self._make(self.py_func)

    @property
    def _numba_type_(self) -> Any:
        if (known := self.__dict__.get("_type")) is not None:
            return known
        context = numba_ready()
        if "numba" not in self.__dict__ and "inner" not in self.__dict__:
            self.inner = self._make(self.py_func)
            if hasattr(self.inner, "_compiler"):
                _for_compiled_callers_only(self.inner)
            context = numba_ready()
        self._type = context.resolve_value_type(self.__dict__.get("inner") or self.numba)
        return self._type

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numba(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.numba, name)

    def __repr__(self) -> str:
        return f"<deferred {self.py_func.__module__}.{self.py_func.__qualname__}>"


def jit(function: Any = None, **options: Any) -> Any:
    """`@jit` or `@jit(inline="always")`: numba.njit with JIT_OPTIONS, later."""
    def make(function: Any) -> Any:
        import numba
        return numba.njit(**JIT_OPTIONS, **options, pipeline_class=kernel_compiler())(function)

    def decorate(function: Any) -> Deferred:
        return Deferred(function, make, {**JIT_OPTIONS, **options})
    return decorate if function is None else decorate(function)


def intrinsic(function: Any) -> Any:
    """numba.extending.intrinsic, later."""
    def make(function: Any) -> Any:
        from numba import extending
        return extending.intrinsic(function)
    return Deferred(function, make)


class LaterModule:
    """A module that is imported when one of its names is first read."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self._name), name)
        setattr(self, name, value)
        return value


class NumbaType:
    """A Numba type by its name in numba.core.types, looked up when it is used: calling it gives a signature, as with Numba's own."""

    def __init__(self, name: str):
        self.name = name

    @property
    def numba(self) -> Any:
        return getattr(types, self.name)

    def __call__(self, *args: Any) -> Any:
        return self.numba(*args)

    def __repr__(self) -> str:
        return self.name


types: Any = LaterModule("numba.core.types")
cgutils: Any = LaterModule("numba.core.cgutils")
