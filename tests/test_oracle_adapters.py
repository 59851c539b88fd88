"""Adapters against those who made the forms: PEFT on transformers' models (extra `oracle` and the package peft), and llama.cpp with adapter files (where
LLAMINA_PEER_LLAMACPP names the Python of an environment that has it)."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_adapter
from families import checkpoint
from llamina.bench.peers import llamacpp
from llamina.convert.convert import convert
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import DEMO, load_vocabulary
from llamina.engine.run.runtime import Feed
from llamina.engine.train.adapter import Adapter
from naive import kl
from runs import open_runtime
from small_models import random_ids

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 3}}, "llama biases": {"use_rslora": True}, "qwen2": {},
    "phi3": {}, "gemma2": {"target_modules": ["q_proj", "o_proj", "down_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "gpt_neox": {"target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}, "qwen2 tied": {}, "cohere": {},
}


def logits_with(path: Path, adapter: Adapter, ids: list[int], scale: float = 1.0) -> np.ndarray:
    with open_runtime(path, 2) as runtime:
        adapter.check(runtime.config)
        runtime.adapters.add("a", adapter)
        return runtime.step([Feed(runtime.new_sequence(adapters={"a": scale}), ids, "all")]).copy()


@pytest.mark.parametrize("name", FAMILIES)
def test_peft(name: str, tmp_path: Path) -> None:
    """Folders that PEFT saves give transformers' logits: names, order of rows, fused and transposed matrices, patterns, rsLoRA."""
    torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    folder, model = checkpoint(name, tmp_path / "hf")
    convert(folder, tmp_path / "m.gguf", "f32", verify=False)
    torch.manual_seed(1)
    options = {"r": 5, "lora_alpha": 10, "target_modules": "all-linear", "init_lora_weights": False, **FAMILIES[name]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    adapted.save_pretrained(tmp_path / "peft")
    ids = random_ids(120, model.config.vocab_size)
    with torch.no_grad():
        expected = adapted(torch.tensor([ids])).logits[0].float().numpy()
        with adapted.disable_adapter():
            base = adapted(torch.tensor([ids])).logits[0].float().numpy()
    with open_gguf(tmp_path / "m.gguf") as file:
        adapter = Adapter.read(tmp_path / "peft", ModelConfig.from_gguf(file))
    found = logits_with(tmp_path / "m.gguf", adapter, ids)[:, :expected.shape[1]]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max() < 0.01 * np.abs(base - expected).max()


def test_llama_cpp(tmp_path: Path, real: Path) -> None:
    """Our files open there and give nearly our probabilities; F16 and F32."""
    if not os.environ.get(llamacpp.VARIABLE):
        pytest.skip(f"{llamacpp.VARIABLE} names no Python with llama-cpp-python")
    ids = load_vocabulary("demo").encode((real / "text/tinystories_valid_part.txt").read_text()[:3000])[:256]
    with open_gguf(DEMO) as file:
        config = ModelConfig.from_gguf(file)
    with llamacpp.start() as peer:
        peer.ask("load", model=str(DEMO), threads=2)
        for stored in "F32", "F16":
            adapter = random_adapter(config, rank=6, stored=stored, only=lambda name: name != "output.weight")
            adapter.save(tmp_path / "a.gguf")
            ours, plain = logits_with(DEMO, adapter, ids, 0.5), logits_with(DEMO, adapter, ids, 0.0)
            peer.ask("logits", ids=ids, save=str(tmp_path / "theirs.npy"), lora=str(tmp_path / "a.gguf"), scale=0.5)
            theirs = np.load(tmp_path / "theirs.npy")
            assert kl(theirs, ours) <= 5e-3 < 0.1 * kl(theirs, plain)
