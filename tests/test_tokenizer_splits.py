"""Ways of cutting text: tokenizer.json files made here with the pre-tokenizers of published models, trained, converted and read back, give the library's ids
on hard strings; o200k's expression gives tiktoken's; the table knows every name that llama.cpp knows."""
from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
from hard_strings import HARD, drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from llamina.convert.sources.tokenizer_json import read_tokenizer_json
from llamina.engine.text.tokenizer import load_tokenizer
from llamina.engine.text.tokenizer.base import Tokenizer
from llamina.engine.text.tokenizer.splits import O200K, REFUSED, ROWS, known_names, row_of
from vocabularies import metadata_of, trained

# As the tokenizer.json of each has them (not taken from the table that they are to be found in).
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
DEEPSEEK3 = [
    r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]  # fmt: skip
DEEPSEEK_CODER = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+"]
BYTES, WORDS = ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex} for regex in (False, True))
DIGITS = {"type": "Digits", "individual_digits": True}


def split(*expressions: str, behavior: str = "Isolated", invert: bool = False) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert} for expression in expressions]


CASES: dict[str, tuple[str, list[dict[str, Any]], bool]] = {  # the file's maker -> (pre, its pre_tokenizer's steps, ignore_merges)
    "GPT-2": ("gpt-2", [WORDS], False), "StarCoder, SmolLM": ("starcoder", [DIGITS, WORDS], False), "Llama 3": ("llama-bpe", [*split(LLAMA3), BYTES], True),
    "DBRX, Phi-4": ("dbrx", [*split(LLAMA3, behavior="Removed", invert=True), BYTES], False),
    "Qwen 2": ("qwen2", [*split(QWEN2), BYTES], False), "Qwen 3.5": ("qwen35", [*split(QWEN35), BYTES], False),
    "GPT-4o": ("gpt-4o", [*split(GPT4O, behavior="Removed", invert=True), BYTES], False), "Tekken": ("tekken", [*split(TEKKEN), BYTES], True),
    "Bailing": ("bailingmoe", [*split(BAILING), BYTES], False), "DeepSeek 3": ("deepseek-v3", [*split(*DEEPSEEK3), BYTES], False),
    "DeepSeek Coder": ("deepseek-coder", [*split(*DEEPSEEK_CODER), DIGITS, BYTES], False),
    "Tiny Aya": ("tiny_aya", [*split(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O), BYTES], False),
    "BLOOM": ("bloom", [*split(" ?[^(\\s|.,!?…。，、।۔،)]+"), BYTES], False), "MiniCPM 5": ("minicpm5",
        [*split(r"\p{N}{1,3}", LLAMA3.replace("{1,3}", "+")), BYTES], True),
}


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, Any]:
    """A tokenizer.json whose merges know no borders between words, so that only the pre-tokenizer makes them."""
    library = trained(size=2500)
    library.add_special_tokens([hf.AddedToken(text, special=True) for text in ("<s>", "</s>", "<|user|>", "<|end|>")])
    return json.loads(library.to_str())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("nfc", [False, True], ids=["", "NFC"])
def test_ids_of_the_library(case: str, nfc: bool, vocabulary: dict[str, Any], tmp_path: Path) -> None:
    pre, steps, ignore_merges = CASES[case]
    values = vocabulary | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "normalizer": {"type": "NFC"} if nfc else None,
                           "model": vocabulary["model"] | {"ignore_merges": ignore_merges}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    library, vocab = hf.Tokenizer.from_file(str(path)), read_tokenizer_json(path)
    assert vocab.pre == pre and vocab.nfc == nfc and not vocab.notes
    tokenizer = load_tokenizer(vocab.metadata())
    for text in [*HARD, *drawn(400, 4)]:
        ids = tokenizer.encode(text, bos=False)
        assert ids == library.encode(text, add_special_tokens=False).ids, text
        check_decoding(tokenizer, ids, text if not nfc else None)
    user, end = (tokenizer.special_id(text) for text in ("<|user|>", "<|end|>"))
    for text in ("<|user|><|end|>", "<|user|>\n hi <|end|><|end|>\n", "a<|user|>b", "<|user|<|end|>|>"):
        ids = tokenizer.encode(text, bos=False, parse_special=True)
        assert ids == library.encode(text, add_special_tokens=False).ids and {user, end} & set(ids)
        assert not {user, end} & set(tokenizer.encode(text, bos=False))
        check_decoding(tokenizer, ids, None)


