"""Which tokens end an answer, Phi-3's white space, and the kind "gemma4": vocabularies made here."""
from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers as hf
from hard_strings import HARD, drawn
from llamina.engine.text.tokenizer import load_tokenizer
from llamina.engine.text.tokenizer import merging as merging_module
from llamina.engine.text.tokenizer.bpe import BYTE_OF
from llamina.engine.text.tokenizer.ends import END_OF_TURN, FILLS
from llamina.engine.text.tokenizer.splits import GPT2
from llamina.engine.text.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from test_sources_tokenizers import STORY
from vocabularies import metadata_of, trained


def ends(special: list[tuple[str, int]], merges: list[str] | None = None, words: list[str] | None = None, **keys: Any) -> list[str]:
    """Texts of the tokens that end an answer, in a vocabulary of the bytes, `words` and `special` tokens."""
    tokens = [*BYTE_OF, *(words or [])]
    types = [NORMAL] * len(tokens) + [type_ for _, type_ in special]
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": [*tokens, *(text for text, _ in special)], "token_type": types, "merges": merges or [], **keys}
    tokenizer = load_tokenizer({"tokenizer.ggml." + key: value for key, value in values.items()})
    assert all(tokenizer.is_control(id) for id in tokenizer.eog_ids)
    return sorted(tokenizer.token_text(id) for id in tokenizer.eog_ids)


@pytest.mark.parametrize("text", sorted(END_OF_TURN | FILLS))
@pytest.mark.parametrize("type_", [NORMAL, CONTROL, USER_DEFINED])
def test_known_texts(text: str, type_: int) -> None:
    assert ends([(text, type_), ("<other>", CONTROL)]) == [text]


def test_an_ordinary_word_is_no_end() -> None:
    """Qwen's "</s>", which merges make of what HTML has: it stays a word of its own type."""
    words, merges = ["</", "</s", "</s>"], ["< /", "</ s", "</s >"]
    assert ends([("<|im_end|>", CONTROL)], merges, words) == ["<|im_end|>"]
    assert ends([], merges, words, eos_token_id=len(BYTE_OF) + 2) == ["</s>"]  # unless the file says that it is


@pytest.mark.parametrize(("texts", "expected"), [
    (["<|end|>"], ["<|end|>"]), (["<|end|>", "<|return|>"], ["<|end|>", "<|return|>"]), (["<|end|>", "<|return|>", "<|call|>"], ["<|call|>", "<|return|>"]),
    (["<|end|>", "<|flush|>", "<|calls|>"], ["<|calls|>", "<|flush|>"]), (["</s>", "<eos>"], ["</s>", "<eos>"]),
    (["</s>", "<eos>", "<turn|>", "<|tool_response>"], ["<eos>", "<turn|>", "<|tool_response>"]), (["</s>", "<|plamo:eos|>"], []),
])
def test_families_with_other_ends(texts: list[str], expected: list[str]) -> None:
    assert ends([(text, CONTROL) for text in texts]) == expected


def test_ids_that_files_name() -> None:
    n = len(BYTE_OF)
    named: dict[str, Any] = {f"{key}_token_id": n + i for i, key in enumerate(("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"))}
    assert ends([(f"<{i}>", CONTROL) for i in range(7)], **named) == [f"<{i}>" for i in range(6)]


def test_phi3_drops_white_space_after_its_tags() -> None:
    """As the added tokens of its tokenizer.json with rstrip; <s> and <|endoftext|> have none."""
    library = trained([GPT2], size=500)
    metadata = metadata_of(library, "gpt-2", ["<s>", "</s>", "<|user|>", "<|end|>", "<|endoftext|>"]) | {"general.architecture": "phi3"}
    phi3, other = load_tokenizer(metadata | {"general.name": "My Phi-3 small"}), load_tokenizer(metadata)
    library.add_special_tokens([hf.AddedToken(text, special=True, rstrip=text in ("</s>", "<|user|>", "<|end|>"))
                                for text in ("<s>", "</s>", "<|user|>", "<|end|>", "<|endoftext|>")])
    for text in ("<|user|>\nHi<|end|>\n\u3000 <|user|> <s> a</s> \t\nb<|endoftext|>\n", "<|end|>  ", "a <|end|>\x1cb", "<|user|>\n<|end|>\u00a0x"):
        assert phi3.encode(text, bos=False, parse_special=True) == library.encode(text, add_special_tokens=False).ids, text
        assert phi3.encode(text) == other.encode(text)  # what people write has no tags
    assert phi3.vocab_digest() != other.vocab_digest()


# ---- gemma4


@pytest.fixture(scope="module")
def gemma4() -> tuple[Any, dict[str, Any]]:
    """(the library's tokenizer, metadata): BPE on characters with byte fallback; merges run through spaces, and through newlines."""
    library = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = hf.normalizers.Replace(" ", "\u2581")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    library.train_from_iterator(STORY + ["a\n\nb\n\n\nc"] * 9, hf.trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False))
    values = json.loads(library.to_str())
    values["added_tokens"] = values["added_tokens"][:4]
    tokens = sorted(values["model"]["vocab"], key=values["model"]["vocab"].get)
    types = [CONTROL] * 3 + [UNKNOWN] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 260)
    keys = {"model": "gemma4", "tokens": tokens, "token_type": types, "merges": [" ".join(pair) for pair in values["model"]["merges"]], "bos_token_id": 2,
            "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0, "add_bos_token": False}
    return hf.Tokenizer.from_str(json.dumps(values)), {"tokenizer.ggml." + key: value for key, value in keys.items()}


@pytest.mark.parametrize("in_python", [True, False])
def test_gemma4(gemma4: tuple[Any, dict[str, Any]], in_python: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    library, metadata = gemma4
    if not in_python:
        monkeypatch.setattr("llamina.engine.text.tokenizer.bpe.MOST_TEXT", -1)
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.kind == "gemma4" and tokenizer.add_bos and tokenizer.eog_ids == {1}
    for text in [*HARD, *drawn(200, 8), "Once upon a time there was a cat.", " the ball", "  a  b"]:
        ids = tokenizer.encode(text)
        if "\n" not in text:
            assert ids == [2, *library.encode(text, add_special_tokens=False).ids], text
        assert tokenizer.decode(ids) == text
        stream = tokenizer.stream()
        assert "".join([stream.push(id) for id in ids]) + stream.flush() == text
    tokens = metadata["tokenizer.ggml.tokens"]
    runs = [id for id in range(260, len(tokens)) if tokens[id].strip("\n") == ""]
    assert "\n\n" in [tokens[id] for id in runs]
    for id in runs:  # whole, whatever the merges would make with its neighbours
        assert tokenizer.encode(f"a{tokens[id]}b", bos=False) == [*tokenizer.encode("a", bos=False), id, *tokenizer.encode("b", bos=False)]


# ---- merging in Python


def test_merging_here_and_in_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for pre in ("gpt-2", "llama-bpe", "deepseek-v3"):
        tokenizer = load_tokenizer(metadata_of(trained(size=1500), pre))
        texts = [*HARD, *drawn(500, 7), "x" * 399, "ab " * 300]
        here = [tokenizer.encode(text) for text in texts]
        assert "_hf" not in vars(tokenizer)  # the library has not been asked yet
        with monkeypatch.context() as patch:
            patch.setattr("llamina.engine.text.tokenizer.bpe.MOST_TEXT", -1)
            assert [tokenizer.encode(text) for text in texts] == here
        assert "_hf" in vars(tokenizer)
    long = "x" * (merging_module.MOST_WORD + 1)
    assert tokenizer.decode(tokenizer.encode(long)) == long
