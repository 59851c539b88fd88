"""Rows of training data: JSON values changed, bytes changed, rows of other kinds among them; read with options that may or may not be for them."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llamina.engine.errors import LlaminaError, OptionError
from llamina.engine.model import load_vocabulary
from llamina.engine.text.chat_template import ChatTemplate
from llamina.engine.train.data import Reading, lengths, open_data, shown

from fuzz.mutate import VALUES, changed_json, damaged
from fuzz.run import generator

TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "One?"}, {"role": "assistant", "content": "1", "weight": 1},
        {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}}]
ROWS: list[list[Any]] = [
    [{"messages": TALK}, {"messages": TALK[1:3], "tools": TOOLS}, {"messages": TALK[1:]}],
    [{"prompt": "The sky is", "completion": " blue"}, {"prompt": "Grass is ", "completion": "green"}, {"prompt": "a", "completion": ""}],
    [{"text": "Once upon a time"}, {"text": "a"}, "a text alone"],
    [{"text": "a joy", "label": "good"}, {"text": "a bore", "label": "bad"}, {"text": "fine", "label": "good"}],
    [{"prompt": "1+1=", "target": "2"}, {"prompt": "1+2=", "target": ["3", "three"]}],
    [{"context": "It is", "choices": ["hot", "cold"], "answer": 1}, {"context": "He", "choices": ["is", "was"], "answer": 0}],
    [{"source": "a hen", "reference": "une poule"}, {"source": "a goat", "reference": "une chèvre"}],
]
OPTIONS: list[dict[str, Any]] = [{}, {}, {"chat": True}, {"loss": "all"}, {"loss": "completion"}, {"context": 8, "long": "cut"}, {"context": 8, "long": "skip"},
                                 {"context": 6}, {"template": "{text}:{prompt}"}, {"delimiter": "\n"}, {"labels": {"good": "yes"}},
                                 {"chat": True, "system": "Be short."}]


class Fuzzer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        tokenizer = load_vocabulary("demo")
        self.model: Any = SimpleNamespace(tokenizer=tokenizer, path=Path("demo.gguf"), context=512, chat_template=ChatTemplate.from_metadata({}, tokenizer))

    def case(self, n: int) -> str:
        rng = generator(self.seed, n)
        rows = [*rng.choice(ROWS)]
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(rows))
            rows[at] = changed_json(rows[at], rng) if rng.random() < 0.9 else rng.choice(VALUES)
        if rng.random() < 0.1:
            rows.insert(rng.randrange(len(rows) + 1), rng.choice(rng.choice(ROWS)))
        raw = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.7) + "\n" for row in rows).encode(errors="surrogatepass")
        if rng.random() < 0.2:
            raw = damaged(raw, rng, len(raw))
        path = self.folder / f"d.{rng.choice(('jsonl', 'jsonl', 'jsonl', 'jsonl', 'csv', 'tsv', 'txt'))}"
        path.write_bytes(raw)
        try:
            found = open_data(self.model, path, Reading(**rng.choice(OPTIONS)))
        except LlaminaError as error:
            if "\n" in str(error) or not isinstance(error, OptionError) and path.name not in str(error):
                raise
            return type(error).__name__
        for example in found.examples:
            assert len(example.ids) == len(example.mask) > 1 and example.mask.any() and not example.mask[0]
            assert "".join(text for text, _ in shown(self.model, example))
        assert lengths(found) and found.tokens and (found.note() is None or found.note())
        return found.kind
