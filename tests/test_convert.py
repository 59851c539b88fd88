"""Conversion from end to end: GGUF sources in every type, what is refused, determinism, and that Ctrl-C or kill -9 leave nothing behind."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llamina
import numpy as np
import pytest
from llamina.convert.convert import Report, convert
from llamina.convert.recipes import RECIPES
from llamina.engine.cli import main
from llamina.engine.errors import FileError, FormatError, OptionError
from llamina.engine.gguf.file import open_gguf
from llamina.kernels.formats.registry import decode
from small_models import SMALL_256, write_small_model

SIZES = {name: getattr(SMALL_256, name) for name in ("dim", "n_heads", "n_kv_heads", "ffn_dim")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source") / "source.gguf", "F32", **SIZES)


def values(path: Path) -> dict[str, np.ndarray]:
    with open_gguf(path) as file:
        return {name: decode(t.format.name, file.data(name)) for name, t in file.tensors.items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_makes_a_file_that_verifies(model: Path, tmp_path: Path, recipe: str) -> None:
    report = convert(model, tmp_path / "m.gguf", recipe)
    assert report.verification.passed, report.verification.problems
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["general.file_type"] == RECIPES[recipe].file_type and file.metadata["general.quantization_version"] == 2
        used = {t.format.name for t in file.tensors.values()}
        assert RECIPES[recipe].base in used and {t.format.name for n, t in file.tensors.items() if "norm" in n} == {"F32"}
    expected = RECIPES[recipe].base if recipe in ("f32", "f16", "bf16", "q8_0") else "Q6_K"
    assert {t.name: t.format for t in report.tensors}["output.weight"] == expected


def test_the_result_runs(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "m.gguf", "f32", verify=False)
    with llamina.load(model) as a, llamina.load(tmp_path / "m.gguf") as b:
        np.testing.assert_array_equal(a.logits([1, 50, 60]), b.logits([1, 50, 60]))


def test_metadata(model: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "m.gguf", "q8_0", verify=False)
    with open_gguf(model) as a, open_gguf(tmp_path / "m.gguf") as b:
        for key in a.metadata:
            np.testing.assert_array_equal(a.metadata[key], b.metadata[key], err_msg=key)
        assert b.metadata["llamina.version"] == llamina.__version__ and b.metadata["llamina.source.files"] == ["source.gguf"]
        import hashlib
        assert b.metadata["llamina.source.sha256"] == [hashlib.sha256(model.read_bytes()).hexdigest()] == list(report.source_files.values())
        assert b.metadata["general.size_label"].endswith(("K", "M"))  # type: ignore[union-attr]


def test_same_bytes(model: Path, tmp_path: Path) -> None:
    """On any number of threads, anywhere, under any name."""
    (tmp_path / "b").mkdir()
    copy = tmp_path / "b" / model.name
    copy.write_bytes(model.read_bytes())
    for source, out, threads in (model, "1.gguf", 1), (copy, "b/2.gguf", 3):
        convert(source, tmp_path / out, "q4_k_m", threads=threads, verify=False)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "b/2.gguf").read_bytes()


def test_keep_split_and_merge(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "q.gguf", "q4_k_m", verify=False)
    report = convert(tmp_path / "q.gguf", tmp_path / "s.gguf", "keep", split=200_000)
    assert len(report.paths) > 2 and report.verification.passed and all(t.copied for t in report.tensors if len(t.shape) == 2)
    back = convert(report.paths[0], tmp_path / "back.gguf", "keep")
    assert back.verification.passed and back.notes[0] == f"{len(report.paths)} shards merged"
    before, after = values(tmp_path / "q.gguf"), values(tmp_path / "back.gguf")
    assert before.keys() == after.keys() and all(np.array_equal(before[n], after[n]) for n in before)
    with open_gguf(tmp_path / "back.gguf") as file:
        assert file.metadata["general.file_type"] == RECIPES["q4_k_m"].file_type and "split.count" not in file.metadata


def test_fallbacks_are_told(tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "odd.gguf", "F32", dim=64, ffn_dim=72)  # 64: no multiple of 256; 72: not even of 32
    report = convert(source, tmp_path / "m.gguf", "q4_k_m")
    by_name = {t.name: t for t in report.tensors}
    assert (by_name["blk.0.attn_q.weight"].format, by_name["blk.0.attn_q.weight"].wanted) == ("Q5_0", "Q4_K")
    assert (by_name["blk.0.ffn_down.weight"].format, by_name["output.weight"].format) == ("F16", "Q8_0")
    told = [n for n in report.notes if "does not fit" in n]  # a line for each kind, not for each tensor
    assert sum(t.wanted is not None for t in report.tensors) == 16 and sorted(told) == sorted(set(told)) and len(told) == 4
    assert any("Q4_K does not fit 64 columns, Q5_0 instead: " in n and "matrices, such as" in n for n in told)
    assert "(for Q4_K)" in (tmp_path / "m.report.md").read_text() and report.verification.passed


def test_importance_changes_the_codes(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {name: np.power(rng.random(x.shape[1], np.float32), 8) for name, x in values(model).items() if x.shape[0] > 1}
    convert(model, tmp_path / "a.gguf", "q4_0", verify=False)
    convert(model, tmp_path / "b.gguf", "q4_0", importance=weights, verify=False)
    exact, a, b = (values(p)["blk.0.attn_q.weight"] for p in (model, tmp_path / "a.gguf", tmp_path / "b.gguf"))
    w = weights["blk.0.attn_q.weight"]
    assert (w * (b - exact) ** 2).sum() < (w * (a - exact) ** 2).sum()
    with pytest.raises(OptionError, match="another model"):
        convert(model, tmp_path / "c.gguf", "q4_0", importance={"blk.0.attn_q.weight": np.ones(3, np.float32)})
    assert not (tmp_path / "c.gguf").exists()
    report = convert(model, tmp_path / "d.gguf", "q4_0", importance={"blk.0.attn_q.weight": w}, verify=False)
    assert any("not in the importance matrix" in note for note in report.notes)


def poison(value: float) -> Callable[[str, np.ndarray], np.ndarray]:
    def edit(name: str, x: np.ndarray) -> np.ndarray:
        if name == "blk.1.ffn_up.weight":
            x = x.copy()
            x[5, 7] = value
        return x
    return edit


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_by_name(tmp_path: Path, value: float) -> None:
    source = write_small_model(tmp_path / "bad.gguf", "F32", edit=poison(value))
    with pytest.raises(FormatError, match=r"bad.gguf: tensor 'blk.1.ffn_up.weight' holds NaN or infinity in row 5.*--allow-nan"):
        convert(source, tmp_path / "m.gguf", "q8_0")
    assert os.listdir(tmp_path) == ["bad.gguf"]
    report = convert(source, tmp_path / "m.gguf", "q8_0", allow_nan=True)
    assert [t.zeroed for t in report.tensors if t.name == "blk.1.ffn_up.weight"] == [1] and report.verification.passed
    assert values(tmp_path / "m.gguf")["blk.1.ffn_up.weight"][5, 7] == 0


def test_too_large_for_f16(tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "bad.gguf", "F32", edit=poison(1e5))
    with pytest.raises(FormatError, match="beyond 65504 in row 5, which F16 can't hold"):
        convert(source, tmp_path / "m.gguf", "f16")
    convert(source, tmp_path / "m.gguf", "bf16", verify=False)


def test_refused(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(OptionError, match="never overwrites"):
        convert(model, model, "q8_0")
    for out, message in (tmp_path, "is a directory"), (tmp_path / "x" / "y", "does not exist"):
        with pytest.raises(FileError, match=message):
            convert(model, out, "q8_0")
    with pytest.raises(OptionError, match="unknown type"):
        convert(model, tmp_path / "m.gguf", "q7")
    with pytest.raises(OptionError, match="has 2 tokens, expected at least 8"):
        convert(model, tmp_path / "m.gguf", "q8_0", verify_text="a")
    with pytest.raises(FormatError, match="no llama2.c file"):  # --from is obeyed
        convert(model, tmp_path / "m.gguf", "q8_0", kind="llama2c")
    with pytest.raises(OptionError, match="at least 1024"):
        convert(model, tmp_path / "m.gguf", "q8_0", split=1)
    assert model.read_bytes() == before and not os.listdir(tmp_path)


def test_command(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), str(tmp_path / "m.gguf"), "--type", "q4_0", "--tensor", "ffn_down=q8_0", "--split-max-size", "1M"]) == 0
    out, err = capfd.readouterr()
    assert out == "" and "bits per weight" in err and "verified: vocabulary" in err and "\r" not in err
    report = json.loads((tmp_path / "m.report.json").read_text())
    assert report["passed"] and {t["format"] for t in report["tensors"] if "ffn_down" in t["name"]} == {"Q8_0"}
    assert main(["convert", str(model), str(tmp_path / "q.gguf"), "--type", "q4_0", "-q"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main(["convert", str(model), str(model), "--type", "q4_0"]) == 2
    assert "never overwrites" in capfd.readouterr().err
    assert main(["convert", str(model), str(tmp_path / "q.gguf"), "--type", "q4_0", "--split-max-size", "many"]) == 2


CHILD = """
import sys, time
from llamina.convert import convert as module
plain = module._encode
def slow(piece, allow_nan):
    if piece.tensor.name.startswith("blk.1"):
        print("half", flush=True)
        time.sleep(60 if sys.argv[3] == "kill" else 2)
    return plain(piece, allow_nan)
