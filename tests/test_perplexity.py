"""Perplexity and divergence: llama.cpp's published numbers, a naive recount, and what is refused."""
from __future__ import annotations

import json
from typing import Any

import llamina
import numpy as np
import pytest
from llamina.engine.cli import main
from llamina.engine.score import perplexity as measured
from llamina.engine.score.perplexity import divergence, perplexity

TEXT = "Once upon a time there was a small fox called Leo who lived at the edge of a quiet town. " * 8

# llama.cpp's perplexity tool on text/tinystories_valid_part.txt at context 256, over the whole text (shared real/README.md)
KNOWN = {"q8_0": 136.59, "q5_1": 138.29, "q4_0": 140.50}


@pytest.fixture(scope="module")
def demo():
    with llamina.load("demo", threads=1, context=128) as model:
        yield model


def test_equals_a_naive_recount(demo):
    result = perplexity(demo, TEXT, 32)
    ids = demo.tokenize(TEXT)
    nll = []
    for w in range(len(ids) // 32):
        window = [demo.tokenizer.bos_id, *ids[32 * w + 1:32 * w + 32]]
        logits = demo.logits(window).astype(np.float64)
        for i in range(16, 31):
            nll.append(np.log(np.exp(logits[i] - logits[i].max()).sum()) + logits[i].max() - logits[i][window[i + 1]])
    assert result.tokens == len(nll) == 15 * result.windows
    assert result.perplexity == pytest.approx(np.exp(np.mean(nll)), rel=1e-9)


def test_a_model_does_not_diverge_from_itself(demo):
    result = divergence(demo, demo, TEXT, 32, most=2)
    assert result.mean_kl == 0 and result.top1_agreement == 1 and result.model == result.reference and result.model.windows == 2


@pytest.mark.parametrize(("text", "context", "most", "message"), [
    ("too short", 64, None, "one window takes 64"), (TEXT, 4, None, "between 8 and"), (TEXT, 1000, None, "between 8 and"), (TEXT, 32, 0, "at least one window"),
])
def test_refusals(demo, text, context, most, message):
    with pytest.raises(llamina.errors.OptionError, match=message):
        perplexity(demo, text, context, most=most)


def test_command(tmp_path, capfd):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    assert main(["perplexity", "demo", str(file), "--context", "64", "--windows", "1", "--json", "--threads", "1"]) == 0
    assert json.loads(capfd.readouterr().out)["tokens"] == 31
    assert main(["perplexity", "demo", str(file), "--context", "64", "--windows", "1", "--against", "demo", "--threads", "1"]) == 0
    assert "same first choice     100.00 %" in capfd.readouterr().out
    assert main(["perplexity", "demo", str(tmp_path / "none.txt")]) != 0
    assert "none.txt" in capfd.readouterr().err


def test_every_window_is_told_and_kept(tmp_path, run):
    """Stopped after two of four windows, the same command goes on there, and the file is the same."""
    file, whole, cut = tmp_path / "text.txt", tmp_path / "whole.json", tmp_path / "cut.json"
    file.write_text(TEXT)
    for more in [], ["--against", "demo"]:
        asked = ["perplexity", "demo", str(file), "--context", "32", "--windows", "4", "--threads", "1", *more]
        assert run(*asked, "-o", str(whole)).code == 0
        found = json.loads(whole.read_text())
        assert len(found["each"]) == 4 and (found.get("model") or found)["windows"] == 4
        with pytest.MonkeyPatch.context() as patch:
            real = measured._window_divergence if more else measured._window_nll
            calls: list[Any] = []

            def stop(*args, calls=calls, real=real):
                calls.append(args)
                if len(calls) == 3:
                    raise KeyboardInterrupt
                return real(*args)
            patch.setattr(measured, real.__name__, stop)
            stopped = run(*asked, "-o", str(cut))
        assert stopped.code == 130 and "stopped after 2 of 4 windows" in stopped.err and not cut.exists()
        again = run(*asked, "-o", str(cut))
        assert "going on after 2 windows" in again.err and cut.read_bytes() == whole.read_bytes()
        assert stopped.out != again.out
        whole.unlink()
        cut.unlink()


def test_llama_cpp_numbers(real):
    text = (real / "text/tinystories_valid_part.txt").read_text()
    with llamina.load(real / "llama2c/stories260K.gguf", context=256) as model:
        assert perplexity(model, text, 256).perplexity == pytest.approx(4.1576, rel=5e-4)
    for name, expected in KNOWN.items():
        with llamina.load(real / f"gguf-by-llama.cpp/tinystories-656k.{name}.gguf", context=256) as model:
            assert perplexity(model, text, 256).perplexity == pytest.approx(expected, rel=0.005)


def test_a_wrong_reference_is_refused(demo, real):
    with llamina.load(real / "llama2c/stories260K.gguf", context=128) as other, pytest.raises(llamina.errors.OptionError, match="different vocabularies"):
        divergence(demo, other, TEXT, 32)
