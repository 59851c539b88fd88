"""What goes wrong while a model is trained: killed at any operation on files, a disk that is full at any, numbers that are none, checkpoints that were damaged,
two runs at once. Nothing is lost, and it is told in a line. With gradients of a quadratic: nothing is compiled."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gradients import Quadratic, data, weights
from file_events import TAKES_ROOM, watched
from llamina.engine.errors import FileError, FormatError, LlaminaError, NumericError
from llamina.engine.train import checkpoint
from llamina.engine.train.checkpoint import Checkpoints, State
from llamina.engine.train.loop import Loop
from llamina.engine.train.options import Options
from train_child import run_to_the_end

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """SHA-256 of the adapter and of the log of a run that nothing happened to."""
    return run_to_the_end(tmp_path_factory.mktemp("right"))[1:]


@pytest.fixture(autouse=True)
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Python would print with a traceback from where nothing can be raised is a failure."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    yield
    assert not found


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_every_operation_on_files(right: tuple[str, str], tmp_path: Path) -> None:
    """SIGKILL in the middle of every write, before every sync, rename, removal: the same run again ends with the same adapter and the same log."""
    child = subprocess.run([sys.executable, HERE / "train_child.py", tmp_path], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0 and child.stderr == "", child.stderr
    rounds = [json.loads(line) for line in child.stdout.splitlines()]
    assert rounds[-1]["killed at"] == "" and {"mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir"} <= {r["killed at"] for r in rounds}
    assert {r["found"][0] for r in rounds} == {0, 1, 2, 3}, "gone on with from nothing, from each step, and from the end"
    for at, found in enumerate(rounds):
        assert tuple(found["found"][1:]) == right, (at, found["killed at"])
        if found["left"] != ["a.gguf", "log.jsonl"]:  # killed when all was done, but for the empty folder: the next one takes it away
            assert found["done"] and found["killed at"] in ("unlink", "rmdir")
            with pytest.raises(FileError, match=r"a\.gguf: exists already"):
                Checkpoints(tmp_path / str(at) / "a.gguf")
            assert left(tmp_path / str(at)) == ["a.gguf", "log.jsonl"]


@pytest.mark.parametrize("lasting", [True, False])
def test_a_disk_that_is_full_at_any_operation(right: tuple[str, str], tmp_path: Path, lasting: bool) -> None:
    """From one operation on, or at this alone: an error in a line, whole checkpoints; once there is room, the same adapter and log."""
    begun = set()
    for at in itertools.count():
        folder = tmp_path / str(at)
        folder.mkdir()
        count, failed = itertools.count(), list[str]()

        def on(what: str, at: int = at, count: Any = count, failed: list[str] = failed) -> None:
            if what in TAKES_ROOM and (n := next(count)) >= at and (lasting or n == at):
                failed.append(what)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            with watched(on):
                assert run_to_the_end(folder)[1:] == right
        except FileError as error:
            assert "no space left: free some" in str(error) and "\n" not in str(error), str(error)
        else:  # only where it is not the end: a folder that could not be synced
            assert failed in ([], ["fsync"]) or set(failed) == {"fsync"}
            if not failed:
                break
            continue
        for name in (folder / "a.gguf.training").glob("checkpoint-*"):
            checkpoint._read(name)
        assert not list(folder.rglob("*.part"))
        step, *found = run_to_the_end(folder)
        assert tuple(found) == right and left(folder) == ["a.gguf", "log.jsonl"], at
        begun.add(step)
    assert at > 30 and begun == {0, 1, 2, 3}


def test_a_file_may_have_only_so_many_bytes(right: tuple[str, str], tmp_path: Path) -> None:
    """ulimit -f, wherever it cuts: the checkpoint, the log, the adapter."""
    resource = pytest.importorskip("resource", reason="limits of POSIX systems")
    before, said = resource.getrlimit(resource.RLIMIT_FSIZE), set()
    for limit in (0, 1, 100, 300, 500, 700, 900, 1000, 1200, 1500, 2000, 4000):
        folder = tmp_path / str(limit)
        folder.mkdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with contextlib.suppress(FileError):
                assert run_to_the_end(folder)[1:] == right
                said.add("done")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        said.add(left(folder)[0] if left(folder) else "nothing")
        if not (folder / "a.gguf").exists():
            assert run_to_the_end(folder)[1:] == right
    assert said >= {"done", "a.gguf", "nothing"}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_that_are_no_numbers_are_never_kept(tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite gradients and a rate that is too great: the step that makes infinite weights of them, be it the last, is told and not saved."""
    real = Quadratic.accumulate

    def steep(self: Quadratic, rows: Any, divisor: float, step: int) -> Any:
        found = real(self, rows, divisor, step)
        if step == 2:  # the last
            for array in self.arrays.values():
                array[...] = 3e38
        return found
    monkeypatch.setattr(Quadratic, "accumulate", steep)
    options: dict[str, Any] = {"optimizer": optimizer, "clip": 0.0, "schedule": "constant", "warmup": 0.0, "lr": 0.05 if optimizer == "adamw" else 2.0}
    with pytest.raises(NumericError, match=r"step 3 of 3 \(rows\.jsonl, line \d+.*\): the weights are not finite any more; the checkpoint of step 2 is kept\. "
                                           r"Train with a lower learning rate"):
        run_to_the_end(tmp_path, **options)
    assert "a.gguf" not in left(tmp_path)
    for name in (tmp_path / "a.gguf.training").glob("checkpoint-*"):
        header, arrays = checkpoint._read(name)
        assert header["step"] <= 2 and all(np.isfinite(array).all() for array in arrays.values())


