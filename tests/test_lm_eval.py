"""lm-evaluation-harness with our LM object: its numbers are HFLM's on the same float32 weights, for tasks that stand in local files."""
from __future__ import annotations

import json
import os
from typing import Any

import llamina
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
{rest}
metadata:
  version: 1
"""
CHOICES = """\
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
num_fewshot: 0
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
GENERATED = """\
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{target}}"
generation_kwargs:
  until: [".", "\\n"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
"""
STORY = "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her mom and her red ball. "


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rows: dict[str, list[dict[str, Any]]] = {
        "choices": [{"context": c, "choices": choices, "answer": i % len(choices)} for i, (c, choices) in enumerate([
            ("Once upon a time,", ["there", "a dog ran", "they"]), ("They went to the park.", ["Mom", "Then it rained", "Tom saw it"]),
            ("She said:", ["yes", "no way", "Let us go"])])],
        "rolling": [{"text": STORY * 12}, {"text": "A short one."}, {"text": STORY}],
        "generated": [{"prompt": STORY, "target": "x"}, {"prompt": "Tom had a", "target": "y"}, {"prompt": "Once upon a time", "target": "z"}],
    }
    for name, rest in ("choices", CHOICES), ("rolling", ROLLING), ("generated", GENERATED):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (folder / f"{name}.yaml").write_text(TASK.format(name=f"llamina_{name}", data=data, cache=folder / "cache", rest=rest))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory, real):
    path = tmp_path_factory.mktemp("model") / "f32.gguf"
    llamina.convert(real / "hf-tinystories-656k", path, type="f32")
    return path


def evaluated(model, tasks, **options):
    from lm_eval.tasks import TaskManager
    return lm_eval.simple_evaluate(model=model, tasks=["llamina_choices", "llamina_rolling", "llamina_generated"], bootstrap_iters=0,
                                   task_manager=TaskManager(include_path=str(tasks), include_defaults=False), **options)


def test_numbers_are_hflms(converted, real, tasks):
    pytest.importorskip("torch")
    from lm_eval.models.huggingface import HFLM
    with llamina.load(converted, threads=1) as model:
        length = min(model.context, 256)
        ours = evaluated(model.lm_eval(max_length=length), tasks)
        theirs = evaluated(HFLM(pretrained=str(real / "hf-tinystories-656k"), device="cpu", dtype="float32", batch_size=2, max_length=length), tasks)
    for name, samples in theirs["samples"].items():
        for a, b in zip(ours["samples"][name], samples):
            assert a["doc"] == b["doc"]
            for x, y in zip(a["resps"], b["resps"]):
                [x], [y] = x, y
                if name == "llamina_generated":
                    assert x == y
                elif name == "llamina_choices":
                    assert float(x[0]) == pytest.approx(float(y[0]), abs=1e-4) and x[1] == y[1]
                else:
                    assert float(x) == pytest.approx(float(y), abs=1e-4 * 300)  # of up to 300 tokens
    for name, found in theirs["results"].items():
        for metric, value in found.items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-4)


@pytest.fixture(scope="module")
def lm():
    with llamina.load("demo", threads=1, context=256) as model:
        yield model.lm_eval()


def instances(kind, *args):
    from lm_eval.api.instance import Instance
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(args)]


def test_likelihoods_are_scores(lm):
    asked = [("Once upon a ", "time"), ("", "Once"), ("word " * 300, "end"), ("Once upon a ti", "me there")]
    found = lm.loglikelihood(instances("loglikelihood", *asked), disable_tqdm=True)
    [score] = lm.model.score("Once upon a", [" time"])
    assert found[0] == (score.logprob, score.greedy)
    assert all(logprob < 0 for logprob, _ in found)  # cut from the left; a token over the border


def test_windows_are_disjoint(lm):
    ids = lm.tok_encode(STORY * 12)
    [found] = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (STORY * 12,)))
    assert len(ids) > lm.max_length
    total = sum(t.logprob for t in lm.model.logprobs([lm.prefix_token_id, *ids[:lm.max_length - 1]]))
    assert found < total < 0


def test_one_bos(lm):
    template = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    bos = lm.model.tokenizer.bos_id
    assert lm.tok_encode(template) == lm.model.chat_template.encode([{"role": "user", "content": "Hello"}])
    assert lm.tok_encode(lm.model.tokenizer.token_text(bos) + "Hello").count(bos) == 1
    begun = lm.apply_chat_template([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I am"}], add_generation_prompt=False)
    assert begun.endswith("I am")


def test_answers_end_where_they_should(lm):
    [found] = lm.generate_until(instances("generate_until", ("Once upon a time", {"until": ["."], "max_gen_toks": 30, "do_sample": False})))
    assert found and "." not in found
    with pytest.raises(llamina.LlaminaError, match="beam search"):
        lm.generate_until(instances("generate_until", ("a", {"until": [], "num_beams": 4, "max_gen_toks": 9})))


def test_command(run, tasks, tmp_path):
    found = run("lm-eval", "demo", "--context", "256", "--", "--tasks", "llamina_choices", "--include_path", str(tasks),
                "--use_cache", str(tmp_path / "answers"))
    assert found.code == 0, found.err
    assert "llamina_choices" in found.out
    with llamina.load("demo", threads=1) as model:
        assert [p.name for p in tmp_path.glob("answers-*")][0].startswith(f"answers-{model.digest[:16]}")
    assert "is llamina's to say" in run("lm-eval", "demo", "--", "--model", "hf").err
