"""Vocabularies of encoders, WordPiece and Unigram: small ones, trained here, give the ids of the libraries that models are trained with, on hard strings.

Published ones (BERT's, XLM-RoBERTa's) are in test_oracle_tokenizers.py and, MiniLM's, in test_real_encoders.py."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hard_strings import HARD, drawn
from llamina.convert.sources.tokenizer_json import read_tokenizer_json
from llamina.engine.errors import FormatError
from llamina.engine.text.tokenizer import load_tokenizer
from llamina.engine.text.tokenizer.vocabulary import NORMAL, UNKNOWN
from spm_proto import pieces_of

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


UNIGRAM: dict[str, dict[str, Any]] = {
    "usual": {}, "as it stands": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}, "no space before": {"add_dummy_prefix": False},
    "nfkc, case folded": {"normalization_rule_name": "nmt_nfkc_cf"}, "with words of its own": {"user_defined_symbols": ["HTTP", "日本"]},
}


@pytest.mark.parametrize("name", UNIGRAM)
def test_unigram(name: str) -> None:
    """The ids of the sentencepiece library, whose own trainer made the pieces."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([text for text in [*HARD, *drawn(300, 1)] if text.strip() and "\0" not in text] * 2),
                                             model_writer=made, model_type="unigram", vocab_size=420, hard_vocab_limit=False, minloglevel=2,
                                             num_threads=1, **UNIGRAM[name])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    ours = load_tokenizer(pieces_of(made.getvalue()))
    texts = [text for text in TEXTS if "\0" not in text]
    found = [theirs.encode(text) for text in texts]
    assert [ours.encode(text, bos=False, eos=False) for text in texts] == found and sum(map(len, found)) > 3000
    assert 0 in {id for row in found for id in row}  # something was unknown


def test_what_is_missing_is_named() -> None:
    base = {"tokenizer.ggml.tokens": ["<unk>", "\u2581a"], "tokenizer.ggml.token_type": np.array([UNKNOWN, NORMAL], np.int32)}
    with pytest.raises(FormatError, match="scores is missing"):
        load_tokenizer({**base, "tokenizer.ggml.model": "t5"})
    with pytest.raises(FormatError, match="unknown_token_id is missing"):
        load_tokenizer({**base, "tokenizer.ggml.model": "bert"})
