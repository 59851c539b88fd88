"""What a LoRA adapter costs: the same step without one and with one, in turns, so that what else the machine does falls on both.

    python -m llamina.bench.adapters MODEL --rank 16 --rounds 250

Random pairs beside all matrices that may have some, as F16 and as F32, and an adapter without any ("empty"): what a step does for adapters before it reads
one. A round takes one step of each, in another order each time; a cost is the median of the rounds' ratios, beside it the ratio of the tenth parts of the
steps that were fastest.
"""
from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.architectures.adapted import targets
from ..engine.architectures.config import ModelConfig
from ..engine.model import load
from ..engine.run.runtime import Feed
from ..engine.train.adapter import Adapter, Pair, scale_of
from .speed import fill

KINDS = ("F16", "F32")
EMPTY = "empty"


def random_adapter(config: ModelConfig, rank: int, stored: str) -> Adapter:
    """A pair for every matrix that may have one; none at all for "empty"."""
    rng, pairs = np.random.default_rng(0), {}
    for name, target in targets(config).items():
        shapes = (rank, target.columns), (target.rows, rank)
        a, b = ((0.01 * rng.standard_normal(shape, np.float32)).astype(np.float16).astype(np.float32) for shape in shapes)
        pairs[name] = Pair(a, b, scale_of(2.0 * rank, rank), stored)
    return Adapter(config.architecture, {} if stored == EMPTY else pairs, 2.0 * rank)


def measure(path: Path, rank: int, rounds: int, tokens: int, batch: int, depth: int, threads: int) -> dict[str, Any]:
    """{"none", "empty", "F16", "F32": seconds of each round's step, "bytes": {...}}. tokens: of each of `batch` sequences in a step."""
    with load(path, threads=threads, context=depth + tokens + 64) as model:
        runtime, names = model.runtime, ("none", EMPTY, *KINDS)
        ids, sequences = np.random.default_rng(0).integers(0, runtime.config.n_vocab, tokens), {}
        found: dict[str, Any] = {name: [] for name in names}
        for name in names[1:]:
            runtime.adapters.add(name, random_adapter(runtime.config, rank, name))
        found["bytes"] = {name: runtime.adapters[name].nbytes for name in KINDS}
        for name in names:
            sequences[name] = [runtime.new_sequence(adapters=[] if name == "none" else [name]) for _ in range(batch)]
            for sequence in sequences[name]:
                fill(sequence, depth, runtime._pool.page_bytes)
        orders = itertools.cycle(itertools.permutations(names))
        for i in range(-1, rounds):
            for name in next(orders):
                start = time.perf_counter()
                runtime.step([Feed(sequence, ids, "last") for sequence in sequences[name]])
                if i >= 0:
                    found[name].append(time.perf_counter() - start)
                for sequence in sequences[name]:
                    sequence.truncate(depth)
        for sequence in itertools.chain(*sequences.values()):
            sequence.close()
    return found


def low(seconds: list[float]) -> float:
    """The mean of the fastest tenth."""
    return statistics.mean(sorted(seconds)[:max(1, len(seconds) // 10)])


def lines(found: dict[str, Any], what: str) -> list[str]:
    """For people."""
    base = found["none"]
    shown = [f"{what}: {1000 * statistics.median(base):.2f} ms (fastest tenth {1000 * low(base):.2f}) without an adapter, {len(base)} rounds"]
    for name in (EMPTY, *KINDS):
        ratio, size = statistics.median(a / b for a, b in zip(found[name], base)), found["bytes"].get(name, 0)
        shown.append(f"  {name:5} {size / 1e6:5.1f} MB  + {100 * ratio - 100:5.2f} %   fastest tenth + {100 * low(found[name]) / low(base) - 100:5.2f} %")
    return shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.adapters", description="What a LoRA adapter costs.")
    parser.add_argument("model", type=Path)
    for name, default in ("rank", 16), ("rounds", 250), ("tokens", 1), ("batch", 1), ("depth", 64), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="write all measurements into a file")
    args = parser.parse_args(argv)
    found = measure(args.model, args.rank, args.rounds, args.tokens, args.batch, args.depth, args.threads)
    print("\n".join(lines(found, f"{args.batch} x {args.tokens} token{'s' if args.tokens > 1 else ''}")))
    if args.json:
        args.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
