"""Byte-level BPE vocabularies against a tokenizer that Hugging Face's library built directly."""
from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llamina.engine.errors import TokenizerError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.text.tokenizer import known, load_tokenizer, tokenizer_problem
from llamina.engine.text.tokenizer.bpe import BYTE_OF
from llamina.engine.text.tokenizer.vocabulary import CONTROL, NORMAL, USER_DEFINED

hf = pytest.importorskip("tokenizers")

TEXT = ["The cat sat on the mat, and it's 12345 o'clock.", "Once upon a time there was a little dog who didn't bark.", "Été à Paris: 日本語 🦙🦙!"] * 20
LLAMA3_SPLIT = (  # as in tokenizer.json of Llama 3: pre_tokenizer.pretokenizers[0].pattern.Regex
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"]
HARD = [
    "", " ", "   ", "\n", " \n \n\n ",
    "\t\t a", "Hello  world", " The cat", "it's IT'S it'ſ x'The we'LLama", "12345678", "a1b22c333d4444", "日本語のテキスト", "🦙 👩‍👩‍👧", "a\0b", "\0",
    "e\u0301\u0323", "\u00a0\u2003x", "x" * 500, "<|eot_id|>", "<|begin_of_text|>hi",
    "don't!?\r\n\r\n  ...", "\ufeff\ufffd", "שלום", "def f(x):\n    return x\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Any:
    """A small vocabulary of Llama 3's make, trained here."""
    tokenizer = hf.Tokenizer(hf.models.BPE(ignore_merges=True))
    split = hf.pre_tokenizers.Split(hf.Regex(LLAMA3_SPLIT), "isolated")
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([split, hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(vocab_size=400, initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def metadata(library: Any) -> dict[str, Any]:
    import json

    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*tokens, *SPECIAL],
        "tokenizer.ggml.token_type": np.array([NORMAL] * len(tokens) + [CONTROL] * len(SPECIAL), np.int32),
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
    }


def test_equal_to_the_library(library: Any, metadata: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.kind == "bpe" and tokenizer.bos_id is not None
    for text in [*HARD, *TEXT[:3]]:
        ids = tokenizer.encode(text, bos=False)
        assert ids == library.encode(text).ids, text
        assert tokenizer._words.pre_tokenize_str(text) == library.pre_tokenizer.pre_tokenize_str(text)  # type: ignore[attr-defined]
        assert tokenizer.decode([tokenizer.bos_id, *ids]) == text
        assert tokenizer.encode(text) == [tokenizer.bos_id, *ids]


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text(library: Any, metadata: dict[str, Any], text: str) -> None:
    tokenizer = load_tokenizer(metadata)
    ids = tokenizer.encode(text, bos=False)
    assert ids == library.encode(text).ids
    assert tokenizer.decode(ids) == text


@given(ids=st.lists(st.integers(0, 399), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_ids_decode_like_the_library(library: Any, metadata: dict[str, Any], ids: list[int]) -> None:
    ids = [id % library.get_vocab_size() for id in ids]
    assert load_tokenizer(metadata).decode(ids) == library.decode(ids, skip_special_tokens=False)


def test_a_word_that_is_a_token_is_not_merged(metadata: dict[str, Any]) -> None:
    """ignore_merges: a whole word in the vocabulary is that token, though no merge makes it."""
    n = len(metadata["tokenizer.ggml.tokens"])
    more = {"tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], "zyzzyva"], "tokenizer.ggml.token_type": np.ones(n + 1, np.int32)}
    tokenizer = load_tokenizer(metadata | more)
    assert tokenizer.encode("zyzzyva", bos=False) == [n]
    assert n not in tokenizer.encode("zyzzyvas", bos=False)


def test_special_tokens(library: Any, metadata: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(metadata)
    first = library.get_vocab_size()
    text = "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    assert tokenizer.encode(text, bos=False) == library.encode(text).ids
    ids = tokenizer.encode(text, bos=False, parse_special=True)
    assert ids == [first + 2, *library.encode("user").ids, first + 3, *library.encode("\n\nhi").ids, first + 4]
    assert tokenizer.decode(ids) == "user\n\nhi" and tokenizer.decode(ids, special=True) == text
    assert tokenizer.eog_ids == {first + 1, first + 4}
    assert tokenizer.special_id("<|eot_id|>") == first + 4


def test_a_special_token_is_no_word(metadata: dict[str, Any]) -> None:
    n = len(metadata["tokenizer.ggml.tokens"])
    types = np.append(metadata["tokenizer.ggml.token_type"], [CONTROL, USER_DEFINED]).astype(np.int32)
    tokens = [*metadata["tokenizer.ggml.tokens"], "STOP", "\u2581é "]
    tokenizer = load_tokenizer(metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})
    assert n not in tokenizer.encode("STOP") and tokenizer.encode("STOP", parse_special=True)[1:] == [n]
    assert tokenizer.encode("a\u2581é b", bos=False)[1] == n + 1
    assert tokenizer.decode(tokenizer.encode("a\u2581é b")) == "a\u2581é b"


def test_long_texts_do_not_cost_the_square(metadata: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(metadata)
    for text in ("the cat sat ", "a", " ", "🦙", "\n ", "!"):
        seconds = []
        for n in (30_000, 300_000):
            start = time.thread_time()
            ids = tokenizer.encode(text * (n // len(text)))
            seconds.append(time.thread_time() - start)
        assert seconds[1] < 40 * max(seconds[0], 0.005), (text, seconds)
    assert tokenizer.decode(ids) == text * (n // len(text))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("merges", None, "merges is missing"),
        ("merges", ["x"], "merges: entry 0, 'x', is not two tokens"),
        ("merges", [""], "merges: entry 0, '', is not two tokens"),
        ("merges", ["a b", "a b c"], "merges: entry 1, 'a b c', is not two tokens"),
        ("merges", ["q \u2603"], "merges: none of 1 joins two tokens"),
        ("merges", ["q z"], "merges: none of 1 joins two tokens"),
        ("merges", [b"q z"], "merges holds bytes at place 0"),
        ("tokens", ["ab"] * 3, "tokens has no token for any of the 256 bytes"),
        ("token_type", [float("nan")] * 3, "token_type"),
    ],
)
def test_damaged_metadata(metadata: dict[str, Any], key: str, value: Any, message: str) -> None:
    damaged = metadata | {"tokenizer.ggml." + key: value}
    if key != "merges":
        small = {"model": "gpt2", "pre": "llama3", "tokens": ["a", "b", "ab"], "merges": [], key: value}
        damaged = {"tokenizer.ggml." + name: found for name, found in small.items()}
    with pytest.raises(TokenizerError, match="f.gguf: tokenizer.ggml." + message):
        load_tokenizer(damaged, "f.gguf")


def test_merges_of_missing_tokens_are_left_out(library: Any, metadata: dict[str, Any]) -> None:
    merges = metadata["tokenizer.ggml.merges"]
    tokenizer = load_tokenizer(metadata | {"tokenizer.ggml.merges": ["q \u2603", *merges[:9], "zyzzy va", *merges[9:], "q z"]})
    assert tokenizer.vocabulary.notes == [f"3 of {len(merges) + 3} merges have tokens that the vocabulary lacks, and never apply"]
    for text in [*HARD, *TEXT[:3]]:
        assert tokenizer.encode(text, bos=False) == library.encode(text).ids


def test_bytes_without_a_token_are_dropped() -> None:
    """As the library drops them; told once, and only of bytes that UTF-8 has."""
    lacking = {BYTE: char for char, BYTE in BYTE_OF.items()}
    tokens = [char for char, byte in BYTE_OF.items() if byte not in (0x04, 0xF1, 0xC0, 0xFF)]
    keys = {"model": "gpt2", "pre": "smollm", "tokens": [*tokens, "ab"], "merges": ["a b"]}
    metadata = {"tokenizer.ggml." + key: value for key, value in keys.items()}
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.vocabulary.notes == ["no token says the bytes 04, F1: characters with them lose them"]
    model = hf.models.BPE(dict(zip(keys["tokens"], range(300))), [("a", "b")])
    library = hf.Tokenizer(model)
    library.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("a\x04b", "ab\x04", "\x04", "x\U00050000y", "ok"):
        assert tokenizer.encode(text) == library.encode(text).ids
    assert tokenizer.decode(tokenizer.encode("x\x04y")) == "xy"
    assert lacking[0xC0] not in tokens


@pytest.mark.parametrize("pre", ["kimi-k2", "superbpe", "afmoe", "nonsense", "gemma4", ["gpt-2"], 5])
def test_other_ways_of_cutting_are_refused_by_name(metadata: dict[str, Any], pre: Any) -> None:
    damaged = metadata | {"tokenizer.ggml.pre": pre}
    with pytest.raises(UnsupportedError, match="f.gguf: tokenizer.ggml.pre is " + re.escape(repr(pre))) as caught:
        load_tokenizer(damaged, "f.gguf")
    assert tokenizer_problem(damaged, "f.gguf") == str(caught.value)


def test_files_that_do_not_say_how_text_is_cut(metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is looked up, then the architecture; otherwise the file is refused."""
    silent = {key: value for key, value in metadata.items() if key != "tokenizer.ggml.pre"}
    with pytest.raises(UnsupportedError, match=r"tokenizer.ggml.pre is missing"):
        load_tokenizer(silent)
    assert "tokenizer.ggml.pre is missing" in (tokenizer_problem(silent) or "")
    falcon = silent | {"general.architecture": "falcon"}
    assert tokenizer_problem(falcon) is None
    assert load_tokenizer(falcon).rules == load_tokenizer(metadata | {"tokenizer.ggml.pre": "falcon"}).rules
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    monkeypatch.setitem(known.DIGESTS, known.digest(tokens, types), "llama-bpe")
    fine_tune = falcon | {"tokenizer.ggml.tokens": [*tokens, "<|new|>"], "tokenizer.ggml.token_type": np.append(types, CONTROL).astype(np.int32)}
    assert load_tokenizer(fine_tune).rules == load_tokenizer(metadata).rules


def test_flags_of_the_rows(metadata: dict[str, Any]) -> None:
    """BOS as the row has it where the file is silent; a whole word is a token before its merges only with ignore_merges."""
    n = len(metadata["tokenizer.ggml.tokens"])
    more = {"tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], "zyzzyva"], "tokenizer.ggml.token_type": np.ones(n + 1, np.int32)}
    for pre, whole, bos in ("llama-bpe", True, True), ("glm4", True, False), ("dbrx", False, False), ("tekken", True, True), ("qwen2", False, False):
        tokenizer = load_tokenizer(metadata | more | {"tokenizer.ggml.pre": pre})
        assert (tokenizer.encode("zyzzyva", bos=False) == [n]) == whole and tokenizer.add_bos == bos, pre
        assert load_tokenizer(metadata | {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": not bos}).add_bos != bos
    assert load_tokenizer(metadata | {"tokenizer.ggml.pre": "roberta-bpe"}).vocabulary.add_sep


def test_byte_alphabet() -> None:
    assert len(BYTE_OF) == 256 == len(set(BYTE_OF.values()))
    assert set(BYTE_OF) == set(hf.pre_tokenizers.ByteLevel.alphabet())
    assert (BYTE_OF["Ġ"], BYTE_OF["Ċ"], BYTE_OF["A"], BYTE_OF["é"]) == (0x20, 0x0A, 0x41, 0xE9)


VOCABULARIES = ["command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2",
    "qwen35", "refact",
                "starcoder"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_llama_cpp_cases(vocabulary: str) -> None:
    """Published vocabularies, where llama.cpp's sources lie on this machine (LLAMINA_LLAMACPP_SRC: the folder that holds models/)."""
    source = os.environ.get("LLAMINA_LLAMACPP_SRC")
    path = Path(source or ".") / "models" / f"ggml-vocab-{vocabulary}.gguf"
    if not source or not path.is_file():
        pytest.skip("set LLAMINA_LLAMACPP_SRC to llama.cpp's sources to run their tokenizer cases")
    with open_gguf(path) as file:
        assert tokenizer_problem(file.metadata) is None
        tokenizer = load_tokenizer(file.metadata, str(path))
    inputs = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().splitlines()
    assert len(lines) >= 46 and len(inputs) - len(lines) in (0, 1)
    for text, line in zip(inputs, lines):
        ids = tokenizer.encode(text, bos=False)
        assert ids == [int(id) for id in line.split()], text
        assert tokenizer.decode(tokenizer.encode(text)) == text
        stream = tokenizer.stream()
        assert "".join([stream.push(id) for id in ids]) + stream.flush() == tokenizer.decode(ids)
