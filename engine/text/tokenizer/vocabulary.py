"""The vocabulary a GGUF file carries, read and checked once for both kinds of tokenizer.

    tokenizer.ggml.tokens, .scores, .token_type, .merges, .*_token_id, .add_*   ->   Vocabulary

Nothing here depends on how text is split. Repairs of what real files get wrong, each as llama.cpp does it: the tokens that begin or end a text
are control tokens whatever their type says, and so are the well-known end-of-turn texts; an id of 2^32 - 1 means "none".
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ...errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's llama_token_type == SentencePiece's Type
NO_ID = 2**32 - 1
MAX_TOKENS = 2**31 - 1  # ids are int32 everywhere

# Tokens that end the model's turn in the Llama family and its fine-tunes, known by their text (llama.cpp does the same).
END_OF_TURN = frozenset(
    ["</s>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<EOT>"]
)
BYTE_TEXT = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass
class Vocabulary:
    """What a file says about its tokens. Ids index `tokens`; an id that a file does not set is None."""

    path: str
    tokens: list[str]
    types: list[int]
    scores: np.ndarray | None  # float32 [n_vocab]
    merges: list[str] | None
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False
    eog_ids: frozenset[int] = field(default_factory=frozenset)

    def fail(self, message: str) -> NoReturn:
        raise TokenizerError(f"{self.path}: {message}")


def read_vocabulary(metadata: Mapping[str, Any], path: str, *, default_ids: tuple[int, ...], add_bos: bool) -> Vocabulary:
    """Reads and checks the tokenizer.ggml.* keys. `default_ids` are (bos, eos, unknown) where the file names none and they are control tokens;
    `add_bos` is the kind's habit where the file is silent. Raises TokenizerError naming file and key."""

    def fail(key: str, problem: str) -> NoReturn:
        raise TokenizerError(f"{path}: tokenizer.ggml.{key} {problem}")

    def array(key: str) -> Any:
        value = metadata.get("tokenizer.ggml." + key)
        if value is not None and (isinstance(value, (str, bytes)) or not hasattr(value, "__len__")):
            fail(key, f"must be an array, not {type(value).__name__}")
        return value

    def strings(key: str) -> list[str] | None:
        value = array(key)
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            fail(key, f"must be an array of strings, not of {value.dtype}")
        if len(value) > MAX_TOKENS:
            fail(key, f"has {len(value)} entries, more than ids can count ({MAX_TOKENS})")
        return list(value)

    def numbers(key: str, count: int) -> np.ndarray | None:
        value = array(key)
        if value is None:
            return None
        if len(value) != count:
            fail(key, f"has {len(value)} entries, but tokenizer.ggml.tokens has {count}: the file is damaged or was written wrongly")
        value = np.asarray(value)
        if value.dtype.kind not in "iuf" or value.ndim != 1:
            fail(key, f"must be an array of numbers, not of {value.dtype}")
        return value

    def flag(key: str, default: bool) -> bool:
        value = metadata.get("tokenizer.ggml." + key, default)
        if not isinstance(value, (bool, np.bool_)):
            fail(key, f"must be true or false, not {value!r:.40}")
        return bool(value)

    tokens = strings("tokens")
    if not tokens:
        fail("tokens", "is missing or empty: the file has no vocabulary")
    for id, text in enumerate(tokens):
        if not isinstance(text, str):
            fail("tokens", f"holds {type(text).__name__} for id {id}, not a string")

    def token_id(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}", NO_ID)
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            fail(key, f"must be a whole number, not {value!r:.40}")
        if value in (NO_ID, -1):
            return None
        if not 0 <= value < len(tokens):
            fail(key, f"is {value}, outside the vocabulary of {len(tokens)} tokens")
        return int(value)

    scores = numbers("scores", len(tokens))
    if scores is not None:
        scores = scores.astype(np.float32)
        if np.isnan(scores).any():
            fail("scores", f"is NaN for id {int(np.isnan(scores).argmax())}")
    raw_types = numbers("token_type", len(tokens))
    types = [NORMAL] * len(tokens) if raw_types is None else [int(t) or NORMAL for t in raw_types]  # 0: "undefined"
    for id, type_ in enumerate(types):
        if not NORMAL <= type_ <= BYTE:
            fail("token_type", f"is {type_} for id {id}; known types are 0 to 6")

    vocabulary = Vocabulary(path, tokens, types, scores, strings("merges"))
    v = vocabulary
    v.bos_id, v.eos_id, v.unk_id = token_id("bos_token_id"), token_id("eos_token_id"), token_id("unknown_token_id")
    v.pad_id = token_id("padding_token_id")
    for name, default in zip(("bos", "eos", "unknown"), default_ids):
        fits = default < len(tokens) and (types[default] in (CONTROL, UNKNOWN) or raw_types is None)
        if fits and f"tokenizer.ggml.{name}_token_id" not in metadata:
            setattr(v, "unk_id" if name == "unknown" else name + "_id", default)

    ends = {id for id, text in enumerate(tokens) if text in END_OF_TURN} | {v.eos_id, token_id("eot_token_id"), token_id("eom_token_id")}
    v.eog_ids = frozenset(end for end in ends if end is not None)
    for end in v.eog_ids if v.bos_id is None else {v.bos_id, *v.eog_ids}:
        if types[end] in (NORMAL, USER_DEFINED):
            types[end] = CONTROL

    v.add_bos = flag("add_bos_token", add_bos and v.bos_id is not None)
    v.add_eos = flag("add_eos_token", False)
    if v.add_bos and v.bos_id is None:
        fail("add_bos_token", "is true, but there is no tokenizer.ggml.bos_token_id")
    if v.add_eos and v.eos_id is None:
        fail("add_eos_token", "is true, but there is no tokenizer.ggml.eos_token_id")
    v.add_space_prefix = flag("add_space_prefix", True)
    v.remove_extra_whitespaces = flag("remove_extra_whitespaces", False)
    return vocabulary
