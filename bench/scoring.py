"""Rows a second of a task of labels, beside what the prompt's speed allows: shown without shots and with five.

    python -m llamina.bench.scoring MODEL.gguf TASK.tsv --template '{text_a}\\nSentiment:' --labels 0=negative,1=positive [--rows 256] [--shots 0,5]

Each round measures in turn the speed of a prompt (tokens of the task itself, 512 at once, nothing of them known before) and all rows. A row's own tokens are
those that no other row of the task shares a beginning with: counted here, on a set of beginnings, not taken from the engine. The share says how near
rows/s comes to prompt speed ÷ own tokens; tokenizing, templates and looking at logits are within it.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from ..engine.model import Model, load
from ..engine.run.runtime import Feed
from ..engine.score.border import join
from ..engine.score.eval_work import EvalWork
from ..engine.score.prompts import Prompts
from ..engine.score.template import unescaped

PROMPT = 512


def texts(model: Model, work: EvalWork) -> list[list[int]]:
    """Ids that are fed for each choice of each row: all but the last."""
    found = []
    for row in work.rows():
        item = work.prompts.task.item(row)
        context = work.prompts.context(model, item, row)
        found += [join(model, context, choice).ids[:-1] for choice in work._continuations(context, item)]
    return found


def own_tokens(rows: Iterable[list[int]]) -> int:
    """How many tokens must be fed if every shared beginning is fed once."""
    beginnings: set[tuple[int, int]] = set()
    for ids in rows:
        place = 0
        for id in ids:
            place = hash((place, id))
            beginnings.add((place, id))
    return len(beginnings)


def prompt_speed(model: Model, ids: list[int]) -> float:
    """Tokens a second, of one step after the other."""
    sequence = model.runtime.new_sequence()
    begin = time.perf_counter()
    for at in range(0, len(ids), model.runtime.max_batch):
        model.runtime.step([Feed(sequence, ids[at:at + model.runtime.max_batch], "last")])
    took = time.perf_counter() - begin
    sequence.close()
    return len(ids) / took


def rows_speed(model: Model, work: EvalWork) -> float:
    model.runtime.clear_prefix_cache()
    begin = time.perf_counter()
    done = sum(1 for _ in work.records(model, work.rows()))
    return done / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("task", type=Path)
    parser.add_argument("--template", required=True)
    parser.add_argument("--labels", required=True, help="NAME=TEXT,…")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shots", default="0,5")
    asked = parser.parse_args()
    labels = dict(part.split("=") for part in asked.labels.split(","))
    with load(asked.model) as model:
        for shots in map(int, asked.shots.split(",")):
            prompts = Prompts.open(str(asked.task), shots=shots, template=unescaped(asked.template), labels=labels, limit=asked.rows)
            work = EvalWork(prompts)
            fed = texts(model, work)
            own = own_tokens(fed) / work.count
            ids = [id for row in fed[::len(fed) // work.count] for id in row[-20:]][:PROMPT]
            prompt_speed(model, ids)
            shares = []
            for _ in range(asked.rounds):
                speed, rows = prompt_speed(model, ids), rows_speed(model, work)
                shares.append(rows * own / speed)
                print(f"{shots} shots: prompt {speed:.0f} tokens/s, {own:.1f} own tokens a row, {rows:.1f} rows/s: {shares[-1]:.2f} of the prompt's speed",
                      flush=True)
            print(f"{shots} shots: median {statistics.median(shares):.2f}")


if __name__ == "__main__":
    main()