def check_decoding(tokenizer: Tokenizer, ids: list[int], text: str | None) -> None:
    """Decoding token by token is decoding at once, and gives the text back."""
    stream = tokenizer.stream()
    whole = tokenizer.decode(ids)
    assert "".join([stream.push(id) for id in ids]) + stream.flush() == whole
    assert text is None or whole == text


@given(text=st.text(), row=st.sampled_from([row for row in ROWS if not row.raw]))
@settings(max_examples=300, deadline=None)
def test_round_trips(text: str, row: Any) -> None:
    tokenizer = by_row(row.names[0])
    check_decoding(tokenizer, tokenizer.encode(text, bos=False), text)


_made: dict[str, Tokenizer] = {}
_metadata: dict[str, Any] = {}


def by_row(name: str) -> Tokenizer:
    if name not in _made:
        if not _metadata:
            _metadata.update(metadata_of(trained(size=600), None))
        _made[name] = load_tokenizer(_metadata | {"tokenizer.ggml.pre": name})
    return _made[name]


def test_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """o200k's expression, from tiktoken's source, and the same vocabulary in both."""
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **options: {})  # the vocabulary would be downloaded
    expression = openai_public.o200k_base()["pat_str"]
    library = trained([O200K], size=2500)
    tokenizer = load_tokenizer(metadata_of(library, "gpt-4o"))
    ranks = {tokenizer.token_bytes(id): id for id in range(library.get_vocab_size())}
    theirs = tiktoken.Encoding("small", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    for text in [*HARD, *drawn(1500, 5)]:
        assert tokenizer.encode(text, bos=False) == theirs.encode(text), text


def test_the_table_has_each_name_once() -> None:
    names = [name for row in ROWS for name in row.names]
    assert len(names) == len(set(names)) and not set(names) & set(REFUSED) and known_names() == sorted(names)
    assert row_of("qwen2") is not None and row_of("kimi-k2") is None


def test_the_table_knows_llama_cpps_names() -> None:
    """Every value of tokenizer.ggml.pre, with its flags, where llama.cpp's sources lie (LLAMINA_LLAMACPP_SRC)."""
    source = Path(os.environ.get("LLAMINA_LLAMACPP_SRC") or "nowhere") / "src" / "llama-vocab.cpp"
    if not source.is_file():
        pytest.skip("set LLAMINA_LLAMACPP_SRC to llama.cpp's sources to compare names and flags")
    text = source.read_text(encoding="utf-8")
    text = text[text.index('tokenizer_pre == "default"') : text.index("unknown pre-tokenizer type")]
    flags: dict[str, set[str]] = {}
    names: list[str] = []
    for name, kind, flag in re.findall(r'tokenizer_pre == "([^"]+)"|pre_type = (\w+);|(ignore_merges|add_bos|add_sep) = true', text):
        if name:
            names = [*names, name] if names and not flags.get(names[-1]) and names[-1] not in flags else [name]
        elif kind:
            flags.update({name: set() for name in names})
        else:
            for name in names:
                flags[name].add(flag)
    assert len(flags) > 80
    for name, expected in flags.items():
        row = row_of(name)
        assert (row is None) == (name in REFUSED), name
        if row is not None and not row.raw:
            assert {flag for flag in ("ignore_merges", "add_bos", "add_sep") if getattr(row, flag)} == expected, name
