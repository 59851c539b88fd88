"""No command begins that would write a file twice, or over one that it reads: told by name, before a model is opened."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

EVAL = ["eval", "demo", "t.jsonl"]
CLASSIFY = ["classify", "demo", "t.jsonl", "--labels", "a,b"]
TRAIN = ["train", "demo", "t.jsonl"]


@pytest.mark.parametrize(("argv", "message"), [
    ([*EVAL, "-o", "results.json", "--samples", "environment.json"],
     "--samples environment.json: is what --output results.json writes beside it (environment.json): choose another name"),
    ([*EVAL, "-o", "r.json", "--samples", "./r.environment.json"], "is what --output r.json writes beside it (r.environment.json)"),
    ([*EVAL, "-o", "r.json", "--samples", "r.json.journal"], "is what --output r.json writes beside it (r.json.journal)"),
    ([*EVAL, "-o", "environment.json", "--samples", "s.jsonl", "--shots-from", "environment.environment.json"],
     "environment.environment.json, which is written beside it, is what --shots-from reads"),
    ([*EVAL, "-o", "r.json", "--plot", "./sub/../r.json"], "is what --output writes"), ([*EVAL, "-o", "r.json", "--samples", "link.json"], ""),
    ([*EVAL, "--samples", "m.gguf", "--against", "m.gguf"], "m.gguf: is what --against reads"), ([*EVAL, "-o", "hard.jsonl"], "hard.jsonl: is the input"),
    ([*EVAL, "--samples", "l.gguf", "--lora", "l.gguf=0.5"], "l.gguf: is what --lora reads"), ([*EVAL, "--plot", "t.jsonl"], "t.jsonl: is the input"),
    ([*CLASSIFY, "-o", "t.jsonl"], "t.jsonl: is the input"), (["classify", "m.gguf", "t.jsonl", "--labels", "a,b", "-o", "m.gguf"], "m.gguf: is the model"),
    (["classify", "demo", "o.csv.journal", "--labels", "a,b", "-o", "o.csv"], "o.csv: o.csv.journal, which is written beside it, is the input"),
    (["embed", "demo", "t.jsonl", "-o", "hard.jsonl"], "hard.jsonl: is the input"), (["rerank", "demo", "q", "t.jsonl", "-o", "t.jsonl"], "is the input"),
    (["batch", "t.jsonl", "-o", "t.jsonl"], "t.jsonl: is the input"), (["batch", "t.jsonl", "-o", "m.gguf", "-m", "m.gguf"], "m.gguf: is the model"),
    (["batch", "t.jsonl", "-o", "m.gguf", "--draft", "m.gguf"], "m.gguf: is what --draft reads"),
    (["perplexity", "demo", "t.jsonl", "-o", "t.jsonl"], "t.jsonl: is the input"), (["perplexity", "m.gguf", "t.jsonl", "-o", "m.gguf"], "is the model"),
    (["importance", "demo", "t.jsonl", "-o", "t.jsonl", "--overwrite"], "t.jsonl: is the input"),
    (["look", "m.gguf", "a text", "--html", "m.gguf"], "m.gguf: is the model"),
    ([*TRAIN, "-o", "a.gguf", "--log", "a.gguf.training/log"], "--log a.gguf.training/log: is what --output a.gguf writes beside it (a.gguf.training)"),
    ([*TRAIN, "-o", "a.gguf", "--valid", "v.jsonl", "--log", "v.jsonl"], "v.jsonl: is what --valid reads"),
    ([*TRAIN, "-o", "a.gguf", "--log", "l.jsonl", "--plot", "l.jsonl"], "--plot l.jsonl: is what --log writes"),
])
def test_refused(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    there = ["t.jsonl", "m.gguf", "l.gguf", "v.jsonl", "o.csv.journal", "environment.environment.json"]
    for name in there:
        Path(name).write_text('{"text": "a", "label": "a"}')
    (tmp_path / "sub").mkdir()
    os.link("t.jsonl", "hard.jsonl")
    os.symlink("r.json", "link.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    result = run(*argv)
    assert result.code == 2 and (message or "--samples link.json: is what --output writes") in result.err and result.err.count("\n") == 1, result.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_others_are_taken(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that only look alike, standard input and output, and a model's short name beside a file that is called so."""
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ("ab", "ba")))
    assert run(*EVAL, "-o", "r.json", "--samples", "r.jsonl", "--labels", "a,b", "-q").code == 0
    assert sorted(os.listdir()) == ["r.environment.json", "r.json", "r.jsonl", "t.jsonl"]
    assert run("classify", "demo", "-", "--labels", "a,b", "-q", stdin="x\n").code == 0
