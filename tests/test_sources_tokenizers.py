"""Tokenizers of checkpoints: the GGUF vocabulary made of them gives the ids that their own library gives, or they are refused by name."""
from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import sentencepiece_model
from llamina.convert.sources.tokenizer_check import HARD_STRINGS
from llamina.convert.sources.tokenizer_json import read_tokenizer_json
from llamina.convert.sources.vocabulary import Vocab, read_vocabulary_file
from llamina.engine.errors import FormatError, LlaminaError, UnsupportedError
from llamina.engine.text.tokenizer import load_tokenizer
from llamina.engine.text.tokenizer.splits import LLAMA3 as LLAMA3_SPLIT
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

STORY = [
    "Once upon a time, there was a little cat. The cat liked to play with the ball.\nThe ball was red, and the cat was happy.",
    "One day the dog came to play. \"Can I play with you?\" said the dog. It's 12345 o'clock!\n\nThe end.",
    "Äpfel und Öl — naïve café, 日本語の文字, Привет мир 😀. don't WE'LL   three   spaces",
] * 3


def spm_like(path: Path, *, metaspace: bool = False, bytes_: bool = False, prepend: bool = True, fuse: bool = True) -> Path:
    """A BPE tokenizer.json of SentencePiece's kind, trained without splitting at spaces."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse, byte_fallback=bytes_))
    if metaspace:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prepend else "never", split=False)
    else:
        t.normalizer = normalizers.Sequence([*([normalizers.Prepend("▁")] if prepend else []), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *([f"<0x{b:02X}>" for b in range(256)] if bytes_ else [])]
    t.train_from_iterator(STORY, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if bytes_:  # the trainer makes added tokens of them; in a real file they are plain tokens
        values = json.loads(t.to_str())
        values["added_tokens"] = [a for a in values["added_tokens"] if not a["content"].startswith("<0x")]
        path.write_text(json.dumps(values))
    else:
        t.save(str(path))
    return path


def byte_level(path: Path, pattern: str = LLAMA3_SPLIT) -> Path:
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(STORY, trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens([AddedToken("<|begin_of_text|>", special=True), AddedToken("<|end_of_text|>", special=True)])
    t.add_tokens([AddedToken("user defined", normalized=False)])
    bos = t.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    t.decoder = decoders.ByteLevel()
    t.save(str(path))
    return path


def assert_equal_ids(path: Path, vocab: Vocab, texts: list[str]) -> None:
    theirs, ours = Tokenizer.from_file(str(path)), load_tokenizer(vocab.metadata(), path)
    n = 0
    for text in texts:
        ref, comp = theirs.encode(text).ids, ours.encode(text)
        assert comp == ref, text
        n += len(ref)
    assert n > 1000


def texts_of(vocab: Vocab) -> list[str]:
    rng = random.Random(7)
    drawn = ["".join(rng.choice(STORY[rng.randrange(3)].split(" ")) + rng.choice([" ", "", "\n", "  "]) for _ in range(rng.randrange(30))) for _ in range(200)]
    return ["", *HARD_STRINGS, *STORY, *drawn]


KINDS: dict[str, Callable[[Path], Path]] = {
    "normalizer": spm_like, "metaspace": lambda p: spm_like(p, metaspace=True), "bytes": lambda p: spm_like(p, bytes_=True),
    "no prefix": lambda p: spm_like(p, prepend=False), "metaspace, bytes, no prefix": lambda p: spm_like(p, metaspace=True, bytes_=True, prepend=False),
    "byte-level": byte_level,
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path / "tokenizer.json")
    vocab = read_tokenizer_json(path)
    assert vocab.model == ("gpt2" if kind == "byte-level" else "llama") and vocab.add_bos and vocab.add_space_prefix == ("no prefix" not in kind)
    texts = texts_of(vocab)
    if "metaspace" in kind:  # Metaspace adds no space before a text that begins with one: there is a note
        texts = [text for text in texts if not text.startswith((" ", "▁"))]
        assert any("begins with one" in note for note in vocab.notes) == ("no prefix" not in kind)
    assert_equal_ids(path, vocab, texts)


def test_merges_reach_across_spaces(tmp_path: Path) -> None:
    vocab = read_tokenizer_json(spm_like(tmp_path / "tokenizer.json"))
    assert any("▁" in token.strip("▁") for token in vocab.tokens)
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    first, last = ("".join(m) for m in (merges[0], merges[-1]))
    assert vocab.scores is not None and vocab.scores[vocab.tokens.index(first)] == 0
    assert vocab.scores[vocab.tokens.index(last)] == 1 - len({"".join(m) for m in merges})


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("change, kind, word", [
    (lambda v: v["model"].update(type="Unigram"), UnsupportedError, "Unigram"), (lambda v: v["model"].update(dropout=0.1), UnsupportedError, "dropout"),
    (lambda v: v["model"].update(end_of_word_suffix="</w>"), UnsupportedError, "end_of_word_suffix"),
    (lambda v: v.update(normalizer={"type": "NFKC"}), UnsupportedError, "NFKC"),
    (lambda v: v.update(normalizer=None), UnsupportedError, "does not write spaces"),
    (lambda v: v.update(pre_tokenizer={"type": "Whitespace"}), UnsupportedError, "Whitespace"),
    (lambda v: v.update(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}), UnsupportedError, "Metaspace"),
    (lambda v: v["model"]["merges"].insert(0, ["t", "zz"]), FormatError, "merge 0"),
    (lambda v: v["model"]["merges"].insert(0, "a b c"), FormatError, "merge 0"),
    (lambda v: v["model"]["vocab"].update(x=-1), FormatError, "'x'"), (lambda v: v["model"]["vocab"].update(x=5), FormatError, "id"),
    (lambda v: v["model"]["vocab"].update(x=1 << 30), FormatError, "ids up to"), (lambda v: v.update(added_tokens=[{"id": "3"}]), FormatError, "added token"),
    (lambda v: v.update(added_tokens=[{"id": 1 << 30, "content": "x"}]), FormatError, "has id"), (lambda v: v.update(model=5), FormatError, "model"),
    (lambda v: v["post_processor"].update(special_tokens={}), FormatError, "post_processor"), (lambda v: v["model"].update(vocab=[]), FormatError, "vocab"),
])
def test_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], kind: type[LlaminaError], word: str) -> None:
    path = edited(spm_like(tmp_path / "tokenizer.json"), change)
    with pytest.raises(kind) as caught:
        read_tokenizer_json(path)
    assert word in str(caught.value) and str(path) in str(caught.value), str(caught.value)


def test_other_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"cuts text into words in a way .* pre_tokenizer .*\{1,2\}"):
        read_tokenizer_json(byte_level(tmp_path / "tokenizer.json", LLAMA3_SPLIT.replace("{1,3}", "{1,2}")))
    path = edited(byte_level(tmp_path / "tokenizer.json"), lambda v: v["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True))
    with pytest.raises(UnsupportedError, match="add_prefix_space"):
        read_tokenizer_json(path)
    for change in ({"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Isolated"}, {"type": "Split", "pattern": {"String": "x"},
        "behavior": "Removed"}):
        path = edited(byte_level(tmp_path / "tokenizer.json"), lambda v, change=change: v["pre_tokenizer"]["pretokenizers"].insert(0, change))  # type: ignore[misc]
        with pytest.raises(UnsupportedError, match=f"pre_tokenizer.*{change['type']}"):
            read_tokenizer_json(path)
    path = edited(byte_level(tmp_path / "tokenizer.json"), lambda v: v.update(normalizer={"type": "NFKC"}))
    with pytest.raises(UnsupportedError, match="NFKC"):
        read_tokenizer_json(path)


def test_merges_that_scores_cannot_express(tmp_path: Path) -> None:
    """'ab' + 'c' is a merge, 'a' + 'bc' is not, though both make 'abc': GGUF's kind would join either."""
    vocab = {text: id for id, text in enumerate(["<unk>", "▁", "a", "b", "c", "d", "bc", "ab", "abc"])}
    merges = [["b", "c"], ["a", "b"], ["ab", "c"]]  # 'abc' is a, bc by these rules; a score for 'abc' joins them
    t = Tokenizer(models.BPE(vocab, [(a, b) for a, b in merges], unk_token="<unk>"))
    t.normalizer = normalizers.Replace(" ", "▁")
    t.save(str(tmp_path / "tokenizer.json"))
    assert t.encode("abc").tokens == ["a", "bc"]
    with pytest.raises(UnsupportedError, match="no equal in GGUF"):
        read_tokenizer_json(tmp_path / "tokenizer.json")


