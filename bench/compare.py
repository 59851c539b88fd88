"""llamina and its peers side by side on one model: alternating runs, medians, and all that is needed to judge the numbers.

    python -m llamina.bench.compare MODEL.gguf [--peers llamacpp,llama2c,transformers] [--rounds 5] [--threads N] [--prompt 512] [--generate 64] [--batch 8]
                                    [--depth 4096 --kv q8_0] [--json FILE] [--plot FILE.png]

Each engine runs in a process of its own, loaded once; a round measures one after the other, and the next round the other way round, so that a machine that
slows down slows all. Absolute speeds move with the machine: only the ratios of one run mean something. A peer's number is that of its fastest settings.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..kernels.threads import default_threads
from .peers import hf, llama2c, llamacpp
from .peers.child import Child, PeerError
from .peers.machine import machine

BATCH_STEPS, DEEP_STEPS = 64, 16
PAUSE, LONG_ENOUGH = 0.1, 0.25
"""Seconds: before a measurement, until another engine's threads have stopped waiting busily; and of the measurement, which is repeated until then."""


class Ours(Child):
    def measure(self, what: str, n: int, sequences: int = 8, depth: int = 0, kv: str | None = None) -> dict[str, Any]:
        return self.ask("measure", what=what, n=n, sequences=sequences, depth=depth, kv=kv)


PEERS: dict[str, list[Callable[[str | None], Any]]] = {
    "llamacpp": [llamacpp.start],
    "llama2c": [lambda _: llama2c.Llama2c(False), lambda _: llama2c.Llama2c(True)],
    "transformers": [lambda _: hf.Transformers("bfloat16"), lambda _: hf.Transformers("float32")],
    "ctransformers": [lambda _: hf.CTransformers()],
    "onnxruntime": [lambda _: hf.OnnxRuntime()],
}
"""Name on the command line -> its engines, made with the Python that --python names (llama.cpp's)."""


def _speed(engine: Any, what: str, n: int, sequences: int, more: dict[str, Any]) -> dict[str, Any]:
    """The engine's answer, with the speed of as many repetitions as are LONG_ENOUGH: a tiny model's prompt takes milliseconds."""
    time.sleep(PAUSE)
    tokens, speeds, seconds = n * (sequences if what == "batch" else 1), [], 0.0
    while seconds < LONG_ENOUGH:
        result = engine.measure(what, n, sequences, **more)
        speeds.append(result["tokens_per_second"])
        seconds += tokens / speeds[-1]
    return {**result, "tokens_per_second": statistics.harmonic_mean(speeds)}


def compare(model: Path, *, peers: list[str] | None = None, python: str | None = None, rounds: int = 5, threads: int | None = None, prompt: int = 512,
            generate: int = 64, batch: int = 8, depth: int = 0, kv: str | None = None) -> dict[str, Any]:
    """Everything measured: {"model", "machine", "engines": {name: {...}}, "rows": [{"what", engine: [tokens/s a round], "ratios": {peer: ours / peer}}]}.

    A peer that can't measure something has no entry in that row; one that does not start or open the model is told in "failed". Raises PeerError for ours.
    """
    threads = threads or default_threads()
    rows: list[dict[str, Any]] = []
    measurements: list[tuple[str, str, int, dict[str, Any]]] = [
        (f"prompt of {prompt}", "prompt", prompt, {}), (f"generate {generate}", "generate", generate, {}),
        (f"{batch} sequences at once", "batch", BATCH_STEPS if batch else 0, {}),
        (f"generate after {depth} positions, {kv or 'f16'} keys and values", "deep", DEEP_STEPS if depth else 0, {"depth": depth, "kv": kv})]
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Ours([sys.executable, "-m", "llamina.bench.peers.ours_child"], "llamina"))
        engines: list[Any] = [ours]
        failed: list[str] = []
        about = {ours.name: ours.ask("load", model=str(model), threads=threads)}
        for start in (start for name in peers or ["llamacpp"] for start in PEERS[name]):
            try:
                engine = stack.enter_context(start(python))
                about[engine.name] = engine.ask("load", model=str(model), threads=threads)
                engines.append(engine)
            except PeerError as error:
                failed.append(str(error))
        for title, what, n, more in measurements:
            if not n:
                continue
            able, speeds = [], {}
            for engine in engines:
                try:
                    engine.measure(what, n, batch, **more)  # warm up; finds the peer's best settings
                except (PeerError, TypeError) as error:
                    about[engine.name].setdefault("cannot", {})[what] = str(error)
                    continue
                able.append(engine)
                speeds[engine.name] = list[float]()
            for i in range(rounds):
                for engine in able if i % 2 == 0 else able[::-1]:
                    result = _speed(engine, what, n, batch, more)
                    speeds[engine.name].append(result["tokens_per_second"])
                    about[engine.name]["peak_memory"] = result["peak_memory"]
            middle = {name: statistics.median(values) for name, values in speeds.items()}
            rows.append({"what": title, **speeds, "ratios": {name: middle[ours.name] / middle[name] for name in middle if name != ours.name}})
        for engine in engines[1:]:
            about[engine.name]["settings"] = engine.best
    return {"model": model.name, "bytes": model.stat().st_size, "threads": threads, "rounds": rounds, "machine": machine(), "engines": about, "rows": rows,
            "failed": failed}


