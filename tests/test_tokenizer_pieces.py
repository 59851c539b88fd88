"""Vocabularies of encoders, WordPiece and Unigram: small ones, trained here, give the ids of the libraries that models are trained with, on hard strings.

Published ones (BERT's, XLM-RoBERTa's) are in test_oracle_tokenizers.py and, MiniLM's, in test_real_encoders.py."""
from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hard_strings import HARD, drawn
from llamina.convert.sources.tokenizer_json import read_tokenizer_json
from llamina.engine.errors import LlaminaError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.text.tokenizer import load_tokenizer
from llamina.engine.text.tokenizer.base import Tokenizer
from llamina.engine.text.tokenizer.vocabulary import NORMAL, UNKNOWN
from spm_proto import model_of, pieces_of

TEXTS = [*HARD, *drawn(300, 4)]


@pytest.mark.parametrize("options", [{}, {"lowercase": False}, {"lowercase": False, "strip_accents": True}, {"strip_accents": False}], ids=str)
def test_wordpiece(options: dict[str, Any], tmp_path: Path) -> None:
    """[CLS] and [SEP] around, unknown words, Chinese characters alone, words longer than 100 letters."""
    theirs = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer, theirs.pre_tokenizer = hf.normalizers.BertNormalizer(**options), hf.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    theirs.train_from_iterator(HARD, hf.trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False, limit_alphabet=150))
    theirs.post_processor = hf.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(read_tokenizer_json(tmp_path / "tokenizer.json").metadata())
    ids = [ours.encode(text) for text in [*TEXTS, "x" * 101, "[CLS]", "[mask] a"]]
    found = [theirs.encode(text).ids for text in TEXTS]
    assert ids[:len(TEXTS)] == found and sum(map(len, found)) > 3000
    assert {1, 2, 3} < {id for row in ids for id in row}
    assert ids[len(TEXTS)] == [2, 1, 3] and 2 not in ids[-2][1:]  # what people write is text


def spm(**options: Any) -> bytes:
    """A model that the sentencepiece library's own trainer made."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([text for text in [*HARD, *drawn(300, 1)] if text.strip() and "\0" not in text] * 2),
                                             model_writer=made, model_type="unigram", vocab_size=420, hard_vocab_limit=False, minloglevel=2,
                                             num_threads=1, **options)
    return made.getvalue()


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False}, {"normalization_rule_name": "nmt_nfkc_cf"}], ids=str)
def test_unigram_as_sentencepiece(options: dict[str, Any]) -> None:
    """Its ids, or others with the same sum of scores, where both libraries map characters alike (the tokenizers library, as models are used, maps a letter
    and its marks as one, and drops marks that way)."""
    model = spm(**options)
    metadata = pieces_of(model)
    same_as_sentencepiece(sentencepiece.SentencePieceProcessor(model_proto=model), load_tokenizer(metadata), metadata)


def same_as_sentencepiece(theirs: Any, ours: Tokenizer, metadata: dict[str, Any]) -> None:
    mapping = hf.normalizers.Precompiled(np.asarray(metadata["tokenizer.ggml.precompiled_charsmap"], np.uint8).tobytes())
    scores, alike = np.asarray(metadata["tokenizer.ggml.scores"], float), 0
    for text in TEXTS:
        if "\0" in text or " ".join(mapping.normalize_str(text).split()) != " ".join(theirs.normalize(text).replace("\u2581", " ").split()):
            continue
        alike += 1
        found, expected = ours.encode(text, bos=False, eos=False), theirs.encode(text)
        assert found == expected or "x" * 99 in text and scores[found].sum() == pytest.approx(scores[expected].sum()), text
    assert alike > 280


def test_unigram_as_the_library_has_it(tmp_path: Path) -> None:
    """As XLM-RoBERTa's tokenizer.json: map of characters, words at white space, U+2581 before each, special tokens around."""
    metadata = pieces_of(spm())
    pieces = [(text, float(score)) for text, score in zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"])]
    theirs = hf.Tokenizer(hf.models.Unigram(pieces, unk_id=0))
    theirs.normalizer = hf.normalizers.Sequence([hf.normalizers.Precompiled(metadata["tokenizer.ggml.precompiled_charsmap"].tobytes()),
                                                 hf.normalizers.Replace(hf.Regex(" {2,}"), " ")])
    theirs.pre_tokenizer = hf.pre_tokenizers.Sequence([hf.pre_tokenizers.WhitespaceSplit(), hf.pre_tokenizers.Metaspace()])
    theirs.add_special_tokens(["<unk>", "<s>", "</s>"])
    theirs.post_processor = hf.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(read_tokenizer_json(tmp_path / "tokenizer.json").metadata())
    found = [theirs.encode(text).ids for text in TEXTS]
    assert [ours.encode(text) for text in TEXTS] == found and sum(map(len, found)) > 3000
    assert any(0 in ids for ids in found)  # something was unknown


def published(name: str) -> Path:
    path = Path(os.environ.get("LLAMINA_LLAMACPP_SRC") or "nowhere") / "models" / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("set LLAMINA_LLAMACPP_SRC to llama.cpp's sources to read their vocabularies")
    return path


def test_xlm_roberta_s() -> None:
    """250,000 pieces: the ids of the sentencepiece library with the same pieces, where it maps characters as the tokenizers library does."""
    with open_gguf(published("nomic-bert-moe")) as file:
        metadata = {key: file.metadata[key] for key in file.metadata if key.startswith("tokenizer.")}
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=model_of(metadata)), load_tokenizer(metadata)
    same_as_sentencepiece(theirs, ours, metadata)
    assert ours.encode("Hello") == [0, *theirs.encode("Hello"), 2]


def test_bge_s() -> None:
    """llama.cpp's own cases. (Of syllables that it takes apart, such as Korean ones, llama.cpp drops parts; BERT's own code does not.)"""
    path = published("bert-bge")
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file.metadata, path)
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    ids = [[int(id) for id in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    assert len(ids) > 40 and [tokenizer.encode(text, bos=False, eos=False) for text in texts[:len(ids)]] == ids


def test_what_is_missing_is_named() -> None:
    base = {"tokenizer.ggml.tokens": ["<unk>", "\u2581a"], "tokenizer.ggml.token_type": np.array([UNKNOWN, NORMAL], np.int32)}
    with pytest.raises(LlaminaError, match="scores is missing"):
        load_tokenizer({**base, "tokenizer.ggml.model": "t5"})
    with pytest.raises(LlaminaError, match="unknown_token_id is missing"):
        load_tokenizer({**base, "tokenizer.ggml.model": "bert"})
