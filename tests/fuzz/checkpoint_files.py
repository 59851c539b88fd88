"""Checkpoints: safetensors, pickles, llama2.c, tokenizers of all kinds, configurations. What opens is read, and sometimes converted and opened again."""
from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from checkpoints import TINY, hf_weights, random_weights, sentencepiece_model, with_, write_hf, write_llama2c, write_meta, write_tokenizer_bin, write_torch
from llamina.convert.convert import convert
from llamina.convert.sources import open_source
from llamina.engine.gguf.file import open_gguf
from test_sources_tokenizers import byte_level, spm_like

from fuzz.mutate import changed_json, damaged
from fuzz.run import generator

T = with_(TINY, n_layers=1)
SETTINGS = {
    "tokenizer_config.json": {"added_tokens_decoder": {"320": {"content": "<x>", "special": True}}, "bos_token": "<s>", "eos_token": {"content": "</s>"},
                              "add_bos_token": True, "chat_template": [{"name": "default", "template": "A"}]},
    "generation_config.json": {"eos_token_id": [2, 300], "bos_token_id": 1, "temperature": 0.5, "top_k": 5, "do_sample": True},
    "added_tokens.json": {"<y>": 321}, "chat_template.json": {"chat_template": "B"},
}


def safetensors(folder: Path) -> Path:
    path = write_hf(folder / "st", with_(T, n_vocab=324), rope_scaling={"type": "yarn", "factor": 2.0})
    for name, values in SETTINGS.items():
        (path / name).write_text(json.dumps(values))
    return path


def torch(folder: Path) -> Path:
    path = write_hf(folder / "pt", T)
    (path / "model.safetensors").unlink()
    write_torch(path / "pytorch_model.bin", hf_weights(T, random_weights(T)))
    return path


def tokenizer(make: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_hf(folder / name, with_(T, n_vocab=710), tokenizer=False)
        make(path / "tokenizer.json")
        return path
    return write


def meta(folder: Path) -> Path:
    return write_meta(folder / "meta", T, random_weights(T), 2, rope_theta=5e5)


def llama2c(folder: Path) -> Path:
    path = folder / "ll"
    path.mkdir()
    write_llama2c(path / "m.bin", T, random_weights(T), 2)
    write_tokenizer_bin(path / "tok320.bin", sentencepiece_model())
    return path


class Fuzzer:
    def __init__(self, folder: Path, seed: int) -> None:
        warnings.simplefilter("ignore")
        self.folder, self.seed = folder, seed
        self.sources = [make(folder) for make in (safetensors, torch, tokenizer(spm_like, "t1"), tokenizer(byte_level, "t2"), meta, llama2c)]
        self.whole = {file: file.read_bytes() for source in self.sources for file in source.iterdir()}
        self.changed: Path | None = None

    def case(self, n: int) -> str:
        rng = generator(self.seed, n)
        if self.changed is not None:
            self.changed.write_bytes(self.whole[self.changed])
        source = rng.choice(self.sources)
        file = self.changed = rng.choice(sorted(source.iterdir()))
        data = self.whole[file]
        if file.suffix == ".json" and rng.random() < 0.8:
            file.write_bytes(json.dumps(changed_json(json.loads(data), rng)).encode(errors="replace"))
        else:
            file.write_bytes(damaged(data, rng))
        path = source / "m.bin" if source.name == "ll" else source
        with open_source(path) as opened:
            for t in opened.tensors:
                t.rows(0, 1)
            if rng.random() < 0.8:
                return "opened"
            out = self.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            convert(opened, out / "m.gguf", "q8_0" if rng.random() < 0.5 else "f16", threads=1, verify=False)
        with open_gguf(out / "m.gguf"):
            return "converted"
