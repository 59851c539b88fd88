"""A seeded mutation fuzzer over GGUF headers, ours and real ones: whatever the damage, reading ends in a usable file or in a LlaminaError, quickly and
in little memory. Anything that it finds becomes an explicit case in test_bad_files.py.

LLAMINA_FUZZ=100000 runs more cases per seed file; LLAMINA_FUZZ_SEED another sequence of them.
"""
from __future__ import annotations

import os
import random
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzz.gguf_files import all_kinds
from fuzz.mutate import Mutator
from gguf_builder import ARRAY, BOOL, F64, Builder, MemoryFile, llama
from llamina.engine.architectures.config import ModelConfig, check_tensors
from llamina.engine.errors import LlaminaError
from llamina.engine.gguf import header as gguf_header
from llamina.engine.gguf.file import open_gguf
from llamina.engine.gguf.header import Header
from runs import resident_megabytes

CASES = int(os.environ.get("LLAMINA_FUZZ", 1500))
SEED = int(os.environ.get("LLAMINA_FUZZ_SEED", 0))

def split_shard() -> Builder:
    b = Builder().set("split.no", 0).set("split.count", 2).set("split.tensors.count", 1).set("b", (BOOL, [1, 0]), ARRAY).set("d", 1.0, F64)
    return b.add("token_embd.weight", (4, 256), "Q4_K")


def read_everything(path: Path) -> None:
    """All that a caller could ask of an accepted file; every tensor must lie within it."""
    with open_gguf(path) as g:
        for t in g.tensors.values():
            data = g.data(t.name)
            assert data.shape == (t.rows, t.format.row_bytes(t.cols)) and data.nbytes == t.n_bytes > 0
            int(data[0, 0]) + int(data[-1, -1])
        for key in g.metadata:
            g.metadata[key]
        check_tensors(g, ModelConfig.from_gguf(g))


def fuzz(path: Path, header: bytes, size: int, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Run CASES damaged forms of a file (header, then zeros up to size); how many were accepted, and refused with which error type."""
    fields: list[tuple[int, int]] = []
    take = Header._take

    def recording_take(self: Header, n: int, what: str) -> int:
        fields.append((self.at, n))
        return take(self, n, what)

    damaged = header
    monkeypatch.setattr(gguf_header, "open_source", lambda _path: MemoryFile(damaged, size if damaged else 1))
    monkeypatch.setattr(Header, "_take", recording_take)
    Header(path).read()
    monkeypatch.setattr(Header, "_take", take)
    mutate, outcomes = Mutator(header, fields, random.Random(SEED)), Counter[str]()
    before = resident_megabytes("VmRSS")
    for case in range(CASES):
        damaged = mutate()
        start = time.thread_time()  # not the clock: the machine may be busy with other things
        try:
            read_everything(path)
            outcomes["accepted"] += 1
        except LlaminaError as error:
            outcomes[type(error).__name__] += 1
            assert str(error).startswith(str(path.parent)) and "\n" not in str(error) and len(str(error)) < 600, str(error)
        except Exception as error:
            raise AssertionError(f"case {case} of seed {SEED} escaped: {error!r}") from error
        assert time.thread_time() - start < 2, f"case {case} of seed {SEED} took long: {damaged!r}"
        assert case % 64 or resident_megabytes("VmHWM") - before < 100, f"a case from {case - 63} to {case} of seed {SEED} took much memory"
    print(dict(outcomes))
    return outcomes


@pytest.mark.parametrize("build", [llama, all_kinds, split_shard])
def test_our_headers(build: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = build()  # type: ignore[operator]
    path = b.write(tmp_path / "m-00001-of-00002.gguf")
    outcomes = fuzz(path, b.header(), path.stat().st_size, monkeypatch)
    assert outcomes["FormatError"] > CASES / 4 and len(outcomes) >= 3, outcomes


@pytest.mark.parametrize("name", ["llama2c/stories260K.gguf", "gguf-by-llama.cpp/tinystories-656k.q5_1.gguf"])
def test_real_headers(name: str, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real / name
    header = Header(path)
    header.read()
    outcomes = fuzz(path, path.read_bytes()[: header.at], path.stat().st_size, monkeypatch)
    assert outcomes["FormatError"] > CASES / 4 and outcomes["accepted"] and outcomes["UnsupportedError"], outcomes


def test_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes after a valid beginning."""
    rng = np.random.default_rng(SEED)
    noise = b""
    monkeypatch.setattr(gguf_header, "open_source", lambda _path: MemoryFile(noise, len(noise)))
    for case in range(CASES):
        start = b"GGUF" + struct.pack("<IQQ", 3, rng.integers(3), rng.integers(1, 4))
        start += struct.pack("<Q", 1) + b"k" + struct.pack("<I", rng.integers(14)) if case % 2 else b""
        noise = start + (rng.bytes(400) if case % 4 < 2 else rng.integers(0, 3, 400, np.uint8).tobytes())
        try:
            read_everything(tmp_path / "noise.gguf")
        except LlaminaError:
            pass
        else:
            pytest.fail(f"case {case} was accepted as a model")


def test_the_fuzzer_sees_an_escaping_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: without the bounds check, struct.error or IndexError escapes, and the fuzzer must say so."""
    b = llama()
    path = b.write(tmp_path / "x.gguf")
    monkeypatch.setattr(Header, "fail", lambda self, message: None)
    with pytest.raises(AssertionError, match="escaped"):
        fuzz(path, b.header(), path.stat().st_size, monkeypatch)
