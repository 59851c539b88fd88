"""Sessions of answers and conversations: bytes changed, and headers changed whose checksums are right. What is taken up goes on for some tokens."""
from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from llamina.engine.answers.chat import Chat
from llamina.engine.answers.session import MAGIC
from llamina.engine.errors import LlaminaError
from llamina.engine.model import load

from fuzz.mutate import changed_json, damaged
from fuzz.run import generator


class Fuzzer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.path, self.seed = folder / "s", seed
        self.model = load("demo", threads=1, context=256, memory="200MB")
        self.whole: list[tuple[str, bytes]] = []
        for options in ({}, {"temperature": 0.0, "logprobs": 2}, {"context_shift": True, "stop": ["x"], "mirostat": 2}, {"json_schema": {"type": "integer"}}):
            answer = self.model.generate("Once upon a time " * 12, max_tokens=20, seed=1, **options)
            for _ in range(5):
                next(answer, None)
            answer.save(self.path)
            self.whole.append(("answer", self.path.read_bytes()))
        chat = Chat(self.model, system="Be kind.")
        chat.ask("Hello " * 40, max_tokens=4, seed=1).text()
        chat.save(self.path)
        self.whole.append(("chat", self.path.read_bytes()))

    def case(self, n: int) -> str:
        rng = generator(self.seed, n)
        kind, data = rng.choice(self.whole)
        if rng.random() < 0.6:  # a header that its checksum calls right
            length = int.from_bytes(data[len(MAGIC):len(MAGIC) + 8], "little")
            header = json.loads(data[len(MAGIC) + 8:len(MAGIC) + 8 + length])
            raw = json.dumps(changed_json(header, rng)).encode(errors="replace") if rng.random() < 0.9 else damaged(json.dumps(header).encode(), rng)
            head = MAGIC + len(raw).to_bytes(8, "little") + raw
            rest = data[len(MAGIC) + 8 + length + 32:]
            data = head + blake2b(head, digest_size=32).digest() + (rest if rng.random() < 0.9 else damaged(rest, rng, len(rest)))
        else:
            data = damaged(data, rng)
        self.path.write_bytes(data)
        notes: list[str] = []
        try:
            if kind == "answer":
                with self.model.resume(self.path, notes.append) as answer:
                    for _ in range(4):
                        next(answer, None)
            else:
                chat = Chat(self.model)
                notes.append(chat.load(self.path) or "")
                chat.ask("And?", max_tokens=3, seed=1).text()
        except LlaminaError as error:
            if "\n" in str(error):
                raise
            return type(error).__name__
        finally:
            self.model.clear_prefix_cache()
        return "recomputed" if any(notes) else "taken up"
