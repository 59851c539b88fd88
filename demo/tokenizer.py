"""Train the SentencePiece tokenizer on the corpus: BPE with byte fallback, set up as Llama 2's.

    python -m demo.tokenizer        # writes demo/work/tokenizer.model
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=60000)
    parser.add_argument("--vocab", type=int, default=2048)
    args = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    (WORK / "tokenizer.model").write_bytes(train(args.seed, args.documents, args.vocab))
