"""Train the SentencePiece tokenizer on the corpus: BPE with byte fallback, set up as Llama 2's.

    python -m demo.tokenizer                                        # writes demo/work/tokenizer.model
    python -m demo.tokenizer --from-gguf engine/data/demo.gguf      # the same file from a model's own vocabulary: to go on training that model
"""

from __future__ import annotations

import argparse
import io
from itertools import islice
from pathlib import Path

import sentencepiece

from .corpus import documents

WORK = Path(__file__).parent / "work"


def train(seed: int, n_documents: int, n_vocab: int) -> bytes:
    """The model proto's bytes. Lines are cut at line feeds (which become the byte piece <0x0A>, as in Llama 2)."""
    docs = islice(documents(seed, held=False), n_documents)
    lines = (line for doc in docs for prompt, answer in doc.segments() for line in f"{prompt}{answer}".split("\n") if line)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=out, model_type="bpe", vocab_size=n_vocab, byte_fallback=True, split_digits=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.99995,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=1,
    )
    return out.getvalue()


def from_gguf(path: Path) -> bytes:
    """The model proto's bytes, rebuilt from the vocabulary of an exported file. It encodes as the proto behind the file did: merges go by rank."""
    from llamina.engine.gguf.file import open_gguf
    from llamina.engine.text.tokenizer.spm import model_proto
    from llamina.engine.text.tokenizer.vocabulary import read_vocabulary

    with open_gguf(path) as file:
        proto = model_proto(read_vocabulary(file.metadata, str(path), default_ids=(), add_bos=True))
    # llamina puts the space before a text itself; here the library shall: NormalizerSpec (field 3) said again, add_dummy_prefix (its field 3) true
    return proto + bytes([3 << 3 | 2, 2, 3 << 3, 1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=60000)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--from-gguf", type=Path, metavar="FILE", help="rebuild the tokenizer that this file holds, train nothing")
    args = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    (WORK / "tokenizer.model").write_bytes(from_gguf(args.from_gguf) if args.from_gguf else train(args.seed, args.documents, args.vocab))
