"""What compiling a function costs besides LLVM, which takes a third of it: Numba's own passes over Python's bytecode, and Python's garbage collector.

Kernels are plain loops over integers and vectors: no closures, no array expressions, no overloads written in Python that would want inlining. The passes
that look for those change nothing here (a test compares the machine code), and take a tenth of the time; so do the liveness of variables, which Numba
computes anew after every pass and only the last one reads, the search through all of Numba's declarations for those that came since the last call of
an intrinsic, and typing the same operator on the same types again. Nor does a compiler leave much garbage: the collector looks through all that lives,
again and again, while the IR grows, and finds little.
"""
from __future__ import annotations

import contextlib
import functools
import gc
import inspect
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
            manager = (lean_manager() if LEAN else PassManager)("kernel")
            for one, description in usual.passes:
                name = one.__name__ if isinstance(one, type) else type(one).__name__
                if name not in LEFT_OUT:
                    manager.add_pass(one, description)
            manager.finalize()
            return [manager]

        def _compile_core(self) -> Any:
            with remembering(self.state.typingctx, self.state.targetctx) if LEAN else contextlib.nullcontext():
                return super()._compile_core()
    return KernelCompiler


LEAN = True
"""Whether what follows is made use of; a test compares the machine code with and without."""


@functools.cache
def lean_manager() -> Any:
    """Numba's pass manager, but between passes only what the next ones need: loops with one way back each, and no liveness. Legalising the IR, the last
    pass before code is made, computes that, of what is there then."""
    from numba.core import ir_utils, transforms
    from numba.core.compiler_machinery import PassManager
    from numba.core.ssa import reconstruct_ssa

    def library(pass_: Any, state: Any) -> None:
        """The one that lowering would make, which passes over declarations."""
        made = state.targetctx.codegen().create_library(state.func_id.func_qualname)
        made.enable_object_caching()
        if len(inspect.signature(state.targetctx.codegen()._function_pass_manager).parameters) == 1:  # older ones take all functions through one pass manager
            usual = made._optimize_functions
            made._optimize_functions = lambda module: usual(Defined(module))
        state.library = made

    def one_way_back(pass_: Any, state: Any) -> None:
        state.func_ir.blocks = transforms.canonicalize_cfg(state.func_ir.blocks)

    def ssa(pass_: Any, state: Any) -> None:
        state.func_ir = reconstruct_ssa(state.func_ir)
        state.func_ir._definitions = ir_utils.build_definitions(state.func_ir.blocks)

    def strip_phis(pass_: Any, state: Any) -> None:
        state.func_ir = pass_._strip_phi_nodes(state.func_ir)
        state.func_ir._definitions = ir_utils.build_definitions(state.func_ir.blocks)

    # The end of each such pass of Numba is the liveness again; what they do for generators and types of locals, kernels don't have
    instead = {"IRProcessing": one_way_back, "ReconstructSSA": ssa, "PreLowerStripPhis": strip_phis}
    changes_loops = {"DeadBranchPrune", "GenericRewrites", "RewriteSemanticConstants", "RewriteDynamicRaises"}

    class LeanManager(PassManager):
        def _runPass(self, index: int, pss: Any, state: Any) -> None:
            name = type(pss).__name__
            pss.analysis = self._analysis
            if name == "NativeLowering" and state.library is None:
                library(pss, state)
            if name in instead:
                instead[name](pss, state)
                return
            mutated = pss.run_initialization(state)
            mutated |= pss.run_pass(state)
            mutated |= pss.run_finalizer(state)
            if mutated and name in changes_loops:
                one_way_back(pss, state)
    return LeanManager


class Defined:
    """An LLVM module whose functions are those that it defines: Numba makes a pass manager for each, which has nothing to do for a declaration."""

    def __init__(self, module: Any) -> None:
        self.__dict__["_module"] = module

    @property
    def functions(self) -> list[Any]:
        return [function for function in self._module.functions if not function.is_declaration]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


class Where:
    """numba.core.errors.new_error_context, which is entered for each instruction: what an error of Numba adds to its message on the way out."""

    def __init__(self, text: str, *args: Any, **words: Any) -> None:
        self.text, self.args, self.words = text, args, words

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if hasattr(error, "add_context"):
            error.add_context(self.text.format(*self.args, **self.words))


_remembered: dict[Any, Any] = {}
"""(id of a function's type, types of its arguments) -> (signature, the function's type, which keeps the id)."""


@contextlib.contextmanager
def remembering(typing: Any, target: Any) -> Iterator[None]:
    """Under Numba's compiler lock: what a function gives for some types is found once, and of new declarations only those are looked for that an intrinsic
    makes when it is first typed."""
    if "refresh" in vars(typing):  # a function that is compiled on the way
        yield
        return
    from numba.core import lowering, typeinfer, types
    from numba.core.typing.templates import builtin_registry as declarations
    usual, typed = typing.resolve_function_type, types.Function

    def refresh_typing() -> None:
        typing.install_registry(declarations)

    def refresh_target() -> None:
        for registry in list(target._registries):  # Numba puts an intrinsic's into whichever came first
            target.install_registry(registry)
        typing.install_registry(declarations)

    def resolve(func: Any, args: Any, kws: Any) -> Any:
        known = func if isinstance(func, types.Type) else typing._lookup_global(func)
        if kws or type(known) is not typed:
            return usual(func, args, kws)
        key = id(known), tuple(args)
        found = _remembered.get(key)
        if found is None:
            found = usual(func, args, kws), known
            if found[0] is not None:
                _remembered[key] = found
        return found[0]

    typing.refresh, target.refresh, typing.resolve_function_type = refresh_typing, refresh_target, resolve
    contexts = lowering.new_error_context, typeinfer.new_error_context
    lowering.new_error_context = typeinfer.new_error_context = Where
    try:
        yield
    finally:
        lowering.new_error_context, typeinfer.new_error_context = contexts
        del typing.refresh, target.refresh, typing.resolve_function_type


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
