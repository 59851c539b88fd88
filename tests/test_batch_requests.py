"""Whatever one line of a batch says, for whichever key, or makes its answer hold: an answer or its own error record, valid JSON; the other lines' records
are the same as without it."""
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from llamina import load
from llamina.engine.answers.batch import own_error
from llamina.engine.answers.batch_job import OPTIONS, BatchJob, count_lines
from llamina.engine.answers.batch_journal import Journal
from llamina.engine.errors import InternalError

VALUES = ["null", "true", "false", "0", "1", "-1", "5", "2.5", "1e308", "-1e308", "1e999", "1e-320", "NaN", "-Infinity", "9" * 30, "9" * 5000, '""', '"x"',
          r'"\ud800"', r'"\u0000"', '"5"', "[]", "[1]", "[[]]", '["a"]', "[null]", "[[1,2],[3]]", '[["a",1e308]]', "{}", '{"a":1}', '{"1":-1e308}', '{"":0}',
          '{"a":{"b":[]}}',
          "[" * 60 + "]" * 60, '{"a":' * 40 + "1" + "}" * 40, '[{"role":"user","content":"x"}]', '[{"role":"user","content":[{"type":"text","text":"x"}]}]',
          '[{"role":"assistant","content":null,"tool_calls":[{"function":{"name":"x","arguments":"{"}}]}]', '[{"type":"function","function":{"name":"x"}}]',
          '"' + "y" * 3000 + '"']
KEYS = [*OPTIONS, "id", "prompt", "messages", "tools", "content", "role", "sample_index", "samples", "wait", "prompts", "self", "options"]


@pytest.fixture(scope="module")
def model():
    with load("demo", threads=1, context=96) as found:
        yield found


def run(model: Any, folder: Path, lines: list[str]) -> list[dict[str, Any]]:
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("\n".join(lines) + "\n", "utf-8")
    out.unlink(missing_ok=True)
    with Journal(out) as journal:
        for _ in BatchJob(model, source, journal, *count_lines(source), {"max_tokens": 2}, seed=1).run():
            pass
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")
    return [json.loads(line, parse_constant=refuse) for line in out.read_text("utf-8").splitlines()]


def test_any_value_for_any_key(model, tmp_path):
    beside = '{"prompt":"Once"}'
    expected = run(model, tmp_path, [beside])[0]["text"]
    lines: list[str] = []
    rng = random.Random(4)
    for key in KEYS:
        for value in dict.fromkeys([*rng.sample(VALUES, 12), "5", '[1]', '{"a":1}']):
            asked = "" if key in ("prompt", "messages") else '"messages":[{"role":"user","content":"x"}],' if key == "tools" else '"prompt":"a",'
            lines.append(f'{{{asked}"{key}":{value}}}')
    lines += [*VALUES, "{", '{"prompt":"a"', "[]]"]
    records = run(model, tmp_path, [beside, *lines])
    assert len(records) == 1 + len(lines) and records[0]["text"] == expected
    for line, record in zip(lines, records[1:]):
        if "error" in record:
            assert record["error"] and "\n" not in record["error"] and len(record["error"]) <= 2000, line[:200]
            assert "fault of llamina" not in record["error"], (line[:200], record)  # foreseen, all of it
        else:
            assert record["finish_reason"] and isinstance(record["text"], str), line[:200]
    assert 150 < sum("error" in record for record in records) < len(records)


def test_pairs_of_numbers(model, tmp_path):
    """Options that are right alone and too much together."""
    rng = random.Random(3)
    numbers = ["temperature", "dynatemp_range", "dynatemp_exponent", "repeat_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base",
               "mirostat_tau", "mirostat_eta", "top_n_sigma", "min_p", "top_p", "typical_p"]
    lines = []
    for _ in range(400):
        options = {name: rng.choice([0, 1, 0.5, 1e308, 1.7e308, -1e308, 1e-308, 5e-324, 1e38]) for name in rng.sample(numbers, rng.randint(1, 4))}
        extra: dict[str, Any] = rng.choice([{}, {"mirostat": 2}, {"order": "temperature;penalties;min_p"}, {"top_k": 0}, {"logprobs": 3},
                            {"logit_bias": {"a": 1e308, "b": -1e308}}])
        lines.append(json.dumps({"prompt": "a a a b a a", **options, **extra}))
    for line, record in zip(lines, run(model, tmp_path, lines)):
        assert "fault of llamina" not in record.get("error", ""), (line, record)


def test_what_nobody_foresaw(model, tmp_path, monkeypatch):
    """A fault of ours that one request meets: its error record, of the family of errors; whatever stage it comes from."""
    from llamina.engine.answers import generation

    def fault(self: Any, *args: Any, **more: Any) -> Any:
        raise KeyError("un\nforeseen")
    with monkeypatch.context() as patch:
        patch.setattr(generation.Generation, "_accept", fault)
        records = run(model, tmp_path, ['"a"', '{"prompt":"b","max_tokens":0}'])
        assert "KeyError: 'un\\nforeseen'" in records[0]["error"] and "error" not in records[1]
        results = list(model.generate_many(["a", {"prompt": "b", "max_tokens": 0}], ordered=True))
        assert isinstance(results[0].error, InternalError) and results[1].error is None
    assert len(str(own_error(ValueError("x" * 9999)))) < 400
    bad: list[Any] = [b"a", {1, 2}, {"prompt": object()}, {"prompt": "a", 3: 4}, {"prompt": "a", "stop": object()}, 5, None, [object()], {"messages": "a"}]
    found = list(model.generate_many([*bad, "a"], ordered=True, max_tokens=1))
    assert [r.error is not None for r in found[-1:]] == [False] and len(found) == len(bad) + 1