def test_unknown_characters_are_noted(tmp_path: Path) -> None:
    """Without fuse_unk every unknown character is one unknown token; SentencePiece makes one of a run."""
    vocab = read_tokenizer_json(spm_like(tmp_path / "tokenizer.json", fuse=False))
    assert len(vocab.notes) == 1 and "outside the vocabulary" in vocab.notes[0]


# ---- SentencePiece models


def test_sentencepiece(tmp_path: Path) -> None:
    import sentencepiece
    path = tmp_path / "tokenizer.model"
    for bytes_ in True, False:
        data = sentencepiece_model(320 if bytes_ else 60, bytes_)
        path.write_bytes(data)
        vocab = read_vocabulary_file(path)
        sp = sentencepiece.SentencePieceProcessor(model_proto=data)
        assert vocab.tokens == [sp.id_to_piece(i) for i in range(sp.vocab_size())] and vocab.ids == {"unknown": 0, "bos": 1, "eos": 2}
        np.testing.assert_array_equal(np.asarray(vocab.scores, np.float32), np.asarray([sp.get_score(i) for i in range(sp.vocab_size())], np.float32))
        ours = load_tokenizer(vocab.metadata(), path)
        for text in ["the cat sat", "  two  spaces ", "on a mat\n\nthe", "hat", *(HARD_STRINGS if bytes_ else [])]:
            assert ours.encode(text, bos=False) == sp.encode(text), text
    for size in 1, 50, len(data) // 2, len(data) - 1:
        path.write_bytes(data[:size])
        with pytest.raises(LlaminaError):
            vocab = read_vocabulary_file(path)
            raise FormatError("cut at a field's end: fewer pieces") if len(vocab.tokens) < 60 else AssertionError
    path.write_bytes(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
    with pytest.raises(FormatError, match=r"tokenizer\.model"):
        read_vocabulary_file(path)


def test_other_sentencepiece_kinds(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    data = sentencepiece_model()
    path.write_bytes(data.replace(b"\x18\x02", b"\x18\x01") if data.count(b"\x18\x02") == 1 else data + b"\x12\x02\x18\x01")
    with pytest.raises(UnsupportedError, match="unigram"):
        read_vocabulary_file(path)
    path.write_bytes(data + b"\x0a\x05\x0a\x01x\x18\x09")
    with pytest.raises(FormatError, match="type 9"):
        read_vocabulary_file(path)
    path.write_bytes(struct.pack("<I", 3) + b"hello")
    with pytest.raises(FormatError, match="llama2.c"):
        read_vocabulary_file(path)


# ---- real files


def test_llama2(real: Path) -> None:
    from llamina.engine.gguf.file import open_gguf
    metadata = read_vocabulary_file(real / "tokenizer" / "llama2.model").metadata()
    with open_gguf(real / "tokenizer" / "ggml-vocab-llama-spm.gguf") as gguf:
        for key, value in metadata.items():
            if key != "tokenizer.ggml.add_space_prefix":
                np.testing.assert_array_equal(value, gguf.metadata[key], err_msg=key)


def test_tinystories(real: Path) -> None:
    """Its tokenizer.json has no pre-tokeniser: merges such as '▁and▁' reach across spaces."""
    path = real / "hf-tinystories-656k" / "tokenizer.json"
    vocab = read_tokenizer_json(path)
    assert not vocab.notes
    assert load_tokenizer(vocab.metadata()).encode("Once upon a time") == [1, 80, 147, 201, 282, 57]
    texts = (real / "text" / "sst2_dev.tsv").read_text().splitlines() + (real / "text" / "wiki.test.raw").read_text().split("\n")[:300]
    rng = random.Random(0)
    pieces = [token.replace("▁", " ") for token in vocab.tokens[3:] if "<|" not in token]
    texts += ["".join(rng.choice(pieces) for _ in range(rng.randint(1, 20))) for _ in range(2000)]
    texts += ["", " ", "  a", "\n", "héllo", "日本", "a\tb", "\0", "😀", "#%&", "a##b", "▁"]
    texts += [(real / "text" / "tinystories_valid_part.txt").read_text().replace("<|endoftext|>", "")]
    assert_equal_ids(path, vocab, texts)
