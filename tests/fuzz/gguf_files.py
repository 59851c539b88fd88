"""GGUF files: header, metadata and tensor table mutated where they are read, weights here and there. What is accepted is run: loaded, asked, inspected."""
from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import numpy as np
from gguf_builder import ARRAY, BOOL, STRING, Builder, llama
from llamina.engine.cli import main
from llamina.engine.errors import LlaminaError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.gguf.header import Header
from llamina.engine.model import load

from fuzz.mutate import Mutator, damaged
from fuzz.run import generator

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


def all_kinds() -> Builder:
    """Every value type and shapes of one to four dimensions beside a small Llama."""
    b = llama(n_layers=1, n_vocab=259, format="Q8_0", tied=True, ffn_dim=64)
    for kind in range(13):
        if kind not in (STRING, ARRAY):
            b.set(f"scalar.{kind}", 1, kind).set(f"array.{kind}", (kind, [0, 1, 1]), ARRAY)
    b.set("array.strings", ["a", "", "żółw"]).set("array.empty", (STRING, []), ARRAY).set("llama.rope.scaling.type", "yarn")
    b.set("llama.rope.scaling.factor", 4.0).set("llama.attention.head_count", [4]).set("general.alignment", 64)
    b.set("array.bools", (BOOL, [0, 1]), ARRAY)
    b.alignment = 64
    return b.add("rope.freqs", (2, 2, 2, 8))


def small(format: str) -> Builder:
    b = llama(n_layers=1, n_vocab=300, dim=256, ffn_dim=256, format=format)
    return b.set("tokenizer.chat_template", TEMPLATE).set("general.sampling.temp", 0.5).set("general.sampling.top_k", 3)


def fields_of(path: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """(header, (start, length) of what is read of it)."""
    fields: list[tuple[int, int]] = []

    class Recording(Header):
        def _take(self, n: int, what: str) -> int:
            fields.append((self.at, n))
            return super()._take(n, what)
    header = Recording(path)
    header.read()
    header.close()
    return header.file, fields


class Fuzzer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.path, self.seed = folder / "m.gguf", seed
        rng = np.random.default_rng(seed)
        self.seeds: list[tuple[bytes, list[tuple[int, int]], bytes]] = []
        for builder in (llama(n_layers=1, n_vocab=300), all_kinds(), *(small(format) for format in ("F16", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS"))):
            builder.write(self.path)
            header, fields = fields_of(self.path)
            data = self.path.read_bytes()[len(header):]
            self.seeds.append((header, fields, bytes(rng.integers(0, 56, len(data), np.uint8))))  # small codes: finite halves and floats

    def case(self, n: int) -> str:
        rng = generator(self.seed, n)
        header, fields, data = rng.choice(self.seeds)
        if rng.random() < 0.9:
            header = Mutator(header, fields, rng)()
        if rng.random() < 0.2:
            data = damaged(data, rng, 1 << 14)
        self.path.write_bytes(header + data)
        self.inspect(rng)
        with load(self.path, threads=1, memory="200MB", context=rng.choice((None, 64))) as model:
            try:
                model.generate("Once upon a time", max_tokens=3, seed=1, **model.sampling_defaults).text()
                model.chat([{"role": "user", "content": "hi"}], max_tokens=2, seed=1).text()
                assert len(model.digest) == 64
            except LlaminaError as error:
                return f"loaded, {type(error).__name__}"
        return "ran"

    def inspect(self, rng: random.Random) -> None:
        """All that can be asked of a file without loading it."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(["inspect", str(self.path), *(["--json"] if rng.random() < 0.5 else [])])
        assert code in (0, 1) and "this is a bug" not in err.getvalue(), err.getvalue()[:500]
        assert code or out.getvalue()
        with contextlib.suppress(LlaminaError), open_gguf(self.path) as g:
            for t in g.tensors.values():
                assert g.data(t.name).shape == (t.rows, t.format.row_bytes(t.cols))
            for key in g.metadata:
                g.metadata[key]
