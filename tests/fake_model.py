"""A model that says what a script tells it to: the public Model over a stand-in runtime and a tokenizer of bytes."""
from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from llamina.engine.errors import ClosedError, ContextFullError
from llamina.engine.model import Model
from llamina.engine.text.tokenizer.base import SpecialTexts

BOS, EOS, TURN = 256, 257, 258
N_VOCAB = 260


class FakeTokenizer:
    """Ids 0 to 255 are bytes; BOS, EOS and TURN are control tokens."""

    bos_id: int | None = BOS
    eos_id, eog_ids, add_bos, n_vocab = EOS, frozenset({EOS}), True, N_VOCAB
    control = SpecialTexts({"<s>": BOS, "</s>": EOS, "<turn>": TURN})

    def encode(self, text: str, *, bos: bool | None = None, eos: bool | None = None, parse_special: bool = False) -> list[int]:
        return [BOS] * (self.add_bos if bos is None else bos) + list(text.encode())

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else b""

    def token_text(self, id: int) -> str:
        return {BOS: "<s>", EOS: "</s>", TURN: "<turn>"}.get(id, "?")

    def decode(self, ids: list[int], special: bool | None = None) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def stream(self, after: Any = (), special: Any = (), at_start: bool = True) -> FakeStream:
        return FakeStream(after)


class FakeStream:
    def __init__(self, after: Any) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in after:
            self.push(id)

    def push(self, id: int) -> str:
        return self.decoder.decode(bytes([id]) if id < 256 else b"")

    @property
    def pending(self) -> bool:
        return bool(self.decoder.getstate()[0])

    def flush(self) -> str:
        return self.decoder.decode(b"", final=True)


class FakeSequence:
    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime, self.ids = runtime, []  # type: FakeRuntime, list[int]
        runtime.open_sequences += 1
        self.closed = self.tentative = False
        self.reused = 0
        self.promised = 0

    at_page_start = False
    states = None
    adapters = ()

    def match(self, ids: Any) -> int:
        return 0

    def place(self, ids: Any) -> None:
        return None

    def promise(self, length: int) -> None:
        self.promised = length

    def begin(self, ids: Any, length: int, back_to: Any = 0, wait: float = 0.0) -> None:
        self.promised = length

    def unpromise(self) -> None:
        self.promised = 0

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def kv_bytes(self) -> int:
        return 10 * self.length

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.ids[length:]

    def close(self) -> None:
        self.ids.clear()
        if not self.closed:
            self.runtime.open_sequences -= 1
        self.closed = True


class FakeRuntime:
    """`say(ids so far) -> next id` decides; its logit is 10, all others are small, falling with the id."""

    n_threads, load_seconds, compile_seconds = 1, 0.0, 0.0
    awaited = False
    arena = None
    adapters = SimpleNamespace(chosen=lambda asked: (), default=(), by_name={}, control_digest="")

    def __init__(self, say: Callable[[list[int]], int], context: int = 64, max_batch: int = 8) -> None:
        self.say, self.context, self.max_batch = say, context, max_batch
        self.wanted_context, self.max_logits = context, max_batch
        self.config = SimpleNamespace(n_vocab=N_VOCAB, name="fake", context_length=1 << 20, output=SimpleNamespace(matrix=True))
        self.fed: list[list[int]] = []
        self.open_sequences = 0
        self.closed = False

    macs_per_token = 10**6

    def new_sequence(self, cached: bool = False, salt: str = "", slides: bool = False, adapters: Any = None) -> FakeSequence:
        return FakeSequence(self)

    def step(self, feeds: list[Any]) -> np.ndarray:
        if self.closed:
            raise ClosedError("closed")
        assert sum(len(f.ids) for f in feeds) <= self.max_batch
        rows = []
        for f in feeds:
            self.fed.append(list(f.ids))
            assert len(f.ids) > 0
            if f.sequence.length + len(f.ids) > self.context:
                raise ContextFullError("a step past the context")
            for i in range(len(f.ids)):
                if f.logits == "all" or f.logits == "last" and i == len(f.ids) - 1:
                    row = -np.arange(N_VOCAB, dtype=np.float32) / 1000
                    row[self.say([*f.sequence.ids, *f.ids[:i + 1]])] = 10
                    rows.append(row)
        for f in feeds:
            f.sequence.ids.extend(f.ids)
        return np.array(rows, np.float32).reshape(len(rows), N_VOCAB)

    def abort(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class FakeTemplate:
    """user and assistant turns -> "u:text TURN a:" as ids."""

    stop_ids = frozenset({TURN})
    built_in = False
    sources = ""

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        ids = [BOS]
        for m in messages:
            ids += [*f"{m['role'][0]}:{m['content']}".encode(), TURN]
        return [*ids, *b"a:"]


def fake_model(answer: str | bytes | list[int] | Callable[[list[int]], int] = "", after: str | int = 0, context: int = 64, max_batch: int = 8) -> Model:
    """A model that continues a prompt of `after` (its ids' number, or its text after BOS) with `answer`, then ends; or as a function says."""
    if callable(answer):
        say = answer
    else:
        script = list(answer.encode() if isinstance(answer, str) else answer)
        start = after if isinstance(after, int) else 1 + len(after.encode())
        say = lambda ids: script[len(ids) - start] if len(ids) - start < len(script) else EOS  # noqa: E731
    gguf = SimpleNamespace(path=Path("fake.gguf"), metadata={}, close=lambda: None)
    model = Model(gguf, FakeTokenizer(), FakeRuntime(say, context, max_batch))  # type: ignore[arg-type]
    model.speculate = False  # or what is fed would depend on time
    model._template = FakeTemplate()  # type: ignore[assignment]
    return model
