"""The training loop: the same bits however a step is cut and wherever a run is killed; what goes wrong is told, and loses nothing."""
from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gradients import Quadratic, data, digest, weights
from llamina.engine.errors import FileError, FormatError, NumericError, OptionError
from llamina.engine.train import checkpoint, curve
from llamina.engine.train.checkpoint import Checkpoints, State
from llamina.engine.train.log import Log
from llamina.engine.train.loop import Loop
from llamina.engine.train.options import Options
from llamina.engine.train.order import Order, micro_batches

SETTINGS: dict[str, Any] = {"epochs": 3, "batch": 4, "lr": 0.05, "save_every": 2}
BOUND = {"base": "b", "data": "d", "options": {"lr": 0.05}}


def trained(folder: Path | None = None, stop: int | None = None, bound: dict[str, Any] | None = None, nan_at: int | None = None,
            **more: Any) -> tuple[str, Loop]:
    """A run, to its end or to where it is cut off; what it came to."""
    w = weights()
    options = Options(**{**SETTINGS, **more})
    if folder is None:
        loop = Loop(Quadratic(w, nan_at), w, data(), data(5, 1), options)
        for _ in loop.run():
            pass
        return digest(w), loop
    with Checkpoints(folder / "a.gguf") as checkpoints:
        loop = Loop(Quadratic(w, nan_at), w, data(), data(5, 1), options, checkpoints=checkpoints, bound=bound or BOUND)
        for n, _ in enumerate(loop.run()):
            if n == stop:
                break
    return digest(w), loop


@pytest.fixture(scope="module")
def right() -> tuple[str, list[dict[str, Any]]]:
    """Of a run that nobody stopped."""
    found, loop = trained()
    return found, loop.history


def test_it_learns(right: tuple[str, list[dict[str, Any]]]) -> None:
    history = right[1]
    steps = [r for r in history if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 19)), "3 epochs of 21 rows, 4 a step, the last of an epoch with one"
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [r["step"] for r in history if "valid_loss" in r] == [0, 6, 12, 18]
    assert sum(r["tokens"] for r in steps) == 3 * data().tokens


@pytest.mark.parametrize("micro", [1, 2, 3, 8])
def test_micro_batches_change_nothing(right: tuple[str, list[dict[str, Any]]], micro: int) -> None:
    found, loop = trained(micro_batch=micro)
    assert (found, loop.history) == right
    assert loop.gradients.calls > 18 or micro == 8  # type: ignore[attr-defined]


