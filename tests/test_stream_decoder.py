"""The streaming decoder: what it returns, put together, is decode() of everything, and no piece ends inside a character."""
from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llamina.engine.text.tokenizer import load_tokenizer
from llamina.engine.text.tokenizer.base import Tokenizer
from llamina.engine.text.tokenizer.bpe import BYTE_OF
from llamina.engine.text.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

WORDS = [("\u2581", NORMAL), ("\u2581the", NORMAL), ("é", NORMAL), ("日\u2581本", NORMAL), ("🦙", NORMAL), (" x", NORMAL), ("<tool>", USER_DEFINED)]


def spm(**more: Any) -> Tokenizer:
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), *((f"<0x{b:02X}>", BYTE) for b in range(256)), *WORDS]
    return load_tokenizer({
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.array([type_ for _, type_ in tokens]),
    } | more)  # fmt: skip


def bpe() -> Tokenizer:
    tokens = [(char, NORMAL) for char in BYTE_OF] + [("Ġthe", NORMAL), ("\u00e2\u0124", NORMAL), ("<|eot_id|>", CONTROL), ("<é>", USER_DEFINED)]
    return load_tokenizer({
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama3",
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.token_type": np.array([type_ for _, type_ in tokens]),
        "tokenizer.ggml.merges": [],
    })  # fmt: skip


TOKENIZERS = {
    "spm": spm(),
    "spm without prefix": spm(**{"tokenizer.ggml.add_space_prefix": False}),
    "spm, spaces removed": spm(**{"tokenizer.ggml.remove_extra_whitespaces": True}),
    "bpe": bpe(),
}
LLAMA = [3 + byte for byte in "🦙".encode()]
broken = st.sampled_from([3 + 0xF0, 3 + 0x9F, 3 + 0xE2, 3 + 0x82, 3 + 0x20])
any_ids = st.lists(st.one_of(st.integers(0, 2), st.integers(3, 258), broken, st.integers(259, 400)), max_size=30)


def naive(tokenizer: Tokenizer, ids: list[int], special: bool) -> str:
    """decode(), the slow way: all bytes of a run, then the longest characters that are UTF-8, one U+FFFD for what is none."""
    types, texts, spm = tokenizer.vocabulary.types, tokenizer.vocabulary.tokens, tokenizer.kind == "spm"
    runs, start = [b""], True
    for id in ids:
        data = tokenizer.token_bytes(id)
        if types[id] == CONTROL:
            data = texts[id].encode() if special else b""
            runs += [data, b""] if spm else []
            data = b"" if spm else data
        elif spm and start:
            if types[id] in (NORMAL, USER_DEFINED) and texts[id].startswith("\u2581") and tokenizer is not TOKENIZERS["spm without prefix"]:
                data = data[1:]
                start = tokenizer is TOKENIZERS["spm, spaces removed"] and not data
            else:
                start = not data
        runs[-1] += data
    text = ""
    for run in runs:
        if not spm:
            text += run.decode("utf-8", "replace")
        while spm and run:
            for n in (1, 2, 3, 4):
                try:
                    text += run[:n].decode()
                    break
                except UnicodeDecodeError:
                    continue
            else:
                n, text = 1, text + "\ufffd"
            run = run[n:]
    return text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(ids=any_ids, special=st.booleans())
@example(ids=LLAMA, special=False)
@example(ids=[1, 259, 259, 260], special=False)
@example(ids=[*LLAMA[:2], 260, *LLAMA[:3]], special=False)
@example(ids=[3 + 0xF0, 0, 3 + 0x9F, 2], special=True)
@settings(max_examples=300, deadline=None)
def test_pieces_are_the_whole(name: str, ids: list[int], special: bool) -> None:
    tokenizer = TOKENIZERS[name]
    ids = [id % tokenizer.n_vocab for id in ids]
    whole = tokenizer.decode(ids, special=special)
    assert whole == naive(tokenizer, ids, special)
    stream = tokenizer.stream(special=special)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == whole
    for cut in range(len(ids)):  # the same from any cut on, the first part given as what came before
        before, after = tokenizer.stream(special=special), tokenizer.stream(ids[:cut], special=special)
        head = "".join(map(before.push, ids[:cut]))
        assert head + "".join(map(after.push, ids[cut:])) + after.flush() == whole


def test_whole_characters_only() -> None:
    stream = TOKENIZERS["spm"].stream()
    assert [stream.push(id) for id in LLAMA] == ["", "", "", "🦙"]
    assert [stream.push(id) for id in [*LLAMA[:2], 259]] == ["", "", "\ufffd\ufffd "]
    assert (stream.push(LLAMA[0]), stream.flush(), stream.flush(), stream.push(261)) == ("", "\ufffd", "", "é")


def test_the_space_that_begins_a_text_is_dropped_once() -> None:
    the = 260
    for name, expected in [("spm", ["", "the", " the"]), ("spm without prefix", ["", " the", " the"])]:
        stream = TOKENIZERS[name].stream()
        assert [stream.push(id) for id in (1, the, the)] == expected
        assert TOKENIZERS[name].stream([1]).push(the) == expected[1]
        assert TOKENIZERS[name].stream([1, the]).push(the) == " the"


def test_a_push_does_not_cost_the_length_of_the_text() -> None:
    stream = TOKENIZERS["spm"].stream()
    seconds = []
    for _ in range(2):
        start = time.thread_time()
        for _ in range(100_000):
            stream.push(260)
        seconds.append(time.thread_time() - start)
    assert seconds[1] < 3 * seconds[0] + 0.1
