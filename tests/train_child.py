"""Training runs with gradients of a quadratic, whole: loop, checkpoints, log, the adapter's file. Nothing is compiled.

As a script, python train_child.py FOLDER: a run killed at each operation on files in turn, and gone on with, a line of JSON for each.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fake_gradients import Quadratic, data, weights
from file_events import watched
from llamina.engine.train.adapter import Adapter, Pair
from llamina.engine.train.checkpoint import Checkpoints
from llamina.engine.train.log import Log
from llamina.engine.train.loop import Loop
from llamina.engine.train.options import Options
from llamina.engine.train.run import Run


def adapter() -> Adapter:
    """Of the quadratic's numbers."""
    w = weights()
    names = dict.fromkeys(name.rsplit(".", 1)[0] for name in w)
    return Adapter("llama", {name: Pair(w[f"{name}.lora_a"], w[f"{name}.lora_b"], 1.0) for name in names}, alpha=2.0)


def run_to_the_end(folder: Path, **options: Any) -> tuple[int, str, str]:
    """-> (step that it went on from, SHA-256 of the adapter's file, of the log). As `llamina train` does it, but for the model. FileError."""
    run = object.__new__(Run)
    learned = run.learned = adapter()
    run.output = folder / "a.gguf"
    w = {f"{name}.{end}": x for name, pair in learned.pairs.items() for end, x in (("lora_a", pair.a), ("lora_b", pair.b))}
    with Checkpoints(run.output) as run.checkpoints:
        run.loop = Loop(Quadratic(w), w, data(), data(5, 1), Options(**{"batch": 8, "save_every": 1, "lr": 0.05, **options}), checkpoints=run.checkpoints)
        with Log(folder / "log.jsonl", {"x": 1}, run.loop.history) as run.log:
            for _ in run.records():
                pass
            run.finish()
    return run.loop.resumed, *digests(folder)


def digests(folder: Path) -> tuple[str, str]:
    """SHA-256 of the adapter's file, and of the log."""
    adapter, log = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("a.gguf", "log.jsonl"))
    return adapter, log


def killed_at(folder: Path, at: int) -> str:
    """In a fork: what was under way when it was killed, "" if it ended before."""
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        said = os.read(read, 100).decode()
        os.close(read)
        assert os.waitpid(child, 0)[1] == (signal.SIGKILL if said else 0)
        return said
    count = itertools.count()

    def on(what: str) -> None:
        if next(count) == at:
            os.write(write, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        with watched(on):
            run_to_the_end(folder)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def everywhere(top: Path) -> None:
    for at in itertools.count():
        folder = top / str(at)
        folder.mkdir()
        what = killed_at(folder, at)
        done = not what or (folder / "a.gguf").exists() and not list((folder / "a.gguf.training").glob("checkpoint-*"))
        if done:  # nothing is left to go on with
            found = 0, *digests(folder)
        else:
            found = run_to_the_end(folder)
        left = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
        print(json.dumps({"killed at": what, "done": done, "found": found, "left": left}), flush=True)
        if not what:
            return


if __name__ == "__main__":
    everywhere(Path(sys.argv[1]))
