"""Rows that are wrong, or only look so, for eval, classify, embed and rerank: each told by file and line before any model is asked; in a batch job, records."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llamina.engine.answers.batch_line import MAX_LINE, lines_of, parse_line
from llamina.engine.errors import FormatError, OptionError
from llamina.engine.score import table
from llamina.engine.score.classify_work import ClassifyWork
from llamina.engine.score.embed_work import EmbedWork
from llamina.engine.score.task import Task

LABELS = {"good": "good", "bad": "bad"}
GOOD = '{"text": "a", "label": "good"}\n'


def of_eval(path: Path) -> list[dict[str, Any]]:
    return [row.fields for row in Task.open(str(path), labels=LABELS).rows()]


def of_classify(path: Path) -> list[dict[str, Any]]:
    work = ClassifyWork(path, str(path), table.format_of(path.name), "jsonl", LABELS, "{text}", gold="label", text="text")
    work.prepare()
    return [row.fields for row in work.rows()]


def of_embed(path: Path) -> list[dict[str, Any]]:
    work = EmbedWork(path, str(path), table.format_of(path.name), "npy", "text")
    work.prepare()
    return [row.fields for row in work.rows()]


READERS = {"eval": of_eval, "classify": of_classify, "embed": of_embed}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name, content, line, words", [
    ("t.jsonl", GOOD + '{"text": "a", "lab', 2, "is not JSON"),
    ("t.jsonl", GOOD + "[1]\n", 2, "must be an object"), ("t.jsonl", GOOD + "\n\n7\n", 4, "must be"),
    ("t.jsonl", GOOD + '{"label": "bad"}\n', 2, 'has no "?text|has no text in .text'),
    ("t.jsonl", GOOD + '{"text": NaN, "label": "bad"}\n', 2, "no number of JSON"),
    ("t.jsonl", GOOD.encode() + b'{"text": "\xe9", "label": "bad"}\n', 2, "is not UTF-8 text"), ("t.jsonl", GOOD.encode("utf-16"), 1, "is not UTF-8 text"),
    ("t.jsonl", GOOD + '{"text": "\\ud800", "label": "bad"}\n', 2, "half a character"), ("t.jsonl", GOOD + "[" * 100000, 2, "is not JSON"),
    ("t.jsonl", GOOD + '{"text": "a", "label": "bad", "n": ' + "9" * 5000 + "}\n", 2, "thousands of digits"),
    ("t.jsonl", GOOD + " " * (MAX_LINE + 1) + "\n", 2, "is longer than"),
    ("t.csv", "text,label\na,good\nb\n", 3, "has 1 columns"), ("t.csv", "text,label\na,good,x\n", 2, "has 3 columns"),
    ("t.csv", 'text,label\n"a\nb",good\n"c,bad\n' + "x,good\n" * 50, 4, "a quote that never ends"), ("t.csv", "text,text\na,b\n", 1, "is there twice"),
    ("t.csv", "text,label\n" + "a" * (table.MAX_FIELD + 1) + ",good\n", 2, "field larger than"),
    ("t.csv", "text,label\na,good\rb,bad\n", 2, "is no line of CSV"),
    ("t.tsv", "text\tlabel\na\tgood\nb\tc\tbad\n", 3, "has 3 columns")])
def test_named_by_file_and_line(tmp_path, reader, name, content, line, words):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises((FormatError, OptionError), match=words) as raised:
        reader(path)
    assert f"{name}, line {line}: " in str(raised.value) and len(str(raised.value)) < 2000


@pytest.mark.parametrize("reader", [of_eval, of_classify])
@pytest.mark.parametrize("name, content, line", [
    ("t.jsonl", GOOD + '{"text": "a"}\n', 2), ("t.jsonl", GOOD + '{"text": "a", "label": "fine"}\n', 2),
    ("t.jsonl", GOOD + '{"text": "a", "label": null}\n', 2),
    ("t.csv", "text,label\na,good\nb,\n", 3)])
def test_labels(tmp_path, reader, name, content, line):
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=f"{name}, line {line}: .*label"):
        reader(tmp_path / name)


def test_answers_and_ids(tmp_path):
    rows: list[dict[str, Any]] = [{"id": 1, "context": "a", "choices": ["x", "y"], "answer": "1"}]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"id": 1}, 'line 2: has the same "id" as line 1'), ({"id": 2, "answer": "9" * 5000}, 'line 2: "answer" must be one of'),
        ({"id": 2, "answer": -1}, 'line 2: "answer"'), ({"id": 2, "choices": "xy"}, 'line 2: "choices"')]
    for more, words in cases:
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], **more}]))
        with pytest.raises(FormatError, match=words):
            Task.open(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name, content", [
    ("t.jsonl", "\ufeff" + GOOD), ("t.jsonl", GOOD.replace("\n", "\r\n") + "\r\n"), ("t.jsonl", GOOD.rstrip()),
    ("t.jsonl", '{"text": "\\ud83e\\udd99a", "label": "good"}'),
    ("t.csv", "\ufefftext,label\r\na,good\r\n\r\n"), ("t.csv", '"text","label"\n"a",good'), ("t.tsv", "\ufefftext\tlabel\r\na\tgood\r\n"),
    ("t.jsonl", '{"text": "a\\u0000", "label": "good"}\n')])
def test_what_only_looks_wrong(tmp_path, reader, name, content):
    """Byte order marks, carriage returns, no newline at the end, zero bytes, pairs of surrogates."""
    (tmp_path / name).write_bytes(content.encode())
    [fields] = reader(tmp_path / name)
    assert fields["text"].strip("\0\U0001F999") == "a" and fields["label"] == "good"


def test_lines_of_a_batch_job(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf"a"\r\n{"prompt": "b", "id": 1}\r\n\xff\n{"prompt": "\\u0000"}\n' + b"x" * (MAX_LINE + 5) + b"\n\"c\"")
    found = []
    for at, raw in lines_of(path):
        try:
            found.append(parse_line(raw, at, at).prompt)
        except OptionError as error:
            found.append(str(error)[:20])
    assert found == ["a", "b", "is not UTF-8 text (b", "\0", "is longer than 16777", "c"]


@pytest.mark.parametrize("command", ["eval M t.jsonl -o no/r.json", "eval M t.jsonl --samples no/s.jsonl", "eval M t.jsonl -o r.json --plot no/p.svg",
                                     "eval M t.jsonl --samples folder", "classify M t.jsonl --labels good,bad -o no/c.csv", "embed M t.jsonl -o no/e.npy",
                                     "rerank M a t.jsonl --judge a,b -o no/r.jsonl", "batch t.jsonl -m M -o no/b.jsonl", "perplexity M t.jsonl -o no/p.json"])
def test_where_results_cannot_go_is_told_first(run, tmp_path, monkeypatch, command):
    """By the name that was given, before the model is looked for: there is none here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text(GOOD * 3)
    (tmp_path / "folder").mkdir()
    found = run(*command.split())
    name = command.split()[-1]
    words = "is a directory: expected a file's name" if name == "folder" else "cannot be written (the folder does not exist)"
    assert found.code == 1 and f"error: {name}: {words}" in found.err, found.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "t.jsonl"]


def test_json_errors_say_where_in_the_line(run, tmp_path):
    """Our message names the line; what the library calls line 1 or 2 is of no use."""
    path = tmp_path / "t.jsonl"
    for text, words in (('{"text": "b", ', "in double quotes (at its end)"), ('{"text": "b", x}', "in double quotes (character 15)"),
                        ("nonsense", "Expecting value (character 1)")):
        path.write_text(GOOD + text + "\n")
        found = run("eval", "demo", str(path))
        assert found.code == 1 and "t.jsonl, line 2: is not JSON: " in found.err and words in found.err, found.err
