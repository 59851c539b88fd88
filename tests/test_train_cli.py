"""`llamina train` and `model.train` on the demo model: the same file however it was made, the plan, examples shown, and what is refused."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina import load
from llamina.engine.cli.train import line
from llamina.engine.errors import FileError, NumericError, OptionError
from llamina.engine.look.steer import SteeringVector
from llamina.engine.model import Model
from llamina.engine.train.adapter import Adapter
from llamina.engine.train.loop import Progress
from train_cases import kill_at_a_checkpoint

ROWS = [{"prompt": f"[INST] What colour is the {thing}? [/INST]", "completion": f" {colour}"}
        for thing, colour in (("sky", "blue"), ("grass", "green"), ("snow", "white"), ("night", "black"), ("fox", "red"), ("hen and the egg", "brown"))]
SETTINGS = ["--rank", "2", "--targets", "attn_q,ffn_down", "--layers", "2", "--batch", "4", "--epochs", "2", "--lr", "0.01"]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load("demo", threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def right(model: Model, data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the adapter that SETTINGS make, through Python."""
    output = tmp_path_factory.mktemp("right") / "a.gguf"
    trained = model.train(data, output, rank=2, targets="attn_q,ffn_down", layers=2, batch=4, epochs=2, lr=0.01)
    assert [r["step"] for r in trained.history] == [1, 2, 3, 4] and trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert not output.with_name("a.gguf.training").exists() and trained.path == output
    assert "<svg" in trained._repr_html_() and "training loss" in trained._repr_html_()
    pairs = Adapter.read(output, model.config).pairs
    assert set(pairs) == {f"blk.{i}.{name}.weight" for i in (4, 5) for name in ("attn_q", "ffn_down")}
    assert all(np.array_equal(pair.b, trained.adapter.pairs[name].b) and pair.b.any() for name, pair in pairs.items())
    return sha(output)


def test_command_line(run: Any, right: str, data: Path, tmp_path: Path) -> None:
    """The same bytes as through Python; the plan first, the log, the closing line; nothing on standard output."""
    result = run("train", "demo", str(data), "-o", str(tmp_path / "a.gguf"), *SETTINGS, "--valid", str(data), "--log", str(tmp_path / "log.jsonl"),
                 "--threads", "1")
    assert result.code == 0 and result.out == ""
    lines = result.err.splitlines()
    assert "data: 6 examples" in lines[0] and "plan: 4 steps (2 epochs); 4 pairs" in lines[1] and "expected time:" in lines[2]
    assert "step 0: validation loss" in result.err and lines[-1].startswith("[4 steps in ")
    assert sha(tmp_path / "a.gguf") == right
    head, *records = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert head["llamina_train"] == 1 and [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4] and records[0]["step"] == 0


