"""Training side by side with PEFT on PyTorch, on the same CPU: whole steps (forward, backward, clipping, AdamW), in turns, each in its turn alone.

    LLAMINA_PEER_PEFT=PYTHON python -m llamina.bench.train_speed MODEL.gguf [--rows 1] [--tokens 512] [--rank 16] [--rounds 5] [--threads 2] [--json FILE]

PYTHON: of an environment with torch, transformers and peft (default: this one). The peer trains a model of the same shape with random float weights, with the
number of threads, 1 to --threads, that is faster for it; ours is the file as it is, quantised, and its token is also compared with one of a 512-token prompt.
A peer whose first step takes more than 20 s (bfloat16 where the CPU has no instructions for it) is measured once, with all threads, and its line says so.
Medians of tokens a second, and of the ratios of neighbouring measurements, which a machine that changes its speed hurts less.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.model import Model, load
from ..engine.run.feed import Feed
from ..engine.train.data import DataSet
from ..engine.train.examples import Example
from ..engine.train.fresh import new_adapter, weights
from ..engine.train.gradients import Gradients
from ..engine.train.loop import Loop
from ..engine.train.options import Options
from .peers.child import Child, PeerError
from .peers.hf import shape_of
from .peers.machine import machine

VARIABLE = "LLAMINA_PEER_PEFT"
DTYPES = ("float32", "bfloat16")
SLOW = 20.0
"""Seconds of a peer's first step from which on it is measured once."""


def our_steps(model: Model, rows: int, tokens: int, rank: int) -> Callable[[], float]:
    """-> a function that takes a step of `llamina train`'s loop and returns its seconds."""
    rng = np.random.default_rng(0)
    mask = np.ones(tokens, bool)
    mask[0] = False
    data = DataSet("random", "text", "", [Example(rng.integers(3, model.config.n_vocab, tokens).astype(np.int32), mask) for _ in range(rows)])
    options = Options(rank=rank, alpha=2.0 * rank, steps=1000, batch=rows)
    adapter = new_adapter(model.config, options)
    steps = Loop(Gradients(model, adapter), weights(adapter), data, None, options).run()

    def step() -> float:
        start = time.perf_counter()
        next(steps)
        return time.perf_counter() - start
    return step


def prompt_seconds(model: Model, tokens: int) -> float:
    """Of a prompt of so many tokens."""
    ids = np.random.default_rng(1).integers(3, model.config.n_vocab, tokens).astype(np.int32)
    with model.scheduler.alone() as runtime:
        sequence = runtime.new_sequence()
        start = time.perf_counter()
        for first in range(0, tokens, runtime.max_batch):
            runtime.step([Feed(sequence, ids[first:first + runtime.max_batch], "last")])
        seconds = time.perf_counter() - start
        sequence.close()
    return seconds


def threads_for(peer: Child, rows: int, tokens: int, most: int) -> dict[str, Any]:
    """{"threads": how many it is fastest with, "slow": whether it is to be measured once}. PeerError."""
    if peer.ask("step", rows=rows, tokens=tokens, threads=most)["seconds"] > SLOW:
        return {"threads": most, "slow": True}
    tried = {}
    for n in range(1, most + 1):
        peer.ask("step", rows=rows, tokens=tokens, threads=n)
        tried[n] = peer.ask("step", rows=rows, tokens=tokens, threads=n)["seconds"]
    return {"threads": min(tried, key=lambda n: tried[n]), "slow": False}


def measure(path: Path, rows: int, tokens: int, rank: int, rounds: int, threads: int) -> dict[str, Any]:
    """{"ours", "prompt", "float32", "bfloat16": {"seconds": [...], ...}}; a list's entries of one round belong together; of a slow peer the first
    round's are all. PeerError."""
    found: dict[str, Any] = {name: {"seconds": []} for name in ("ours", "prompt", *DTYPES)}
    peers, python = {}, os.environ.get(VARIABLE) or sys.executable
    with load(path, threads=threads, context=max(tokens, 512)) as model:
        try:
            for dtype in DTYPES:
                peers[dtype] = Child([python, str(Path(__file__).parent / "peers" / "peft_child.py")], f"peft {dtype}")
                found[dtype] |= peers[dtype].ask("load", shape=shape_of(model.config), dtype=dtype, rank=rank)
                found[dtype] |= threads_for(peers[dtype], rows, tokens, threads)
            step = our_steps(model, rows, tokens, rank)
            step()
            prompt_seconds(model, 512)
            for _ in range(rounds):
                for dtype, peer in peers.items():
                    if found[dtype]["slow"] and found[dtype]["seconds"]:
                        continue
                    answer = peer.ask("step", rows=rows, tokens=tokens, threads=found[dtype]["threads"])
                    found[dtype]["seconds"].append(answer["seconds"])
                    found[dtype]["peak_memory"] = answer["peak_memory"]
                    time.sleep(0.3)  # its threads stop spinning
                found["prompt"]["seconds"].append(prompt_seconds(model, 512))
                found["ours"]["seconds"].append(step())
        finally:
            for peer in peers.values():
                peer.close()
    return found


def lines(found: dict[str, Any], rows: int, tokens: int) -> list[str]:
    """A table for people."""
    ours, n = found["ours"]["seconds"], rows * tokens
    table = ["| | tokens/s, median (least, most) | llamina is so many times as fast |", "|---|---|---|"]
    for name in ("ours", *DTYPES):
        speeds = [n / s for s in found[name]["seconds"]]
        shown = f"{statistics.median(speeds):.0f} ({min(speeds):.0f}, {max(speeds):.0f})"
        if found[name].get("slow"):
            shown = f"{speeds[0]:.1f}, measured once: a step takes {found[name]['seconds'][0]:.0f} s"
        ratio = "" if name == "ours" else f"{statistics.median(s / o for s, o in zip(found[name]['seconds'], ours)):.2f}"
        who = "llamina" if name == "ours" else f"{found[name]['version']}, {found[name]['system']}, {found[name]['threads']} threads"
        table.append(f"| {who} | {shown} | {ratio} |")
    cost = statistics.median((o / n) / (p / 512) for o, p in zip(ours, found["prompt"]["seconds"]))
    return [*table, "", f"A training token costs {cost:.1f} times a token of a prompt of 512."]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.train_speed", description="Training beside PEFT on PyTorch.")
    parser.add_argument("model", type=Path)
    for name, default in ("rows", 1), ("tokens", 512), ("rank", 16), ("rounds", 5), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="write all measurements into a file")
    args = parser.parse_args(argv)
    try:
        found = measure(args.model, args.rows, args.tokens, args.rank, args.rounds, args.threads)
    except PeerError as error:
        print(f"{error}; name the Python of an environment with torch, transformers and peft: {VARIABLE}=...", file=sys.stderr)
        return 1
    print("\n".join(lines(found, args.rows, args.tokens)))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **found}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
