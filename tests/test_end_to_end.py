"""A trained model, from file to text: stories260K, against what llama2.c prints."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import llamina
import numpy as np
import pytest
from naive import nll


@pytest.fixture(scope="module")
def stories(real: Path) -> Path:
    return real / "llama2c/stories260K.gguf"


def test_greedy_text(stories: Path, real: Path) -> None:
    """llama2.c's own golden test: 200 tokens after BOS, byte for byte."""
    expected = (real / "llama2c/stories260K_greedy.txt").read_bytes()
    with llamina.load(stories) as model:
        generation = model.generate("", max_tokens=200, temperature=0.0)
        pieces = list(generation)
    text = "".join(pieces).encode()
    assert text == expected and len(pieces) > 150
    assert generation.finish_reason == "length"


def test_greedy_text_from_the_command_line(stories: Path, real: Path) -> None:
    command = [sys.executable, "-m", "llamina", "generate", str(stories), "-p", "", "-n", "200", "--temperature", "0"]
    result = subprocess.run(command, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip(b"\n") == (real / "llama2c/stories260K_greedy.txt").read_bytes().rstrip(b"\n")


def test_likelihood_of_a_sentence(stories: Path, real: Path) -> None:
    case = json.loads((real / "llama2c/stories260K_nll.json").read_text())
    with llamina.load(stories, threads=2) as model:
        ids = model.tokenize(case["sentence"])
        assert len(ids) == case["n_tokens"]
        assert abs(nll(model.logits(ids), ids) - case["nll"]) <= 0.005


def test_generation_is_the_argmax_of_logits(stories: Path) -> None:
    """Prefill and decode, sampling at temperature 0 and `logits` tell one story; sampled text depends on the seed alone."""
    with llamina.load(stories, threads=2) as one, llamina.load(stories, threads=1) as other:
        ids = one.generate("Lily", max_tokens=80, temperature=0.0)
        text = ids.text()
        prompt = one.tokenize("Lily")
        whole = prompt + list(ids.ids)
        best = one.logits(whole).argmax(axis=-1)
        assert len(ids.ids) == 80 and np.array_equal(best[len(prompt) - 1:-1], whole[len(prompt):])
        assert other.generate("Lily", max_tokens=80, temperature=0.0).text() == text
        a, b, c = (m.generate("Lily", max_tokens=60, temperature=1.0, seed=s).text() for m, s in ((one, 5), (other, 5), (one, 6)))
        assert a == b != c