def test_another_order_would_be_seen(right: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests here compare tells a step's rows in another order apart."""
    monkeypatch.setattr(Order, "numbers", lambda self, step, real=Order.numbers: real(self, step)[::-1])
    assert trained()[0] != right[0]


@pytest.mark.parametrize("change", [{"seed": 1}, {"optimizer": "sgd"}, {"weight_decay": 0.1}, {"clip": 0.01}, {"schedule": "linear"}, {"warmup": 3}])
def test_options_count(right: tuple[str, list[dict[str, Any]]], change: dict[str, Any]) -> None:
    assert trained(**change)[0] != right[0]


def test_begun_again_after_any_record(right: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Cut off after each record in turn, with checkpoints at every other step."""
    for stop in range(len(right[1])):
        folder = tmp_path / str(stop)
        folder.mkdir()
        trained(folder, stop)
        found, loop = trained(folder)
        assert (found, loop.history) == right, stop


def test_interrupted_is_saved(right: tuple[str, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within a step: what was done is kept, though no checkpoint was due."""
    real = Quadratic.accumulate

    def interrupted(self: Quadratic, *args: Any) -> Any:
        if self.calls == 5:
            raise KeyboardInterrupt
        return real(self, *args)
    monkeypatch.setattr(Quadratic, "accumulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, save_every=1000)
    monkeypatch.undo()
    found, loop = trained(tmp_path)
    assert loop.resumed == 5 and (found, loop.history) == right


def test_others_are_refused_by_name(tmp_path: Path) -> None:
    trained(tmp_path, stop=7)
    with pytest.raises(OptionError, match=r"a\.gguf: was begun with other lr \(0\.05, now 0\.1\)"):
        trained(tmp_path, bound={**BOUND, "options": {"lr": 0.1}})
    with pytest.raises(OptionError, match=r"was begun with other data \(\"d\", now \"e\"\)"):
        trained(tmp_path, bound={**BOUND, "data": "e"})


def test_what_is_bound() -> None:
    """All options but those that change nothing."""
    bound = Options().bound()
    assert {"rank", "alpha", "targets", "layers", "dropout", "rslora", "backward", "epochs", "batch", "lr", "schedule", "warmup", "weight_decay", "clip",
            "optimizer", "seed", "steps"} == set(bound)
    assert "epochs" not in Options(steps=5).bound()


def test_two_generations(right: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """A damaged checkpoint is told, and the one before serves; two damaged ones are an error."""
    trained(tmp_path, stop=14)
    folder = tmp_path / "a.gguf.training"
    newest = max(("checkpoint-0", "checkpoint-1"), key=lambda name: checkpoint._read(folder / name)[0]["step"])
    path = folder / newest
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with Checkpoints(tmp_path / "a.gguf") as checkpoints:
        w = weights()
        loop = Loop(Quadratic(w), w, data(), data(5, 1), Options(**SETTINGS), checkpoints=checkpoints, bound=BOUND)
        assert checkpoints.note is not None and "is damaged" in checkpoints.note and f"going on from the one of step {loop.resumed}" in checkpoints.note
        assert 0 < loop.resumed < 12
        for _ in loop.run():
            pass
    assert (digest(w), loop.history) == right
    for name in ("checkpoint-0", "checkpoint-1"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    with pytest.raises(FormatError, match="no other checkpoint is whole"):
        trained(tmp_path)


def test_nan_stops(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match=r"step 6 of 18 \(rows\.jsonl, line \d+\): the loss is not finite; the checkpoint of step 4 is kept\. Train with a "
                                           r"lower learning rate"):
        trained(tmp_path, nan_at=5, micro_batch=4)
    found, loop = trained(tmp_path)
    assert loop.resumed == 4
    with pytest.raises(NumericError, match="nothing was saved before"):
        trained(nan_at=0)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing can be written to the end."""
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    yield


def test_full_disk_loses_nothing(right: tuple[str, list[dict[str, Any]]], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    trained(tmp_path, stop=7)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a.gguf.training").iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(FileError, match="the checkpoint cannot be written .no space left"):
        trained(tmp_path)
    request.getfixturevalue("monkeypatch").undo()
    assert {path.name: path.read_bytes() for path in (tmp_path / "a.gguf.training").iterdir()} == before
    found, loop = trained(tmp_path)
    assert (found, loop.history) == right


def test_one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="files are locked on POSIX systems")
    with Checkpoints(tmp_path / "a.gguf") as first:
        for _ in range(2):
            with pytest.raises(FileError, match="another run is training it"):
                Checkpoints(tmp_path / "a.gguf")
        first.save({}, State(1))  # its folder is still there, though it held nothing when the other was refused
        assert first.load({}, {}, 1) == State(1)
        first.remove()
    assert not (tmp_path / "a.gguf.training").exists(), "a run that kept nothing leaves nothing"
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(FileError, match="exists already"):
        Checkpoints(tmp_path / "a.gguf")


def test_log_is_the_same_bytes(tmp_path: Path, right: tuple[str, list[dict[str, Any]]]) -> None:
    """Killed after the log had more than the checkpoint: what comes again is not there twice."""
    path = tmp_path / "log.jsonl"
    with Log(path, {"x": 1}, []) as log:
        for record in right[1]:
            log.add(record)
    whole = path.read_bytes()
    with Log(path, {"x": 1}, right[1][:5]) as log:
        for record in right[1][5:]:
            log.add(record)
    assert path.read_bytes() == whole and whole.count(b"\n") == 1 + len(right[1])
    path.write_text("a letter")
    with pytest.raises(FileError, match="no log of a training run"):
        Log(path, {}, [])
    assert path.read_text() == "a letter"


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_two_runs_do_not_share_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused, and takes nothing away; once the first is done the name is free. A place that could not be written is left empty-handed."""
    path = tmp_path / "log.jsonl"
    for history in [], [{"step": 1}]:  # no file is there, and one is
        with Log(path, {"run": 1}, history) as first:
            with pytest.raises(FileError, match="log.jsonl: another training run is writing it: wait for it, or choose another name"):
                Log(path, {"run": 2}, [])
            first.add({"step": 2})
            with pytest.raises(FileError, match="another training run"):
                Log(path, {"run": 2}, [])
            first.add({"step": 3})
        assert [json.loads(line) for line in path.read_text().splitlines()] == [{"llamina_train": 1, "run": 1}, *history, {"step": 2}, {"step": 3}]
    path.unlink()

    def full(record: object) -> bytes:
        raise OSError(errno.ENOSPC, "no space")
    monkeypatch.setattr("llamina.engine.train.log._line", full)
    with pytest.raises(FileError, match="the log cannot be written"):
        Log(path, {}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("wrong", "message"), [
    ({"rank": 0}, "rank must be a whole number from 1 on, found 0"), ({"lr": float("nan")}, "lr must be a number above 0"),
    ({"lr": 0}, "lr must be a number above 0"), ({"dropout": 1.0}, "dropout must be a number from 0 on, below 1"), ({"batch": True}, "batch must be"),
    ({"schedule": "sine"}, "schedule must be one of cosine, linear, constant"), ({"optimizer": "lion"}, "optimizer must be one of adamw, sgd"),
    ({"seed": -1}, "seed must be"), ({"steps": 1.5}, "steps must be"), ({"targets": "attn_q,,"}, "targets must be"), ({"warmup": -0.1}, "warmup must be"),
])
def test_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**wrong)


def test_curve(tmp_path: Path, right: tuple[str, list[dict[str, Any]]]) -> None:
    """A sparkline falls as its numbers do; the SVG holds every validation; the picture is drawn where there is something to draw with."""
    assert curve.sparkline([]) == "" and curve.sparkline([1.0]) == "▁" and curve.sparkline([3, 2, 1, 0], 2) == "█▁"
    assert len(curve.sparkline(range(1000), 24)) == 24
    html = curve.html(right[1], "<b>")
    assert html.count("<circle") == 4 and "&lt;b&gt;" in html and "<b>" not in html and html.count("<tr>") == 5
    assert '<svg' in html and 'role="img"' in html and "<title>&lt;b&gt;</title><desc>Loss in nats a token by step: training loss from " in html
    assert "; validation loss from " in html and "(step 18).</desc>" in html
    assert curve.html([], "nothing") == "<p>nothing</p>"
    pytest.importorskip("matplotlib", reason="pictures are drawn by the extra plot")
    curve.draw(right[1], str(tmp_path / "loss.svg"))
    assert b"<svg" in (tmp_path / "loss.svg").read_bytes()


def test_order() -> None:
    order = Order(data(10), Options(epochs=2, batch=4))
    taken = [order.numbers(s) for s in range(order.steps)]
    assert [len(t) for t in taken] == [4, 4, 2] * 2 and sorted(sum(taken[:3], [])) == list(range(10)) and taken[:3] != taken[3:]
    assert order.tokens == 2 * data(10).tokens and Order(data(10), Options(steps=4, batch=4)).steps == 4
    rows = order.rows(0)
    assert [r.first_token for r in rows] == np.cumsum([0, *(len(r.ids) for r in rows[:-1])]).tolist()
    assert [len(part) for part in micro_batches(rows, 3, 1)] == [3, 1] and [len(part) for part in micro_batches(rows, None, 1)] == [1] * 4
    assert [len(part) for part in micro_batches(rows, None, 1000)] == [4]
