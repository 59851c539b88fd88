"""Token ids to text, one token at a time.

Invariant: the texts that push() returned, followed by what flush() returns, are exactly decode(all ids). A token may end inside a character:
its last bytes are held back until the character is complete, or until a byte shows that it never will be.

An incremental UTF-8 decoder does the work, so a push costs the length of its token, however long the text is already.
"""
from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Tokenizer


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """SentencePiece's way with bytes that are not UTF-8: one U+FFFD for each byte (Python and HF's byte-level BPE: one per broken sequence)."""
    assert isinstance(error, UnicodeDecodeError)
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error("llamina-replace-each-byte", _replace_each_byte)
_incremental = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Made by Tokenizer.stream(). `after` are ids that came before (a prompt): their text is not returned, but what follows joins onto it: the
    space that begins a text is dropped once only."""

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = (), *, special: bool | Collection[int] = False, at_start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._at_start = at_start
        self._decoder = _incremental(tokenizer.utf8_errors)
        for id in after:
            self.push(id)

    def push(self, id: int) -> str:
        """The text that this token completes: whole characters only, possibly none. TokenizerError for an id outside the vocabulary."""
        special = self._special if isinstance(self._special, bool) else id in self._special
        piece, self._at_start = self._tokenizer.piece(id, self._at_start, special)
        broken = self.flush() if self._tokenizer.control_ends_character and self._tokenizer.is_control(id) else ""
        return broken + self._decoder.decode(piece)

    @property
    def pending(self) -> bool:
        """Whether bytes of a character that is not complete are held back."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """What is still held back: bytes of a character that never was completed, as U+FFFD. The decoder can be used on."""
        return self._decoder.decode(b"", final=True)
