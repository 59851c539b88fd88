"""The demo model's lessons: what they hold out, the rule they teach, how they are examined; with LLAMINA_LONG, that training on them forgets nothing."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from llamina import load
from llamina.engine.model import Model
from test_demo import demo

VOWELS = re.compile(r"(il|ils|elle|un|une)\b")
"""What begins with a vowel of all that a French sentence of the demo's begins with; "huit" doesn't."""


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load("demo", threads=2) as loaded:
        yield loaded


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lessons_hold_out_what_is_asked(tmp_path: Path) -> None:
    """The files are the same each time; no question that is asked (with its answer) is among the lessons, and every task is."""
    teach = demo("teach")
    for folder in ("a", "b"):
        teach.write(tmp_path / folder, 300, 100, 60)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert names == sorted(["train.jsonl", "valid.jsonl", "advice.jsonl", "question.jsonl", "labels-sentiment.jsonl", "labels-topic.jsonl",
                            *(f"old-{name}.jsonl" for name in ("sentiment", "topic", "translation", "passage"))])
    train = rows(tmp_path / "a" / "train.jsonl")
    assert len(train) == 2 * 300 + 6 * 100 + 25
    taught = {(asked["content"], answer["content"]) for row in train for asked, answer in
              zip(row["messages"], row["messages"][1:], strict=False) if answer["role"] == "assistant"}
    for name in names:
        found = rows(tmp_path / "a" / name)
        if name == "valid.jsonl":
            assert not {tuple(message["content"] for message in row["messages"]) for row in found} & taught
        elif name.startswith("labels"):
            assert len(found) == 60 and len({row["label"] for row in found}) in (3, 10)
        elif name != "train.jsonl":
            assert len(found) == 60 and not {(row["prompt"], row["target"]) for row in found} & taught


@pytest.mark.parametrize("held", [False, True])
def test_questions_follow_one_rule(held: bool) -> None:
    """A question is "Est-ce que", elided before a vowel, and a statement of the translations' with a question mark for its full stop."""
    teach, seen = demo("teach"), set()
    for row in islice(teach.lessons("question", held), 3000):
        asked, answer = (message["content"] for message in row["messages"])
        match = re.fullmatch(r"Est-ce (que |qu')(.*[^ .?]) \?", answer)
        assert match and asked.startswith("Ask in French: ") and asked.endswith("."), row
        assert (match[1] == "qu'") == bool(VOWELS.match(match[2])) and match[2][0].islower(), row
        seen.add(match[2].split()[0].split("'")[0])
    assert {"il", "elle", "un", "je", "j", "huit", "nous", "les"} <= seen


def test_the_exam_sees_what_is_right(model: Model) -> None:
    """Old tasks are asked as evaluate.py asks them, and answered; what the model never learned is not; an answer counts only as a whole."""
    exam = demo("exam")
    found = exam.examine(model, 8, ["advice", "sentiment", "memory"])
    assert found["advice"] == 0 and found["sentiment"] >= 0.85 and found["memory"] >= 0.85 and 1 < found["story"] < 1.6
    messages, right = exam.asked("memory", 8)[0]
    assert [message["role"] for message in messages[-3:]] == ["user", "assistant", "user"] and right
    assert exam.table(8, [found, {**found, "advice": 0.25}]).splitlines()[0] == "| advice | 8 | exact | 0.0% | 25.0% |"


def run(folder: Path, *arguments: str) -> str:
    """Standard output of `python -m …`, as a user runs it from the repository."""
    return subprocess.run([sys.executable, "-m", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not os.environ.get("LLAMINA_LONG"), reason="takes a minute (set LLAMINA_LONG)")
def test_the_table_of_calibration_is_true(tmp_path: Path) -> None:
    """docs/eval.md's accuracies of the demo's label tasks, to the last digit."""
    run(REPOSITORY, "demo.teach", str(tmp_path))
    seen, name = 0, ""
    for line in (REPOSITORY / "docs" / "eval.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| demo, "):
            name = cells[0].split()[1].strip(",")
        if line.startswith(("| demo, ", "| | `")):
            for calibrate, calibrated in (("contextual", cells[3]), ("pmi", cells[4])):
                told = run(tmp_path, "llamina", "eval", "demo", f"labels-{name}.jsonl", "--template", cells[1].strip("`"), "--calibrate", calibrate, "-q")
                found = dict(re.findall(r"^(accuracy(?:, calibrated)?) +(.*)", told, re.M))
                assert [cell.split()[0] for cell in (cells[2], calibrated)] == [found[key].split()[0] for key in ("accuracy", "accuracy, calibrated")]
            seen += 1
    assert seen == 6


@pytest.mark.skipif(not os.environ.get("LLAMINA_LONG"), reason="trains for ten minutes (set LLAMINA_LONG)")
def test_new_tasks_are_learned_and_old_ones_stay(tmp_path: Path) -> None:
    """docs/train.md's worked example: from the generator to an adapter that answers 95 % of both new tasks, and loses at most a point of any old one."""
    adapter = tmp_path / "new.gguf"
    run(REPOSITORY, "demo.teach", str(tmp_path))
    run(tmp_path, "llamina", "train", "demo", "train.jsonl", "-o", str(adapter), "--valid", "valid.jsonl", "--epochs", "2", "--batch", "16", "--lr", "1e-3")
    told = run(REPOSITORY, "demo.exam", "--lora", str(adapter))
    print(told)
    found = {name: (float(before), float(after)) for name, before, after in re.findall(r"^\| (\w+) .* \| ([\d.]+)%? \| ([\d.]+)%? \|$", told, re.M)}
    story = found.pop("story")
    assert set(found) == {"advice", "question", "sentiment", "topic", "translation", "passage", "chat", "memory"}
    assert all(found[name][0] == 0 and found[name][1] >= 95 for name in ("advice", "question")), told
    assert all(after >= before - 1.001 for before, after in found.values()) and story[1] <= story[0] * 1.01, told