@pytest.mark.parametrize("more", [{"micro_batch": 1}, {"micro_batch": 3}])
def test_micro_batches(model: Model, right: str, data: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    model.train(str(data), tmp_path / "a.gguf", rank=2, targets="attn_q,ffn_down", layers=2, batch=4, epochs=2, lr=0.01, **more)
    assert sha(tmp_path / "a.gguf") == right


def test_killed(right: str, data: Path, tmp_path: Path) -> None:
    """SIGKILL once the first checkpoint is there; then the same command."""
    command = [sys.executable, "-m", "llamina", "train", "demo", str(data), "-o", str(tmp_path / "a.gguf"), *SETTINGS, "--save-every", "1"]
    kill_at_a_checkpoint(command, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf.training").exists() or (tmp_path / "a.gguf").exists()
    if not (tmp_path / "a.gguf").exists():
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0 and "going on after step" in result.stderr
    assert sha(tmp_path / "a.gguf") == right


def test_full_disk(model: Model, right: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter can't be written: an error of ours, and the same call goes on to the same file once there is room."""
    options: dict[str, Any] = {"rank": 2, "targets": "attn_q,ffn_down", "layers": 2, "batch": 4, "epochs": 2, "lr": 0.01, "save_every": 2}
    real, calls = os.fsync, []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) > 4:  # two checkpoints, each with its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"a\.gguf: cannot be written .no space left"):
        model.train(data, tmp_path / "a.gguf", **options)
    monkeypatch.undo()
    steps: list[int] = []
    model.train(data, tmp_path / "a.gguf", **options, progress=lambda state: steps.append(state.begun))
    assert sha(tmp_path / "a.gguf") == right and set(steps) <= {4}


def test_nan(model: Model, data: Path, tmp_path: Path) -> None:
    """A learning rate beyond reason: told with step and rows, and no adapter is written."""
    with pytest.raises(NumericError, match=r"step \d of 8 \(.*d\.jsonl, line \d.*\): .*Train with a lower learning rate .--lr, now 1e\+30."):
        model.train(data, tmp_path / "a.gguf", rank=2, targets="attn_q,ffn_down", layers=2, batch=6, epochs=8, lr=1e30, clip=0, schedule="constant")
    assert not (tmp_path / "a.gguf").exists()


def test_show(run: Any, data: Path) -> None:
    result = run("train", "demo", str(data), "--show", "2")
    assert result.code == 0 and "[INST] What colour is the sky? [/INST]⟦ blue</s>⟧" in result.out and result.out.count("\n-- ") == 1
    assert "6 examples" in result.err


def test_show_obeys_nothing(run: Any, tmp_path: Path) -> None:
    """What moves a terminal's cursor is shown, not sent."""
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a\x1b[2J", "completion": "\x1b]0;b\x07"}))
    result = run("train", "demo", str(tmp_path / "d.jsonl"), "--show", "1")
    assert result.code == 0 and r"a\x1b[2J⟦\x1b]0;b\x07</s>⟧" in result.out and "\x1b" not in result.out


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["-o", "a.gguf", "--rank", "0"], 2, "rank must be a whole number from 1 on"),
    (["-o", "a.gguf", "--rank", "1000"], 2, "rank must be at most 256, the smaller side of blk.0.attn_q.weight (256 x 256)"),
    (["-o", "a.gguf", "--targets", "attn_p"], 2, "no layer has a matrix 'attn_p': choose from all-linear, attn_q"),
    (["-o", "a.gguf", "--layers", "7"], 2, "layers must be at most 6"), ([], 2, "where does the adapter go?"), (["-o", "-"], 2, "are files"),
    (["-o", ""], 1, "is a directory"), (["-o", ".."], 1, "is a directory"),
    (["-o", "a.gguf", "--log", "./a.gguf"], 2, "--log ./a.gguf: is what --output writes"),
    (["-o", "a.gguf", "--epochs", "3000000000"], 2, "at most 2147483648"),
    (["-o", "a.gguf", "--log", "b.svg", "--plot", "b.svg"], 2, "--plot b.svg: is what --log writes"),
    (["-o", "a.gguf", "--log", ""], 1, "is a directory: expected a log"),
    (["-o", "a.gguf", "--context", "8"], 1, "line 1: has "), (["-o", "d.jsonl"], 2, "is the input"),
    (["-o", "a.gguf", "--memory", "1MB"], 1, "training takes "),
])
def test_refused(run: Any, data: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str) -> None:
    monkeypatch.chdir(data.parent)
    result = run("train", "demo", data.name, *arguments)
    assert result.code == code and message in result.err and result.err.count("\n") == 1
    assert os.listdir(data.parent) == ["d.jsonl"], "nothing is left behind"


@pytest.mark.parametrize("where", ["llamina.engine.cli.train.open_model", "llamina.engine.train.run.open_data", "llamina.engine.train.run.Run.plan",
                                   "llamina.engine.train.run.Run.finish"])
