"""Every encoder against transformers' own class (extra `oracle`): tiny random checkpoints, converted to F32; rows of 300 tokens to 1e-4 of the largest."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_checkpoints import VARIANTS, checkpoint, expected
from llamina.convert.convert import convert
from llamina.engine.model import load
from llamina.engine.score.embedding import pooled
from llamina.engine.score.pooling import head_scores

torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
pytest.importorskip("transformers", reason="extra 'oracle' is not installed")


@pytest.mark.parametrize("name", VARIANTS)
def test_encoder(name: str, tmp_path: Path) -> None:
    folder, model = checkpoint(name, tmp_path / "hf")
    ids = np.random.default_rng(0).integers(3, 384, 300).tolist()
    types = [0] * 100 + [1] * 200 if name == "bert rank" else None
    want, path = expected(model, ids, types), tmp_path / "m.gguf"
    convert(folder, path, "f32", verify=False)
    with load(path, threads=2) as ours:
        head = ours.config.pooling.head
        if want.ndim == 1:
            assert head is not None
            found = head_scores(head, ours.runtime.kept, next(pooled(ours, [ids], head.pooling, [types] if types else None)).result())
        else:
            found = next(pooled(ours, [ids], "none")).result()
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()
