"""What both kinds of tokenizer share: special tokens found in text, bytes of tokens, decoding.

    encode: text -> split() -> [text | special id, ...] -> ids of each text (the kind's own part) -> ids
    decode: ids -> bytes of each token -> UTF-8

A special token is one with an id of its own that no merge produces. "User defined" ones are always found in text; "control" ones (<s>, </s>,
<|eot_id|>, ...) only when asked for: in a user's text they are plain text, so that nobody ends a turn by typing it.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from typing import ClassVar

import numpy as np

from ...errors import TokenizerError
from ...panics import panics_are
from .stream import StreamDecoder
from .vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
KEEP_SPACE_AFTER = ("<unk>", "<s>", "<|endoftext|>")  # Phi-3's special tokens that do not strip


class SpecialTexts:
    """Finds the texts of special tokens: the leftmost first, the longest where several begin at one place (as HF's added tokens are found)."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids
        lengths: dict[str, set[int]] = {}
        for text in ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self.firsts = frozenset(lengths)
        self._longest = max(map(len, ids), default=0)
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile("[" + re.escape("".join(lengths)) + "]") if ids else None

    def split(self, text: str) -> list[str | int]:
        """Non-empty texts and ids, in order."""
        parts: list[str | int] = []
        done = 0
        for match in self._first.finditer(text) if self._first else ():
            at = match.start()
            if at < done:
                continue
            for length in self._lengths[text[at]]:
                id = self.ids.get(text[at : at + length])
                if id is not None:
                    if done < at:
                        parts.append(text[done:at])
                    parts.append(id)
                    done = at + length
                    break
        if done < len(text):
            parts.append(text[done:])
        return parts


    def beginnings(self, text: str) -> list[int]:
        """Every place in `text` where a special text begins, overlapping ones too, and where one begins that `text` (or `text` without its last
        spaces) does not hold to its end: what follows might complete it."""
        places = set()
        for match in self._first.finditer(text) if self._first else ():
            at = match.start()
            if any(text[at : at + length] in self.ids for length in self._lengths[text[at]]):
                places.add(at)
        for whole in {text, text.rstrip()}:
            for at in range(max(0, len(whole) - self._longest + 1), len(whole)):
                if whole[at] in self.firsts and any(special.startswith(whole[at:]) for special in self.ids):
                    places.add(at)
        return sorted(places)


class Tokenizer:
    """Text to token ids and back. Immutable after construction, so that threads may share one."""

    kind: ClassVar[str]  # "spm" | "bpe" | "gemma4"
    utf8_errors: ClassVar[str]  # what bytes that are no UTF-8 decode to: the name of a codecs error handler
    rules: tuple[object, ...] = ()  # how text is cut into words, where kinds of one name differ in it
    control_ends_character: ClassVar[bool]  # whether bytes before and after a control token never make one character

    def __init__(self, vocabulary: Vocabulary) -> None:
        v = self.vocabulary = vocabulary
        self.path = v.path
        self.n_vocab = len(v.tokens)
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = v.bos_id, v.eos_id, v.unk_id, v.pad_id
        self.eog_ids, self.add_bos, self.add_eos = v.eog_ids, v.add_bos, v.add_eos
        # Where two tokens have one text, the first counts.
        special = [(v.tokens[id], id) for id in np.flatnonzero(np.isin(v.types, (CONTROL, UNKNOWN, USER_DEFINED))).tolist() if v.tokens[id]]
        self._special = SpecialTexts(dict(reversed(special)))
        self._user_defined = SpecialTexts({text: id for text, id in reversed(special) if v.types[id] == USER_DEFINED})
        # What encode(parse_special=True) turns into ids and encode() does not.
        self.control = SpecialTexts({text: id for text, id in self._special.ids.items() if text not in self._user_defined.ids})
        self._strips_after = frozenset(id for text, id in special if text not in KEEP_SPACE_AFTER) if v.strips_after_tags else frozenset()
        self._bytes: dict[int, bytes] = {}
        self._digest: str | None = None

    # ---- encode

    def encode(self, text: str, *, bos: bool | None = None, eos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. `bos`/`eos`: put BOS before and EOS after; None: BOS as the file says, EOS as the file says unless bos is False.
        `parse_special`: the texts of control tokens stand for their ids instead of for themselves.
        Raises TokenizerError for text that is no Unicode (lone surrogates), or characters that the vocabulary has no way to express."""
        ids = self.encode_parts(self.split(text, parse_special))
        written = parse_special and bos is None and ids[:1] == [self.bos_id]  # the text has its BOS: the file's own would be a second one
        if (self.add_bos and not written) if bos is None else bos:
            ids.insert(0, self._required(self.bos_id, "BOS", "bos_token_id"))
        if (self.add_eos and bos is not False) if eos is None else eos:
            ids.append(self._required(self.eos_id, "EOS", "eos_token_id"))
        return ids

    def split(self, text: str, parse_special: bool) -> list[str | int]:
        """`text` cut at special tokens: non-empty texts and the ids between them."""
        if not isinstance(text, str):
            raise TokenizerError(f"{self.path}: only a str can be tokenised, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise TokenizerError(f"{self.path}: the text is not valid Unicode: lone surrogate {found}; decode its bytes as UTF-8 first") from None
        return (self._special if parse_special else self._user_defined).split(text)

    @panics_are(TokenizerError, "the text cannot be tokenised")
    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Ids of what split() returned, without BOS or EOS. A text part is text: no special token is found in it. Phi-3 drops white space after a tag."""
        ids: list[int] = []
        after_tag = False
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
                after_tag = part in self._strips_after
            elif part := part.lstrip(WHITE_SPACE) if after_tag else part:
                ids += self._encode_text(part)
                after_tag = False
        return ids

    def _encode_text(self, text: str) -> list[int]:
        """Ids of a non-empty text that begins everything or follows a special token."""
        raise AssertionError("each kind has its own")

    # ---- decode

    def decode(self, ids: Iterable[int], *, special: bool | Collection[int] = False) -> str:
        """Text of `ids`. Control tokens have none, or with `special` (all or those) that of the vocabulary. Bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream(special=special)
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, after: Iterable[int] = (), *, special: bool | Collection[int] = False, at_start: bool = True) -> StreamDecoder:
        """A decoder fed token by token; `after`: the ids before the first one fed, typically the prompt. special: control
        tokens have text, all or those. at_start: False keeps the space that SentencePiece
        drops at the beginning of a text."""
        return StreamDecoder(self, after, special=special, at_start=at_start)

    def piece(self, id: int, at_start: bool, special: bool) -> tuple[bytes, bool]:
        """Bytes that a token adds to a text, and whether the text is still at its start after it (then SentencePiece drops a space)."""
        return self.token_text(id).encode() if special and self.is_control(id) else self.token_bytes(id), False

    def token_bytes(self, id: int) -> bytes:
        """Bytes of one token, as in the middle of a text: empty for control tokens."""
        found = self._bytes.get(id)
        if found is None:
            self._check(id)
            found = self._bytes[id] = b"" if self.is_control(id) else self._piece_bytes(self.vocabulary.tokens[id], self.vocabulary.types[id])
        return found

    def token_text(self, id: int) -> str:
        """The token as the vocabulary writes it (SentencePiece: U+2581 for space, <0x0A> for a byte; BPE: GPT-2's byte alphabet)."""
        self._check(id)
        return self.vocabulary.tokens[id]

    def is_control(self, id: int) -> bool:
        self._check(id)
        return self.vocabulary.types[id] == CONTROL

    def special_id(self, text: str) -> int | None:
        """The control or user-defined token with exactly this text."""
        return self._special.ids.get(text)

    def vocab_digest(self) -> str:
        """SHA-256 (hex) of everything that decides how text becomes ids: for sessions and caches to know their vocabulary."""
        if self._digest is None:
            v, digest = self.vocabulary, hashlib.sha256(self.kind.encode())
            settings = (self.bos_id, self.eos_id, self.unk_id, self.add_bos, self.add_eos, v.add_space_prefix, v.remove_extra_whitespaces)
            digest.update(repr((*settings, v.strips_after_tags, v.nfc, self.rules)).encode())
            for texts in (v.tokens, v.merges or ()):
                digest.update(b"".join(len(raw).to_bytes(8, "little") + raw for raw in (text.encode("utf-8", "surrogatepass") for text in texts)))
            digest.update(bytes(v.types))
            digest.update(b"" if v.scores is None else v.scores.astype("<f4").tobytes())
            self._digest = digest.hexdigest()
        return self._digest

    # ---- helpers

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        """Bytes of a token that is no control token."""
        raise AssertionError("each kind has its own")

    def _check(self, id: int) -> None:
        if not 0 <= id < self.n_vocab:
            raise TokenizerError(f"{self.path}: token id {id} is outside the vocabulary of {self.n_vocab} tokens")

    def _required(self, id: int | None, name: str, key: str) -> int:
        if id is None:
            raise TokenizerError(f"{self.path}: the vocabulary has no {name} token (tokenizer.ggml.{key}); encode without it")
        return id
