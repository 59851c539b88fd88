"""Verification finds what is planted, and its report says so."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from llamina.convert.convert import convert
from llamina.convert.sources import open_source
from llamina.convert.verify import HARD_STRINGS, Verification, verify
from llamina.engine.cli import main
from llamina.engine.gguf.file import open_gguf
from small_models import write_small_model

TEXT = "Once upon a time there was a fox who lived in a wood. " * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source") / "source.gguf", "F32")


def after(model: Path, out: Path, damage: dict[str, bytes | None], text: str | None = None) -> Verification:
    """Convert to Q8_0, overwrite the beginning of tensors (None: with random bytes), verify."""
    report = convert(model, out, "q8_0", verify=False)
    with open_gguf(out) as file:
        places = {name: (file.tensors[name].offset, file.tensors[name].n_bytes) for name in damage}
    raw = bytearray(out.read_bytes())
    for name, content in damage.items():
        offset, n = places[name]
        content = np.random.default_rng(0).integers(0, 100, n, np.uint8).tobytes() if content is None else content
        raw[offset:offset + len(content)] = content
    out.write_bytes(raw)
    with open_source(model) as source:
        return verify(source, report, text)


def test_a_sound_file_passes(model: Path, tmp_path: Path) -> None:
    result = after(model, tmp_path / "m.gguf", {}, TEXT)
    assert result.passed and result.strings == len(HARD_STRINGS) and all(e.relative < 0.01 for e in result.tensors)
    d = result.divergence
    assert 0 <= d.mean_kl < 0.01 and d.top1_agreement > 0.9
    report = json.loads((tmp_path / "m.report.json").read_text())
    assert report["passed"] and report["divergence"]["mean_kl"] == d.mean_kl and len(report["tensors"]) == len(result.tensors)
    page = (tmp_path / "m.report.md").read_text()
    assert "**Verified" in page and "mean KL" in page and "| blk.1.ffn_down.weight | F32 | Q8_0 |" in page


@pytest.mark.parametrize(("name", "content", "message"), [
    ("blk.0.attn_k.weight", None, "relative error of"),  # another matrix
    ("blk.1.ffn_up.weight", b"\x00\x44" + b"\x7f" * 32, "relative error of"),  # one block: a scale of 4
    ("blk.1.ffn_up.weight", b"\x00\x7e", "relative error of nan"),  # a scale of NaN
    ("blk.1.ffn_norm.weight", b"\x00\x00\x80\x3f", "expected at most 0"),
])
def test_planted_faults(model: Path, tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    result = after(model, tmp_path / "m.gguf", {name: content})
    assert len(result.problems) == 1 and name in result.problems[0] and message in result.problems[0]
    assert "**Problems" in (tmp_path / "m.report.md").read_text() and not json.loads((tmp_path / "m.report.json").read_text())["passed"]


def test_another_vocabulary_is_found(model: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "m.gguf", "q8_0", verify=False)
    raw = (tmp_path / "m.gguf").read_bytes()
    assert raw.count(b"<0x20>") == 1
    (tmp_path / "m.gguf").write_bytes(raw.replace(b"<0x20>", b"<0x21>", 1).replace(b"<0x21>", b"<0x20>", 2).replace(b"<0x20>", b"<0x21>", 1))
    with open_source(model) as source:
        assert not verify(source, report).passed


def test_a_cut_file_is_found(model: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "m.gguf", "q8_0", verify=False)
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-1000])
    with open_source(model) as source:
        result = verify(source, report)
    assert not result.passed and "cut short" in result.problems[0]


def test_the_command_fails(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from llamina.kernels.formats import encoders
    plain = encoders.encode
    monkeypatch.setattr(encoders, "encode", lambda name, x, *rest: plain(name, -x, *rest))
    assert main(["convert", str(model), str(tmp_path / "m.gguf"), "--type", "q8_0"]) == 1
    assert "verification of" in capfd.readouterr().err
