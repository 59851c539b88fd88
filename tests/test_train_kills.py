"""`llamina train` as a process of its own, with the gradients of a model: killed, interrupted, ended, and begun again by the same command, it comes to the
bytes of a run that nobody disturbed, the log's too."""
from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_models import write_small_model

LONG = bool(os.environ.get("LLAMINA_LONG"))
LETTERS = "abcdefgh"


class Job:
    """A command in a folder of its own. epochs: of 24 rows, 8 a step."""

    def __init__(self, folder: Path, model: Path, epochs: int, save_every: int) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder / "log.jsonl"
        rng = random.Random(7)
        for name, n in ("d.jsonl", 24), ("v.jsonl", 5):
            words = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 30))) for _ in range(n)]
            (folder / name).write_text("".join(json.dumps({"prompt": f"copy {w} >", "completion": w}) + "\n" for w in words))
        self.command = [sys.executable, "-m", "llamina", "train", str(model), "d.jsonl", "-o", "a.gguf", "--valid", "v.jsonl", "--eval-every", "5", "--log",
                        "log.jsonl", "--rank", "4", "--lr", "0.01", "--dropout", "0.1", "--threads", "2", "--epochs", str(epochs), "--save-every",
                        str(save_every)]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self) -> str:
        """-> what it said on standard error."""
        out, err = (child := self.start()).communicate(timeout=600)
        assert child.returncode == 0 and out == "", err
        return err

    def lines(self) -> int:
        """Of the log, the head with them."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def until(self, child: subprocess.Popen[str], reached: Callable[[], bool], pause: float = 0.001) -> None:
        """Wait for something to come about, or for the end."""
        end = time.monotonic() + 600
        while not reached() and child.poll() is None and time.monotonic() < end:
            time.sleep(pause)

    def found(self) -> tuple[str, bytes]:
        """SHA-256 of the adapter, and the log."""
        assert sorted(path.name for path in self.folder.iterdir()) == ["a.gguf", "d.jsonl", "log.jsonl", "v.jsonl"]
        return hashlib.sha256((self.folder / "a.gguf").read_bytes()).hexdigest(), self.log.read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model") / "m.gguf", "Q4_0")


def test_interrupted_and_ended(model: Path, tmp_path: Path) -> None:
    """Ctrl-C, then SIGTERM: each ends it cleanly, with what was done kept, though no checkpoint was due, and a line that says so."""
    whole, job = Job(tmp_path / "whole", model, 8, 1000), Job(tmp_path / "cut", model, 8, 1000)
    assert "loss" in whole.finish()
    expected, done = whole.found(), 0
    for number, code, lines in (signal.SIGINT, 130, 4), (signal.SIGTERM, 143, 9):
        child = job.start()
        job.until(child, lambda lines=lines: job.lines() >= lines)  # type: ignore[misc]
        child.send_signal(number)
        out, err = child.communicate(timeout=600)
        assert child.returncode == code and out == "" and "Traceback" not in err, err
        said = err.splitlines()[-1]
        assert said.startswith("[stopped after step ") and said.endswith(" of 24: the same command goes on from there]"), err
        now = int(said.split()[3])
        assert now >= max(1, done) and (not done or f"going on after step {done} of 24" in err), err
        done = now
    assert f"going on after step {done} of 24" in job.finish() and job.found() == expected


@pytest.mark.skipif(not LONG, reason="takes a minute (set LLAMINA_LONG)")
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_ten_times(model: Path, tmp_path: Path, seed: int) -> None:
    """SIGKILL at ten moments, every second of them while a checkpoint is being written. One is due after each third step, so the log has lines by then
    that come again."""
    epochs, rng = 40, random.Random(seed)
    whole, job = Job(tmp_path / "whole", model, epochs, 3), Job(tmp_path / "killed", model, epochs, 3)
    whole.finish()
    expected, kills, writing = whole.found(), 0, 0
    steps = 3 * epochs
    for k in range(10):
        child = job.start()
        if job.lines() == 0:
            job.until(child, lambda: job.lines() > 0)
        after = 2 + (steps - 20) * k // 10 + rng.randrange(8)
        job.until(child, lambda after=after: job.lines() >= after)  # type: ignore[misc]
        if k % 2:
            job.until(child, lambda: bool(list((job.folder / "a.gguf.training").glob(".*.part"))), pause=0.0)
        else:
            time.sleep(rng.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.communicate()
        parts = list((job.folder / "a.gguf.training").glob(".*.part"))
        writing += bool(parts)
        print(f"seed {seed}, kill {k + 1}: {job.lines()} lines of the log{', a checkpoint half written' if parts else ''}")
    assert kills == 10 and writing >= 2, (kills, writing)
    assert "going on after step" in job.finish()
    assert job.found() == expected
    records = [json.loads(line) for line in expected[1].splitlines()[1:]]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, steps + 1)), "none is lost, none is there twice"
    assert [r["step"] for r in records if "valid_loss" in r] == list(range(0, steps + 1, 5))
    print(f"seed {seed}: {kills} kills, {writing} of them in the middle of a checkpoint; SHA-256 {expected[0]}")
