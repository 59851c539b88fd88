"""Folders of encoders from before tokenizer.json: SentencePiece's Unigram models with fairseq's ids, vocab.txt, vocab.json with merges.txt."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from checkpoints import sentencepiece_model, write_safetensors
from hard_strings import HARD, drawn
from llamina.convert.sources.base import Fields
from llamina.convert.sources.hf_tokenizer import read_tokenizer
from llamina.convert.sources.vocabulary import Vocab
from llamina.engine.errors import LlaminaError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.text.tokenizer import load_tokenizer
from spm_proto import model_of
from test_tokenizer_pieces import published, spm

TEXTS = [*HARD, *drawn(300, 4)]


def read(folder: Path, kind: str, settings: dict[str, Any] | None = None) -> Vocab:
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return read_tokenizer(folder, Fields(folder / "config.json", {"model_type": kind}), None, None)[0]


@pytest.mark.parametrize("kind, first, n_replaced", [("xlm-roberta", ["<s>", "<pad>", "</s>", "<unk>"], 3),
                                                    ("camembert", ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"], 1)])
def test_fairseq_s_ids(kind: str, first: list[str], n_replaced: int, tmp_path: Path) -> None:
    """The sentencepiece library's ids, moved, where it maps characters as the tokenizers library does; what it doesn't know is <unk>."""
    model = spm()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model)
    theirs, vocab = sentencepiece.SentencePieceProcessor(model_proto=model), read(tmp_path, kind)
    n, moved = theirs.get_piece_size(), len(first) - n_replaced
    assert vocab.tokens == [*first, *(theirs.id_to_piece(id) for id in range(n_replaced, n)), "<mask>"]
    assert [vocab.tokens[vocab.ids[name]] for name in ("bos", "eos", "unknown")] == ["<s>", "</s>", "<unk>"] and vocab.add_bos and vocab.add_eos
    ours, alike, unknown = load_tokenizer(vocab.metadata()), 0, 0
    mapping = hf.normalizers.Precompiled(bytes(vocab.settings["precompiled_charsmap"]))
    for text in TEXTS:
        if "\0" in text or "x" * 99 in text or " ".join(mapping.normalize_str(text).split()) != " ".join(theirs.normalize(text).replace("\u2581", " ").split()):
            continue
        expected = [3 if id == 0 else id + moved for id in theirs.encode(text)]
        assert ours.encode(text) == [vocab.ids["bos"], *expected, vocab.ids["eos"]], text
        alike, unknown = alike + 1, unknown + (3 in expected)
    assert alike > 280 and unknown
    assert len(vocab.tokens) - 1 not in ours.encode("a <mask> b")  # what people write is text


def test_xlm_roberta_s_own(tmp_path: Path) -> None:
    """The 250,000 pieces that llama.cpp's converter made of the published file, put back into such a file: the same tokens, scores, types and ids."""
    with open_gguf(published("nomic-bert-moe")) as file:
        theirs: dict[str, Any] = {key: file.metadata[key] for key in file.metadata if key.startswith("tokenizer.")}
    n = 250002  # rows follow that pad the embedding
    pieces = {name: list(theirs["tokenizer.ggml." + name])[3:n - 1] for name in ("tokens", "scores", "token_type")}
    pieces["tokens"][0], pieces["token_type"][0] = "<unk>", 2
    for text in "</s>", "<s>":
        pieces = {name: [values[0], {"tokens": text, "scores": 0.0, "token_type": 3}[name], *values[1:]] for name, values in pieces.items()}
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model_of({**theirs, **{"tokenizer.ggml." + name: values for name, values in pieces.items()}}))
    vocab = read(tmp_path, "xlm-roberta")
    assert vocab.tokens[:-1] == list(theirs["tokenizer.ggml.tokens"])[:n - 1] and vocab.tokens[-1] == "<mask>" and len(vocab.tokens) == n
    assert vocab.scores is not None and vocab.scores[4:-1] == [float(score) for score in theirs["tokenizer.ggml.scores"][4:n - 1]]
    ours, gguf = load_tokenizer(vocab.metadata()), load_tokenizer(theirs)
    assert [ours.encode(text) for text in TEXTS] == [gguf.encode(text) for text in TEXTS]


def bert(folder: Path) -> tuple[Callable[[str], list[int]], list[str]]:
    theirs = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer, theirs.pre_tokenizer = hf.normalizers.BertNormalizer(lowercase=False), hf.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    theirs.train_from_iterator(HARD, hf.trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False, limit_alphabet=150))
    theirs.post_processor = hf.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokens = [str(theirs.id_to_token(id)) for id in range(theirs.get_vocab_size())]
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    return lambda text: list(theirs.encode(text).ids), tokens


