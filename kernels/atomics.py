"""What compiled code needs to work with other threads: atomic words, a pause for waiting loops, the float environment, calls by address.

Everything is a Numba intrinsic over plain integer addresses of 8-byte aligned int64 words. `team.py` is built on these.
"""
from __future__ import annotations

from typing import Any

from llvmlite import ir

from .deferred import cgutils, intrinsic, types

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
_BYTES = ir.IntType(8).as_pointer()

DEFAULT_MXCSR = 0x1F80  # x86: round to nearest, all exceptions masked, no flush-to-zero, no denormals-are-zero
DEFAULT_FPCR = 0  # aarch64: the same


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


def _int64(context: Any, builder: Any, value: Any, numba_type: Any) -> Any:
    return context.cast(builder, value, numba_type, types.int64)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call LLVM intrinsic (or runtime symbol) `name`."""
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def machine(builder: Any) -> str:
    """"x86", "arm" (64 bits) or "other": the CPU family that this module is being compiled for."""
    family = builder.module.triple.split("-")[0]
    return "x86" if family in ("x86_64", "i686", "i386") else "arm" if family in ("aarch64", "arm64") else "other"


def _read_modify_write(operation: str) -> Any:
    def read_modify_write(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value64 = _int64(context, builder, args[1], signature.args[1])
            return builder.atomic_rmw(operation, _word(builder, args[0]), value64, "seq_cst")
        return types.int64(address, value), codegen
    return intrinsic(read_modify_write)


# (address, value) -> the word's value before; sequentially consistent
atomic_add = _read_modify_write("add")
atomic_or = _read_modify_write("or")
atomic_exchange = _read_modify_write("xchg")


@intrinsic
def compare_and_swap(typingctx: Any, address: Any, expected: Any, value: Any) -> Any:
    """If the word equals `expected`, write `value`; returns the word's value before. Sequentially consistent."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        old, new = (_int64(context, builder, args[i], signature.args[i]) for i in (1, 2))
        return builder.extract_value(builder.cmpxchg(_word(builder, args[0]), old, new, "seq_cst", "seq_cst"), 0)
    return types.int64(address, expected, value), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The word, with acquire ordering: what its writer wrote before is visible after."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(builder, args[0]), "acquire", 8)
    return types.int64(address), codegen


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the word with release ordering."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(_int64(context, builder, args[1], signature.args[1]), _word(builder, args[0]), "release", 8)
        return context.get_dummy_value()
    return types.void(address, value), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Full barrier: no load after it is satisfied before the stores ahead of it are visible (Dekker's pattern needs this)."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()
    return types.void(), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the core that this is a waiting loop (x86 `pause`, 20-50 ns on current cores; aarch64 `isb`, about 10; elsewhere nothing)."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        family = machine(builder)
        if family == "x86":
            _call(builder, "llvm.x86.sse2.pause", _VOID, [])
        elif family == "arm":
            _call(builder, "llvm.aarch64.isb", _VOID, [ir.Constant(_I32, 15)])
        return context.get_dummy_value()
    return types.void(), codegen


@intrinsic
def get_float_env(typingctx: Any) -> Any:
    """This thread's float control register (MXCSR or FPCR) as int64; 0 on other CPUs."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        family = machine(builder)
        if family == "x86":
            slot = cgutils.alloca_once(builder, _I32)
            _call(builder, "llvm.x86.sse.stmxcsr", _VOID, [builder.bitcast(slot, _BYTES)])
            return builder.zext(builder.load(slot), _I64)
        if family == "arm":
            return _call(builder, "llvm.aarch64.get.fpcr", _I64, [])
        return ir.Constant(_I64, 0)
    return types.int64(), codegen


@intrinsic
def set_float_env(typingctx: Any, value: Any) -> Any:
    """Set it to what get_float_env gave. LLVM may move float operations across this: change it only around calls by address."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        family, value64 = machine(builder), _int64(context, builder, args[0], signature.args[0])
        if family == "x86":
            slot = cgutils.alloca_once(builder, _I32)
            builder.store(builder.trunc(value64, _I32), slot)
            _call(builder, "llvm.x86.sse.ldmxcsr", _VOID, [builder.bitcast(slot, _BYTES)])
        elif family == "arm":
            _call(builder, "llvm.aarch64.set.fpcr", _VOID, [value64])
        return context.get_dummy_value()
    return types.void(value), codegen


@intrinsic
def default_float_env(typingctx: Any) -> Any:
    """The value for set_float_env that every step computes under: round to nearest even, denormals kept, no traps."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_I64, {"x86": DEFAULT_MXCSR, "arm": DEFAULT_FPCR}.get(machine(builder), 0))
    return types.int64(), codegen


def _call_address(result: Any) -> Any:
    """Code generator: call the C function `result (int64, …)` whose address is the first argument; an int32 result is widened."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [_int64(context, builder, a, t) for a, t in zip(args[1:], signature.args[1:])]
        function_type = ir.FunctionType(result, [_I64] * len(values))
        value = builder.call(builder.inttoptr(args[0], function_type.as_pointer()), values)
        return builder.sext(value, _I64) if result == _I32 else value
    return codegen


@intrinsic
def call_pointer0(typingctx: Any, function: Any) -> Any:
    """`int f(void)` at an address (sched_yield)."""
    return types.int64(function), _call_address(_I32)


@intrinsic
def call_pointer1(typingctx: Any, function: Any, a: Any) -> Any:
    """`int f(int64)` at an address (usleep, PyThread_release_lock)."""
    return types.int64(function, a), _call_address(_I32)


@intrinsic
def call_pointer2(typingctx: Any, function: Any, a: Any, b: Any) -> Any:
    """`int f(int64, int64)` at an address (PyThread_acquire_lock)."""
    return types.int64(function, a, b), _call_address(_I32)


@intrinsic
def call_pointer4(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """`int64 f(int64, int64, int64, int64)` at an address: the entry of a team's run."""
    return types.int64(function, a, b, c, d), _call_address(_I64)


@intrinsic
def call_pointer5(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """`int64 f(int64 x 5)` at an address (attention)."""
    return types.int64(function, a, b, c, d, e), _call_address(_I64)


@intrinsic
def call_pointer7(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
    """`long f(int64, ...)` of seven arguments at an address: syscall(), low_rank.py."""
    return types.int64(function, a, b, c, d, e, f, g), _call_address(_I64)


@intrinsic
def call_pointer8(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """`int64 f(int64 x 8)` at an address (low_rank.py)."""
    return types.int64(function, a, b, c, d, e, f, g, h), _call_address(_I64)


@intrinsic
def call_pointer11(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, i: Any, j: Any, k: Any) -> Any:
    """`int64 f(int64 x 11)` at an address (low_rank.py)."""
    return types.int64(function, a, b, c, d, e, f, g, h, i, j, k), _call_address(_I64)
