"""How Numba is made to compile: what an interruption leaves behind, and what the engine gets to see."""
from __future__ import annotations

import ctypes
import functools
import gc
import os
import re
import signal

import numba
import pytest
from llamina.kernels import compile_cache, deferred, matmul, pipeline
from llamina.kernels.formats import registry


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
@pytest.mark.parametrize("number", [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")])
def test_interrupted_while_compiling(monkeypatch, tmp_path, number):
    """Raised when the function is compiled: what a ctypes callback, as LLVM calls it, raises is lost. So for every signal that somebody handles."""
    monkeypatch.setenv("LLAMINA_COMPILE_CACHE", str(tmp_path))
    steps = []

    def notice(name):
        ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(number))()
        steps.append(name)

    @compile_cache.compiled("int64(int64)")
    def one_more(x):  # another function for each signal: one that is on disk is not compiled
        return x + number

    def leave(number, frame):
        raise SystemExit(number)

    before, end = signal.signal(number, leave), compile_cache.on_compile(notice)
    try:
        with pytest.raises(SystemExit):
            one_more.ctypes  # noqa: B018
        assert signal.getsignal(number) is leave
    finally:
        end()
        signal.signal(number, before)
    assert len(steps) == 1 and one_more.ctypes(1) == 1 + number and len(steps) == 1


def test_helpers_get_no_machine_code_of_their_own(monkeypatch, tmp_path):
    """Else the engine takes a helper that the optimiser did not inline from where it met it first: not yet optimised (prompts at half speed)."""
    monkeypatch.setenv("LLAMINA_COMPILE_CACHE", str(tmp_path))
    from numba.core.registry import cpu_target
    engine, modules = cpu_target.target_context.codegen()._engine, []
    add_module = engine.add_module

    def noted(module):
        modules.append(module.name)
        return add_module(module)

    monkeypatch.setattr(engine, "add_module", noted)

    @deferred.jit
    def doubled_by_a_helper(x):
        return 2 * x

    @compile_cache.compiled("int64(int64)")
    def one_more_than_double(x):
        return doubled_by_a_helper(x) + 1

    assert one_more_than_double.ctypes(20) == 41
    assert any("one_more_than_double" in name for name in modules) and not any("doubled_by_a_helper" in name for name in modules)


@pytest.mark.parametrize("name", ["Q2_K", "Q4_0"])
def test_what_the_pipeline_leaves_out_changes_no_instruction(monkeypatch, name):
    """A loop body's machine code with all that Numba does, and without what kernels have no use for. Here one that continues a loop, so that it has two ways
    back, has other values of a variable from two branches, and calls a function that Numba has in Python."""
    def machine_code(compiler):
        packing = registry.packing(name)
        assert isinstance(packing, matmul.Packing)
        body = matmul._body(packing, 2)

        def kernel(w, tiles, x, tokens, out, ldo):
            step = 1
            for i in range(tokens):
                if w == 17 + i:
                    step = 3
                    continue
                if x == w:
                    step += 2
                body(w, tiles, x + step, min(i, step), out, ldo)
        compiled = numba.cfunc("void(int64, int64, int64, int64, int64, int64)", error_model="numpy", pipeline_class=compiler())(kernel)
        # without symbols that hold the place of an environment: of a function that was inlined, there is one for each time that it was compiled
        return re.sub(r"\b_ZN\w+|\bcfunc\w+", "name", re.sub(r"\n.*\b_ZN08NumbaEnv\w+,.*", "", compiled._library.get_asm_str()))
    lean = machine_code(pipeline.kernel_compiler)
    assert pipeline.kernel_compiler() is deferred.kernel_compiler()
    monkeypatch.setattr(pipeline, "LEFT_OUT", set())
    monkeypatch.setattr(pipeline, "LEAN", False)
    every = functools.cache(pipeline.kernel_compiler.__wrapped__)
    monkeypatch.setattr(deferred, "kernel_compiler", every)
    assert machine_code(every) == lean and len(lean) > 2000


def test_numba_is_as_it_was_after_a_compilation():
    """What a kernel's compilation replaces in Numba's contexts, also one that fails, also where functions compile functions."""
    context = deferred.numba_ready()
    seen = []

    @deferred.intrinsic
    def noted(typingctx, x):
        seen.append("resolve_function_type" in vars(typingctx))
        return deferred.types.int64(x), lambda context, builder, signature, args: args[0]

    @deferred.intrinsic
    def later(typingctx, x):  # not known to Numba before a kernel that calls it is under way
        return deferred.types.int64(x), lambda context, builder, signature, args: args[0]

    @deferred.jit
    def through(x):
        return noted(x)

    def kernel(x):
        return through(x) + noted(x)

    def wrong(x):
        return through(x) + "text"
    for function in kernel, wrong:
        try:
            numba.cfunc("int64(int64)", pipeline_class=pipeline.kernel_compiler())(function)
        except numba.TypingError as error:  # with the place in the kernel, which Numba's error contexts add
            assert function is wrong and "typing of" in str(error) and "test_compiling.py" in str(error)
        assert numba.core.lowering.new_error_context is numba.core.typeinfer.new_error_context is numba.core.errors.new_error_context
        assert not {"refresh", "resolve_function_type"} & set(vars(context))
    assert seen and all(seen)
    assert compile_cache.jit(cache=False)(lambda x: through(x) + later(x))(3) == 6 and not {"refresh", "resolve_function_type"} & set(vars(context))


def test_the_collector_rests_while_something_is_compiled():
    """And then does what it did before, within other such blocks and after failures."""
    states = []
    with pytest.raises(ZeroDivisionError), pipeline.without_collector():
        with pipeline.without_collector():
            states.append(gc.isenabled())
        states.append(gc.isenabled())
        1 / 0  # noqa: B018
    assert states == [False, False] and gc.isenabled()
    gc.disable()
    try:
        with pipeline.without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
