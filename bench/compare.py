"""llamina and llama.cpp side by side on one model: alternating runs, medians, and all that is needed to judge the numbers.

    python -m llamina.bench.compare MODEL.gguf [--python PEER/bin/python] [--rounds 5] [--threads N] [--prompt 512] [--generate 64] [--batch 8] [--json FILE]

Each engine runs in a process of its own, loaded once; a round measures one after the other, and the next round the other way round, so that a machine that
slows down slows both. Absolute speeds move with the machine: only the ratio of one run means something.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from ..kernels.threads import default_threads
from .peers import llamacpp
from .peers.child import Child, PeerError
from .peers.machine import machine

BATCH_STEPS = 16


class Ours(Child):
    def measure(self, what: str, n: int, sequences: int = 8) -> dict[str, Any]:
        return self.ask("measure", what=what, n=n, sequences=sequences)


def compare(model: Path, *, python: str | None = None, rounds: int = 5, threads: int | None = None, prompt: int = 512, generate: int = 64,
            batch: int = 8) -> dict[str, Any]:
    """Everything measured: {"model", "machine", "engines": {name: {...}}, "rows": [{"what", "llamina": [tokens/s a round], "llama.cpp": [...], "ratio"}]}.

    Raises PeerError."""
    threads = threads or default_threads()
    rows: list[dict[str, Any]] = []
    measurements = [(f"prompt of {prompt}", "prompt", prompt), (f"generate {generate}", "generate", generate),
                    (f"{batch} sequences at once", "batch", BATCH_STEPS)]
    with Ours([sys.executable, "-m", "llamina.bench.peers.ours_child"], "llamina") as ours, llamacpp.start(python) as peer:
        engines: list[Any] = [ours, peer]
        about = {engine.name: engine.ask("load", model=str(model), threads=threads) for engine in engines}
        for title, what, n in measurements:
            speeds: dict[str, list[float]] = {engine.name: [] for engine in engines}
            for engine in engines:
                engine.measure(what, n, batch)  # warm up; finds the peer's best settings
            for i in range(rounds):
                for engine in engines if i % 2 == 0 else engines[::-1]:
                    result = engine.measure(what, n, batch)
                    speeds[engine.name].append(result["tokens_per_second"])
                    about[engine.name]["peak_memory"] = result["peak_memory"]
            rows.append({"what": title, **speeds, "ratio": statistics.median(speeds[ours.name]) / statistics.median(speeds[peer.name])})
        about[peer.name]["settings"] = peer.best
    return {"model": model.name, "bytes": model.stat().st_size, "threads": threads, "rounds": rounds, "machine": machine(), "engines": about, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The result as a table: medians in tokens a second, lowest and highest in brackets."""
    def speed(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"

    names = list(result["engines"])
    lines = [f"| {result['model']}, {result['threads']} threads, tokens/s | " + " | ".join(names) + " | ratio |", "|---|" + "---|" * (len(names) + 1)]
    lines += [f"| {row['what']} | " + " | ".join(speed(row[name]) for name in names) + f" | {row['ratio']:.2f} |" for row in result["rows"]]
    engines = result["engines"].values()
    lines.append("| load, seconds | " + " | ".join(f"{e['load_seconds']:.2f}" for e in engines) + " | |")
    if all(e.get("peak_memory") for e in engines):
        lines.append(f"| peak memory, MB (file {result['bytes'] / 1e6:.0f}) | " + " | ".join(f"{e['peak_memory'] / 1e6:.0f}" for e in engines) + " | |")
    m = result["machine"]
    lines += ["", f"{m['cpu']}, {m['logical_cpus']} logical CPUs, {m['system']}, Python {m['python']}, load average {m['load']}; "
                  f"{result['rounds']} rounds, alternating."]
    lines += [f"{e['version']}; {e['system']}" + (f"; settings {json.dumps(e['settings'])}" if "settings" in e else "") for e in engines]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.compare", description="Compare llamina with llama.cpp, side by side.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", help=f"Python with llama-cpp-python (default: ${llamacpp.VARIABLE})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: one for each physical core")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="sequences at once")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    try:
        result = compare(args.model, python=args.python, rounds=args.rounds, threads=args.threads, prompt=args.prompt, generate=args.generate, batch=args.batch)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
