"""Checkpoints of training runs: bytes changed, and headers changed whose checksums are right, in one of them or both. What is taken up is trained on to the
end."""
from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
from fake_gradients import Quadratic, data, weights
from llamina.engine.cli.train import line
from llamina.engine.errors import LlaminaError
from llamina.engine.train.checkpoint import Checkpoints
from llamina.engine.train.curve import html
from llamina.engine.train.log import Log
from llamina.engine.train.loop import Loop
from llamina.engine.train.options import Options

from fuzz.mutate import changed_json, damaged
from fuzz.run import generator

NAMES = ("checkpoint-0", "checkpoint-1")


class Fuzzer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.output, self.seed = folder / "a.gguf", seed
        self.folder = folder / "a.gguf.training"
        self.run(stop=2)
        self.whole = {name: (self.folder / name).read_bytes() for name in NAMES}

    def run(self, stop: int | None = None) -> str:
        w = weights()
        with Checkpoints(self.output) as checkpoints:
            loop = Loop(Quadratic(w), w, data(), data(2, 1), Options(batch=8, save_every=1, lr=0.05), checkpoints=checkpoints, bound={"data": "d"})
            said = "went on from one that was damaged" if checkpoints.note else f"from {loop.resumed}"
            with Log(self.output.with_name("log.jsonl"), {}, loop.history) as log:
                for record in loop.run():
                    log.add(record)
                    if record["step"] == stop:
                        return said
            assert loop.step == loop.steps and line(loop.progress) and html(loop.history, "x")
        return said

    def case(self, n: int) -> str:
        rng = generator(self.seed, n)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, raw in self.whole.items():
            raw = raw if rng.random() < 0.3 else damaged(raw, rng) if rng.random() < 0.2 else self.resealed(raw, rng)
            if rng.random() < 0.95:
                (self.folder / name).write_bytes(raw)
        try:
            with np.errstate(all="ignore"):  # arrays of any numbers
                return self.run()
        except LlaminaError as error:
            if "\n" in str(error):
                raise
            return type(error).__name__

    @staticmethod
    def resealed(raw: bytes, rng: random.Random) -> bytes:
        _, head, rest = raw.split(b"\n", 2)
        header = json.loads(head)
        if rng.random() < 0.3:  # a record's, or an array's: deep places, which are few among all
            key = rng.choice(("history", "arrays"))
            at = rng.randrange(len(header[key]))
            header[key][at] = changed_json(header[key][at], rng)
        elif rng.random() < 0.9:
            header = changed_json(header, rng)
        body = json.dumps(header).encode(errors="replace") + b"\n" + (rest if rng.random() < 0.8 else damaged(rest, rng, len(rest)))
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body
