"""The shapes of `llamina bench --shape`: as large as the models whose names they bear, and files that run."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llamina.bench.synthetic import SHAPES, shape_named, write_model
from llamina.engine.errors import OptionError
from runs import logits_of
from small_models import random_ids

PARAMETERS = {"qwen3-4b": 4022468096, "gemma3-1b": 999885952, "gemma3-4b": 3880263168, "phi4-mini": 3836021760 + 2 * 48}
"""As their authors publish them (Gemma's without its eyes); Phi's factors of long RoPE are keys there and tensors here."""


WITH_EXPERTS = {"qwen3-30b-a3b": 30532122624, "lfm2-8b-a1b": 8339929856 + 22 * 32, "gpt-oss-20b": 20914757184}
"""LFM2's biases of choice are counted by nobody."""


@pytest.mark.parametrize("name", [*PARAMETERS, *WITH_EXPERTS])
def test_parameters(name: str) -> None:
    assert sum(math.prod(t.shape) for t in SHAPES[name].config().tensors()) == {**PARAMETERS, **WITH_EXPERTS}[name]


@pytest.mark.parametrize("name, type", [("qwen3-30b-a3b", "q4_k_m"), ("lfm2-8b-a1b", "q4_k_m"), ("gpt-oss-20b", "mxfp4")])
def test_a_file_with_experts_runs(name: str, type: str, tmp_path: Path) -> None:
    """Some layers, a few narrow experts."""
    shape = shape_named(f"{name}:3")
    few = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 256}
    small = replace(shape, n_vocab=300, ffn_dim=256, keys=tuple((key, few.get(key, value)) for key, value in shape.keys))
    logits = logits_of(write_model(tmp_path / "m.gguf", small, type), random_ids(20), 1)
    assert logits.shape == (20, 300) and np.isfinite(logits).all() and 0.3 < logits.std() < 3


def test_another_number_of_layers() -> None:
    assert shape_named("1b:4") == replace(SHAPES["1b"], n_layers=4) and shape_named("1b") == SHAPES["1b"]
    assert len(dict(shape_named("lfm2-8b-a1b:3").keys)["attention.head_count_kv"]) == 3
    for bad in "2b", "1b:", "1b:0", "1b:x", "1b:-3", "lfm2-8b-a1b:30":
        with pytest.raises(OptionError):
            shape_named(bad)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_file_runs(name: str, tmp_path: Path) -> None:
    """Fewer layers, a small vocabulary and narrow feed-forward; heads and windows as they are."""
    small = replace(SHAPES[name], n_vocab=300, n_layers=1, ffn_dim=256)
    logits = logits_of(write_model(tmp_path / "m.gguf", small, "q4_k_m"), random_ids(20), 1)
    assert logits.shape == (20, 300) and np.isfinite(logits).all() and 0.3 < logits.std() < 3
