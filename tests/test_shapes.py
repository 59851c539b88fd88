"""The shapes of `llamina bench --shape`: as large as the models whose names they bear, and files that run."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llamina.bench.synthetic import SHAPES, write_model
from runs import logits_of
from small_models import random_ids

PARAMETERS = {"qwen3-4b": 4022468096, "gemma3-1b": 999885952, "gemma3-4b": 3880263168, "phi4-mini": 3836021760 + 2 * 48}
"""As their authors publish them (Gemma's without its eyes); Phi's factors of long RoPE are keys there and tensors here."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert sum(math.prod(t.shape) for t in SHAPES[name].config().tensors()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_file_runs(name: str, tmp_path: Path) -> None:
    """Fewer layers, a small vocabulary and narrow feed-forward; heads and windows as they are."""
    small = replace(SHAPES[name], n_vocab=300, n_layers=1, ffn_dim=256)
    logits = logits_of(write_model(tmp_path / "m.gguf", small, "q4_k_m"), random_ids(20), 1)
    assert logits.shape == (20, 300) and np.isfinite(logits).all() and 0.3 < logits.std() < 3
