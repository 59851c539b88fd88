"""Every family against transformers' own class (extra `oracle`): tiny random checkpoints, converted to F32 and run; logits of 300 tokens to
1e-4 of the largest."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import VARIANTS, checkpoint, class_of
from llamina.convert.convert import convert
from llamina.engine.architectures.pages import PAGES
from runs import logits_of
from small_models import random_ids

torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
pytest.importorskip("transformers", reason="extra 'oracle' is not installed")

TOKENS = 300


@pytest.mark.parametrize("name", VARIANTS)
def test_family(name: str, tmp_path: Path) -> None:
    kind = class_of(VARIANTS[name].kind)
    if not any(kind in page.hf for page in PAGES.values()):
        pytest.skip(f"no page is of {kind}")
    folder, model = checkpoint(name, tmp_path / "hf")
    ids = random_ids(TOKENS, model.config.vocab_size)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].float().numpy()
    path = tmp_path / "m.gguf"
    convert(folder, path, "f32")
    logits = logits_of(path, ids)[:, :expected.shape[1]]
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