module._encode = slow
try:
    if sys.argv[3] == "terminate":
        from llamina.engine.cli import main
        sys.exit(main(["convert", sys.argv[1], sys.argv[2], "--type", "f16", "--threads", "1", "-q", "--overwrite"]))
    module.convert(sys.argv[1], sys.argv[2], "f16", threads=1)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("how", "sent"), [("kill", signal.SIGKILL), ("interrupt", signal.SIGINT), ("terminate", signal.SIGTERM)])
def test_interrupted(model: Path, tmp_path: Path, how: str, sent: signal.Signals) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"old")
    before = model.read_bytes()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(model), str(out), how], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "half\n"
    child.send_signal(sent)
    rest = child.communicate(timeout=60)[0]
    assert out.read_bytes() == b"old" and model.read_bytes() == before
    left = sorted(os.listdir(tmp_path))
    if how == "kill":
        assert len(left) == 2 and left[0].startswith(".m.gguf.llamina-")
        convert(model, tmp_path / "other.gguf", "f16", verify=False)  # the next run into that folder takes it away
        assert sorted(os.listdir(tmp_path)) == ["m.gguf", "other.gguf"]
    else:
        assert left == ["m.gguf"] and ("interrupted" in rest) == (how == "interrupt")
    assert child.returncode == {"kill": -signal.SIGKILL, "interrupt": 0, "terminate": 143}[how]


def test_hugging_face(real: Path, tmp_path: Path) -> None:
    """Its tied matrix is stored as lm_head.weight only."""
    report: Report = convert(real / "hf-tinystories-656k", tmp_path / "m.gguf", "f32")
    assert report.verification.passed and report.verification.reference == "tokenizer.json" and report.kind == "hf"
    with llamina.load(tmp_path / "m.gguf") as m:
        assert "She was" in m.generate("Once upon a time, there was a little girl named", max_tokens=8, temperature=0.0).text()
