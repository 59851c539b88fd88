"""What it costs an adapter that the way back rounds to bfloat16 (`llamina train --backward`), and what it saves: both ways on the same rows.

    python -m llamina.bench.train_backward MODEL.gguf DATA --valid DATA [--steps 50] [--batch 8] [--rank 16] [--lr 5e-4] [--template TEXT] [--labels A,B]
                                           [--rounds 5] [--tokens 512] [--threads 2] [--json FILE]

Both train from the same beginning, with the same rows in the same order. Then, at the adapter that float32 has made, the gradients of one step both ways: of
each matrix, the cosine between the two, and the length of the difference by the length of float32's. Seconds are of gradients of one row of --tokens random
tokens, in turns; the ratio is the median of neighbours'.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.cli.scoring import labels_of
from ..engine.model import Model, load
from ..engine.score.template import unescaped
from ..engine.train.adapter import Adapter
from ..engine.train.data import Reading, open_data
from ..engine.train.gradients import Gradients
from ..engine.train.options import BACKWARD
from ..engine.train.order import rows_of
from ..engine.train.rows import Row
from .peers.machine import machine


def compared(model: Model, adapter: Adapter, rows: list[Row]) -> dict[str, tuple[float, float]]:
    """{matrix: (cosine of the gradients both ways, length of their difference by that of float32's)}."""
    sums, divisor = {}, float(sum(row.targets for row in rows))
    for backward in BACKWARD:
        gradients = Gradients(model, adapter, backward=backward)
        gradients.accumulate(rows, divisor, 0)
        sums[backward] = {name: array.astype(np.float64) for name, array in gradients.arrays.items()}
        gradients.close()
    found = {}
    for name, right in sums["float32"].items():
        other, size = sums["bfloat16"][name], float(np.linalg.norm(right))
        if size:
            found[name] = (float((other * right).sum() / (np.linalg.norm(other) * size)), float(np.linalg.norm(other - right)) / size)
    return found


def seconds(model: Model, adapter: Adapter, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Of the gradients of a row of so many random tokens, in turns, after one that isn't counted."""
    mask = np.ones(tokens, bool)
    mask[0] = False
    rows = [Row(np.random.default_rng(0).integers(3, model.config.n_vocab, tokens).astype(np.int32), mask, 0)]
    ways = {backward: Gradients(model, adapter, backward=backward) for backward in BACKWARD}
    found: dict[str, list[float]] = {backward: [] for backward in BACKWARD}
    for i in range(rounds + 1):
        for backward, gradients in ways.items():
            start = time.perf_counter()
            gradients.accumulate(rows, float(tokens - 1), 0)
            if i:
                found[backward].append(time.perf_counter() - start)
    for gradients in ways.values():
        gradients.close()
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """{"losses", "valid": {backward: [...]}, "compared": {matrix: [cosine, difference]}, "seconds": {backward: [...]}}."""
    template, labels = None if args.template is None else unescaped(args.template), labels_of(args.labels) if args.labels else None
    found: dict[str, Any] = {"losses": {}, "valid": {}}
    with load(args.model, threads=args.threads, context=max(args.tokens, 512)) as model:
        adapters = {}
        for backward in BACKWARD:
            done = model.train(args.data, valid=args.valid, steps=args.steps, batch=args.batch, rank=args.rank, alpha=2.0 * args.rank, lr=args.lr,
                               eval_every=args.steps, backward=backward, template=template, labels=labels)
            adapters[backward] = done.adapter
            found["losses"][backward] = [record["loss"] for record in done.history if "loss" in record]
            found["valid"][backward] = [(record["valid_loss"], record["valid_accuracy"]) for record in done.history if "valid_loss" in record][-1]
        data = open_data(model, args.data, Reading(min(512, model.context), template=template, labels=labels))
        rows = rows_of(data, range(min(args.batch, len(data.examples))))
        found["compared"] = compared(model, adapters["float32"], rows)
        found["seconds"] = seconds(model, adapters["float32"], args.tokens, args.rounds)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """A table for people."""
    table = ["| backward | loss of the last ten steps | validation: loss, accuracy | seconds a row, median (least, most) |", "|---|---|---|---|"]
    for backward in BACKWARD:
        losses, (loss, accuracy), times = found["losses"][backward], found["valid"][backward], found["seconds"][backward]
        table.append(f"| {backward} | {statistics.fmean(losses[-10:]):.4f} | {loss:.4f}, {100 * accuracy:.1f} % | {statistics.median(times):.3f} "
                     f"({min(times):.3f}, {max(times):.3f}) |")
    cosines, differences = ([pair[i] for pair in found["compared"].values()] for i in (0, 1))
    ratio = statistics.median(slow / fast for slow, fast in zip(found["seconds"]["float32"], found["seconds"]["bfloat16"]))
    return [*table, "", f"float32 takes {ratio:.2f} times as long. Gradients of {len(cosines)} matrices: cosine at least {min(cosines):.6f}, in the median "
            f"{statistics.median(cosines):.6f}; difference at most {100 * max(differences):.2f} %, in the median {100 * statistics.median(differences):.2f} %."]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.train_backward", description="Training with the way back in bfloat16 and in float32.")
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--valid", type=Path, required=True)
    for name, default in ("steps", 50), ("batch", 8), ("rank", 16), ("rounds", 5), ("tokens", 512), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=5e-4)
    for name in "template", "labels":
        parser.add_argument(f"--{name}")
    parser.add_argument("--json", type=Path, help="write all measurements into a file")
    args = parser.parse_args(argv)
    found = measure(args)
    print("\n".join(lines(found)))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **found}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
