"""Weights that were learnt: models of 0.2 million parameters that demo/families.py trained on the demo's stories (tests/trained/), one for each kind of layer
that came after Llama's. What random weights leave open shows here: sharp choices, experts that are used, gates that close.

    tests/trained/NAME/{config.json, model.safetensors} + tokenizer.json ─► convert ─► F32, Q8_0 ─► perplexity, greedy text
"""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from llamina import load
from llamina.convert.convert import convert
from llamina.engine.score.perplexity import perplexity
from test_demo import demo

TRAINED = Path(__file__).parent / "trained"
NAMES = sorted(path.parent.name for path in TRAINED.glob("*/model.safetensors"))
PROMPTS = ["Once upon a time", "Long ago, in a green valley, there lived", "One day, Tom found a"]
TOKENS = 100


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(name, type) -> its GGUF file, converted once."""
    top = tmp_path_factory.mktemp("trained")

    def get(name: str, type: str) -> Path:
        path = top / f"{name}.{type}.gguf"
        if not path.exists():
            convert(folder_of(name, top / name), path, type, verify=False)
        return path
    return get


def folder_of(name: str, folder: Path) -> Path:
    """As Hugging Face has it: with the tokenizer, which all share."""
    if not folder.exists():
        shutil.copytree(TRAINED / name, folder)
        shutil.copy(TRAINED / "tokenizer.json", folder)
    return folder


def held_out() -> str:
    rng = Random("held out")
    return "\n\n".join(demo("stories").story(rng, True).text for _ in range(10))


def test_they_are_there_and_small() -> None:
    assert {"lfm2", "qwen35", "gemma4", "qwen3moe"} <= set(NAMES)
    assert all(sum(f.stat().st_size for f in (TRAINED / name).iterdir()) < 600_000 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_perplexity(name: str, file: Callable[[str, str], Path]) -> None:
    """They have learnt (of 512 tokens, some few are likely), and Q8_0 costs nothing that shows."""
    text, found = held_out(), {}
    for type in "f32", "q8_0":
        with load(file(name, type), threads=2, context=256) as model:
            found[type] = perplexity(model, text, 256, most=8).perplexity
    assert 1 < found["f32"] < 3 and found["q8_0"] == pytest.approx(found["f32"], rel=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_a_story(name: str, file: Callable[[str, str], Path]) -> None:
    """Words of the corpus, the same whether the model guesses ahead or not; and guesses pay, as they don't where logits are noise."""
    known = set(held_out().split()) | {word for seed in range(60) for word in demo("stories").story(Random(seed), False).text.split()}
    with load(file(name, "q8_0"), threads=2, context=512) as model:
        plain, guessed = (model.generate(PROMPTS[0], temperature=0.0, max_tokens=TOKENS, speculate=on, ignore_eos=True, logprobs=1) for on in (False, True))
        text = plain.text()
        guessed.text()
    assert (plain.ids, plain.logprobs) == (guessed.ids, guessed.logprobs)
    words = text.split()
    assert len(words) > 40 and sum(word in known for word in words) > 0.8 * len(words)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_transformers(name: str, file: Callable[[str, str], Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
    transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder_of(name, tmp_path / name), dtype=torch.float32, attn_implementation="eager").eval()
    assert sum(p.numel() for p in theirs.parameters()) <= 250_000
    with load(file(name, "f32"), threads=2, context=512, kv="f32") as model:
        for prompt in PROMPTS:
            ids = model.tokenize(prompt)
            answer = model.generate(ids, temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
            answer.text()
            with torch.no_grad():  # of ids that are theirs so far, all the next ones at once
                expected = theirs(torch.tensor([[*ids, *answer.ids]])).logits[0].argmax(dim=-1).tolist()
            assert answer.ids == expected[len(ids) - 1:-1]
            assert len(answer.ids) == TOKENS
