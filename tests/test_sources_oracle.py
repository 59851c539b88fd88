"""Checkpoints that `transformers` writes (extra `oracle`), read by llamina, as a GGUF file through the engine: the same logits, and the same token ids."""
from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import all_rows, sentencepiece_model, write_gguf
from llamina.convert.sources import open_source
from llamina.engine.gguf.file import open_gguf
from llamina.engine.text.tokenizer import load_tokenizer
from runs import logits_of

torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed")

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, bfloat16": {"tie_word_embeddings": True, "dtype": torch.bfloat16},
    "float16 in shards": {"dtype": torch.float16, "shards": True},
    "wide heads": {"head_dim": 24, "num_key_value_heads": 1},
    "linear": {"rope": {"rope_type": "linear", "factor": 3.0}},
    "yarn": {"rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "yarn, own attention factor": {"rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3}},
    "llama 3": {"theta": 500000.0, "rope": LLAMA3},
    "mistral": {"mistral": True},
}


def saved(folder: Path, config: dict[str, Any]) -> Any:
    """A random model, saved by transformers; returned in float64."""
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 320,
              "max_position_embeddings": 256, "tie_word_embeddings": False, **config}
    theta, rope, dtype, shards = config.pop("theta", 10000.0), config.pop("rope", None), config.pop("dtype", torch.float32), config.pop("shards", False)
    mistral = config.pop("mistral", False)
    if int(transformers.__version__.split(".")[0]) >= 5:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, **(rope or {})}
    else:
        config.update(rope_theta=theta, rope_scaling=rope)
    torch.manual_seed(0)
    kind = (transformers.MistralConfig, transformers.MistralForCausalLM) if mistral else (transformers.LlamaConfig, transformers.LlamaForCausalLM)
    if mistral:
        config["sliding_window"] = None
    model = kind[1](kind[0](**config, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if "norm" in name else torch.randn_like(weight) * weight.shape[-1] ** -0.5)
            weight.copy_(weight.to(dtype))
    copy.deepcopy(model).to(dtype).save_pretrained(folder, **({"max_shard_size": "100KB"} if shards else {}))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return model.double()  # the one that was not cast: casting rounds RoPE's frequencies too


def reference(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    model = saved(folder, CONFIGS[name])
    with open_source(folder) as source:
        assert (len([f for f in source.files if f.suffix == ".safetensors"]) > 1) == ("shards" in CONFIGS[name])
        path = write_gguf(tmp_path / "m.gguf", source)
    ids = np.random.default_rng(0).integers(3, 320, 200).tolist()
    ref, comp = reference(model, ids), logits_of(path, ids)
    assert np.abs(comp - ref).max() <= 1e-4 * np.abs(ref).max()


def test_state_dict(tmp_path: Path) -> None:
    """pytorch_model.bin, as torch.save writes it."""
    model = saved(tmp_path, {}).float()
    with open_source(tmp_path) as source:
        ref = all_rows(source)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with open_source(tmp_path) as source:
        comp = all_rows(source)
    for name, values in ref.items():
        np.testing.assert_array_equal(comp[name], values, err_msg=name)


def test_tinystories(real: Path, tmp_path: Path) -> None:
    """The published model: logits in F32, and ids by the folder's own tokenizer.json, as transformers' generic fast tokenizer reads it."""
    folder = real / "hf-tinystories-656k"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    with open_source(folder) as source:
        path = write_gguf(tmp_path / "m.gguf", source)
    with open_gguf(path) as gguf:
        ours = load_tokenizer(gguf.metadata)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    story = (real / "text" / "tinystories_sample_cs336.txt").read_text().split("<|endoftext|>")[0].strip()
    rng = random.Random(0)
    texts = [story, "Once upon a time", "", " ", "  a", "\n", "héllo", "日本", "a\tb", "😀", "#%&"]
    texts += ["".join(rng.choice(ours.vocabulary.tokens[3:]) for _ in range(12)).replace("▁", " ") for _ in range(100)]
    for text in texts:
        if "<|" not in text:
            assert ours.encode(text) == theirs(text)["input_ids"], text
    ids = ours.encode(story)
    ref, comp = reference(model, ids), logits_of(path, ids)
    assert np.abs(comp - ref).max() <= 1e-4 * np.abs(ref).max()
