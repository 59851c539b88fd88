"""Every x86 target that this CPU can run: the kernels' tests, equal bits, and the instructions that each is there for; code generation for the others.

NUMBA_CPU_NAME and NUMBA_CPU_FEATURES make a child process compile for a lesser CPU (kernels/target.py). Children start two at a time and share the
compile cache, so only the first run of all takes long. Two targets with registers of one width differ in their dot products alone: of each width one has
all kernels' tests run (targets.py), with the formats that have every loop body, and of the other formats compared what is their own; the others have what
holds dot products compared (LLAMINA_ALL_TARGETS=1: everything, of all).
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import kernel_digests
import pytest
from llamina.kernels import bfloat16
from llamina.kernels.dot import build_dot
from llamina.kernels.formats import registry
from llamina.kernels.formats.table import RUNNABLE
from llamina.kernels.matmul import Packing
from llamina.kernels.simd import I8, I32
from llamina.kernels.target import EMULATION, FEATURES, HAS_BF16_DOT, TARGET, emulatable
from llvmlite import binding as llvm
from llvmlite import ir
from targets import ALL, FEW, TAKEN

HERE = Path(__file__).resolve().parent
FILES = ["test_simd.py", "test_activations.py", "test_elementwise.py", "test_attention.py", "test_formats.py", "test_matmul.py"]
OTHERS = emulatable(FEATURES)
WHOLE = [t for t in OTHERS if t in TAKEN]

EXPECTED = {
    "avx512vnni": {"Q4_0": {"vpdpbusd zmm"}, "Q8_0": {"vpdpbusd zmm"}},
    "avx512": {"Q4_0": {"vpmaddubsw zmm", "vpmaddwd zmm"}, "Q8_0": {"vpmaddwd zmm"}},
    "avxvnni": {"Q4_0": {"vpdpbusd ymm"}, "Q8_0": {"vpdpbusd ymm"}},
    "avx2": {"Q4_0": {"vpmaddubsw ymm", "vpmaddwd ymm"}, "Q8_0": {"vpmaddubsw ymm", "vpmaddwd ymm"}},
    "generic": {"Q4_0": {"pmaddwd xmm"}, "Q8_0": {"pmaddwd xmm"}},
}
"""All byte and word dot products that a target's kernels may hold: no vpmaddubsw for Q8_0 where it would saturate (avx2 gives it magnitudes)."""


def child(target: str, *command: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "NUMBA_CPU_"))}
    environment = {**plain, **EMULATION.get(target, {}), "LLAMINA_TEST_TARGET": target}
    return subprocess.run([sys.executable, *command], cwd=HERE, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def children() -> Any:
    """{(what, target): future of a finished process}, all under way."""
    with ThreadPoolExecutor(2) as pool:
        started: dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]] = {}
        for target in OTHERS:
            started["digests", target] = pool.submit(child, target, "kernel_digests.py", "--few" if target in WHOLE else "--dots")
        for target in WHOLE:
            arguments = ["-m", "pytest", "-n0", "-v", "-x", "-p", "no:cacheprovider", "--tb=short", *FILES]
            started["tests", target] = pool.submit(child, target, *arguments)
        yield started


@cache
def own_report() -> dict[str, Any]:
    """This process's digests and instructions."""
    found = {"Q4_0": kernel_digests.instructions("Q4_0", True), "Q8_0": kernel_digests.instructions("Q8_0", False)}
    return {"digests": kernel_digests.digests(), "instructions": found}


@pytest.mark.skipif(not OTHERS, reason="this CPU runs the plain target only, or is no x86")
@pytest.mark.parametrize("target", OTHERS)
def test_digests_equal_on_every_target(children: Any, target: str) -> None:
    done = children["digests", target].result()
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["target"] == target
    own = own_report()["digests"]
    assert [k for k, v in report["digests"].items() if v != own[k]] == []
    if target in WHOLE:
        assert set(own) - set(report["digests"]) == ({f"matmul {name}" for name in RUNNABLE - {*FEW}} if not ALL else set())
    else:
        assert len(report["digests"]) > 12 and {f"matmul {name}" for name in kernel_digests.DOTS} <= set(report["digests"])
    assert {k: set(v) for k, v in report["instructions"].items()} == EXPECTED[target]


