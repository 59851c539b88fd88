"""The demo model: its corpus (deterministic, held-out combinations really held out) and the file that ships."""

from __future__ import annotations

import hashlib
import importlib
import sys
import types
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
GGUF = REPOSITORY / "engine" / "data" / "demo.gguf"
TASKS = ["story", "request", "chat", "memory", "sentiment", "topic", "translation", "passage"]


def demo(name: str) -> Any:
    """A module of demo/, which isn't installed: its folder stands in as the package llamina_demo."""
    if "llamina_demo" not in sys.modules:
        package = types.ModuleType("llamina_demo")
        package.__path__ = [str(REPOSITORY / "demo")]
        sys.modules["llamina_demo"] = package
    return importlib.import_module(f"llamina_demo.{name}")


def rendered(seed: int, held: bool, task: str | None, n: int) -> list[str]:
    return [doc.render() for doc in islice(demo("corpus").documents(seed, held, task), n)]


@pytest.mark.parametrize("held", [False, True])
def test_same_seed_same_corpus(held: bool) -> None:
    assert rendered(3, held, None, 300) == rendered(3, held, None, 300)
    assert rendered(3, held, None, 300) != rendered(4, held, None, 300)


def test_corpus_is_the_one_the_model_was_trained_on() -> None:
    """Any change of the generators (or of how this Python draws) changes this digest: then the model and its report want to be made again."""
    text = "".join(rendered(5, False, None, 1000) + rendered(5, True, None, 1000))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "14367e372118ab2f"


@pytest.mark.parametrize("task", TASKS)
def test_held_out_texts_never_train(task: str) -> None:
    """No user turn with its answer (no story) occurs in both splits."""

    def turns(held: bool) -> set[Any]:
        docs = list(islice(demo("corpus").documents(0, held, task), 1500))
        if task in ("story", "request"):
            return {doc.text or doc.turns[0][1] for doc in docs}
        if task == "memory":  # the pair of the statement and the later answer, with the number of turns between
            return {(doc.turns[0][0], doc.turns[-1][1], len(doc.turns)) for doc in docs}
        return {(doc.system if task == "chat" else "", *turn) for doc in docs for turn in doc.turns}

    assert not turns(False) & turns(True)


def test_held_out_combinations_never_train() -> None:
    """The split is by combination, not by wording: told apart again here from the drawn texts themselves."""
    labels = demo("labels")

    def topics(held: bool) -> set[tuple[str, str]]:
        rng, out = Random(1), set()
        for _ in range(3000):
            text, label = labels.topic(rng, held)
            who, what = labels.TOPICS[label]
            out.add((next(w for w in sorted(who, key=len, reverse=True) if w in text.lower()), next(w for w in what if w in text)))
        return out

    train, held = topics(False), topics(True)
    assert not train & held and len(held) > 20
    assert {w for w, _ in held} <= {w for w, _ in train} and {w for _, w in held} <= {w for _, w in train}  # every part is known


def test_sentences_agree_in_french() -> None:
    """Elision and contraction: forms that French never has don't occur."""
    rng = Random(0)
    for i in range(4000):
        en, fr = demo("translate").sentence(rng, i % 2 == 0)
        words = fr.lower().replace("'", "' ").split()
        for a, b in zip(words, words[1:]):
            assert not (a in ("le", "la", "je", "ne", "ma", "ta", "sa", "de") and b[0] in "aeiouéêœ"), (en, fr)
            assert (a, b) not in {("de", "le"), ("de", "les")}, (en, fr)
        assert fr[0].isupper() and en[-1] in ".?!" and fr[-1] in ".?!"


@pytest.fixture(scope="module")
def reader() -> gguf.GGUFReader:
    return gguf.GGUFReader(GGUF)


def test_shipped_file(reader: gguf.GGUFReader) -> None:
    assert GGUF.stat().st_size <= 6_000_000
    value = {k: f.contents() for k, f in reader.fields.items()}
    assert value["general.architecture"] == "llama" and value["general.name"] == "llamina demo" and value["general.license"] == "MIT"
    assert value["llama.embedding_length"] % 256 == 0 and value["llama.feed_forward_length"] % 256 == 0
    assert value["llama.attention.head_count"] > value["llama.attention.head_count_kv"]
    assert value["tokenizer.ggml.model"] == "llama" and value["tokenizer.ggml.add_bos_token"] and value["tokenizer.ggml.add_space_prefix"]
    assert "[INST]" in value["tokenizer.chat_template"] and "<<SYS>>" in value["tokenizer.chat_template"]
    n = len(value["tokenizer.ggml.tokens"])
    assert n == len(value["tokenizer.ggml.scores"]) == len(value["tokenizer.ggml.token_type"]) == value["llama.vocab_size"]
    assert [t for t in value["tokenizer.ggml.tokens"] if t.startswith("<0x")] == [f"<0x{i:02X}>" for i in range(256)]


def test_shipped_tensors(reader: gguf.GGUFReader) -> None:
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == 2 + 9 * 6
    for name, t in tensors.items():
        assert t.tensor_type.name == ("F32" if name.endswith("norm.weight") else "Q8_0"), name
        a = gguf.quants.dequantize(t.data, t.tensor_type)
        assert np.isfinite(a).all() and a.shape[-1] % 256 == 0, name
        assert np.abs(a).max() > 0, name


def test_template_writes_what_the_model_was_trained_on(reader: gguf.GGUFReader) -> None:
    """The file's chat template and corpus.Document agree on every space."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment().from_string(reader.fields["tokenizer.chat_template"].contents())
    for doc in islice((d for d in demo("corpus").documents(2, False, "chat") if d.turns), 100):
        messages = [{"role": "system", "content": doc.system}] if doc.system else []
        for user, answer in doc.turns:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        assert template.render(messages=messages, bos_token="<s>", eos_token="</s>") == doc.render()
