"""Layers of other widths in windowed groups of the KV cache: units that waste nothing, and the bits of a model that keeps every page."""
from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from llamina.bench.synthetic import SHAPES
from llamina.engine.model import load
from llamina.engine.run import memory
from llamina.engine.run.kv_cache import KV_TYPES, PAGE
from llamina.engine.run.kv_groups import kv_layout
from llamina.engine.run.runtime import Feed
from small_models import random_ids, write_family

KEYS = {"attention.sliding_window": 40, "attention.sliding_window_pattern": [True, True, False, True, True, True, False, True], "context_length": 8192,
        "attention.key_length": 32, "attention.value_length": 32, "attention.key_length_swa": 16, "attention.value_length_swa": 16, "block_count": 8,
        "attention.shared_kv_layers": 2, "rope.freq_base": 1000000.0, "attention.head_count_kv": [1, 1, 2, 1, 1, 1, 2, 1]}
TEXT = random_ids(1400, seed=3)


def test_gemma4_e2b_wastes_nothing() -> None:
    """12 windowed layers of 1 x 256 and 3 full ones of 1 x 512 keep keys; 20 read theirs."""
    config = SHAPES["gemma4-e2b"].config()
    layout = kv_layout(config, KV_TYPES["f16"], 1 << 15, 512)
    assert (layout.unit, layout.whole, layout.windowed) == (2 * PAGE * 1024, 3, 6) and len(layout.places) == 15
    assert len(set(layout.places)) == 15 and {at for _, (_, at) in layout.places} == {0, PAGE * 1024}
    assert {a.kv_layer for a in config.attentions()} == {layer for layer, _ in layout.places}
    assert all(row < 3 for layer, (row, _) in layout.places if layer in (4, 9, 14)) and layout.window == 512


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_giving_pages_back_shows_in_no_bit(kv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = write_family(tmp_path / "m.gguf", "gemma4", KEYS, "Q8_0"), []
    for keeping in True, False:
        with monkeypatch.context() as patch:
            if keeping:
                patch.setattr(memory, "kv_layout", lambda config, kv, context, step: kv_layout(config, kv, PAGE, step))
            model = load(path, threads=2, context=1536, kv=kv)
        with model:
            assert bool(model.runtime.plan.layout.windowed) != keeping
            sequence, sums = model.runtime.new_sequence(slides=True), []
            for start in range(0, len(TEXT), 200):
                sums.append(zlib.crc32(model.runtime.step([Feed(sequence, TEXT[start:start + 200])]).tobytes()))
            found.append(sums)
            if not keeping:
                layout = model.runtime.plan.layout
                assert layout.windowed < 5 and len(sequence._windows) <= layout.most
            sequence.close()
    assert found[0] == found[1]
