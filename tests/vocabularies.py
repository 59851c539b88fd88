"""Small BPE vocabularies for tests, trained here, as the metadata of a GGUF file."""
from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers as hf
from hard_strings import HARD, drawn
from llamina.engine.text.tokenizer.vocabulary import CONTROL, NORMAL

ALPHABET = hf.pre_tokenizers.ByteLevel.alphabet()


def trained(split: Iterable[str] = (), *, size: int = 1500, ignore_merges: bool = False, texts: Iterable[str] = ()) -> Any:
    """A byte-level BPE tokenizer of the library, whose merges reach across all borders between words that `split` does not cut."""
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    some = [text for text in [*HARD, *drawn(300, 1), *texts] if text]
    tokenizer.train_from_iterator(some * 2, hf.trainers.BpeTrainer(vocab_size=size, initial_alphabet=ALPHABET, show_progress=False))
    tokenizer.model.ignore_merges = ignore_merges
    cuts = [hf.pre_tokenizers.Split(hf.Regex(expression), "isolated") for expression in split]
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([*cuts, tokenizer.pre_tokenizer])
    tokenizer.decoder = hf.decoders.ByteLevel()
    return tokenizer


def metadata_of(tokenizer: Any, pre: str | None, special: Iterable[str] = ("<s>", "</s>")) -> dict[str, Any]:
    """The vocabulary of a library tokenizer, with control tokens after it, the first BOS and the second EOS."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens, special = sorted(model["vocab"], key=model["vocab"].get), list(special)
    keys = {
        "model": "gpt2", "tokens": [*tokens, *special], "token_type": np.array([NORMAL] * len(tokens) + [CONTROL] * len(special), np.int32),
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]], "bos_token_id": len(tokens),
            "eos_token_id": len(tokens) + 1,
    }
    return {"tokenizer.ggml." + key: value for key, value in (keys if pre is None else keys | {"pre": pre}).items()}
