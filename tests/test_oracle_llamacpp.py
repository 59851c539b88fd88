"""The engine against llama.cpp, where LLAMINA_PEER_LLAMACPP names the Python of an environment that has llama-cpp-python: files from its quantiser (the demo
model, quantised again) decode as the gguf package says, give the naive model's probabilities, and about those that llama.cpp itself computes."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llamina.bench.peers import llamacpp
from llamina.convert.convert import convert
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import DEMO, load_vocabulary
from llamina.kernels.formats import registry
from naive import kl, naive_logits
from runs import logits_of
from small_models import random_ids
from test_sources_families import CASES, folder_of

TYPES = {"q8_0": {"Q8_0"}, "q4_0": {"Q4_0", "Q6_K"}, "q4_1": {"Q4_1", "Q6_K"}, "q5_0": {"Q5_0", "Q6_K"}, "q5_1": {"Q5_1", "Q6_K"}, "q6_k": {"Q6_K"},
         "q4_k_m": {"Q4_K", "Q6_K"}, "q5_k_m": {"Q5_K", "Q6_K"}}
"""Recipe -> formats of the matrices that it makes."""


@pytest.fixture(scope="module")
def peer() -> Iterator[llamacpp.LlamaCpp]:
    if not os.environ.get(llamacpp.VARIABLE):
        pytest.skip(f"{llamacpp.VARIABLE} names no Python with llama-cpp-python")
    with llamacpp.start() as peer:
        yield peer


@pytest.fixture(scope="module")
def ids(real: Path) -> list[int]:
    return load_vocabulary("demo").encode((real / "text/tinystories_valid_part.txt").read_text()[:3000])[:320]


@pytest.mark.parametrize("type", TYPES)
def test_files_of_its_quantiser(type: str, peer: llamacpp.LlamaCpp, ids: list[int], tmp_path: Path) -> None:
    path = tmp_path / f"{type}.gguf"
    peer.ask("quantize", source=str(DEMO), target=str(path), type=type)
    reference = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with open_gguf(path) as file:
        assert {t.format.name for t in file.tensors.values() if len(t.shape) == 2} == TYPES[type]
        for t in file.tensors.values():
            expected = gguf.quants.dequantize(reference[t.name].data, reference[t.name].tensor_type).reshape(t.rows, t.cols)
            assert np.array_equal(registry.decode(t.format.name, file.data(t.name)), expected), t.name
    ours, naive = logits_of(path, ids), naive_logits(path, ids)
    peer.ask("load", model=str(path), threads=2)
    peer.ask("logits", ids=ids, save=str(tmp_path / "theirs.npy"))
    theirs = np.load(tmp_path / "theirs.npy")
    print(f"{type}: KL naive-ours {kl(naive, ours):.2e}, naive-llama.cpp {kl(naive, theirs):.2e}, llama.cpp-ours {kl(theirs, ours):.2e}")
    assert kl(naive, ours) <= 1e-3
    assert kl(theirs, ours) <= 3e-3


def test_tokens(peer: llamacpp.LlamaCpp, real: Path) -> None:
    """The demo model's vocabulary: the same ids from llama.cpp's tokenizer, without special tokens in the text."""
    peer.ask("load", model=str(DEMO), threads=2)
    tokenizer = load_vocabulary("demo")
    for text in ("Once upon a time", " two  spaces ", "Zoë said: 1,234 😀\n\n\tend", (real / "text/tinystories_valid_part.txt").read_text()[:20000]):
        assert peer.ask("tokenize", text=text) == tokenizer.encode(text)


@pytest.mark.parametrize("architecture", CASES)
def test_it_opens_families_that_convert_took_from_hugging_face(architecture: str, peer: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    """Float32, so that what differs is its KV cache and GELU in half precision. What llama.cpp has no place for is left out: an output matrix of Gemma's own,
    another scale of its scores, windows of EXAONE 4 of less than 64 layers."""
    other: dict[str, dict[str, Any]] = {"gemma2": {"query_pre_attn_scalar": 16, "final_logit_softcapping": 20.0}, "exaone4": {"sliding_window": None}}
    changes = other.get(architecture, {})
    folder, _ = folder_of(tmp_path / "m", architecture, "gemma" in architecture, **changes)
    path, ids = tmp_path / "m.gguf", random_ids(200, 320)
    convert(folder, path, "f32", verify=False, overwrite=True)
    peer.ask("load", model=str(path), threads=2)
    peer.ask("logits", ids=ids, save=str(tmp_path / "theirs.npy"))
    ours, theirs = logits_of(path, ids), np.load(tmp_path / "theirs.npy")
    assert np.abs(ours - theirs).max() <= 5e-3 * np.abs(ours).max()