@pytest.mark.skipif(not WHOLE, reason="this CPU runs the plain target only, or is no x86")
@pytest.mark.parametrize("target", WHOLE)
def test_kernels_on_every_target(children: Any, target: str) -> None:
    """All of FILES, in a process that compiles for the target (test_simd.py makes sure that it does)."""
    done = children["tests", target].result()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_few_formats_have_every_loop_body() -> None:
    """What block_kernel builds from: which dot product, zero point, minimums, scales of halves, small codes; floats of halves, pairs where the CPU has them."""
    def body(name: str) -> Any:
        f: Any = registry.packing(name)
        if not isinstance(f, Packing):
            return "floats"
        return f.zero == 128, f.zero > 0, f.minimum is not None, f.half_scales is not None, f.half_minimums is not None, not f.half_scales and f.codes <= 16
    assert {body(name) for name in FEW} == {body(name) for name in RUNNABLE}


@pytest.mark.skipif(TARGET not in EXPECTED, reason=f"no expectation for {TARGET}")
def test_own_kernels_hold_the_expected_instructions() -> None:
    assert {k: set(v) for k, v in own_report()["instructions"].items()} == EXPECTED[TARGET]


@pytest.mark.skipif(not HAS_BF16_DOT, reason="this CPU has no dot product of bfloat16")
def test_the_dot_product_of_bfloat16_is_two_fma() -> None:
    """The other targets, which the tests above compare with this one, use fma."""
    assert [bfloat16.dot_differences(seed=seed) for seed in range(100)] == 100 * [0]
    assembly = kernel_digests.assembly("BF16")
    assert "vdpbf16ps" in assembly and "vcvtne2ps2bf16" in assembly


def assembly_of(target: str, any_byte: bool, triple: str, cpu: str, features: str) -> str:
    """`build_dot` alone, cross-compiled: void dot(ptr acc, ptr u, ptr s)."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    except RuntimeError as error:
        pytest.skip(f"llvmlite can't generate code for {triple}: {error}")
    module = ir.Module("cross")
    module.triple = triple
    acc_type, bytes_type = ir.VectorType(I32, 16), ir.VectorType(I8, 64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [acc_type.as_pointer(), bytes_type.as_pointer(), bytes_type.as_pointer()]), "dot")
    builder = ir.IRBuilder(function.append_basic_block())
    acc, u, s = (builder.load(a) for a in function.args)
    builder.store(build_dot(builder, acc, u, s, target, any_byte, x86="x86" in triple), function.args[0])
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    return machine.emit_assembly(parsed)


@pytest.mark.parametrize("any_byte", [False, True])
def test_avxvnni_generates_vex_vpdpbusd(any_byte: bool) -> None:
    found = kernel_digests.DOT.findall(assembly_of("avxvnni", any_byte, "x86_64-unknown-linux-gnu", "alderlake", "+avxvnni,+avx2"))
    assert found == [("vpdpbusd", "ymm")] * 2


@pytest.mark.parametrize("any_byte, times", [(False, 4), (True, 8)])
def test_neon_generates_sdot(any_byte: bool, times: int) -> None:
    """Weights of any byte take a second sdot each: 128 times the activations' sum."""
    code = assembly_of("neon", any_byte, "aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod")
    assert [op for op, _ in kernel_digests.DOT.findall(code)] == ["sdot"] * times


@pytest.mark.parametrize("triple", ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "riscv64-unknown-linux-gnu"])
def test_plain_code_compiles_for_any_cpu(triple: str) -> None:
    assert "dot" in assembly_of("generic", True, triple, "", "")
