"""Adapters as files: llama.cpp's GGUF form and PEFT folders say the same; what is not an adapter of the model is refused in one line."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_adapter, write_peft
from checkpoints import write_safetensors
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.errors import FormatError, LlaminaError, OptionError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.train import peft
from llamina.engine.train.adapter import Adapter, Pair, scale_of
from small_models import write_family, write_small_model


def config_of(path: Path) -> ModelConfig:
    with open_gguf(path) as file:
        return ModelConfig.from_gguf(file)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return config_of(write_small_model(tmp_path_factory.mktemp("adapters") / "m.gguf", "Q4_0"))


def same(a: Adapter, b: Adapter) -> bool:
    return a.pairs.keys() == b.pairs.keys() and all(
        np.array_equal(p.a, b.pairs[n].a) and np.array_equal(p.b, b.pairs[n].b) and p.scale == b.pairs[n].scale for n, p in a.pairs.items())


@pytest.mark.parametrize("stored", ["F32", "F16"])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, config: ModelConfig, stored: str) -> None:
    adapter = random_adapter(config, stored=stored)
    adapter.check(config)
    adapter.metadata["general.name"] = "mine"
    adapter.save(tmp_path / "a.gguf")
    found = Adapter.read(tmp_path / "a.gguf")
    found.check(config)
    assert same(adapter, found) and found.digest == adapter.digest and found.alpha == 8 and found.metadata["general.name"] == "mine"
    assert {pair.stored for pair in found.pairs.values()} == {stored}


def test_scales_that_no_alpha_says_are_folded(tmp_path: Path, config: ModelConfig) -> None:
    """Ranks differ and so would alpha / rank: products stay what they were. One rank's rsLoRA needs no folding: its alpha says it."""
    adapter = random_adapter(config, rank=lambda name: 8 if "attn" in name else 2)
    for pair in adapter.pairs.values():
        pair.scale = 0.7
    adapter.save(tmp_path / "a.gguf")
    found = Adapter.read(tmp_path / "a.gguf")
    for name, pair in adapter.pairs.items():
        np.testing.assert_allclose(found.pairs[name].scale * found.pairs[name].b, pair.scale * pair.b, rtol=1e-6)
    one = random_adapter(config, rank=5)
    one.rslora = True
    for pair in one.pairs.values():
        pair.scale = scale_of(one.alpha, 5, True)
    one.save(tmp_path / "b.gguf")
    assert same(one, Adapter.read(tmp_path / "b.gguf"))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gptneox"])
def test_a_peft_folder_is_the_same_adapter(tmp_path: Path, architecture: str) -> None:
    """Names, order of rows and patterns: llama's q and k are permuted, phi3's are fused, GPT-NeoX's heads are."""
    more: dict[str, Any] = {"gptneox": {"attention.head_count_kv": None, "attention.layer_norm_rms_epsilon": None,
                                         "use_parallel_residual": True, "rope.dimension_count": 4}}.get(architecture, {})
    config = config_of(write_family(tmp_path / "m.gguf", architecture, more, tensors=["output.weight", *([
        "blk.*.attn_qkv.weight"] if architecture in ("phi3", "gptneox") else [])]))
    adapter = random_adapter(config, rank=lambda name: 3 if name.startswith("blk.1.") else 4)
    folder = write_peft(tmp_path / "peft", config, adapter)
    assert same(Adapter.read(folder, config), adapter)


def test_options_of_peft(tmp_path: Path, config: ModelConfig) -> None:
    adapter = random_adapter(config, stored="F16")
    found = Adapter.read(write_peft(tmp_path / "a", config, adapter, "F16", use_rslora=True, alpha_pattern={"q_proj": 4, "layers.1.mlp.up_proj": 2}), config)
    assert {pair.stored for pair in found.pairs.values()} == {"F16"}
    assert [found.pairs[f"blk.{n}.weight"].scale for n in ("0.attn_q", "1.attn_q", "0.ffn_up", "1.ffn_up")] == [2, 2, 4, 1]
    with pytest.raises(OptionError, match="give the model"):
        Adapter.read(tmp_path / "a")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"bias": "all"}, "bias"), ({"peft_type": "IA3"}, "IA3"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"), ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"lora_bias": True}, "lora_bias"), ({"trainable_token_indices": [1]}, "trainable_token_indices"), ({"some_new_kind": 3}, "some_new_kind"),
    ({"r": 0}, "r must be"), ({"lora_alpha": "many"}, "lora_alpha"), ({"r": 5}, "rank 5"), ({"alpha_pattern": {".*q.*": 3}}, "regular"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED, ids=lambda x: next(iter(x)) if isinstance(x, dict) else None)
def test_what_a_peft_folder_may_not_ask_for(tmp_path: Path, config: ModelConfig, options: dict[str, Any], says: str) -> None:
    folder = write_peft(tmp_path / "a", config, random_adapter(config), **options)
    with pytest.raises(LlaminaError, match=says) as error:
        Adapter.read(folder, config)
    assert "\n" not in str(error.value) and str(folder) in str(error.value) or "regular" in says


@pytest.mark.parametrize(("name", "says"), [
    ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"), ("base_model.model.lm_head.weight", "replaced"),
    ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"), ("base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight", "no matrix"),
    ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "no matrix"),
])
def test_tensors_that_are_no_pair(tmp_path: Path, config: ModelConfig, name: str, says: str) -> None:
    folder = write_peft(tmp_path / "a", config, random_adapter(config))
    write_safetensors(folder / "adapter_model.safetensors", {name: np.ones((4, 64), np.float32)})
    with pytest.raises(UnsupportedError, match=says):
        Adapter.read(folder, config)


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "base_model.model.language_model.", "language_model.",
                                    ("model.", "model.language_model.")], ids=str)
