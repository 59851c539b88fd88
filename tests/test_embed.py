"""`llamina embed`, `llamina rerank`, and the promise for encoders: the bits of a vector depend on the text, the model and the options alone; what is wrong
with a text, a file or an option is told in a line."""
from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llamina
import numpy as np
import pytest
from encoder_cases import write_encoder
from llamina.engine.errors import FormatError, NumericError
from llamina.engine.model import Model, load
from llamina.engine.score import embedding
from llamina.engine.score.embed_work import EmbedWork
from runs import same

WORDS = ["the", "cat", "dog", "bird", "saw", "liked", "ate", "a", "red", "big", "small", "house", "tree", "and", "then", "was", "happy", "sad", "very"]
TEXTS = [" ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(1 + i * i % 23)) for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return write_encoder(folder / "modern-bert.gguf", "modern-bert", "Q8_0")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with load(path, threads=2, context=256) as found:
        yield found


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    return tmp_path / "in.txt"


# -- the same bits --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "format"), [("modern-bert", "Q8_0"), ("bert", "Q4_0"), ("gemma-embedding", "F32")])
def test_threads_company_and_order(name: str, format: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any threads, any texts beside it in a step, in any order."""
    path = write_encoder(folder / "m.gguf", name, format)
    with load(path, threads=1, context=256) as alone:
        expected = np.stack([alone.embed(text) for text in TEXTS])
        rows = alone.embed(TEXTS[9], pooling="none")
    assert np.isfinite(expected).all() and np.allclose((expected.astype(float)**2).sum(axis=1), 1, atol=1e-6)
    for threads, tokens in (1, 1000), (2, 90), (3, 300):
        monkeypatch.setattr(embedding, "STEP_TOKENS", tokens)
        with load(path, threads=threads, context=256) as other:
            assert same(other.embed(TEXTS), expected) and same(other.embed(TEXTS[::-1]), expected[::-1])
            assert same(other.embed(TEXTS[9], pooling="none"), rows)


@pytest.mark.parametrize("tensor", ["blk.2.attn_qkv.weight", "token_embd.weight", "blk.1.ffn_norm.weight", "cls.output.weight", "cls.norm.weight"])
def test_weights_that_are_not_finite_are_refused(tensor: str, tmp_path: Path) -> None:
    def edit(name: str, values: np.ndarray) -> np.ndarray:
        return np.where(np.arange(values.size).reshape(values.shape) == 5, np.nan, values) if name == tensor else values
    with pytest.raises(FormatError, match=f"{tensor}' holds NaN or infinity"):
        load(write_encoder(tmp_path / "m.gguf", "modern-bert rank", edit=edit), threads=1)


def test_rows_that_overflow_are_no_vectors(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "m.gguf", "modern-bert", edit=lambda name, x: np.full_like(x, 3e38) if name == "output_norm.weight" else x)
    with load(path, threads=1, context=64) as model, pytest.raises(NumericError, match="NaN or infinity in the final norm"):
        model.embed("a cat")


# -- the command ----------------------------------------------------------------------------------------------------------------------------


def test_files_hold_what_embed_says(run: Any, model: Model, path: Path, texts: Path, tmp_path: Path) -> None:
    expected = model.embed(TEXTS)
    found = run("embed", str(path), str(texts), "-o", str(tmp_path / "v.npy"), "--context", "256")
    assert found.code == 0 and not found.out and "30 texts" in found.err and "cut" not in found.err, found.err
    assert same(np.load(tmp_path / "v.npy"), expected) and not (tmp_path / "v.npy.journal").exists()
    rows = [{"id": i, "body": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    argv = ["embed", str(path), str(tmp_path / "in.jsonl"), "--text-column", "body", "--context", "256", "--truncate", "16", "--pooling", "cls"]
    assert run(*argv, "-o", str(tmp_path / "v.jsonl"), "--threads", "1").code == 0
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [{k: line[k] for k in ("id", "body")} for line in lines] == rows
    assert same(np.array([line["embedding"] for line in lines], np.float32), model.embed(TEXTS, pooling="cls", truncate_dim=16))
    assert run(*argv, "--threads", "3").out == (tmp_path / "v.jsonl").read_text()
    assert "exists already" in run(*argv, "-o", str(tmp_path / "v.jsonl")).err


def test_standard_input_and_output(run: Any, model: Model, path: Path) -> None:
    """Every line is a text: an empty one too, so that rows stay beside their lines."""
    found = run("embed", str(path), "-", "--context", "256", "--pooling", "none", "--no-normalize", stdin="a cat\n\na dog")
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [line["text"] for line in lines] == ["a cat", "", "a dog"]
    for line in lines:
        assert same(np.array(line["embedding"], np.float32), model.embed(line["text"], pooling="none", normalize=False))
    found = run("embed", str(path), "-", "--format", "csv", "--prompt", "query: ", "--context", "256", stdin='id,text\n1,"a\ncat"\n')
    assert same(np.array(json.loads(found.out)["embedding"], np.float32), model.embed("query: a\ncat"))


def test_too_long_is_an_error_or_cut_and_counted(run: Any, model: Model, path: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a cat\n\n" + "long " * 100 + "\n")
    argv = ["embed", str(path), str(tmp_path / "in.txt"), "-o", str(tmp_path / "v.npy"), "--context", "256"]
    found = run(*argv)
    assert found.code == 1 and "in.txt, line 3: the text has " in found.err and "--cut" in found.err and len(found.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "in.txt"]  # nothing was begun
    assert "line 1: the text has" in run(*argv, "--max-tokens", "2").err
    found = run(*argv, "--cut")
    assert found.code == 0 and "1 of 3 texts was longer" in found.err
    assert same(np.load(tmp_path / "v.npy"), model.embed(["a cat", "", "long " * 100], truncate=True))


def test_nothing_to_embed_is_named(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that puts no token around texts has none of an empty one."""
    texts.write_text("a cat\n\na dog\n")
    work = EmbedWork(texts, "in.txt", "lines", "npy")
    work.prepare()
    with load("demo", threads=1) as demo:
        monkeypatch.setattr(demo.tokenizer, "add_bos", False)
        found = dict(work.look().records(demo, work.rows()))
        assert found[0] == found[2] == {} and "line 2: the text is empty" in found[1]["error"]


@pytest.mark.parametrize(("given", "words"), [
    (["in.txt", "-o", "v.txt"], "written as .npy or .jsonl"), (["in.txt", "-o", "v.npy", "--pooling", "none"], ".jsonl"),
    (["in.txt", "--truncate", "97"], "from 1 to 96"), (["in.txt", "--truncate", "0"], "from 1 to 96"), (["in.txt", "--kind", "poem"], "kind must be one of"),
    (["in.txt", "--max-tokens", "999999"], "max_tokens"), (["bad.jsonl"], "bad.jsonl, line 2: 'text' must be a text, found int"),
    (["bad.csv"], "--text-column"), (["broken.jsonl"], "broken.jsonl, line 1: is not JSON"), (["missing.txt"], "missing.txt"), (["empty.txt"], "has no rows"),
    (["latin.txt"], "line 1: is not UTF-8"), (["in.txt", "--text-column", "body"], "no column 'body'"), (["in.txt", "-o", "no/v.npy"], "no/v.npy")])
def test_what_is_wrong_is_named(given: list[str], words: str, run: Any, path: Path, texts: Path, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"bad.jsonl": b'"a cat"\n{"text": 5}\n', "bad.csv": b"a,b\n1,2\n", "broken.jsonl": b"{\n", "empty.txt": b"", "latin.txt": b"caf\xe9\n"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = run("embed", str(path), *given, "--context", "256")
    assert found.code in (1, 2) and words in found.err and not found.out, found.err
    assert not list(tmp_path.glob("v.*"))


def child(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import sys; from llamina.engine.cli import main; sys.exit(main(sys.argv[1:]))", *argv],
                            env={**os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_killed_anywhere(run: Any, path: Path, tmp_path: Path) -> None:
    source, out, journal = tmp_path / "in.txt", tmp_path / "cut.npy", tmp_path / "cut.npy.journal"
    source.write_text("\n".join(TEXTS * 120) + "\n")
    options = ["embed", str(path), str(source), "--context", "256"]
    assert run(*options, "-o", str(tmp_path / "whole.npy"), "--threads", "2").code == 0
    killed = 0
    for lines in 1, 1800:
        process = child(*options, "-o", str(out), "--threads", "1")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > lines):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed and journal.exists() and not out.exists()
    found = run(*options, "-o", str(out))
    assert found.code == 0 and "going on after" in found.err
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("argv", [
    ["generate", "MODEL", "-p", "a cat", "-n", "3"], ["perplexity", "MODEL", "in.txt"],
    ["classify", "MODEL", "in.txt", "--labels", "a,b"], ["batch", "in.jsonl", "-m", "MODEL", "-o", "-"], ["look", "MODEL", "a cat"],
    ["bench", "MODEL", "--generate", "2", "--prompt", "8"]], ids=lambda argv: argv[0])
def test_what_needs_logits_refuses_an_encoder(argv: list[str], run: Any, path: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line that says what it is."""
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('"a cat"\n')
    found = run(*[str(path) if word == "MODEL" else word for word in argv])
    told = found.err + found.out
    assert found.code in (1, 2) and "is an encoder" in told and "Traceback" not in told, told


# -- reranking ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranker(folder: Path) -> Path:
    return write_encoder(folder / "rank.gguf", "modern-bert rank", "Q8_0")


def test_rerank(run: Any, ranker: Path, texts: Path, tmp_path: Path) -> None:
    with load(ranker, threads=1, context=256) as model:
        expected = model.rerank("a big dog", TEXTS)
    argv = ["rerank", str(ranker), "a big dog", str(texts), "--context", "256"]
    assert run(*argv, "-o", str(tmp_path / "s.jsonl")).code == 0
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS and same(np.array([line["score"] for line in lines], np.float32), expected)
    best = [json.loads(line)["text"] for line in run(*argv, "--top", "3").out.splitlines()]
    assert best == [TEXTS[i] for i in sorted(range(30), key=lambda i: -expected[i])[:3]]
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file).writerows([["score", "text"], *([i, text] for i, text in enumerate(TEXTS))])
    found = run("rerank", str(ranker), "a big dog", str(tmp_path / "in.csv"), "--context", "256")
    rows = list(csv.DictReader(found.out.splitlines()))
    assert same(np.array([row["rank_score"] for row in rows], np.float32), expected) and [row["score"] for row in rows] == [str(i) for i in range(30)]


def test_rerank_refuses_or_judges(run: Any, path: Path, texts: Path, tmp_path: Path) -> None:
    found = run("rerank", str(path), "a big dog", str(texts), "--context", "256")
    assert found.code == 1 and "has no rank head" in found.err and not found.out
    found = run("rerank", "demo", "a big dog", str(texts))
    assert found.code == 1 and "no rank head" in found.err and "judge" in found.err
    (tmp_path / "few.txt").write_text("\n".join(TEXTS[:4]))
    with llamina.load("demo", threads=1) as demo:
        expected = demo.rerank("a dog", TEXTS[:4], judge=("the", "a"))
    found = run("rerank", "demo", "a dog", str(tmp_path / "few.txt"), "--judge", "the,a")
    assert same(np.array([json.loads(line)["score"] for line in found.out.splitlines()], np.float32), expected), found.err
    for judge in "yes", "the,the", "the,a,an":
        assert "judge" in run("rerank", "demo", "a dog", str(texts), "--judge", judge).err
    (tmp_path / "long.txt").write_text("a cat\n" + "long " * 200)
    argv = ["rerank", "demo", "a dog", str(tmp_path / "long.txt"), "--judge", "the,a", "--context", "256"]
    assert "long.txt, line 2: the document makes" in run(*argv).err
    found = run(*argv, "--cut")
    assert found.code == 0 and "1 of 2 texts was longer" in found.err