def test_interrupted_before_the_first_step(run: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Or after the last: a line, in pipes as well, and nothing with --quiet; steps have a line of their own."""
    monkeypatch.setattr(where, lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    for quiet in [], ["-q"]:
        result = run("train", "demo", str(data), "-o", str(tmp_path / f"{len(quiet)}.gguf"), *SETTINGS, *quiet)
        said = [line for line in result.err.splitlines() if line.startswith("[")]
        if "plan" in where and quiet:
            assert result.code == 0  # no plan is told
        else:
            assert result.code == 130 and said == ([] if quiet else ["[interrupted: the same command begins again, or goes on where checkpoints are]"])


def test_outputs_are_apart(run: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of `llamina eval`; and a picture that can't be drawn is told before anything is computed."""
    monkeypatch.chdir(data.parent)
    result = run("eval", "demo", data.name, "-o", "r.json", "--samples", "./r.json")
    assert result.code == 2 and "--samples ./r.json: is what --output writes: choose another name" in result.err
    pytest.importorskip("matplotlib", reason="pictures are drawn by the extra plot")
    for command in (["train", "demo", data.name, "-o", "a.gguf"], ["eval", "demo", data.name]):
        result = run(*command, "--plot", "loss.gguf")
        assert result.code == 1 and "loss.gguf: no picture is drawn as 'gguf': choose from" in result.err and result.err.count("\n") == 1
    assert os.listdir(data.parent) == ["d.jsonl"]


def test_adapters_in_use_are_no_base(model: Model) -> None:
    trained = model.train(ROWS, rank=1, targets="attn_q", layers=1, steps=1)
    model.add_adapter(trained.adapter, name="first")
    try:
        with pytest.raises(OptionError, match="has adapters that count for everything"):
            model.train(ROWS)
    finally:
        model.remove_adapter("first")
    model.control(SteeringVector({2: np.ones(model.config.dim, np.float32)}))
    try:
        with pytest.raises(OptionError, match="has control vectors"):
            model.train(ROWS)
    finally:
        model.control()


def test_what_was_learned_is_what_is_served(model: Model, data: Path) -> None:
    """The loss of the last validation is that of the model with the adapter, as it answers."""
    trained = model.train(data, valid=ROWS, rank=2, targets="attn_q,ffn_down", layers=2, batch=4, epochs=2, lr=0.01)
    model.add_adapter(trained.adapter, name="colours")
    try:
        nll: list[float] = []
        for row in ROWS:
            [score] = model.score(row["prompt"], [row["completion"]])
            assert model.tokenizer.eos_id is not None
            ids = [*model.prompt_ids(row["prompt"] + row["completion"]), model.tokenizer.eos_id]
            nll += [-x for x in score.logprobs] + [-model.logprobs(ids)[-1].logprob]
    finally:
        model.remove_adapter("colours")
    assert trained.history[-1]["valid_loss"] == pytest.approx(sum(nll) / len(nll), rel=1e-6)


def test_line_and_summary() -> None:
    """What a terminal shows: loss with its curve, validation, speed, time left."""
    history = [{"step": 0, "valid_loss": 4.0, "valid_accuracy": 0.5}, *({"step": s, "loss": 4.0 - s / 10} for s in range(1, 11))]
    state = Progress(10, 20, tokens=1000, seconds=10.0, history=history)
    assert line(state) == "step 11 of 20, loss 3.450 █▇▆▆▅▄▃▃▂▁, validation 4.000, 100 tokens/s, 10 s left"
    state.doing, state.part = "validating", 0.25
    assert line(state) == "validating: 25 %"


def test_python_options(model: Model) -> None:
    with pytest.raises(OptionError, match="train knows no option 'ranks'"):
        model.train(ROWS, ranks=3)
    with pytest.raises(OptionError, match="rows of 1024 tokens are allowed, the model was loaded with a context of 512"):
        model.train(ROWS, context=1024)


@pytest.mark.parametrize(("text", "target", "message"), [
    ([1.5, 2], None, "token ids must be whole numbers, found 1.5 at index 0"), (["a"], None, "token ids must be whole numbers"),
    (b"ab", None, "must be a list of whole numbers"), (5, None, "must be a list of whole numbers"), ([3], True, "token ids must be whole numbers, found True"),
    ([3], 1.5, "token ids must be whole numbers, found 1.5"), ([3], 2048, "token id 2048 at index 0 is outside"), ([], None, "at least one token"),
])
def test_what_has_no_token_gradients(model: Model, text: Any, target: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        model.token_gradients(text, target)
