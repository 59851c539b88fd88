"""Numbers that overflow on the way are an error that names the layer and the stage, never plausible text."""
from __future__ import annotations

import numpy as np
import pytest
from llamina.engine.config import ModelConfig
from llamina.engine.errors import FormatError, NumericError
from llamina.engine.gguf import open_gguf
from llamina.engine.runtime import Feed, Runtime
from small_models import write_small_model


def logits(path, ids=(1, 5, 9)):
    with open_gguf(path) as gguf:
        runtime = Runtime(gguf, ModelConfig.from_gguf(gguf), threads=1, context=64)
        try:
            return runtime.step([Feed(runtime.new_sequence(), list(ids), "all")])
        finally:
            runtime.close()


def scaled(tensor: str, factor: float):
    return lambda name, values: values * factor if name == tensor else values


@pytest.mark.parametrize(("tensor", "message"), [
    ("blk.1.attn_k.weight", r"layer 1 of 2 \(keys and values\)"), ("blk.0.attn_v.weight", r"layer 0 of 2 \(keys and values\)"),
    ("blk.1.ffn_up.weight", "ffn activation|layer 1|logits|output norm"), ("output.weight", "logits"),
])
def test_overflow_is_an_error(tmp_path, tensor, message):
    path = write_small_model(tmp_path / "m.gguf", "BF16", edit=scaled(tensor, 1e38 if "attn" not in tensor else 1e7))
    with pytest.raises(NumericError, match=message):
        logits(path)


def test_large_but_storable_keys_are_not(tmp_path):
    path = write_small_model(tmp_path / "m.gguf", "BF16", edit=scaled("blk.1.attn_k.weight", 1e3))
    assert np.isfinite(logits(path)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tensor", ["blk.1.ffn_down.weight", "blk.0.attn_norm.weight", "output.weight"])
def test_not_finite_weights_are_refused_at_load(tmp_path, tensor, value):
    def edit(name, values):
        if name == tensor:
            values = values.copy()
            values.flat[-1] = value
        return values
    path = write_small_model(tmp_path / "m.gguf", "F32", edit=edit)
    with pytest.raises(FormatError, match=f"tensor '{tensor}' holds NaN or infinity in row"):
        logits(path)


def test_not_finite_embeddings_are_refused_when_met(tmp_path):
    def edit(name, values):
        if name == "token_embd.weight":
            values = values.copy()
            values[9, 3] = np.nan
        return values
    path = write_small_model(tmp_path / "m.gguf", "F32", edit=edit)
    assert np.isfinite(logits(path, (1, 5))).all()
    with pytest.raises(FormatError, match=r"tensor 'token_embd.weight' holds NaN or infinity in row 9"):
        logits(path)
