"""The public Model on real files: the demo model that ships, and stories260K."""
from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llamina
import numpy as np
import pytest
from llamina.engine import selftest
from llamina.engine.errors import ClosedError, ContextFullError, FileError, FormatError, LlaminaError, OptionError
from llamina.engine.model import DEMO, Model, load, load_vocabulary, resolve
from llamina.kernels import bfloat16
from llamina.kernels.target import TARGET
from runs import same


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    with llamina.load("demo", threads=2) as model:
        yield model


def test_stories260k_tells_its_story(real: Path):
    with load(real / "llama2c/stories260K.gguf") as model:
        g = model.generate("", temperature=0, max_tokens=200)
        assert g.text() == (real / "llama2c/stories260K_greedy.txt").read_text(encoding="utf-8")
        assert g.stats.generated_tokens == 200 and g.stats.prompt_tokens == 1
        assert model.detokenize([*g.history]) == g.text()


def test_logits(demo: Model):
    ids = demo.tokenize("Once upon a time there was a fox.")
    logits = demo.logits(ids)
    assert logits.shape == (len(ids), demo.config.n_vocab)
    assert same(logits, demo.logits(np.array(ids), chunk=3))
    assert same(logits[:4], demo.logits(ids[:4]))
    assert demo.logits([]).shape == (0, demo.config.n_vocab)
    g = demo.generate(ids, temperature=0, max_tokens=1, ignore_eos=True)
    g.text()
    assert g.ids == [int(logits[-1].argmax())]


def test_logits_longer_than_a_step_and_than_the_context():
    with load(DEMO, context=600) as model:
        ids = selftest.fixed_ids(model, 5, 600)
        logits = model.logits(ids)
        assert same(logits, model.logits(ids, chunk=250))
        with pytest.raises(ContextFullError, match="601 tokens were given, the context has 600"):
            model.logits([*ids, 1])
        g = model.generate(ids, temperature=0, max_tokens=None)  # exactly full
        g.text()
        assert g.ids in ([int(logits[-1].argmax())], []) and g.finish_reason in ("context", "eos")


def test_same_seed_same_text_on_any_threads_and_interleaved(demo: Model):
    def texts(model: Model) -> list[str]:
        return [model.generate("Once upon a time", max_tokens=40, seed=s, temperature=1.0).text() for s in (1, 2)]
    ref = texts(demo)
    assert ref[0] != ref[1]
    assert texts(demo) == ref
    with load(DEMO, threads=1) as other:  # two models in one process
        assert texts(other) == ref
    pair = [demo.generate("Once upon a time", max_tokens=40, seed=s, temperature=1.0) for s in (1, 2)]
    parts: list[list[str]] = [[], []]
    for _ in range(60):  # token by token in turns
        for g, part in zip(pair, parts):
            part.append(next(g, ""))
    assert ["".join(p) for p in parts] == ref


def test_answers_of_one_seed_differ_by_sample_index(demo: Model):
    a, b = (demo.generate("Once", max_tokens=20, seed=1, temperature=1.5, sample_index=i).text() for i in (0, 1))
    assert a != b


def test_generating_from_several_threads(demo: Model):
    ref = [demo.generate("The fox", max_tokens=25, seed=s).text() for s in range(4)]
    comp: list[Any] = [None] * 4

    def work(s: int) -> None:
        comp[s] = demo.generate("The fox", max_tokens=25, seed=s).text()
    workers = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert comp == ref


def test_kv_pages_come_back(demo: Model):
    free = demo.runtime._pool.free_pages
    for g in (demo.generate("Once", max_tokens=9), demo.generate("Once", max_tokens=9)):
        next(g)
        assert demo.runtime._pool.free_pages < free
        del g
    gc.collect()
    demo.logits(demo.tokenize("a b c"))
    assert demo.runtime._pool.free_pages == free


def test_text(demo: Model):
    text = "Once upon a time,\n  Zoë met </s> a 🦊."
    ids = demo.tokenize(text)
    assert ids[0] == demo.tokenizer.bos_id and demo.tokenizer.eos_id not in ids
    assert demo.detokenize(ids) == text
    assert demo.tokenize(text, bos=False) == ids[1:]
    assert demo.tokenizer.eos_id in demo.tokenize(text, special=True)
    assert load_vocabulary("demo").encode(text) == ids
    with pytest.raises(OptionError, match="outside this model's vocabulary"):
        demo.detokenize([10**6])


