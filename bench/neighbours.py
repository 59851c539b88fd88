"""How much slower a model runs beside other busy processes, against its fair share of the CPUs.

    python -m llamina.bench.neighbours MODEL.gguf [--threads N] [--busy 1,2,4] [--prompt 512] [--generate 48] [--rounds 4] [--json FILE]

A neighbour is a process that computes without end. With t threads on c CPUs beside n neighbours, an even scheduler gives us c / (t + n) of a CPU for each
thread if there are more runnable threads than CPUs: that, times t / min(t, c), is the fair share of the speed that we have alone.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..kernels.threads import default_threads, usable_threads
from .peers.machine import machine
from .peers.ours_child import Engine

_BUSY = "import time\nend = time.monotonic() + 120\nwhile time.monotonic() < end:\n    for i in range(100000): pass"


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many busy processes, gone afterwards (and by themselves after two minutes)."""
    running = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(processes)]
    try:
        time.sleep(0.3 if running else 0.0)
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def fair_share(threads: int, cpus: int, neighbours: int) -> float:
    """Of the speed alone."""
    return min(1.0, cpus / (threads + neighbours)) / min(1.0, cpus / threads)


def measure(model: Path, threads: int, neighbours: list[int], tests: list[tuple[str, int]], rounds: int) -> list[dict[str, Any]]:
    """[{"what", "n", "neighbours", "tokens_per_second": [...], "share", "fair"}]; the first of each test is alone."""
    engine, rows, cpus = Engine(), [], usable_threads()
    engine.load(str(model), threads)
    for what, n in tests:
        engine.measure(what, n)
        alone = 0.0
        for count in (0, *neighbours):
            with busy(count):
                speeds = [engine.measure(what, n)["tokens_per_second"] for _ in range(rounds)]
            alone = alone or statistics.median(speeds)
            rows.append({"what": what, "n": n, "neighbours": count, "tokens_per_second": speeds, "share": statistics.median(speeds) / alone,
                         "fair": fair_share(threads, cpus, count)})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.neighbours", description="Speed beside busy processes, against the fair share.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, help="default: one for each physical core")
    parser.add_argument("--busy", default="1,2,4", help="numbers of busy processes (default: 1,2,4)")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args(argv)
    threads = args.threads or default_threads()
    tests = [(what, n) for what, n in (("generate", args.generate), ("prompt", args.prompt)) if n]
    rows = measure(args.model, threads, [int(n) for n in args.busy.split(",")], tests, args.rounds)
    print(f"{args.model.name}, {threads} threads, {machine()['cpu']}, {usable_threads()} CPUs\n")
    print("| test | busy neighbours | tokens/s | of alone | fair share |\n|---|---|---|---|---|")
    for row in rows:
        s = row["tokens_per_second"]
        speed = f"{statistics.median(s):.1f} ({min(s):.1f}-{max(s):.1f})"
        print(f"| {row['what']} {row['n']} | {row['neighbours']} | {speed} | {row['share']:.2f} | {row['fair']:.2f} |")
    if args.json:
        args.json.write_text(json.dumps({"model": args.model.name, "threads": threads, "machine": machine(), "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
