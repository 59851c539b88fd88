"""all-MiniLM-L6-v2, where LLAMINA_MODELS names a folder that holds it (../shared/real/get_models.sh does): its ids are the tokenizers library's, its vectors a
float64 forward's that reads the checkpoint itself, and formats keep their order. Where the folder is named, a missing file is a failure."""
from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hard_strings import HARD, drawn
from llamina.convert.convert import convert
from llamina.engine.model import Model, load
from naive_encoders import layer_norm, softmax

Array = np.ndarray[Any, Any]
LEAST = {"f32": 0.99999, "f16": 0.9999, "q8_0": 0.998, "q4_0": 0.85}
"""The lowest cosine of a sentence that a format may have with the float64 forward; docs/embed.md has what was measured."""


@pytest.fixture(scope="module")
def folder(models: Path) -> Path:
    path = models / "all-minilm-l6-v2"
    assert path.is_dir(), f"LLAMINA_MODELS is set, but {path} is missing: get it with ../shared/real/get_models.sh"
    return path


@pytest.fixture(scope="module")
def converted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    """type -> the model, converted and opened once."""
    made: dict[str, Model] = {}
    with ExitStack() as stack:
        def get(type_: str) -> Model:
            if type_ not in made:
                path = tmp_path_factory.mktemp("minilm") / f"{type_}.gguf"
                convert(folder, path, type_, verify=False)
                made[type_] = stack.enter_context(load(path, threads=2))
            return made[type_]
        yield get


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    found = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


def gelu(x: Array) -> Array:
    """With erf to 1.5e-7 (Abramowitz and Stegun 7.1.26), since math.erf takes one number at a time."""
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return 0.5 * x * (1 + np.copysign(1 - series * np.exp(-z * z), x))


class Checkpoint:
    """BertModel on the checkpoint's own tensors, in float64."""

    def __init__(self, folder: Path):
        data = (folder / "model.safetensors").read_bytes()
        at = 8 + int.from_bytes(data[:8], "little")
        self._header, self._data = json.loads(data[8:at]), data[at:]
        self.config = json.loads((folder / "config.json").read_text())
        self.tensor = functools.cache(self._tensor)

    def _tensor(self, name: str) -> Array:
        info = self._header[name]
        assert info["dtype"] == "F32"
        first, end = info["data_offsets"]
        return np.frombuffer(self._data[first:end], "<f4").reshape(info["shape"]).astype(np.float64)

    def linear(self, x: Array, name: str) -> Array:
        return (x.reshape(-1, x.shape[-1]) @ self.tensor(name + ".weight").T + self.tensor(name + ".bias")).reshape(*x.shape[:-1], -1)

    def norm(self, x: Array, name: str) -> Array:
        return layer_norm(x, self.config["layer_norm_eps"], self.tensor(name + ".weight"), self.tensor(name + ".bias"))

    def vector(self, ids: list[int]) -> Array:
        return self.vectors([ids])[0]

    def vectors(self, texts: list[list[int]]) -> Array:
        """Mean of each one's rows, of length 1: float64 [texts, dim]. Those that are as long are computed together, or their weights would be read often."""
        found = np.empty((len(texts), self.config["hidden_size"]))
        for n in {len(ids) for ids in texts}:
            some = [i for i, ids in enumerate(texts) if len(ids) == n]
            found[some] = self.rows(np.array([texts[i] for i in some])).mean(axis=1)
        return found / np.sqrt((found * found).sum(axis=1, keepdims=True))

    def rows(self, ids: Array) -> Array:
        """ids [texts, tokens] -> float64 [texts, tokens, dim]."""
        e, heads = "embeddings.", self.config["num_attention_heads"]
        x = self.tensor(e + "word_embeddings.weight")[ids] + self.tensor(e + "position_embeddings.weight")[:ids.shape[1]]
        x = self.norm(x + self.tensor(e + "token_type_embeddings.weight")[0], e + "LayerNorm")
        for i in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{i}."
            q, k, v = (self.linear(x, f"{at}attention.self.{n}").reshape(*ids.shape, heads, -1).transpose(0, 2, 1, 3) for n in ("query", "key", "value"))
            mixed = softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])) @ v
            mixed = self.linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), at + "attention.output.dense")
            x = self.norm(x + mixed, at + "attention.output.LayerNorm")
            hidden = gelu(self.linear(x, at + "intermediate.dense"))
            x = self.norm(x + self.linear(hidden, at + "output.dense"), at + "output.LayerNorm")
        return x


@pytest.fixture(scope="module")
def sentences(real: Path) -> list[str]:
    """The 400 shortest of a set of reviews."""
    texts = [line.split("\t")[-1] for line in (real / "text" / "sst2_dev.tsv").read_text().splitlines()[1:]]
    return sorted(texts, key=lambda text: (len(text), text))[:400]


@pytest.fixture(scope="module")
def expected(folder: Path, library: Any, sentences: list[str]) -> Array:
    """float64 [sentences, 384]."""
    return Checkpoint(folder).vectors([library.encode(text).ids for text in sentences])


def test_ids(converted: Any, library: Any, sentences: list[str]) -> None:
    tokenizer = converted("q8_0").tokenizer
    for text in [*HARD, *drawn(300, 6), *sentences, "x" * 101]:
        assert tokenizer.encode(text) == library.encode(text).ids, text


@pytest.mark.parametrize("type_", LEAST)
def test_cosines(type_: str, converted: Any, sentences: list[str], expected: Array) -> None:
    found = converted(type_).embed(sentences[:100])
    cosines = (found.astype(np.float64) * expected[:100]).sum(axis=1)
    assert cosines.min() >= LEAST[type_]


def test_order_of_pairs(converted: Any, sentences: list[str], expected: Array) -> None:
    """200 pairs by likeness: F16 has the float64 forward's order, but where two are nearer than its
    rounding makes them (of 200 other pairs, none changed places: docs/embed.md)."""
    found = converted("f16").embed(sentences).astype(np.float64)
    theirs, ours = ((v[0::2] * v[1::2]).sum(axis=1) for v in (expected, found))
    order = np.argsort(-ours)
    assert len(order) == 200 and (np.diff(theirs[order]) <= 2e-4).all()


def test_a_long_text_and_a_cut_one(converted: Any, folder: Path, library: Any) -> None:
    """256 tokens, as its authors cut; 512, as far as its positions go."""
    from llamina.engine.errors import ContextFullError
    model, text = converted("f32"), "The cat sat on the mat. " * 60
    ids = library.encode(text).ids
    assert len(ids) > 400
    with pytest.raises(ContextFullError, match="the model takes 256"):
        model.embed(text)
    checkpoint = Checkpoint(folder)
    for found, row in (model.embed(text, truncate=True), [*ids[:255], ids[-1]]), (model.embed(text, max_tokens=512), ids):
        assert (found * checkpoint.vector(row)).sum() > LEAST["f32"]
