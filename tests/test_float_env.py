"""Whatever rounding, flush-to-zero or decimal context the caller's thread has: the same bits of everything between file and token, and what the thread had
comes back."""
from __future__ import annotations

import decimal
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina import load
from llamina.convert.convert import convert
from llamina.engine.sampling import Sampler, SamplingOptions, token_logprob
from llamina.engine.score.perplexity import divergence, perplexity
from llamina.kernels import target
from llamina.kernels.float_env import _exchange_function, default_floats, in_default_floats
from small_models import random_ids, write_small_model

MODES = {"flush": 0x8040, "down": 0x2000, "up": 0x4000, "to zero": 0x6000, "both": 0xC040}
pytestmark = pytest.mark.skipif(not target.IS_X86, reason="sets bits of x86's MXCSR")


@contextmanager
def planted(bits: int) -> Iterator[None]:
    """This thread's float environment changed, and its decimal context; checked at the end that nobody changed it back."""
    exchange = _exchange_function()
    before = exchange(-1)
    exchange(before | bits)
    with decimal.localcontext(decimal.Context(prec=4, rounding=decimal.ROUND_UP)):
        try:
            yield
            after = exchange(before)
        finally:
            exchange(before)
    assert after & 0xE040 == bits


def formats_model(path: Path) -> Path:
    """Formats whose embeddings Python decodes, with subnormal numbers and a rope of every kind of arithmetic."""
    def edit(name: str, values: np.ndarray) -> np.ndarray:
        return values * np.float32(1e-39) if name == "output.weight" else values
    return write_small_model(path, "F32", formats={"token_embd.weight": "Q6_K", "output.weight": "F32"}, edit=edit, context_length=256,
                             rope={"type": "yarn", "factor": 4.0, "original_context_length": 64})


def model_bits(path: Path) -> list[Any]:
    found: list[Any] = []
    with load(path, threads=2) as m:
        ids = random_ids(100, m.config.n_vocab)
        found += [hashlib.sha256(rows.tobytes()).hexdigest() for rows in (m.logits(ids), *(t.rows[:100] for t in m.runtime._layout.tables.values()))]
        found.append([[*entry, entry.top] for entry in m.logprobs(ids[:30], 3)])
        options: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "logprobs": 2, "seed": 3}
        for case in ({"temperature": 0.0}, {"temperature": 1e-38, "top_k": 0}, {"mirostat": 2, "temperature": 1e-39},
                     {"order": "temperature;penalties", "repeat_penalty": 1.3}):
            g = m.generate(ids, **options, **case)
            g.text()
            found += [g.ids, list(g.logprobs)]
        found += [(r.index, r.ids) for r in m.generate_many([ids[:40], ids[:50]], samples=2, ordered=True, **options)]
        text = m.detokenize(random_ids(600, m.config.n_vocab))
        found += [perplexity(m, text, 32), divergence(m, m, text, 32)]
    return found


LOGITS = [(np.random.default_rng(1).standard_normal(n) * 4).astype(np.float32) for n in (50, 5000)]


def sampler_bits() -> list[Any]:
    found: list[Any] = []
    for logits in LOGITS:
        for case in ({}, {"top_k": 0, "typical_p": 0.7}, {"top_k": 0, "top_n_sigma": 1.0}, {"top_k": 0, "dynatemp_range": 0.4},
                     {"top_k": 0, "xtc_probability": 1.0},
                     {"min_p": 0.05, "dry_multiplier": 0.7, "dry_allowed_length": 1}, {"logit_bias": {3: 0.1}, "presence_penalty": 0.3, "repeat_penalty": 1.1}):
            s = Sampler(SamplingOptions(seed=2, **case))
            found += [[s.sample(logits, p, [1, 2, 3, 1]) for p in range(20)], s.distribution(logits, 5, [1, 2, 3, 1])]
        found.append(token_logprob(logits, 7, 5))
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return formats_model(tmp_path_factory.mktemp("m") / "m.gguf")


@pytest.fixture(scope="module")
def expected(path):
    return model_bits(path)


@pytest.mark.parametrize("mode", MODES)
def test_models(path, expected, mode):
    with planted(MODES[mode]):
        found = model_bits(path)
    assert found == expected


@pytest.mark.parametrize("mode", MODES)
def test_samplers(mode):
    ref = sampler_bits()
    with planted(MODES[mode]):
        found = sampler_bits()
    assert found == ref


@pytest.mark.parametrize("mode", ["both", "up"])
@pytest.mark.parametrize("format", ["q8_0", "q4_k_m", "f16"])
def test_converted_files(path, tmp_path, mode, format):
    convert(path, tmp_path / "ref.gguf", format, verify=False)
    with planted(MODES[mode]):
        convert(path, tmp_path / "found.gguf", format, verify=False)
    assert (tmp_path / "ref.gguf").read_bytes() == (tmp_path / "found.gguf").read_bytes()


def test_who_computes_for_others(path, expected):
    """Answers of two threads share steps, and one of the threads has another environment."""
    found: dict[str, list[int]] = {}
    with load(path, threads=1) as m:
        def answer(name: str, bits: int) -> None:
            with planted(bits):
                g = m.generate(random_ids(100, m.config.n_vocab), max_tokens=30, ignore_eos=True, logprobs=2, seed=3, temperature=1e-38, top_k=0)
                g.text()
                found[name] = g.ids
        threads = [threading.Thread(target=answer, args=(name, bits)) for name, bits in MODES.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(found.values()) == [expected[5]] * len(MODES)


def test_the_guard_itself():
    """Nested, left by an exception, and seen to matter: without it these modes change sums."""
    def rounds() -> float:
        return float(np.float64(0.1) + np.float64(0.2)) * 3
    plain, seen = rounds(), set()
    guarded: Callable[[], float] = in_default_floats(rounds)
    for bits in MODES.values():
        with planted(bits):
            seen.add(rounds() == plain)
            assert guarded() == plain
            with pytest.raises(ZeroDivisionError), default_floats(), default_floats():
                assert rounds() == plain
                _ = 1 // 0
    assert seen == {True, False}
