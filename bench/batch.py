"""How much faster many prompts are together: `Model.generate_many` against one at a time, and against llama.cpp with as many sequences.

    python -m llamina.bench.batch MODEL.gguf [--python PEER/bin/python] [--sequences 8] [--prompt 64] [--generate 64] [--rounds 3] [--threads N]

Everything a user pays for is in the time of llamina: prompts, sampling, text. llama.cpp's is llama_decode alone, prompts in batches of 512, then one token of
every sequence per call, the choice of tokens left out. Random prompts, greedy, no speculation, no shared beginnings; rounds alternate. The answers are
compared, with ==.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.model import Model, load
from ..kernels.threads import default_threads
from .peers import llamacpp
from .peers.child import PeerError
from .peers.machine import machine


def measure(model: Model, prompts: list[list[int]], n: int, together: bool) -> tuple[float, list[list[int]]]:
    """(tokens a second generated, the answers)."""
    model.clear_prefix_cache()
    options: dict[str, Any] = {"max_tokens": n, "temperature": 0.0, "ignore_eos": True, "speculate": False}
    start = time.perf_counter()
    if together:
        answers = [result.ids for result in model.generate_many(prompts, ordered=True, live=len(prompts), **options)]
    else:
        answers = []
        for prompt in prompts:
            generation = model.generate(prompt, **options)
            generation.text()
            answers.append(generation.ids)
    return sum(map(len, answers)) / (time.perf_counter() - start), answers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.batch", description="Many prompts together, one at a time, and with llama.cpp.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", help="Python with llama-cpp-python; without it llama.cpp is left out")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--generate", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: one for each physical core")
    args = parser.parse_args()
    threads = args.threads or default_threads()
    rng = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {"one at a time": [], "together": []}
    peer = None
    try:
        with load(args.model, threads=threads, context=args.prompt + args.generate) as model:
            prompts = [[1, *rng.integers(3, model.config.n_vocab, args.prompt - 1).tolist()] for _ in range(args.sequences)]
            if args.python:
                peer = llamacpp.start(args.python)
                peer.ask("load", model=str(args.model), threads=threads)
                speeds["llama.cpp"] = []
            for i in range(args.rounds + 1):  # the first one warms up
                _, alone = once(speeds, "one at a time", i, lambda: measure(model, prompts, args.generate, False))
                _, joint = once(speeds, "together", i, lambda: measure(model, prompts, args.generate, True))
                assert alone == joint, "the answers differ"
                if peer is not None:
                    once(speeds, "llama.cpp", i, lambda: (peer.ask("measure", what="batch", n=args.generate, sequences=args.sequences,
                                                                   prompt=args.prompt)["tokens_per_second"], None))
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if peer is not None:
            peer.close()
    m = machine()
    print(f"{args.model.name}, {args.sequences} prompts of {args.prompt} tokens, {args.generate} generated for each, {threads} threads; {m['cpu']}")
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    for name, found in speeds.items():
        print(f"{name:14} {medians[name]:7.1f} tokens/s ({min(found):.1f}-{max(found):.1f})   together / it: {medians['together'] / medians[name]:.2f}")
    return 0


def once(speeds: dict[str, list[float]], name: str, i: int, run: Any) -> tuple[float, Any]:
    """A measurement, kept unless it is the first."""
    speed, answers = run()
    if i:
        speeds[name].append(speed)
    return speed, answers


if __name__ == "__main__":
    sys.exit(main())
