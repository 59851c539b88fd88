"""What this machine can do at most, measured with small kernels of our own: the yardsticks that every benchmark here is held against.

    python -m llamina.bench.limits [--threads N] [--mb 512] [--json]

- read bandwidth, for 1 ... n threads: the thread team streams through a buffer far larger than any cache, in huge pages, with 64-byte loads;
- multiply-adds a second: byte dots (kernels/dot.py: the target's own instruction, one operand from L1 as in the matmul), float32 fma, and the dot product of
  bfloat16 where the CPU has one (else fma computes it), in enough independent chains to hide their latency.
Each number is the best of several passes: a limit is what the machine can do, not what its other processes left over.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from ..engine.run.weights import Arena
from ..kernels.bfloat16 import dot_bf16
from ..kernels.compile_cache import Compiled, compiled
from ..kernels.deferred import jit
from ..kernels.dot import dot_later
from ..kernels.simd import (
    bits_of,
    fma,
    from_bits,
    get_f32,
    get_i8,
    load_f32x16,
    load_i8x64,
    load_i64,
    prefetch,
    put_f32,
    put_i8,
    splat_f32,
    splat_load_f32,
    splat_load_i32,
    stack_vectors,
    store_f32x16,
    store_i8x64,
)
from ..kernels.target import HAS_BF16_DOT, TARGET
from ..kernels.team import Team, next_tile
from ..kernels.threads import default_threads

CHAINS = 16 if TARGET in ("avx512vnni", "avx512") else 4
"""Independent accumulators: more than latency x throughput, few enough for the registers (a vector takes 1, 2 or 4)."""
PATTERNS = ((1 << 20, 0), (1 << 20, 4096), (1 << 20, 8192), (16 << 20, 8192))
"""(bytes that a thread takes at a time, prefetch distance) to try."""
_ENTRY = "int64(int64, int64, int64, int64)"


@compiled(_ENTRY)
def _stream(tid, n_threads, team, args):
    """Read args = (address, pieces, bytes of a piece, prefetch distance, 64 bytes a thread for the result)."""
    start, pieces, size, ahead = load_i64(args), load_i64(args + 8), load_i64(args + 16), load_i64(args + 24)
    acc = stack_vectors(8)
    for i in range(8):
        put_i8(acc, i, load_i8x64(start))
    piece = next_tile(team, 0, 1)
    while piece < pieces:
        for p in range(start + piece * size, start + (piece + 1) * size, 512):
            if ahead != 0:
                for i in range(8):
                    prefetch(p + ahead + 64 * i)
            for i in range(8):
                put_i8(acc, i, get_i8(acc, i) ^ load_i8x64(p + 64 * i))
        piece = next_tile(team, 0, 1)
    for i in range(1, 8):
        put_i8(acc, 0, get_i8(acc, 0) ^ get_i8(acc, i))
    store_i8x64(load_i64(args + 32) + 64 * tid, get_i8(acc, 0))
    return 0


@jit
def _byte_dot(acc, weights, x):
    return from_bits(dot_later(bits_of(acc), weights, splat_load_i32(x)))  # as of 4-bit codes: sums are seldom widened


@jit
def _fma(acc, factor, x):
    return fma(acc, factor, factor)


@jit
def _pair_dot(acc, pairs, x):
    return dot_bf16(pairs, splat_load_f32(x), acc)


def _multiply_adds(name: str, load, multiply_add) -> Compiled:
    """An entry with args = (rounds, address of 4 KB of operands, 64 bytes a thread for the result); a round is 32 * CHAINS vector operations."""
    def operate(tid, n_threads, team, args):
        operands = load_i64(args + 8)
        acc, weights = stack_vectors(CHAINS), load(operands)
        for i in range(CHAINS):
            put_f32(acc, i, splat_f32(0.0))
        for _ in range(load_i64(args)):
            for x in range(operands, operands + 32 * 4 * CHAINS, 4 * CHAINS):
                for i in range(CHAINS):
                    put_f32(acc, i, multiply_add(get_f32(acc, i), weights, x + 4 * i))
        for i in range(1, CHAINS):
            put_f32(acc, 0, from_bits(bits_of(get_f32(acc, 0)) + bits_of(get_f32(acc, i))))
        store_f32x16(load_i64(args + 16) + 64 * tid, get_f32(acc, 0))
        return 0
    operate.__name__ = operate.__qualname__ = name
    return compiled(_ENTRY)(operate)


_byte_dots, _float_fma = _multiply_adds("byte_dots", load_i8x64, _byte_dot), _multiply_adds("float_fma", load_f32x16, _fma)
_pair_dots = _multiply_adds("pair_dots", load_f32x16, _pair_dot) if HAS_BF16_DOT else _float_fma


@dataclass(frozen=True)
class Limits:
    """Best rates measured. Index n - 1: n threads."""

    target: str
    bandwidth: list[float]
    """Bytes a second read from memory."""
    int8: list[float]
    """int8 multiply-adds a second."""
    float32: list[float]
    """float32 multiply-adds a second."""
    bfloat16: list[float]
    """Multiply-adds a second of BF16 matrices."""


def _best(passes: int, run: Callable[[], object]) -> float:
    """Least seconds of several runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(threads: int | None = None, megabytes: int = 512, passes: int = 4, milliseconds: float = 20.0) -> Limits:
    """All limits for 1 ... threads threads (default: one a physical core); about two seconds. megabytes: of the buffer that is read."""
    threads = threads or default_threads()
    size = max(1, megabytes) << 20
    buffer = Arena(size + (1 << 20)).take(size + (1 << 20))
    buffer.fill(1)  # so that every page is there
    results = np.zeros(64 * threads + 64, np.uint8)
    operands = np.full(1024, 1.0, np.float32)
    bandwidth: list = []
    int8: list = []
    float32: list = []
    bfloat16: list = []
    for n in range(1, threads + 1):
        with Team(n) as team:
            best = 0.0
            for piece, ahead in PATTERNS:
                piece = min(piece, size)
                args = np.array([buffer.ctypes.data, size // piece, piece, ahead, results.ctypes.data], np.int64)
                best = max(best, size // piece * piece / _best(passes, lambda a=args: team.run(_stream.address, a.ctypes.data)))  # type: ignore[misc]
            bandwidth.append(best)
            for rates, entry, macs in ((int8, _byte_dots, 64), (float32, _float_fma, 16), (bfloat16, _pair_dots, 32 if HAS_BF16_DOT else 16)):
                args = np.array([100, operands.ctypes.data, results.ctypes.data], np.int64)
                seconds = _best(2, lambda a=args, e=entry: team.run(e.address, a.ctypes.data))  # type: ignore[misc]
                args[0] = max(100, int(100 * milliseconds / 1e3 / seconds))
                seconds = _best(2 * passes, lambda a=args, e=entry: team.run(e.address, a.ctypes.data))  # type: ignore[misc]
                rates.append(int(args[0]) * 32 * CHAINS * macs * n / seconds)
    return Limits(TARGET, bandwidth, int8, float32, bfloat16)


def table(limits: Limits) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield f"| threads (target {limits.target}) | read bandwidth, GB/s | int8, G multiply-adds/s | float32 | bfloat16 |"
    yield "|---|---|---|---|---|"
    for n, (b, i, f, h) in enumerate(zip(limits.bandwidth, limits.int8, limits.float32, limits.bfloat16), 1):
        yield f"| {n} | {b / 1e9:.1f} | {i / 1e9:.0f} | {f / 1e9:.0f} | {h / 1e9:.0f} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.limits", description="Measure memory bandwidth and arithmetic peaks.")
    parser.add_argument("--threads", type=int, help="most threads (default: one for each physical core)")
    parser.add_argument("--mb", type=int, default=512, help="size of the buffer that is read")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args(argv)
    limits = measure(args.threads, args.mb)
    print(json.dumps(asdict(limits)) if args.json else "\n".join(table(limits)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