def test_names_of_models_of_several_parts(tmp_path: Path, config: ModelConfig, prefix: Any) -> None:
    """What convert reads as a tensor of the text's part is one here, too."""
    folder, adapter = write_peft(tmp_path / "a", config, random_adapter(config)), random_adapter(config)
    file, start = folder / "adapter_model.safetensors", "base_model.model."
    tensors = {}
    for name, values, _ in peft._tensors(file):
        bare = name.removeprefix(start)
        tensors[start + bare.replace(prefix[0], prefix[1], 1) if isinstance(prefix, tuple) else prefix + bare] = values
    write_safetensors(file, tensors)
    assert same(Adapter.read(folder, config), adapter)


def test_folders_that_are_not_whole(tmp_path: Path, config: ModelConfig) -> None:
    folder = write_peft(tmp_path / "a", config, random_adapter(config))
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(FormatError, match="truncated"):
        Adapter.read(folder, config)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(LlaminaError, match="no such file"):
        Adapter.read(folder, config)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(FormatError, match="JSON"):
        Adapter.read(folder, config)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(LlaminaError, match="adapter_config.json"):
        Adapter.read(folder, config)


def bad(config: ModelConfig, change: Any) -> Adapter:
    adapter = random_adapter(config)
    change(adapter)
    return adapter


def set_pair(name: str, a: tuple[int, int], b: tuple[int, int], fill: float = 0.1) -> Any:
    def change(adapter: Adapter) -> None:
        adapter.pairs[name] = Pair(np.full(a, fill, np.float32), np.full(b, fill, np.float32), 1.0)
    return change


@pytest.mark.parametrize(("change", "says"), [
    (lambda a: setattr(a, "architecture", "qwen2"), "architecture 'qwen2'"), (lambda a: a.pairs.clear(), "no pairs"),
    (set_pair("blk.0.attn_q.weight", (0, 64), (64, 0)), "rank is 0"), (set_pair("blk.0.attn_q.weight", (65, 64), (64, 65)), "rank is 65"),
    (set_pair("blk.0.attn_q.weight", (4, 32), (64, 4)), "do not fit"), (set_pair("blk.0.attn_k.weight", (4, 64), (64, 4)), "do not fit"),
    (set_pair("blk.0.attn_q.weight", (4, 64), (64, 4), np.nan), "NaN"), (set_pair("blk.7.attn_q.weight", (4, 64), (64, 4)), "no such tensor"),
    (set_pair("token_embd.weight", (4, 64), (288, 4)), "embeddings"), (set_pair("blk.0.attn_norm.weight", (1, 1), (64, 1)), "vector"),
    (lambda a: setattr(a.pairs["blk.0.attn_q.weight"], "a", np.ones((4, 64))), "float64"),
])
def test_adapters_of_another_model(config: ModelConfig, change: Any, says: str) -> None:
    with pytest.raises(LlaminaError, match=says):
        bad(config, change).check(config)


def test_experts_have_no_adapters(tmp_path: Path) -> None:
    config = config_of(write_family(tmp_path / "m.gguf", "qwen3moe", {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}))
    assert not [name for name in random_adapter(config).pairs if "ffn" in name]
    for name in "blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_inp.weight":
        with pytest.raises(UnsupportedError, match="experts"):
            bad(config, set_pair(name, (1, 64), (32, 1))).check(config)


def test_files_that_are_no_adapter(tmp_path: Path, config: ModelConfig) -> None:
    model = write_small_model(tmp_path / "m.gguf", "Q4_0")
    with pytest.raises(FormatError, match="expected an adapter"):
        Adapter.read(model)
    random_adapter(config).save(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    for cut in 3, len(whole) // 10, len(whole) // 2, len(whole) - 100:
        (tmp_path / "b.gguf").write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            Adapter.read(tmp_path / "b.gguf")
    (tmp_path / "b.gguf").write_bytes(whole.replace(b"attn_q.weight.lora_b", b"attn_q.weight.lora_c"))
    with pytest.raises(UnsupportedError, match="lora_c"):
        Adapter.read(tmp_path / "b.gguf")
    (tmp_path / "b.gguf").write_bytes(whole.replace(b"\x04\0\0\0\0\0\0\0lora", b"\x04\0\0\0\0\0\0\0dora"))
    with pytest.raises(UnsupportedError, match="dora"):
        Adapter.read(tmp_path / "b.gguf")


def test_a_checkpoint_of_hugging_face_says_nothing_new(tmp_path: Path, config: ModelConfig) -> None:
    """Keys that PEFT writes today and that change nothing."""
    folder = write_peft(tmp_path / "a", config, random_adapter(config), eva_config=None, megatron_core="megatron.core", qalora_group_size=16, use_qalora=False,
                        loftq_config={}, exclude_modules=None, revision="main", peft_version="0.19", lora_bias=False, target_parameters=None,
                        layers_to_transform=[0, 1], init_lora_weights="gaussian", fan_in_fan_out=False, corda_config=None)
    assert same(Adapter.read(folder, config), random_adapter(config))
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
