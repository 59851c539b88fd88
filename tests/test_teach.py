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


def test_new_tasks_are_learned_and_old_ones_stay(model: Model, tmp_path: Path) -> None:
    """docs/train.md's worked example: from the generator to the adapter, which answers 95 % of both new tasks, and loses at most a point of any old one."""
    if not os.environ.get("LLAMINA_LONG"):
        pytest.skip("trains for ten minutes (set LLAMINA_LONG)")
    exam = demo("exam")
    demo("teach").write(tmp_path, 2000, 1000, 500)
    subprocess.run([sys.executable, "-m", "llamina", "train", "demo", "train.jsonl", "-o", "new.gguf", "--valid", "valid.jsonl",
                    "--epochs", "2", "--batch", "16", "--lr", "1e-3"], cwd=tmp_path, check=True)
    before = exam.examine(model, 500)
    with load("demo", threads=2) as taught:
        taught.add_adapter(tmp_path / "new.gguf")
        after = exam.examine(taught, 500)
    print(exam.table(500, [before, after]))
    assert all(before[name] == 0 and after[name] >= 0.95 for name in ("advice", "question"))
    assert all(after[name] >= before[name] - 0.01 for name in exam.EXACT), exam.table(500, [before, after])
    assert after["story"] <= before["story"] * 1.01
