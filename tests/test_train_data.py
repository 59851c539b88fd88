"""Training data: what of each row is a target, and what is wrong with a file, by line."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llamina.engine.errors import FormatError, OptionError
from llamina.engine.model import load_vocabulary
from llamina.engine.score.border import join
from llamina.engine.text.chat_template import ChatTemplate
from llamina.engine.train.data import DataSet, Reading, open_data, shown

FORGETFUL = ("{% for m in messages %}<s>{{ m.role }}: {% if m.role == 'assistant' and not loop.last %}{{ m.content.split('|')[-1] }}"
             "{% else %}{{ m.content }}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}")
"""A template that leaves out what earlier answers thought (up to a |)."""


@pytest.fixture(scope="module")
def model() -> Any:
    """What reading needs of one: the demo model's vocabulary and template. Nothing is compiled."""
    tokenizer = load_vocabulary("demo")
    return SimpleNamespace(tokenizer=tokenizer, path=Path("demo.gguf"), context=512, chat_template=ChatTemplate.from_metadata({}, tokenizer))


def written(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(model: Any, rows: Sequence[Any], **options: Any) -> DataSet:
    return open_data(model, rows, Reading(**options))


def targets(model: Any, found: DataSet) -> list[list[str]]:
    """Texts of the targets' runs, of each example."""
    return [[text for text, target in shown(model, example) if target] for example in found.examples]


def test_conversations_every_turn(model: Any) -> None:
    rows = [{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"},
                          {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2 </s> it is"}]}]
    assert targets(model, read(model, rows)) == [[" 1 </s>", " 2 </s> it is </s>"]]
    assert targets(model, read(model, rows, loss="completion")) == [[" 2 </s> it is </s>"]]
    whole = targets(model, read(model, rows, loss="all"))[0]
    assert len(whole) == 1 and whole[0].startswith("[INST]") or whole[0].startswith(" [INST]")
    example = read(model, rows).examples[0]
    assert example.ids.tolist() == model.chat_template.encode(rows[0]["messages"], False), "what was said looks like a special token and is text"
    muted = [{"messages": [dict(m, weight=0) if m["content"] == "1" else m for m in rows[0]["messages"]]}]
    assert targets(model, read(model, muted)) == [[" 2 </s> it is </s>"]]


def test_targets_are_what_the_model_is_asked_for(model: Any) -> None:
    """What stands before the first target is, to the token, the prompt that `chat` makes."""
    turns = [{"role": "user", "content": "What is the topic: the goal?"}, {"role": "assistant", "content": "sports"}]
    example = read(model, [{"messages": turns}]).examples[0]
    first = int(np.flatnonzero(example.mask)[0])
    assert example.ids[:first].tolist() == model.chat_template.encode(turns[:1])
    assert not example.mask[0]


def test_a_template_that_rewrites_earlier_turns(model: Any) -> None:
    """An example for each turn, each as the model sees it when it has to say this."""
    forgetful = SimpleNamespace(**{**vars(model), "chat_template": ChatTemplate(FORGETFUL, model.tokenizer)})
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "hm|1"}, {"role": "user", "content": "Two?"},
             {"role": "assistant", "content": "oh|2"}]
    found = read(forgetful, [{"messages": turns}])
    assert len(found.examples) == 2 and found.parted == 1
    assert [t[0].replace(" ", "") for t in targets(forgetful, found)] == ["hm|1</s>", "oh|2</s>"]
    assert "an example for each turn" in (found.note() or "")


def test_what_checkpoints_are_bound_to(model: Any) -> None:
    """The rows, the chat template's text, and the examples to the token: a template may write what neither says, such as the date."""
    rows = [{"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]}]
    mine = SimpleNamespace(**{**vars(model), "chat_template": ChatTemplate(FORGETFUL, model.tokenizer)})
    dated = SimpleNamespace(**{**vars(model), "chat_template": ChatTemplate("{{ strftime_now('%Y') }}" + FORGETFUL, model.tokenizer)})
    found = [read(one, rows).bound() for one in (model, mine, dated)]
    assert len({b["rows"] for b in found}) == 1 and len({b["chat_template"] for b in found}) == len({b["examples"] for b in found}) == 3
    plain = read(mine, [{"text": "One"}]).bound()
    assert plain["chat_template"] is None and plain == read(model, [{"text": "One"}]).bound() != read(model, [{"text": "Two"}]).bound()
    assert read(model, rows).bound()["examples"] != read(model, rows, loss="all").bound()["examples"], "what is learned counts, too"


def test_completions_as_eval_scores_them(model: Any) -> None:
    """The same ids, and the same border, as `llamina eval` has for such rows; the end of the text is learned, too."""
    rows = [{"prompt": "The sky is", "target": "blue"}, {"prompt": "Grass is ", "target": "green"}]
    found = read(model, rows)
    for example, (context, answer) in zip(found.examples, (("The sky is", " blue"), ("Grass is ", "green"))):
        whole = join(model, context, answer)
        assert example.ids.tolist() == [*whole.ids, model.tokenizer.eos_id]
        assert np.flatnonzero(example.mask)[0] == whole.first and example.mask[whole.first:].all()
    assert read(model, [{"prompt": "The sky is", "completion": " blue"}]).examples[0].ids.tolist() == found.examples[0].ids.tolist()
    assert read(model, [{"prompt": "The sky is", "completion": "blue"}], delimiter=" ").examples[0].ids.tolist() == found.examples[0].ids.tolist()
    assert read(model, rows, loss="all").examples[0].mask[1:].all()


def test_labels_templates_chat(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    path.write_text("label\ttext_a\n1\ta joy\n0\ta bore\n")
    found = open_data(model, str(path), Reading(template="{text_a}\nSentiment:", labels={"0": "negative", "1": "positive"}))
    assert targets(model, found) == [[" positive</s>"], [" negative</s>"]] and found.kind == "label"
    assert [e.line for e in found.examples] == [2, 3] and found.row_name(1) == f"{path}, line 3"
    asked = open_data(model, str(path), Reading(template="{text_a}?", labels={"0": "bad", "1": "good"}, chat=True, system="Judge."))
    assert targets(model, asked) == [[" good </s>"], [" bad </s>"]]
    prompt = model.chat_template.encode([{"role": "system", "content": "Judge."}, {"role": "user", "content": "a joy?"}])
    assert asked.examples[0].ids[:len(prompt)].tolist() == prompt and not asked.examples[0].mask[:len(prompt)].any()


def test_texts(model: Any, tmp_path: Path) -> None:
    found = read(model, [{"text": "Once upon a time"}])
    assert found.examples[0].ids.tolist() == [*model.tokenizer.encode("Once upon a time"), model.tokenizer.eos_id]
    assert found.examples[0].mask.tolist() == [False] + [True] * (len(found.examples[0].ids) - 1) and found.kind == "text"
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    assert len(open_data(model, tmp_path / "t.txt", Reading()).examples) == 2


def test_counted(model: Any) -> None:
    found = read(model, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": ""}])
    assert found.duplicates == 1 and found.empty == 1
    assert found.note() == "data: rows that are duplicates: 1, empty but for the end: 1" and read(model, [{"text": "a"}]).note() is None


def test_too_long(model: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " b" * 50}, {"prompt": " a" * 50, "completion": "b"}]
    with pytest.raises(FormatError, match=r"d\.jsonl, line 2: has \d+ tokens, 20 are allowed \(--context\); 2 rows have too many: allow more, or have"):
        open_data(model, written(tmp_path / "d.jsonl", rows), Reading(context=20))
    cut = read(model, rows, context=20, long="cut")
    assert [len(e.ids) for e in cut.examples][1:] == [20] and (cut.cut, cut.skipped) == (1, 1), "of the third nothing would be left to learn"
    skipped = read(model, rows, context=20, long="skip")
    assert len(skipped.examples) == 1 and skipped.skipped == 2
    with pytest.raises(FormatError, match="no row is left"):
        read(model, rows[1:], context=20, long="skip")


@pytest.mark.parametrize(("text", "message"), [
    ("", r"d\.jsonl: has no rows"), ("\n\n", r"has no rows"), ('{"text": "a"}\n{"text": ', r"d\.jsonl, line 2: is not JSON"),
    ('{"question": "a"}', r'line 1: has \'question\': expected "messages"'),
    ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}', 'line 2: has no "completion"'),
    ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": null}', 'line 2: has no "completion": it is null'),
    ('{"prompt": "a", "completion": 5}', 'line 1: "completion" must be a text'), ('{"text": ["a"]}', 'line 1: "text" must be a text'),
    ('{"messages": [{"role": "user", "content": "a"}]}', "line 1: has no message of the assistant's"),
    ('{"messages": "a"}', 'line 1: "messages" must be a list'),
    ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}', "line 1: messages.0."),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}', "line 1: has no message of the assistant's"),
    ('[1, 2]', "line 1: must be an object"), ('{"text": "a"}\n{"prompt": "b", "completion": "c"}', 'line 2: has no "text"'),
    ('{"prompt": "a", "target": null}', 'line 1'), ('{"text": "\\ud800"}', "line 1"),
])
def test_wrong_rows_are_told(model: Any, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        open_data(model, str(path), Reading())


def test_nothing_to_learn(model: Any) -> None:
    """A text without anything to predict: a vocabulary without an end."""
    bare = SimpleNamespace(**{**vars(model), "tokenizer": SimpleNamespace(encode=lambda text, **_: [5], eos_id=None)})
    with pytest.raises(FormatError, match="line 1: none of its tokens is a target"):
        read(bare, [{"text": "a"}])


@pytest.mark.parametrize(("rows", "options", "message"), [
    ([{"text": "a"}], {"loss": "assistant"}, "have no messages: --loss assistant is not for them"),
    ([{"text": "a"}], {"loss": "completion"}, "have no completions"), ([{"text": "a"}], {"template": "{text}"}, "--template is not for them"),
    ([{"messages": [{"role": "user", "content": "a"}]}], {"chat": True}, "--chat is not for them"),
    ([{"prompt": "a", "completion": "b"}], {"labels": {"a": "b"}}, "--labels is not for them"),
    ([{"prompt": "a", "completion": "b"}], {"system": "x"}, "give --chat, too"),
    ([{"text": object()}], {}, "row 0 can't be written as JSON"), (5, {}, "training data must be a file's path or a list of rows"),
])
def test_options_that_do_not_fit(model: Any, rows: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read(model, rows, **options)


def test_readings_are_checked() -> None:
    for wrong, message in ({"loss": "user"}, "loss must be one of"), ({"long": "drop"}, "long must be one of"), ({"context": 1}, "context must be"):
        with pytest.raises(OptionError, match=message):
            Reading(**wrong)  # type: ignore[arg-type]
