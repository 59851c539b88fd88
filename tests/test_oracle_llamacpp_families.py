"""States, experts and Gemma 4 against llama.cpp on the same F32 file (LLAMINA_PEER_LLAMACPP names a Python that has llama-cpp-python): small random models of
the tests' own pages, and what `convert` makes of transformers' checkpoints (extra `oracle`). With a float32 KV cache in both, what differs is the order of
sums.

What llama.cpp has no place for is left out: YaRN whose corrections are not whole pairs (gpt-oss), heads of OLMoE that share keys, fused rows of Qwen's experts;
and what it dies of: Granite's hybrids without experts (it wants twice the width), sizes of Nemotron's experts and of Falcon's groups that are no multiple of
its blocks, V2-Lite's page of three layers (it knows that model by its 27).
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import checkpoint
from llamina.bench.peers import llamacpp
from llamina.convert.convert import convert
from page_cases import CASES, SIZES
from runs import open_runtime, run
from small_models import random_ids, write_family
from test_oracle_llamacpp import peer

__all__ = ["peer"]
IDS = random_ids(200)
NO_YARN = {"rope.scaling.type": None, "rope.scaling.factor": None, "rope.scaling.original_context_length": None}
PAGES: dict[str, dict[str, Any]] = {
    "mixtral": {}, "qwen2moe": {}, "qwen3moe": {}, "olmoe": {"attention.head_count_kv": 6}, "granitemoe": {}, "granitemoe shared": {}, "gpt-oss": NO_YARN,
    "lfm2": {}, "lfm2 odd": {}, "lfm2moe": {}, "qwen35": {"nextn_predict_layers": None}, "qwen35 wide": {}, "qwen35moe": {},
    "qwen3next": {}, "granitehybrid": {}, "nemotron_h": {}, "falcon-h1": {}, "deepseek2 sigmoid": {}}
"""Case -> keys that differ from it."""
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "mixtral": {}, "qwen2_moe": {}, "qwen3_moe": {}, "olmoe": {"num_key_value_heads": 6}, "granitemoe": {}, "granitemoe shared": {},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}, "lfm2": {}, "lfm2_moe": {"routed_scaling_factor": 1.0}, "qwen35": {},
    "qwen35 tied": {}, "qwen35_moe": {}, "qwen3_next": {}, "nemotron_h": {}, "nemotron_h experts": {}, "falcon_h1": {}, "deepseek_v2": {}, "glm4 lite": {}}


def distance(path: Path, peer: llamacpp.LlamaCpp) -> float:
    """Largest difference of logits, of the largest logit; keys and values float32 in both."""
    with open_runtime(path, 2, 256, "f32") as runtime:
        ours = run(runtime, IDS)
    peer.ask("load", model=str(path), threads=2)
    peer.ask("logits", ids=IDS, save=str(path.with_suffix(".npy")), kv="f32")
    return float(np.abs(ours - np.load(path.with_suffix(".npy"))).max() / np.abs(ours).max())


def write(path: Path, name: str, changes: dict[str, Any], edit: Any = None) -> Path:
    case = CASES[name]
    return write_family(path, case.architecture, {**SIZES, **case.keys, **changes}, tensors=case.tensors, edit=edit)


@pytest.mark.parametrize("name", PAGES)
def test_pages(name: str, peer: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    assert distance(write(tmp_path / "m.gguf", name, PAGES[name]), peer) <= 2e-5


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_convert_writes(name: str, peer: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="extra 'oracle' is not installed")
    folder, _ = checkpoint(name, tmp_path / "hf", **CHECKPOINTS[name])
    convert(folder, tmp_path / "m.gguf", "f32", verify=False)
    assert distance(tmp_path / "m.gguf", peer) <= 5e-5


GEMMA4: dict[str, dict[str, Any]] = {"gemma4": {}, "gemma4 v is k": {
    "attention.sliding_window_pattern": [True, True, True, True, True, False, True], "embedding_length_per_layer_input": 0}}


@pytest.mark.parametrize("name", GEMMA4)
def test_gemma4_differs_by_gelu_alone(name: str, peer: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    """llama.cpp looks GELU up in a table of half precision between -10 and 10. With gates so large that hardly any is in between, the logits are the same."""
    def wide(tensor: str, x: np.ndarray) -> np.ndarray:
        return x * np.float32(1e4) if "ffn_gate" in tensor or "inp_gate" in tensor else x
    assert distance(write(tmp_path / "wide.gguf", name, GEMMA4[name], wide), peer) <= 5e-5
    assert 1e-4 < distance(write(tmp_path / "m.gguf", name, GEMMA4[name]), peer) <= 5e-3


@pytest.mark.parametrize("name", ["gemma4", "gemma4 v is k", "gemma4 plain"])
def test_gemma4_that_convert_writes(name: str, peer: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="extra 'oracle' is not installed")
    folder, _ = checkpoint(name, tmp_path / "hf", tie_word_embeddings=True)
    convert(folder, tmp_path / "m.gguf", "f32", verify=False)
    assert distance(tmp_path / "m.gguf", peer) <= 5e-3
