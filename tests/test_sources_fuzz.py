"""Settings files with values of any kind in any place, and weights files cut or changed anywhere: a clear error or a usable source, never another exception."""
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY, hf_weights, random_weights, sentencepiece_model, with_, write_hf, write_llama2c, write_meta, write_tokenizer_bin, write_torch
from fuzz.mutate import places, replaced
from llamina.convert.sources import open_source
from llamina.engine.errors import LlaminaError
from test_sources_tokenizers import byte_level, spm_like

VALUES: list[Any] = [None, 0, -1, 5, 1 << 70, 1.5, 1e300, "x", "", [], {}, True, [None], ["x", 5], {"x": None}, [[1, 2], {}], {"content": 5}]


def attempt(path: Path) -> str:
    try:
        with open_source(path) as source:
            for tensor in source.tensors:
                tensor.rows(0, 1)
        return "opened"
    except LlaminaError as error:
        assert "\n" not in str(error) and len(str(error)) < 800 + len(str(path))
        return type(error).__name__


SETTINGS = {
    "tokenizer_config.json": {"added_tokens_decoder": {"320": {"content": "<x>", "special": True}}, "bos_token": "<s>", "eos_token": {"content": "</s>"},
                              "add_bos_token": True, "chat_template": [{"name": "default", "template": "A"}]},
    "generation_config.json": {"eos_token_id": [2, 300], "bos_token_id": 1, "temperature": 0.5, "top_k": 5, "do_sample": True},
    "added_tokens.json": {"<y>": 321}, "chat_template.json": {"chat_template": "B"},
}


def test_settings(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", with_(TINY, n_layers=1, n_vocab=324), rope_scaling={"type": "yarn", "factor": 2.0, "mscale": 0.5, "mscale_all_dim": 1.0},
                      quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]}, layer_types=["full_attention"])
    for name, values in SETTINGS.items():
        (folder / name).write_text(json.dumps(values))
    assert attempt(folder) == "opened"
    rng = random.Random(0)
    outcomes = set()
    for name in ["config.json", *SETTINGS]:
        text = (folder / name).read_text()
        for path in places(json.loads(text)):
            for new in rng.sample(VALUES, 6):
                (folder / name).write_text(json.dumps(replaced(json.loads(text), path, new)))
                outcomes.add(attempt(folder))
        (folder / name).write_text(text)
    assert outcomes >= {"opened", "FormatError", "UnsupportedError"}


@pytest.mark.parametrize("make", [spm_like, byte_level])
def test_tokenizer_json(tmp_path: Path, make: Any) -> None:
    folder = write_hf(tmp_path / "m", with_(TINY, n_layers=1, n_vocab=710), tokenizer=False)
    text = make(folder / "tokenizer.json").read_text()
    assert attempt(folder) == "opened"
    rng = random.Random(1)
    outcomes = set()
    for path in places(json.loads(text)):
        for new in rng.sample(VALUES, 3):
            (folder / "tokenizer.json").write_text(json.dumps(replaced(json.loads(text), path, new)))
            outcomes.add(attempt(folder))
    assert outcomes >= {"FormatError", "UnsupportedError"}


def test_params(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "m", with_(TINY, n_layers=1), random_weights(with_(TINY, n_layers=1)), 2, use_scaled_rope=True, rope_theta=5e5,
        rope_scaling_factor=8)
    text = (folder / "params.json").read_text()
    assert attempt(folder) == "opened"
    for path in places(json.loads(text)):
        for new in VALUES:
            (folder / "params.json").write_text(json.dumps(replaced(json.loads(text), path, new)))
            attempt(folder)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "llama2c", "llama2c v2", "tokenizer.model", "tok.bin"])
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_changed_bytes(tmp_path: Path, kind: str) -> None:
    t = with_(TINY, n_layers=1)
    weights = random_weights(t)
    if kind in ("safetensors", "torch", "tokenizer.model"):
        source = folder = write_hf(tmp_path / "m", t, weights)
        file = folder / ("tokenizer.model" if kind == "tokenizer.model" else "model.safetensors")
        if kind == "torch":
            file.unlink()
            file = write_torch(folder / "pytorch_model.bin", hf_weights(t, weights))
    else:
        source = write_llama2c(tmp_path / "m.bin", t, weights, 2 if "v2" in kind else 0)
        file = source if kind != "tok.bin" else tmp_path / "tok320.bin"
        write_tokenizer_bin(tmp_path / "tok320.bin", sentencepiece_model())
    whole = file.read_bytes()
    assert attempt(source) == "opened"
    rng = random.Random(2)
    outcomes = set()
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            near = rng.random() < 0.7
            data[rng.randrange(min(len(data), 2500) if near else len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        file.write_bytes(data)
        outcomes.add(attempt(source))
    assert len(outcomes) > 1
