"""What compiling a function costs besides LLVM, which takes a third of it: Numba's own passes over Python's bytecode, and Python's garbage collector.

Kernels are plain loops over integers and vectors: no closures, no array expressions, no overloads written in Python that would want inlining. The passes
that look for those change nothing here (a test compares the machine code), and take a tenth of the time. Nor does a compiler leave much garbage: the
collector looks through all that lives, again and again, while the IR grows, and finds little.
"""
from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Iterator
from typing import Any

LEFT_OUT = {"WithLifting", "InlineClosureLikes", "MakeFunctionToJitFunction", "InlineInlinables", "FindLiterallyCalls", "LiteralUnroll",
            "LiteralPropagationSubPipelinePass", "InlineOverloads", "NopythonRewrites"}
"""Passes of numba.core by name; a version of Numba that has no such pass has nothing to leave out."""


@functools.cache
def kernel_compiler() -> Any:
    """Numba's compiler without LEFT_OUT, for `pipeline_class`."""
    from numba.core.compiler import CompilerBase, DefaultPassBuilder
    from numba.core.compiler_machinery import PassManager

    class KernelCompiler(CompilerBase):
        def define_pipelines(self) -> list[Any]:
            usual = DefaultPassBuilder.define_nopython_pipeline(self.state)
            manager = PassManager("kernel")
            for one, description in usual.passes:
                name = one.__name__ if isinstance(one, type) else type(one).__name__
                if name not in LEFT_OUT:
                    manager.add_pass(one, description)
            manager.finalize()
            return [manager]
    return KernelCompiler


_lock = threading.Lock()
_without = 0  # how many are within `without_collector`
_was_on = False


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """No garbage collection within, in any thread; after the last one to leave it is as it was."""
    global _without, _was_on
    with _lock:
        if _without == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _without += 1
    try:
        yield
    finally:
        with _lock:
            _without -= 1
            if _without == 0 and _was_on:
                gc.enable()
