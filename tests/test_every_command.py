"""What comes after a file exists, for the kinds of layers that came after Llama's (states, experts, layers that differ): importance, a weighed format, a fitted
mix, requantising, verification, perplexity and its file against another, inspect. tests/test_sources_*.py do the same from Hugging Face's folders."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina import load
from llamina.convert.convert import convert
from llamina.convert.fit import plan
from llamina.convert.importance import collect, read, write
from llamina.convert.sources import open_source
from llamina.engine.architectures.expert_blocks import Experts
from llamina.engine.gguf.file import open_gguf
from llamina.engine.score.perplexity import perplexity
from page_cases import write_case

TEXT = "the cat sat on a mat and the dog ran to the hat with him then she said no " * 8
CASES = ["lfm2", "qwen35", "lfm2moe", "qwen35moe", "gemma4", "gemma4 v is k", "gpt-oss"]


@pytest.mark.parametrize("name", CASES)
def test_all(name: str, tmp_path: Path, run: Any) -> None:
    exact, small, smaller = write_case(tmp_path / "exact.gguf", name), tmp_path / "small.gguf", tmp_path / "smaller.gguf"
    with load(exact, threads=1, context=128) as model:
        measured = collect(model, TEXT, context=64, most=2)
        matrices = {m.tensor for m in model.config.matrices()}
        routers = [b for b in model.config.blocks() if isinstance(b, Experts)]
        assert set(measured) == matrices
        before = perplexity(model, TEXT, 64, most=2).perplexity
    with open_gguf(exact) as gguf:
        assert all(c.sums.shape[-1] == gguf.tensors[tensor].cols and np.isfinite(c.sums).all() and c.sums.any() for tensor, c in measured.items())
    for block in routers:  # each token goes to so many
        assert block.down is not None and measured[block.down.tensor].count.sum() == block.used * measured[block.router.tensor].count
    write(tmp_path / "i.gguf", measured, "text", 64)
    weights = read(tmp_path / "i.gguf")
    assert all(np.allclose(weights[tensor], c.means(), rtol=1e-5) for tensor, c in measured.items())

    report = convert(exact, small, "q8_0", importance=weights, verify=True, verify_text=TEXT)
    assert not report.verification.problems and report.mix["Q8_0"] == len([t for t in report.tensors if t.format != "F32"]) > 0
    assert report.verification.divergence.mean_kl < 0.1
    again = run("convert", str(small), str(smaller), "--type", "q4_0", "--importance", str(tmp_path / "i.gguf"))
    assert again.code == 0, again.err
    with open_source(exact) as source:
        fitted = convert(source, tmp_path / "fit.gguf", "f16", plan=plan(source, bits=9.5, importance=weights), importance=weights, verify=True)
    assert not fitted.verification.problems and fitted.bits_per_weight <= 9.51

    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    asked = run("perplexity", str(small), str(text), "--context", "64", "--windows", "2", "--against", str(exact), "--threads", "1", "--json")
    found = json.loads(asked.out)
    assert found["reference"]["perplexity"] == pytest.approx(before, rel=1e-9) and found["model"]["perplexity"] == pytest.approx(before, rel=0.15)
    for path in exact, smaller, tmp_path / "fit.gguf":
        told = run("inspect", str(path), "--json")
        assert told.code == 0, told.err
        with open_gguf(path) as gguf:
            assert json.loads(told.out)["metadata"]["general.architecture"] == gguf.metadata["general.architecture"]
    assert run("inspect", str(small), "--program").code == 0