def test_a_log_that_can_not_be_written_any_more(tmp_path: Path, right: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done before is kept, though no checkpoint was due."""
    from llamina.engine.train.log import Log
    real, count = Log.add, itertools.count()

    def add(self: Log, record: Any) -> None:
        if next(count) == 2:
            raise FileError("log.jsonl: the log cannot be written (no space left: free some, or write to another disk)")
        real(self, record)
    monkeypatch.setattr(Log, "add", add)
    with pytest.raises(FileError, match="the log cannot be written"):
        run_to_the_end(tmp_path, save_every=1000)
    monkeypatch.undo()
    assert run_to_the_end(tmp_path, save_every=1000) == (2, *right), "steps 1 and 2 were done, and are not done again"


def test_an_output_is_trained_once(tmp_path: Path) -> None:
    """Many at once, and runs that come while another ends and takes its folder away: one holds it at a time, and what it ends with is never trained over."""
    pytest.importorskip("fcntl", reason="files are locked on POSIX systems")
    held, most, done, errors = [0], [0], [0], list[BaseException]()
    lock = threading.Lock()

    def work() -> None:
        mine = 0
        while mine < 10:
            try:
                with Checkpoints(tmp_path / "a.gguf") as found:
                    with lock:
                        held[0] += 1
                        most[0] = max(most[0], held[0])
                        done[0] += 1
                    mine += 1
                    found.save({}, State(1))
                    assert found.load({}, {}, 1) == State(1)
                    with lock:
                        held[0] -= 1
                    found.remove()
            except FileError as error:
                if "another run is training it" not in str(error):
                    errors.append(error)
                    return
                time.sleep(0.001)
            except BaseException as error:
                errors.append(error)
                return
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and most == [1] and done == [40] and left(tmp_path) == []


def test_an_output_beside_a_folder_without_checkpoints_stays(tmp_path: Path) -> None:
    """As a killed run leaves it that had just begun; meanwhile a file of another's has come there."""
    (tmp_path / "a.gguf.training").mkdir()
    (tmp_path / "a.gguf.training" / "lock").touch()
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(FileError, match=r"a\.gguf: exists already: move it away"):
        run_to_the_end(tmp_path)
    assert left(tmp_path) == ["a.gguf"] and (tmp_path / "a.gguf").read_text() == "mine"


def begun(folder: Path) -> Path:
    """Two checkpoints, of steps 1 and 2, and what they are bound to -> their folder."""
    w = weights()
    with Checkpoints(folder / "a.gguf") as checkpoints:
        loop = Loop(Quadratic(w), w, data(), data(5, 1), Options(batch=8, save_every=1, lr=0.05), checkpoints=checkpoints)
        for record in loop.run():
            if record["step"] == 2 and "loss" in record:
                break
    return folder / "a.gguf.training"


def resealed(path: Path, change: Any) -> None:
    """A checkpoint with another header, whose checksum is right."""
    _, head, rest = path.read_bytes().split(b"\n", 2)
    header = json.loads(head)
    change(header)
    body = json.dumps(header).encode() + b"\n" + rest
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.parametrize("change", [
    {"step": "2"}, {"step": None}, {"step": -1}, {"step": 2.0}, {"step": True}, {"step": 4}, {"step": 10**400}, {"history": {}}, {"history": [5]},
    {"history": [{"step": 1}]}, {"history": [{"step": 1, "loss": "x"}]}, {"history": [{"step": 1, "loss": 10**400}]},
    {"history": [{"step": 0, "valid_loss": 1}]},
    {"bound": []}, {"bound": None}, {"arrays": {}}, {"arrays": [["a"]]}, {"arrays": [["a", [2**62, 4]]]}, {"arrays": [["a", [-1, -148]]]}, {"arrays": [5]},
    {"arrays": [["a", [10**400]]]}, {"arrays": [["a", [1] * 100]]}, {"llamina_training": 2},
], ids=str)
def test_headers_are_checked(tmp_path: Path, change: dict[str, Any]) -> None:
    """A checkpoint whose checksum is right and whose header is none of ours: told, and the other one serves, or begun anew by whom the message told to."""
    folder = begun(tmp_path)
    for name in ("checkpoint-0", "checkpoint-1"):
        resealed(folder / name, lambda header: header.update(change))
    with pytest.raises(FormatError, match=r"(is no whole checkpoint of this version of llamina; no other checkpoint is whole|holds other arrays or steps than "
                                          r"these options make): remove .*a\.gguf\.training to begin anew") as caught:
        run_to_the_end(tmp_path)
    assert "\n" not in str(caught.value)


def test_resealed_alone_is_fine(tmp_path: Path, right: tuple[str, str]) -> None:
    folder = begun(tmp_path)
    for name in ("checkpoint-0", "checkpoint-1"):
        resealed(folder / name, lambda header: None)
    assert run_to_the_end(tmp_path) == (2, *right)


def test_every_cut_and_every_byte(tmp_path: Path, right: tuple[str, str]) -> None:
    """The newest cut anywhere, or with one byte changed: the one before serves, and the run ends with the same bytes."""
    folder, rng = begun(tmp_path), np.random.default_rng(0)
    whole = {name: (folder / name).read_bytes() for name in ("checkpoint-0", "checkpoint-1")}
    newest = max(whole, key=lambda name: checkpoint._read(folder / name)[0]["step"])
    raw = whole[newest]
    damaged = [raw[:n] for n in rng.integers(0, len(raw), 20)] + [raw + b"x", b""]
    for at in rng.integers(0, len(raw), 40):
        changed = bytearray(raw)
        changed[at] ^= 1 << rng.integers(8)
        damaged.append(bytes(changed))
    for one in damaged:
        (folder / newest).write_bytes(one)
        w = weights()
        with Checkpoints(tmp_path / "a.gguf") as checkpoints:
            loop = Loop(Quadratic(w), w, data(), data(5, 1), Options(batch=8, save_every=1, lr=0.05), checkpoints=checkpoints)
            assert loop.resumed == 1 and checkpoints.note and "going on from the one of step 1" in checkpoints.note and "\n" not in checkpoints.note
    assert run_to_the_end(tmp_path) == (1, *right)
    (tmp_path / "again").mkdir()
    folder = begun(tmp_path / "again")
    for name in whole:
        (folder / name).write_bytes((folder / name).read_bytes()[:70])
    with pytest.raises(LlaminaError, match="no other checkpoint is whole: remove"):
        run_to_the_end(tmp_path / "again")