def test_vocab_txt(tmp_path: Path) -> None:
    theirs, tokens = bert(tmp_path)
    ours = load_tokenizer(read(tmp_path, "bert", {"do_lower_case": False}).metadata())
    assert [ours.encode(text) for text in TEXTS] == [theirs(text) for text in TEXTS] and ours.vocabulary.tokens[2] == "[CLS]"
    silent = read(tmp_path, "bert", {})
    assert silent.settings["normalizer.lowercase"] and any("do_lower_case" in note for note in silent.notes)
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\na\na\n")
    with pytest.raises(LlaminaError, match=r"line 4 is the token 'a', as line 3 is"):
        read(tmp_path, "bert")
    (tmp_path / "vocab.txt").write_text("\n".join(tokens[:3]))
    with pytest.raises(LlaminaError, match=r"no token '\[SEP\]'"):
        read(tmp_path, "bert")


@pytest.mark.parametrize("kind, special", [("roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), ("gpt2", ["<|endoftext|>"])])
def test_vocab_json_and_merges(kind: str, special: list[str], tmp_path: Path) -> None:
    theirs = hf.Tokenizer(hf.models.BPE())
    theirs.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator(HARD, hf.trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False,
                                                            initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet()))
    theirs.model.save(str(tmp_path))
    ours = load_tokenizer(read(tmp_path, kind, {"tokenizer_class": {"roberta": "RobertaTokenizer", "gpt2": "GPT2TokenizerFast"}[kind]}).metadata())
    around = ([0], [2]) if kind == "roberta" else ([], [])
    texts = [text for text in TEXTS if not any(s in text for s in special)]
    assert [ours.encode(text) for text in texts] == [[*around[0], *theirs.encode(text).ids, *around[1]] for text in texts]
    with pytest.raises(LlaminaError, match=r"how Qwen2Tokenizer cuts texts .* get its tokenizer.json"):
        read(tmp_path, "qwen2", {"tokenizer_class": "Qwen2Tokenizer"})
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(LlaminaError, match=r"merges.txt: is missing"):
        read(tmp_path, kind, {})


def test_other_models(tmp_path: Path) -> None:
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(spm())
    with pytest.raises(LlaminaError, match=r"sentencepiece.bpe.model: is a SentencePiece model of kind unigram"):
        read(tmp_path, "llama")
    path.write_bytes(sentencepiece_model())
    with pytest.raises(LlaminaError, match="no SentencePiece model of kind unigram"):
        read(tmp_path, "xlm-roberta")
    path.write_bytes(spm(unk_id=2, bos_id=0, eos_id=1))
    with pytest.raises(LlaminaError, match=r"begins with the pieces .* it is another model's"):
        read(tmp_path, "xlm-roberta")
    path.write_bytes(spm(treat_whitespace_as_suffix=True))
    with pytest.raises(LlaminaError, match="treat_whitespace_as_suffix"):
        read(tmp_path, "xlm-roberta")
    path.unlink()
    with pytest.raises(LlaminaError, match=r"has no tokenizer.model, tokenizer.json, sentencepiece.bpe.model, vocab.txt or vocab.json"):
        read(tmp_path, "xlm-roberta")


def test_a_folder(run: Any, tmp_path: Path) -> None:
    """`convert` takes it as it takes others, and says which file its vocabulary was compared with."""
    folder, rng, dim = tmp_path / "m", np.random.default_rng(0), 64
    folder.mkdir()
    (folder / "sentencepiece.bpe.model").write_bytes(spm())
    n = sentencepiece.SentencePieceProcessor(model_proto=spm()).get_piece_size() + 2
    rows = {"word": n, "position": 34, "token_type": 1}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{name}_embeddings.weight": (rows[name], dim) for name in rows}
    parts = {"attention.self.query": (dim, dim), "attention.self.key": (dim, dim), "attention.self.value": (dim, dim), "attention.output.dense": (dim, dim),
             "intermediate.dense": (96, dim), "output.dense": (dim, 96)}
    shapes |= {f"encoder.layer.0.{name}.weight": shape for name, shape in parts.items()}
    shapes |= {f"encoder.layer.0.{name}.bias": shape[:1] for name, shape in parts.items()}
    shapes |= {f"{name}.{end}": (dim,) for name in ("embeddings.LayerNorm", "encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm")
               for end in ("weight", "bias")}
    write_safetensors(folder / "model.safetensors", {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    (folder / "config.json").write_text(json.dumps({
        "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "hidden_size": dim, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 96, "vocab_size": n, "max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1, "hidden_act": "gelu"}))
    out = tmp_path / "m.gguf"
    found = run("convert", str(folder), str(out), "--type", "f32")
    assert found.code == 0, found.err
    with open_gguf(out) as file:
        ours = load_tokenizer(file.metadata, out)
    assert ours.encode("") == [0, 2] and ours.kind == "unigram" and len(ours.vocabulary.tokens) == n
