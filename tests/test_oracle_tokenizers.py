"""Every way of cutting text (splits.py) against llama.cpp, where LLAMINA_PEER_LLAMACPP names the Python of an environment that has llama-cpp-python: a
small vocabulary whose merges know no borders between words gives the same ids.

Left out, and tested in test_tokenizer_splits.py against the library that the models were trained with: what llama.cpp's engine can't say. It has no classes
of case (o200k's and Tekken's expressions), no long s in contractions, and takes the ideographic space and mixed words of DeepSeek's otherwise.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from hard_strings import ALPHABET, FOREIGN, PLAIN, drawn
from llamina.bench.peers import llamacpp
from llamina.engine.gguf.file import open_gguf
from llamina.engine.text.tokenizer import load_tokenizer
from llamina.engine.text.tokenizer.splits import ROWS, UPPER, Row
from llamina.engine.text.tokenizer.vocabulary import CONTROL, USER_DEFINED
from vocabularies import metadata_of, trained


@pytest.fixture(scope="module")
def peer() -> Iterator[llamacpp.LlamaCpp]:
    if not os.environ.get(llamacpp.VARIABLE):
        pytest.skip(f"{llamacpp.VARIABLE} names no Python with llama-cpp-python")
    with llamacpp.start() as peer:
        yield peer


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return metadata_of(trained(size=2500), None)


def write(path: Path, metadata: dict[str, Any], architecture: str = "llama") -> None:
    """A file without tensors that llama.cpp opens for its vocabulary."""
    writer = gguf.GGUFWriter(path, architecture)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"{architecture}.{key}", 32)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value.tolist() if hasattr(value, "tolist") else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("row", [row for row in ROWS if not row.raw and UPPER not in row.split[-1]], ids=lambda row: row.names[0])
def test_cuts_as_llama_cpp(row: Row, peer: llamacpp.LlamaCpp, metadata: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    full = metadata | {"tokenizer.ggml.pre": row.names[0]}
    write(path, full)
    peer.ask("load", model=str(path), threads=1, vocab_only=True)
    ours = load_tokenizer(full)
    letters = ALPHABET.replace("ſ", "")
    texts = [*PLAIN, *FOREIGN, *drawn(300, 2, "abcXYZ 012 \n\n\t\r'.,!/-_$+<=`|~^"), *drawn(300, 3, letters)]
    if row.names[0].startswith("deepseek-"):
        texts = [text for text in texts if (text.isascii() if row.names[0] == "deepseek-llm" else "\u3000" not in text)]
    different = []
    for text in texts:
        theirs = peer.ask("tokenize", text=text)
        if (got := ours.encode(text)) != theirs:
            different.append((text, [ours.token_text(i) for i in theirs], [ours.token_text(i) for i in got]))
    assert not different, f"{len(different)} of {len(texts)}: {different[:3]}"


VOCABULARIES = ["command-r", "deepseek-coder", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "starcoder"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_published_vocabularies(vocabulary: str, peer: llamacpp.LlamaCpp) -> None:
    """Hard strings, and special tokens side by side and between white space (Phi-3 drops it), where llama.cpp's sources lie as well (LLAMINA_LLAMACPP_SRC)."""
    path = Path(os.environ.get("LLAMINA_LLAMACPP_SRC") or "nowhere") / "models" / f"ggml-vocab-{vocabulary}.gguf"
    if not path.is_file():
        pytest.skip("set LLAMINA_LLAMACPP_SRC to llama.cpp's sources to compare their vocabularies")
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file.metadata, path)
    peer.ask("load", model=str(path), threads=1, vocab_only=True)
    special = [tokenizer.token_text(id) for id, type_ in enumerate(tokenizer.vocabulary.types) if type_ in (CONTROL, USER_DEFINED)][:10]
    pairs = [text for a in special for b in special for text in (f"{a}{b}", f"{a}\n hi  {b}{a} x{b}\n\n")]
    for text in [*PLAIN, *FOREIGN, *drawn(200, 9), *pairs]:
        for parse in False, True:
            theirs = peer.ask("tokenize", text=text, special=False, parse_special=parse)
            assert tokenizer.encode(text, bos=False, parse_special=parse) == theirs, text
