"""Numbers that overflow on the way are an error that names the layer and the stage, never plausible text."""
from __future__ import annotations

import numpy as np
import pytest
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.errors import FormatError, NumericError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run.runtime import Feed, Runtime
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
@pytest.mark.parametrize("tensor", ["blk.1.ffn_down.weight", "blk.0.attn_norm.weight", "output.weight", "token_embd.weight"])
def test_not_finite_weights_are_refused_at_load(tmp_path, tensor, value):
    def edit(name, values):
        if name == tensor:
            values = values.copy()
            values.flat[-1] = value
        return values
    path = write_small_model(tmp_path / "m.gguf", "F32", edit=edit)
    with pytest.raises(FormatError, match=f"tensor '{tensor}' holds NaN or infinity in row"):
        logits(path)


@pytest.mark.filterwarnings("ignore:overflow")
def test_embeddings_that_overflow_are_refused_when_met(tmp_path):
    """Every scale is a finite number, which is what loading looks at, but what a block of row 9 means is not."""
    path = write_small_model(tmp_path / "m.gguf", "MXFP4", blocks=True)
    with open_gguf(path) as gguf:
        t = gguf.tensors["token_embd.weight"]
        row_bytes = t.format.row_bytes(t.shape[1])
    raw = bytearray(path.read_bytes())
    at = t.offset + 9 * row_bytes
    raw[at:at + 17] = bytes([254]) + b"\x77" * 16  # 2^126 (half of 2^127: codes count halves) times twelve
    path.write_bytes(raw)
    assert np.isfinite(logits(path, (1, 5))).all()
    with pytest.raises(FormatError, match=r"tensor 'token_embd.weight' holds NaN or infinity in row 9"):
        logits(path)
