"""The engine against the float64 model of naive.py, and that model against numbers that others found.

F32 files: max|difference| <= 1e-4 max|logit|. Quantised files: the naive model runs on the dequantised weights, so what is left is the int8 rounding of
activations (and the f16 KV cache): mean KL <= 1e-3 nats a token.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.model import DEMO
from naive import NaiveLlama, kl, naive_logits, nll
from runs import logits_of
from small_models import ALL_FORMATS, random_ids, write_small_model

STORIES = "llama2c/stories260K.gguf"


def stories_ids(real: Path, text: str) -> list[int]:
    sentencepiece = pytest.importorskip("sentencepiece")
    return [1, *sentencepiece.SentencePieceProcessor(model_file=str(real / "llama2c/tok512.model")).encode(text)]


def largest_difference(path: Path, ids: list[int]) -> float:
    """max |engine - naive| / max |naive|"""
    expected = naive_logits(path, ids)
    return float(np.abs(logits_of(path, ids) - expected).max() / np.abs(expected).max())


# ---------------------------------------------------------------------------------------------------------------- the naive model itself

def test_naive_likelihood_of_a_sentence(real: Path) -> None:
    """54.404154 was found by an independent float64 implementation, 54.404121 by run.c."""
    case = json.loads((real / "llama2c/stories260K_nll.json").read_text())
    ids = stories_ids(real, case["sentence"])
    assert len(ids) == case["n_tokens"]
    assert abs(nll(naive_logits(real / STORIES, ids), ids) - 54.404154) < 5e-6


def test_naive_greedy_text(real: Path) -> None:
    model, ids = NaiveLlama(real / STORIES), [1]
    for _ in range(40):
        ids.append(int(model.logits(ids)[-1].argmax()))
    sentencepiece = pytest.importorskip("sentencepiece")
    text = sentencepiece.SentencePieceProcessor(model_file=str(real / "llama2c/tok512.model")).decode(ids)
    assert len(text) > 80 and (real / "llama2c/stories260K_greedy.txt").read_text().startswith(text)


# ---------------------------------------------------------------------------------------------------------------- F32

def test_stories_f32(real: Path) -> None:
    ids = stories_ids(real, (real / "text/tinystories_valid_part.txt").read_text()[:2000])[:320]
    assert len(ids) == 320
    assert largest_difference(real / STORIES, ids) <= 1e-4


CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "one head": {"n_heads": 1, "n_kv_heads": 1, "head_dim": 64},
    "head size 8, 172 columns": {"n_heads": 8, "n_kv_heads": 4, "ffn_dim": 172},
    "head size 2": {"n_heads": 4, "n_kv_heads": 4, "head_dim": 2},
    "head size 24, not dim / heads": {"n_heads": 3, "n_kv_heads": 3, "head_dim": 24},
    "six query heads share one": {"dim": 96, "n_heads": 6, "n_kv_heads": 1},
    "wide heads, odd sizes": {"dim": 52, "n_heads": 4, "n_kv_heads": 2, "head_dim": 128, "ffn_dim": 131, "n_vocab": 283},
    "tied": {"tied_output": True},
    "large eps": {"rms_eps": 0.1},
    "rope base": {"rope_base": 500000.0},
    "linear": {"rope": {"type": "linear", "factor": 4.0}},
    "yarn": {"rope": {"type": "yarn", "factor": 4.0, "original_context_length": 64}},
    "yarn, own betas": {"head_dim": 64, "rope": {"type": "yarn", "factor": 8.0, "original_context_length": 128, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}},
    "yarn, attn_factor": {"rope": {"type": "yarn", "factor": 2.0, "original_context_length": 512, "attn_factor": 0.8}},
    "llama 3": {"rope_base": 500000.0, "freq_factors": np.array([1.0, 1.0, 1.0, 1.7, 3.1, 8.0, 8.0, 8.0])},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_small_f32(config: dict[str, Any], tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.gguf", "F32", seed=1, **config)
    assert largest_difference(path, random_ids(300, config.get("n_vocab", 288))) <= 1e-4


@pytest.mark.parametrize("format", ["F16", "BF16"])
def test_small_half(format: str, tmp_path: Path) -> None:
    """16-bit floats are exact numbers too: only the f16 KV cache is coarser than F32's, and for BF16 the activations' 8 bits."""
    path, ids = write_small_model(tmp_path / "m.gguf", format, seed=2), random_ids(300)
    assert largest_difference(path, ids) <= (1e-2 if format == "BF16" else 2e-3)
    assert kl(naive_logits(path, ids), logits_of(path, ids)) <= (1e-4 if format == "BF16" else 1e-6)


# ---------------------------------------------------------------------------------------------------------------- quantised

@pytest.mark.parametrize("format", [f for f in ALL_FORMATS if f not in ("F32", "F16", "BF16")])
def test_small_quantised(format: str, tmp_path: Path) -> None:
    path, ids = write_small_model(tmp_path / "m.gguf", format, seed=3), random_ids(300)
    assert kl(naive_logits(path, ids), logits_of(path, ids)) <= 1e-3


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_mixed_formats(tied: bool, tmp_path: Path) -> None:
    """Every matrix of a layer in another format, as files from llama.cpp's quantiser are."""
    formats = {"attn_q": "Q4_K", "attn_k": "Q5_0", "attn_v": "Q6_K", "attn_output": "F16", "ffn_gate": "Q4_1", "ffn_up": "Q5_K", "ffn_down": "Q8_0",
               "output.weight": "Q6_K", "token_embd.weight": "Q6_K" if tied else "Q4_K"}
    path, ids = write_small_model(tmp_path / "m.gguf", "F32", formats=formats, tied_output=tied), random_ids(300)
    assert kl(naive_logits(path, ids), logits_of(path, ids)) <= 1e-3


@pytest.mark.parametrize("format", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_files_from_llama_cpp(format: str, real: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text = (real / "text/tinystories_valid_part.txt").read_text()[:4000]
    ids = [1, *tokenizers.Tokenizer.from_file(str(real / "hf-tinystories-656k/tokenizer.json")).encode(text, add_special_tokens=False).ids][:400]
    assert len(ids) >= 300
    path = real / f"gguf-by-llama.cpp/tinystories-656k.{format}.gguf"
    assert kl(naive_logits(path, ids), logits_of(path, ids)) <= 1e-3


@pytest.mark.skipif(not DEMO.exists(), reason="the demo model is not in this checkout")
def test_demo_model(real: Path) -> None:
    from llamina.engine.model import load_vocabulary
    ids = load_vocabulary("demo").encode((real / "text/tinystories_valid_part.txt").read_text()[:3000], bos=True)[:400]
    assert len(ids) >= 300
    assert kl(naive_logits(DEMO, ids), logits_of(DEMO, ids)) <= 1e-3
