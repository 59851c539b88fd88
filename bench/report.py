"""What `llamina bench` measures, as one JSON-able dict, and that dict as Markdown or CSV.

    report(path, tests, ...) -> {"model", "bytes", "weight_bytes", "target", "threads", "machine", "peak_memory", "limits", "tests": [...], ...}
"""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import __version__
from ..engine.architectures.config import ModelConfig, check_tensors
from ..engine.gguf.file import open_gguf
from ..engine.run.kv_cache import PAGE
from ..engine.run.runtime import Runtime
from ..engine.run.weights import Progress, matrix_names
from .limits import Limits, measure
from .peers.child import peak_memory
from .peers.machine import machine
from .profile import HOST, Profile
from .speed import Speed, Test, Work, run, stage_work

COLUMNS = ("test", "tokens_per_second", "spread", "gigabytes_per_second", "gigamacs_per_second", "share_of_limit", "bound")


def tests_of(prompt: int, generate: int, batches: list[int], depth: int) -> list[Test]:
    """The tests that the options ask for; 0 leaves a kind out."""
    tests = [Test("prompt", prompt, depth=depth)] if prompt else []
    return tests + [Test("generate", generate, batch, depth) for batch in batches if generate]


def report(path: Path, tests: list[Test], *, threads: int | None = None, kv: str | None = None, repetitions: int = 5, profile: bool = False,
           limits: Limits | None = None, progress: Progress | None = None, note: Callable[[str], None] | None = None,
           done: Callable[[Speed], None] | None = None) -> dict[str, Any]:
    """Run all tests on a model file. note: told what begins; done: each test's result as it ends. LlaminaError: the file does not run, or a test does not
    fit into memory."""
    positions = -(-max(t.depth + t.tokens for t in tests) // PAGE) * PAGE
    with open_gguf(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        check_tensors(gguf, config)
        runtime = Runtime(gguf, config, threads, positions, progress, kv=kv)
        speeds, profiles = [], []
        try:
            for test in tests:
                if note:
                    note(test.name)
                speeds.append(run(runtime, test, repetitions))
                if done:
                    done(speeds[-1])
                if profile:
                    with Profile(runtime) as stages:
                        run(runtime, test, max(1, repetitions // 2), warm_up=False)
                    works = [stage_work(runtime, n, test.batch, position, wanted) for n, position, wanted in test.steps(runtime.max_batch)]
                    mean = {name: sum((w[name] for w in works if name in w), Work()) for name in runtime.program.slots}
                    profiles.append((test, stages, mean, len(works)))
            result = {
                "model": path.name, "bytes": sum(p.stat().st_size for p in gguf.paths), "weight_bytes": runtime.weight_bytes, "version": __version__,
                "threads": runtime.n_threads, "kv": runtime.kv.name, "repetitions": repetitions, "machine": machine(), "load_seconds": runtime.load_seconds,
                "compile_seconds": runtime.compile_seconds, "peak_memory": peak_memory(),
            }
        finally:
            runtime.close()
        if note:
            note("machine limits")
        limits = limits or measure(runtime.n_threads)  # after the peak was read: this takes a large buffer
        result |= {"target": limits.target, "limits": asdict(limits), "tests": [_row(speed, limits, runtime.n_threads) for speed in speeds]}
        if profile:
            result["profiles"] = [_profile(*p, limits, runtime.n_threads) for p in profiles]
            result["kernels"] = {name: f"matmul_{gguf.tensors[name].format.name}" for name in matrix_names(config)}
    return result


def _row(speed: Speed, limits: Limits, threads: int) -> dict[str, Any]:
    seconds = speed.test.tokens * speed.test.batch / speed.mean
    least, bound = speed.work.bound(limits, threads)
    return {"test": speed.test.name, "tokens_per_second": speed.mean, "spread": speed.spread, "gigabytes_per_second": speed.work.bytes / seconds / 1e9,
            "gigamacs_per_second": speed.work.macs / seconds / 1e9, "share_of_limit": least / seconds, "bound": bound,
            "samples": speed.tokens_per_second, **asdict(speed.test)}


def _profile(test: Test, profile: Profile, work: dict[str, Work], steps: int, limits: Limits, threads: int) -> dict[str, Any]:
    """Per step: what each stage took, and how near that is to its own limit."""
    rounds, stages = profile.steps / steps, []
    for name, seconds in profile.seconds.items():
        least, bound = work[name].bound(limits, threads) if name != HOST else (0.0, "memory")
        stage: dict[str, Any] = {"stage": name, "milliseconds": 1e3 * seconds / profile.steps, "share_of_time": seconds / profile.total,
                                 "share_of_limit": None, "bound": None, "gigabytes_per_second": None, "gigamacs_per_second": None}
        if least > 0:
            w, each = work[name], seconds / rounds
            stage.update(share_of_limit=least / each, bound=bound, gigabytes_per_second=w.bytes / each / 1e9, gigamacs_per_second=w.macs / each / 1e9)
        stages.append(stage)
    return {"test": test.name, "milliseconds": 1e3 * profile.total / profile.steps, "steps": profile.steps, "stages": stages}


# -- as text ----------------------------------------------------------------------------------------------------------------------------------

def markdown(r: dict[str, Any]) -> Iterator[str]:
    """Lines."""
    m, threads = r["machine"], r["threads"]
    yield f"{r['model']}, {r['bytes'] / 1e6:.0f} MB, on {m['cpu']}, {threads} threads, target {r['target']}, llamina {r['version']}"
    yield ""
    yield "| test | tokens/s | GB/s | G multiply-adds/s | of limit | bound by |"
    yield "|---|---|---|---|---|---|"
    for t in r["tests"]:
        yield (f"| {t['test']} | {rate(t['tokens_per_second'], t['spread'])} "
               f"| {t['gigabytes_per_second']:.1f} | {t['gigamacs_per_second']:.1f} | {100 * t['share_of_limit']:.0f} % | {t['bound']} |")
    limits = r["limits"]
    yield ""
    yield (f"peak memory {r['peak_memory'] / 1e6:.0f} MB; " if r["peak_memory"] else "") + f"load {r['load_seconds']:.2f} s" + (
        f" + compile {r['compile_seconds']:.1f} s" if r["compile_seconds"] >= 0.05 else "")
    yield (f"limits with {threads} threads: read {limits['bandwidth'][-1] / 1e9:.1f} GB/s, int8 {limits['int8'][-1] / 1e9:.0f}, "
           f"float32 {limits['float32'][-1] / 1e9:.0f} and bfloat16 {limits['bfloat16'][-1] / 1e9:.0f} G multiply-adds/s")
    for p in r.get("profiles", []):
        yield from ("", f"{p['test']}: {p['milliseconds']:.3f} ms a step, mean of {p['steps']}", "")
        yield from ("| stage | ms | of time | GB/s | G multiply-adds/s | of limit |", "|---|---|---|---|---|---|")
        for s in p["stages"]:
            if s["milliseconds"]:
                known = s["share_of_limit"] is not None
                rates = f"{s['gigabytes_per_second']:.1f} | {s['gigamacs_per_second']:.1f} | {100 * s['share_of_limit']:.0f} %" if known else " | | "
                yield f"| {s['stage']} | {s['milliseconds']:.3f} | {100 * s['share_of_time']:.1f} % | {rates} |"
    if "kernels" in r:
        yield from ("", "| tensor | kernel |", "|---|---|")
        yield from (f"| {name} | {kernel} |" for name, kernel in _by_kernel(r["kernels"]))


def rate(mean: float, spread: float) -> str:
    """12.3 ± 0.4"""
    return f"{mean:.{_digits(mean)}f} ± {spread:.{_digits(mean)}f}"


def _digits(x: float) -> int:
    return 0 if x >= 1000 else 1 if x >= 10 else 2


def _by_kernel(kernels: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Tensors of one name in several layers on a line of their own: ("blk.0-3,5.attn_v.weight", kernel)."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name, kernel in kernels.items():
        match = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        layers.setdefault((match[2] if match else name, kernel), []).extend([int(match[1])] if match else [])
    for (name, kernel), numbers in layers.items():
        runs: list[list[int]] = []
        for n in numbers:
            if runs and runs[-1][1] == n - 1:
                runs[-1][1] = n
            else:
                runs.append([n, n])
        text = ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)
        yield (f"blk.{text}.{name}" if numbers else name), kernel


def as_csv(r: dict[str, Any]) -> str:
    """A line for each test, after a heading."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ("model", "threads", *COLUMNS, "peak_memory"), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in r["tests"]:
        writer.writerow({**r, **row})
    return out.getvalue()