def test_prompt_in_pieces_joins_on(demo: Model):
    """The answer is what it adds to the prompt: greedy text after a longer prompt continues the shorter one's."""
    whole = demo.generate("Once upon", temperature=0, max_tokens=20)
    whole.text()
    prompt = whole.history[:8]
    rest = demo.generate(prompt, temperature=0, max_tokens=15)
    assert demo.detokenize(prompt) + rest.text() == "Once upon" + whole.text()


@pytest.mark.parametrize("path, options, error, message", [
    ("missing.gguf", {}, FileError, "missing.gguf: no such file"),
    (".", {}, FileError, "is a directory"),
    ("", {}, OptionError, "must be a path or 'demo'"),
    ("hf:org", {}, OptionError, "names no model of the hub"),
    ("demo", {"threads": 0}, OptionError, "threads must be a whole number above 0, found 0"),
    ("demo", {"threads": 1.5}, OptionError, "threads must be a whole number above 0, found 1.5"),
    ("demo", {"threads": 10**9}, OptionError, "threads"),
    ("demo", {"context": -1}, OptionError, "context must be a whole number above 0"),
    ("demo", {"context": True}, OptionError, "context must be"),
    ("demo", {"context": 1 << 40}, OptionError, "context"),
], ids=str)
def test_load_refuses(path, options, error, message):
    with pytest.raises(error) as caught:
        load(path, **options)
    assert message in str(caught.value)


def test_resolve():
    assert resolve("demo") == DEMO
    assert resolve(Path("demo")) == resolve("./demo") == Path("demo")  # a file of that name


def test_closing(tmp_path: Path):
    with load("demo") as model:
        g = model.generate("Once")
        next(g)
    model.close()
    with pytest.raises(ClosedError):
        next(g)
    with pytest.raises(ClosedError):
        model.generate("Once")
    with pytest.raises(ClosedError):
        print(model.chat_template)


# ---------------------------------------------------------------------------------------------------------------- self test

def test_selftest_passes_here():
    checks = list(selftest.run(quick=True))
    assert [c.name for c in checks if not c.passed] == []
    assert len(checks) >= 9


def test_selftest_notices_every_wrong_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selftest, "N_IDS", 16)
    monkeypatch.setattr(bfloat16, "dot_differences", lambda seed: seed)
    golden = selftest.read_golden()
    for key, wrong in {"arithmetic_version": 0, "model_sha256": "0" * 64, "text": "0" * 64, "logits": ["0" * 64] * 2, "sampled": "0" * 64}.items():
        golden[key] = wrong
    path = tmp_path / "golden.json"
    path.write_text(selftest.json.dumps(golden))
    checks = list(selftest.run(quick=True, golden_path=path))
    assert [c.name for c in checks if c.passed] == []
    assert all("expected" in c.detail and "found" in c.detail for c in checks)


def test_selftest_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch):
    environment = {"NPY_DISABLE_CPU_FEATURES": " ".join(selftest._numpy_dispatch())}
    assert selftest._in_process(TARGET, environment) == selftest.read_golden()
    with pytest.raises(LlaminaError, match="ended with code 1: "):
        selftest._in_process(TARGET, {"PYTHONIOENCODING": "none"})
    monkeypatch.setattr(selftest.subprocess, "run", lambda *a, **o: selftest.subprocess.CompletedProcess([], 0, '{"target": "other"}', ""))
    with pytest.raises(LlaminaError, match=f"compiled for other, not for {TARGET}"):
        selftest._in_process(TARGET, {})


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "1"])
def test_damaged_golden_file(content, tmp_path: Path):
    path = tmp_path / "golden.json"
    path.write_text(content)
    with pytest.raises(FormatError, match="is damaged"):
        selftest.read_golden(path)
    with pytest.raises(FileError, match="cannot be read"):
        selftest.read_golden(tmp_path / "none.json")
