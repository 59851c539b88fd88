"""Atomic words and the float environment, as compiled code sees them: results here, instructions on the CPU family that is not here."""
from __future__ import annotations

from types import SimpleNamespace

import llvmlite.binding as llvm
import numpy as np
import pytest
from llamina.kernels import atomics
from llamina.kernels.atomics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_or,
    compare_and_swap,
)
from llamina.kernels.compile_cache import jit
from llvmlite import ir
from numba import types


def test_atomics_return_what_was_there() -> None:
    @jit(cache=False)
    def all_of_them(word: int) -> tuple[int, ...]:
        return (atomic_add(word, 5), atomic_or(word, 8), atomic_exchange(word, 3), compare_and_swap(word, 4, 9),
                compare_and_swap(word, 3, 9), atomic_load(word))

    word = np.array([2], np.int64)
    assert all_of_them(word.ctypes.data) == (2, 7, 15, 3, 3, 9)


@pytest.mark.parametrize("name, expected", [("pause", "isb"), ("get_float_env", "mrs"), ("set_float_env", "msr"), ("fence", "dmb")])
def test_aarch64_gets_its_own_instructions(name: str, expected: str) -> None:
    """Compiled for aarch64 on whatever machine this is; not run."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module("arm")
    module.triple = "aarch64-unknown-linux-gnu"
    i64 = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(i64, [i64]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    context = SimpleNamespace(cast=lambda builder, value, *_: value, get_dummy_value=lambda: ir.Constant(i64, 0))
    arguments = function.args if name == "set_float_env" else ()
    _, codegen = getattr(atomics, name)._defn(None, *[types.int64 for _ in arguments])
    builder.ret(codegen(context, builder, SimpleNamespace(args=["int64"]), arguments))
    machine = llvm.Target.from_triple(module.triple).create_target_machine()
    assembly = machine.emit_assembly(llvm.parse_assembly(str(module)))
    assert expected in assembly and ("fpcr" in assembly.lower()) == ("float_env" in name)