def markdown(result: dict[str, Any]) -> str:
    """The result as a table: medians in tokens a second, lowest and highest in brackets; a peer's column also has ours / theirs."""
    ours, *peers = result["engines"]

    def cell(row: dict[str, Any], name: str) -> str:
        if name not in row:
            return "-"
        values = row[name]
        digits = 0 if min(values) >= 1000 else 1
        speed = f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
        return speed if name == ours else f"{speed} | {row['ratios'][name]:.2f} x"

    lines = [f"| {result['model']}, {result['threads']} threads, tokens/s | {ours} | " + " | ".join(f"{p} | ours" for p in peers) + " |"]
    lines.append("|---|---|" + "---|---|" * len(peers))
    for row in result["rows"]:
        lines.append(f"| {row['what']} | " + " | ".join(cell(row, name) if name in row else "- | -" for name in (ours, *peers)) + " |")
    about = result["engines"]
    if about[ours].get("peak_memory"):
        def memory(name: str) -> str:
            return f"{about[name]['peak_memory'] / 1e6:.0f}" if about[name].get("peak_memory") else "-"
        title = f"peak memory, MB (file {result['bytes'] / 1e6:.0f})"
        lines.append(f"| {title} | {memory(ours)} | " + " | ".join(f"{memory(p)} |" for p in peers) + " |")
    m = result["machine"]
    lines += ["", f"{m['cpu']}, {m['logical_cpus']} logical CPUs, {m['system']}, Python {m['python']}, load average {m['load']}; "
                  f"{result['rounds']} rounds, alternating."]
    lines += [f"{e['version']}; {e['system']}" + (f"; settings {json.dumps(e['settings'])}" if e.get("settings") else "") for e in about.values()]
    lines += [f"not measured: {reason}" for reason in result["failed"]]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars of every row, as multiples of ours. OptionError without matplotlib (extra plot)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PeerError("--plot needs matplotlib: pip install 'llamina[plot]'") from None
    names, rows = list(result["engines"]), result["rows"]
    figure = Figure(figsize=(8, 1 + 0.35 * len(names) * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        values = [statistics.median(row[name]) / statistics.median(row[names[0]]) if name in row else 0.0 for row in rows]
        axes.barh([-r - i / (len(names) + 1) for r in range(len(rows))], values, 0.9 / (len(names) + 1), label=name)
    axes.set_yticks([-r - (len(names) - 1) / 2 / (len(names) + 1) for r in range(len(rows))], [row["what"] for row in rows])
    axes.axvline(1.0, color="grey", linewidth=0.5)
    axes.set_xlabel(f"speed, llamina = 1 ({result['model']}, {result['threads']} threads, {result['machine']['cpu']})")
    axes.legend(fontsize="small")
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.compare", description="Compare llamina with other engines, side by side.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", default="llamacpp", help=f"names with commas between them: {', '.join(PEERS)} (default: llamacpp)")
    parser.add_argument("--python", help=f"Python with llama-cpp-python (default: ${llamacpp.VARIABLE})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: one for each physical core")
    parser.add_argument("--prompt", type=int, default=512, help="tokens; 0: no such test")
    parser.add_argument("--generate", type=int, default=64, help="tokens; 0: no such test")
    parser.add_argument("--batch", type=int, default=8, help="sequences at once; 0: no such test")
    parser.add_argument("--depth", type=int, default=0, help="also generate after so many positions: ours made up, the peer's read once")
    parser.add_argument("--kv", help="what keys and values are kept as for --depth: f16 (default), q8_0")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--plot", type=Path, help="draw the rows into this file (needs matplotlib)")
    args = parser.parse_args()
    peers = args.peers.split(",")
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"unknown peer {unknown[0]!r}: choose from {', '.join(PEERS)}")
    try:
        result = compare(args.model, peers=peers, python=args.python, rounds=args.rounds, threads=args.threads, prompt=args.prompt, generate=args.generate,
                         batch=args.batch, depth=args.depth, kv=args.kv)
        print(markdown(result))
        if args.json:
            args.json.write_text(json.dumps(result, indent=1))
        if args.plot:
            plot(result, args.plot)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
