"""How long conversion to a format takes, side by side with llama.cpp's quantiser, in turns; and each one's peak memory.

    LLAMINA_PEER_LLAMACPP=/path/to/venv/bin/python python -m llamina.bench.convert_speed [--layers 2] [--type q4_k_m] [--threads 2] [--rounds 2]

The source has the widths of Llama 2 7B and random F16 weights, by default in 2 layers instead of 32 (0.67 billion weights with embedding and output matrix).
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from .peers.llamacpp import start
from .synthetic import SHAPES, write_model


def ours(source: Path, target: Path, type: str, threads: int) -> tuple[float, float]:
    """(seconds, peak MB) of `llamina convert`, a process of its own: start, and whatever else belongs to it."""
    command = [sys.executable, "-m", "llamina", "convert", str(source), str(target), "--type", type, "--threads", str(threads), "--no-verify", "-q"]
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"llamina convert failed: {status}")
    return time.perf_counter() - begin, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def theirs(source: Path, target: Path, type: str, threads: int) -> tuple[float, float]:
    """The same of llama_model_quantize."""
    with start() as peer:
        begin = time.perf_counter()
        answer = peer.ask("quantize", source=str(source), target=str(target), type=type, threads=threads)
        return time.perf_counter() - begin, answer["peak_memory"] / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.convert_speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the source here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source = (args.folder or Path(name)) / f"7b-{args.layers}-layers.f16.gguf"
        if not source.exists():
            write_model(source, replace(SHAPES["7b"], n_layers=args.layers), "f16")
        with open(source, "rb", buffering=0) as file:  # into the page cache, for both; in pieces, as a child's peak memory counts its parent's before it starts
            while file.read(1 << 20):
                pass
        print("| | llamina s | MB | llama.cpp s | MB |\n|---|---|---|---|---|")
        for i in range(args.rounds):
            runs = {}
            for side in (ours, theirs) if i % 2 == 0 else (theirs, ours):
                runs[side] = side(source, Path(name) / "out.gguf", args.type, args.threads)
            print(f"| {i + 1} | {runs[ours][0]:.1f} | {runs[ours][1]:.0f} | {runs[theirs][0]:.1f} | {runs[theirs][1]:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
