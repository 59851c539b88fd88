"""The benchmark suite's common parts, and the one command that runs it, also for the lesser targets of this CPU.

    pytest bench --benchmark-only [--benchmark-json=now.json] [--benchmark-compare=…]           this CPU's own target
    python -m llamina.bench.suite [--targets all|avx2,…] [--small] [pytest's options]           a process for each target; JSON files in .benchmarks/

Every result's extra_info says the work it did (gbytes_per_second or gmacs_per_second) and its share of the machine's limit (limits.py). Sizes come from
the environment: LLAMINA_BENCH_SHAPE (default 1b), LLAMINA_BENCH_MODELS (a folder that keeps the random models), LLAMINA_BENCH_SMALL=1 (seconds for
all of it; the numbers then mean nothing). Threads: LLAMINA_THREADS, else one for each physical core.
"""
from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.run.thread_choice import asked
from ..kernels.formats.table import RUNNABLE
from ..kernels.target import EMULATION, FEATURES, TARGET, emulatable
from ..kernels.threads import default_threads
from . import limits as machine_limits
from .speed import Work
from .synthetic import SHAPES, Shape, write_model

SMALL = os.environ.get("LLAMINA_BENCH_SMALL", "") not in ("", "0")
THREADS = asked() or default_threads()
SHAPE = "256" if SMALL else os.environ.get("LLAMINA_BENCH_SHAPE", "1b")
ROUNDS = 1 if SMALL else 5
FORMATS = sorted(f for f in RUNNABLE if not SMALL or f in ("F32", "Q4_0", "Q6_K"))


def size(full: int, small: int) -> int:
    return small if SMALL else full


@functools.cache
def limits() -> machine_limits.Limits:
    """Of this machine, measured once in a process."""
    return machine_limits.measure(THREADS, *((2, 1, 1.0) if SMALL else ()))


def record(benchmark: Any, work: Work, threads: int = THREADS, **more: Any) -> None:
    """Put target, threads, rates and the share of the machine's limit into a benchmark's extra_info, by its best round."""
    benchmark.extra_info.update(target=TARGET, threads=threads, **more)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.min
    least, bound = work.bound(limits(), threads)
    benchmark.extra_info.update(gbytes_per_second=round(work.bytes / seconds / 1e9, 2), gmacs_per_second=round(work.macs / seconds / 1e9, 2),
                                share_of_limit=round(least / seconds, 3), bound=bound)


_folder = tempfile.TemporaryDirectory(prefix="llamina-bench-")


def model(kind: str, shape: str | Shape = SHAPE) -> Path:
    """A file of random weights, written on first use; kept if LLAMINA_BENCH_MODELS names a folder."""
    folder = Path(os.environ.get("LLAMINA_BENCH_MODELS") or _folder.name)
    name = shape if isinstance(shape, str) else f"{shape.dim}x{shape.n_layers}x{shape.n_heads}x{shape.n_kv_heads}x{shape.ffn_dim}x{shape.n_vocab}"
    path = folder / f"{name}.{kind}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        write_model(partial, SHAPES[shape] if isinstance(shape, str) else shape, kind)
        partial.replace(path)
    return path


def aligned(n_bytes: int) -> np.ndarray:
    """uint8 [n_bytes] of zeros, 64-byte aligned, with room to read past the end."""
    raw = np.zeros(n_bytes + 16384, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset:offset + n_bytes]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.suite", description="Run the benchmark suite, a process for each target.")
    others = ", ".join(emulatable(FEATURES))
    parser.add_argument("--targets", default=TARGET, help=f"all, or names with commas between them (default: {TARGET}; others here: {others})")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only to see that it runs")
    args, rest = parser.parse_known_args(argv)
    names = [TARGET, *emulatable(FEATURES)] if args.targets == "all" else args.targets.split(",")
    status = 0
    for name in names:
        if name != TARGET and name not in EMULATION:
            parser.error(f"unknown target {name!r}")
        environment = {**os.environ, **(EMULATION[name] if name != TARGET else {}), **({"LLAMINA_BENCH_SMALL": "1"} if args.small else {})}
        command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "--benchmark-only", f"--benchmark-save={name}", *rest]
        print("+", name, " ".join(command), flush=True)
        status |= subprocess.run(command, env=environment).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
