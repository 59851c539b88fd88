"""`llamina eval`, `llamina classify` and their parts: numbers recounted, results byte for byte whatever happened on the way, bad rows named."""
from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys

import llamina
import pytest
from conftest import real_folder
from eval_rows import sentence, write_choices, write_reviews
from llamina.engine.errors import FormatError, OptionError
from llamina.engine.score import metrics
from llamina.engine.score.answers import same
from llamina.engine.score.prompts import Prompts
from llamina.engine.score.results import best
from llamina.engine.score.table import read_rows, written
from llamina.engine.score.task import Task
from llamina.engine.score.template import filled, unescaped


@pytest.fixture(scope="module")
def demo():
    with llamina.load("demo", threads=2, context=512) as model:
        yield model


@pytest.fixture
def choices(tmp_path):
    return write_choices(tmp_path / "choices.jsonl")


@pytest.fixture
def reviews(tmp_path):
    return write_reviews(tmp_path / "reviews.csv")


# -- classify -------------------------------------------------------------------------------------------------------------------------------


def test_labels_are_the_likeliest_continuations(demo):
    texts = [sentence(i, 6) for i in range(8)]
    found = demo.classify(texts, ["positive", "negative"], "{text}\nSentiment:")
    for text, c in zip(texts, found):
        scores = [s.logprob for s in demo.score(text + "\nSentiment:", [" positive", " negative"])]
        assert list(c.logprobs.values()) == scores and c.label == ("positive", "negative")[best(scores)]
        assert sum(c.probabilities.values()) == pytest.approx(1)
    pmi = demo.classify(texts, ["positive", "negative"], "{text}\nSentiment:", calibrate="pmi")
    base = [s.logprob for s in demo.score("\nSentiment:", [" positive", " negative"])]
    assert [c.label for c in pmi] == [("positive", "negative")[best([a - b for a, b in zip(c.logprobs.values(), base)])] for c in pmi]
    even = demo.classify("N/A", {"1": "positive", "0": "negative"}, "{text}\nSentiment: ", calibrate="contextual", abstain=1.0)
    assert even.label is None and list(even.probabilities) == ["1", "0"]


@pytest.mark.parametrize("labels, options, words", [
    ("good", {}, "must be a list"), (["a"], {}, "at least two"), (["a", "a"], {}, "given twice"), ({"x": "a", "y": "a"}, {}, "same text"),
    (["a", ""], {}, "say something"),
    (["a", 1], {}, "must be texts"), (["a", "b"], {"template": "x"}, r"must have \{text\}"), (["a", "b"], {"calibrate": "best"}, "one of none"),
    (["a", "b"], {"abstain": 2}, "from 0 to 1"), (["a", "b"], {"template": "{text} {who}"}, "'who'")])
def test_refused(demo, labels, options, words):
    with pytest.raises(OptionError, match=words):
        demo.classify("a text", labels, **options)


def test_classify_keeps_the_columns(run, reviews, tmp_path):
    out = tmp_path / "out.csv"
    found = run("classify", "demo", str(reviews), "-o", str(out), "--labels", "good,bad", "--template", r"{text}\nIt is", "--label-column", "gold",
                "--text-column", "text", "--json")
    assert found.code == 0 and "rows/s" in found.err
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    before = list(csv.DictReader(io.StringIO(reviews.read_text())))
    assert [{k: row[k] for k in ("n", "text", "gold")} for row in rows] == before
    right = sum(row["label"] == row["gold"] for row in rows)
    assert json.loads(found.out)["accuracy"]["value"] == right / 24
    assert all(float(row["p_good"]) + float(row["p_bad"]) == pytest.approx(1) for row in rows)
    assert not list(tmp_path.glob("*.journal"))
    assert "exists already" in run("classify", "demo", str(reviews), "-o", str(out), "--labels", "good,bad", "--text-column", "text").err


def test_classify_reads_lines_and_writes_any_format(run, tmp_path):
    found = run("classify", "demo", "-", "--labels", "good,bad", stdin="What a film!\n\nA bore.\n")
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [row["text"] for row in rows] == ["What a film!", "A bore."] and set(rows[0]["probabilities"]) == {"good", "bad"}
    out = tmp_path / "o.tsv"
    assert run("classify", "demo", "-", "-o", str(out), "--labels", "good,bad", "--format", "jsonl", stdin='{"text": "a\\tb", "label": [1]}\n').code == 0
    assert out.read_text().splitlines()[0] == "text\tlabel\tpredicted\tp_good\tp_bad" and out.read_text().splitlines()[1].startswith("a b\t[1]\t")


def test_the_template_may_ask_for_other_columns(run, tmp_path):
    source = tmp_path / "t.tsv"
    source.write_text("a\tb\none\ttwo\nthree\tfour\n")
    found = run("classify", "demo", str(source), "--labels", "good,bad", "--template", "{a} and {b}:", "--calibrate", "contextual")
    assert found.code == 0 and found.out.startswith("a\tb\tlabel\tp_good\tp_bad\none\ttwo\t")


def test_a_text_that_is_too_long_gets_an_error(run, tmp_path):
    source, out = tmp_path / "t.jsonl", tmp_path / "o.csv"
    source.write_text(json.dumps("short") + "\n" + json.dumps("long " * 300) + "\n")
    found = run("classify", "demo", str(source), "-o", str(out), "--labels", "a,b", "--context", "64")
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert found.code == 0 and rows[0]["label"] and not rows[0]["error"] and not rows[1]["label"] and rows[1]["error"].startswith("line 2: context and")
    assert "1 of them errors" in found.err
    source.write_text("".join(json.dumps({"text": text, "gold": "a"}) + "\n" for text in ("short", "long " * 300)))
    argv = ["classify", "demo", str(source), "--labels", "a,b", "--context", "64", "--label-column", "gold"]
    found = run(*argv, "-o", str(tmp_path / "m.csv"))  # a measurement that lacks rows, as `eval`'s
    assert found.code == 1 and found.out.startswith("accuracy") and found.err.endswith(f"llamina: 1 row could not be computed: see {tmp_path / 'm.csv'}\n")
    assert run(*argv, "-q").err.endswith("llamina: 1 row could not be computed: see standard output\n")


@pytest.mark.parametrize("name, content, words", [
    ("t.csv", "text,gold\na,good\nb\n", "t.csv, line 3: has 1 columns, its first line names 2"), ("t.csv", "text,text\n", "is there twice"),
    ("t.csv", 'text,gold\n"a,good\n', "no line of CSV"),
    ("t.csv", "text,gold\na,good\nb,fine\n", "line 3: 'gold' is 'fine': expected one of the labels, good, bad"),
    ("t.csv", "text,gold\n", "has no rows"), ("t.csv", "words,other,gold\na,b,good\n", "--text-column"),
    ("t.jsonl", '{"text": "a", "gold": "good"}\n{"text"\n', "line 2: is not JSON"),
    ("t.jsonl", '{"text": "a", "gold": "good"}\n{"gold": "bad"}\n', "line 2: has no text"), ("t.jsonl", '{"text": "a"}\n', "has no 'gold'"),
    ("t.jsonl", '{"text": 5, "gold": "bad"}\n', "must be a text, found int"), ("t.tsv", "text\tgold\na\tgood\tbad\n", "line 2: has 3 columns")])
def test_bad_rows_are_named(run, tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    found = run("classify", "demo", str(tmp_path / name), "--labels", "good,bad", "--label-column", "gold")
    assert found.code in (1, 2) and words in found.err and found.err.count("\n") == 1 and not found.out


# -- eval -----------------------------------------------------------------------------------------------------------------------------------


def test_choices_recounted(run, demo, choices, tmp_path):
    found = run("eval", "demo", str(choices), "-o", str(tmp_path / "results.json"), "--samples", str(tmp_path / "s.jsonl"), "--context", "512")
    assert found.code == 0 and found.out.startswith("choices.jsonl: 40 rows of choices, 0 shots\naccuracy ")
    results = json.loads((tmp_path / "results.json").read_text())["metrics"]
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in choices.read_text().splitlines()]
    right, by_bytes, nll = 0, 0, 0.0
    for row, sample in zip(rows, samples):
        scores = demo.score(row["context"], [" " + c for c in row["choices"]])
        assert sample["logprobs"] == [s.logprob for s in scores] and sample["choice_ids"] == [s.ids for s in scores]
        assert sample["prompt_ids"] == demo.prompt_ids(row["context"])
        right += best([s.logprob for s in scores]) == row["answer"]
        by_bytes += best([s.logprob / len(c.encode()) for s, c in zip(scores, row["choices"])]) == row["answer"]
        nll -= scores[row["answer"]].logprob
    assert results["accuracy"]["value"] == right / 40 and results["accuracy_by_length"]["bytes"]["value"] == by_bytes / 40
    assert results["nll"]["value"] == pytest.approx(nll / 40)
    assert sum(map(sum, results["confusion"]["counts"])) == 40
    beside = json.loads((tmp_path / "environment.json").read_text())
    assert {"seconds", "target", "versions"} <= set(beside)


def test_shots_are_others_rows(choices):
    prompts = Prompts.open(str(choices), shots=3, seed=5)
    rows = list(prompts.task.rows())
    for row in rows:
        shown = prompts.shown(row)
        assert len(shown) == 3 and all(item.fields["id"] != row.fields["id"] for item in shown)
    text = prompts.text(prompts.task.item(rows[0]), prompts.shown(rows[0]))
    assert text.count("\n\n") == 3 and text.endswith(rows[0].fields["context"])
    assert [r.number for r in Prompts.open(str(choices), shots=3, seed=5).pool] != [r.number for r in Prompts.open(str(choices), shots=3, seed=6).pool]
    other = Prompts.open(str(choices), shots=3, shots_from=str(choices), seed=5)
    assert [r.number for r in other.pool] == [r.number for r in prompts.pool[:3]]
    limited = Prompts.open(str(choices), shots=30, limit=5)
    assert limited.task.count == 5 and len(limited.pool) == 31
    with pytest.raises(OptionError, match="too few for 40 shots of the rest"):
        Prompts.open(str(choices), shots=40)


def test_a_model_against_another(run, choices):
    found = run("eval", "demo", str(choices), "--against", "demo", "--json", "--limit", "7")
    result = json.loads(found.out)
    assert result["against"]["kl"]["value"] == 0 and result["against"]["answers_changed"]["value"] == 0 and result["metrics"]["rows"] == 7
    assert result["reference"]["metrics"] == result["metrics"]


def test_generated_answers(run, tmp_path, demo):
    said = demo.generate("Once upon a time", max_tokens=6, temperature=0).text()
    rows = [{"prompt": "Once upon a time", "target": said}, {"prompt": "Once upon a time", "target": "xyz"},
            {"prompt": "Once upon a time", "target": said[:4], "match": "contains"}]
    task = tmp_path / "t.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads(run("eval", "demo", str(task), "-n", "6", "--json", "--context", "512").out)
    assert result["metrics"]["accuracy"]["value"] == 2 / 3 and result["metrics"]["finish_reasons"]


def test_chat(run, tmp_path, demo):
    task = tmp_path / "t.jsonl"
    rows = [{"text": f"I {('love', 'hate')[i % 2]} {sentence(i, 3)}.", "label": ("positive", "negative")[i % 2]} for i in range(6)]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = tmp_path / "s.jsonl"
    found = run("eval", "demo", str(task), "--chat", "--shots", "2", "--system", "Be brief.", "--samples", str(samples),
                "--template", "Sentiment: {text}", "--json")
    assert found.code == 0
    prompts = Prompts.open(str(task), shots=2, chat=True, system="Be brief.", template="Sentiment: {text}")
    row = next(prompts.task.rows())
    messages = prompts.messages(prompts.task.item(row), prompts.shown(row))
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["prompt_ids"] == demo.chat_template.encode(messages)
    assert first["choice_ids"] == [demo.tokenizer.encode(label, bos=False) for label in ("negative", "positive")]


def test_translations(run, tmp_path):
    sacrebleu = pytest.importorskip("sacrebleu")
    task, samples = tmp_path / "t.jsonl", tmp_path / "s.jsonl"
    task.write_text('{"source": "Once upon a", "reference": "time there was a dog"}\n{"source": "The cat", "reference": ["sat", "was happy"]}\n')
    found = run("eval", "demo", str(task), "-n", "8", "--samples", str(samples), "--json")
    result, answers = json.loads(found.out)["metrics"], [json.loads(line)["text"].strip() for line in samples.read_text().splitlines()]
    assert result["chrf"]["value"] == round(sacrebleu.metrics.CHRF().corpus_score(answers, [["time there was a dog", "sat"], [None, "was happy"]]).score, 6)
    assert "version" not in result["bleu"]["signature"]


def test_without_extras(run, tmp_path, choices, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    task = tmp_path / "t.jsonl"
    task.write_text('{"source": "a", "reference": "b"}\n')
    found = run("eval", "demo", str(task))
    assert found.code == 1 and 'pip install "llamina[eval]"' in found.err
    found = run("eval", "demo", str(choices), "--plot", str(tmp_path / "p.png"))
    assert found.code == 1 and 'pip install "llamina[plot]"' in found.err


def test_pictures(run, choices, tmp_path):
    pytest.importorskip("matplotlib")
    assert run("eval", "demo", str(choices), "--plot", str(tmp_path / "p.svg")).code == 0
    assert (tmp_path / "p.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize("rows, words", [
    ([{"context": "a", "choices": ["x", "y"], "answer": 2}], 'line 1: "answer" must be one of the choices, or its number from 0 to 1'),
    ([{"context": "a", "choices": ["x"], "answer": 0}], "at least two texts"), ([{"context": "a", "choices": ["x", ""], "answer": 0}], "at least two texts"),
    ([{"prompt": "a"}], "what is asked?"),
    ([{"context": "a", "choices": ["x", "y"], "answer": 0}, {"choices": ["x", "y"], "answer": 0}], 'line 2: has no "context"'),
    ([{"id": 1, "prompt": "a", "target": "b"}, {"id": 2, "prompt": "a", "target": "b"},
      {"id": 1, "prompt": "a", "target": "b"}], 'line 3: has the same "id" as line 1'),
    ([{"prompt": "a", "target": "("}], None), ([{"prompt": "a", "target": "(", "match": "regex"}], "no regular expression"),
    ([{"prompt": "a", "target": "x", "match": "numeric"}], "must be a number"), ([{"prompt": "a", "target": "x", "match": "best"}], '"match" must be one of'),
    ([{"text": "a", "label": "b"}], "all its rows have the label 'b'"), ([{"source": "a", "reference": [1]}], '"reference" must be a text')])
def test_bad_tasks_are_refused_by_line(tmp_path, rows, words):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if words is None:
        Task.open(str(path))
        return
    with pytest.raises(FormatError) as raised:
        Task.open(str(path))
    assert words in str(raised.value) and "task.jsonl" in str(raised.value)


def test_rows_that_could_not_be_computed(run, tmp_path):
    task = tmp_path / "t.jsonl"
    task.write_text("".join(json.dumps({"context": text, "choices": ["a", "b"], "answer": 0}) + "\n" for text in ("x", "long " * 200, "y")))
    found = run("eval", "demo", str(task), "--context", "64", "--json")
    assert found.code == 1 and "1 row could not be computed" in found.err and "t.jsonl, line 2: context and continuation have" in found.err
    assert json.loads(found.out)["metrics"]["errors"] == 1 and json.loads(found.out)["metrics"]["rows"] == 3


# -- parts ----------------------------------------------------------------------------------------------------------------------------------


def test_metrics():
    gold, given = list("aabbc"), ["a", "b", "b", None, "c"]
    assert metrics.share(g == s for g, s in zip(gold, given))["value"] == 0.6
    assert metrics.confusion(gold, given, list("abc")) == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert metrics.macro_f1(gold, given, list("abcd")) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics.matthews(list("aabb"), list("aabb"), list("ab")) == 1 and metrics.matthews(list("aabb"), list("aaaa"), list("ab")) == 0
    assert metrics.matthews(list("aabb"), list("abbb"), list("ab")) == pytest.approx(0.5773502691896258)
    assert metrics.brier([[1.0, 0.0], [0.5, 0.5]], [0, 1])["value"] == 0.25
    error, bins = metrics.calibration([0.95, 0.85, 1.0], [True, False, True])
    assert error == pytest.approx((abs(1.95 / 2 - 1) * 2 + 0.85) / 3) and sum(b["count"] for b in bins) == 3
    assert metrics.average([])["value"] is None and metrics.average([2.0])["stderr"] is None


def test_metrics_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    gold, given = [i % 3 for i in range(50)], [(i * i + i // 7) % 3 for i in range(50)]
    assert metrics.macro_f1(gold, given, [0, 1, 2]) == pytest.approx(sklearn.f1_score(gold, given, average="macro"))
    assert metrics.matthews(gold, given, [0, 1, 2]) == pytest.approx(sklearn.matthews_corrcoef(gold, given))


@pytest.mark.parametrize("match, target, answer, expected", [
    ("exact", "Paris", " Paris\n", True), ("exact", "Paris", "paris", False), ("contains", "Paris", "It is Paris.", True),
    ("numeric", 1000, "so 12 and then 1,000.", True), ("numeric", "1e3", "1000.0", True), ("numeric", 3, "none", False), ("numeric", 3, "3 or 4", False),
    ("regex", r"^\d+ apples", "12 apples", True), ("regex", "x", "y", False), ("json", {"a": 1, "b": [True]}, 'Here: {"b": [true], "a": 1.0} ok', True),
    ("json", '{"a": 1}', '{"a": true}', False), ("json", {"a": 1}, "{a", False)])
def test_answers(match, target, answer, expected):
    assert same(match, target, answer) is expected


def test_templates():
    assert filled('{a} is {b}: {"x": 1} {}', {"a": "one", "b": 2}) == 'one is 2: {"x": 1} {}'
    assert unescaped(r"a\nb\\n\tc") == "a\nb\\n\tc"
    with pytest.raises(OptionError, match="'c'"):
        filled("{c}", {"a": 1})


def test_tables_are_read_as_they_are_written(tmp_path):
    cells = ['a "quoted", one', "two\nlines", "", "ünïcode"]
    path = tmp_path / "t.csv"
    path.write_text(written(["w", "x", "y", "z"], "csv") + written(cells, "csv") + "\n" + written(cells, "csv"), newline="")
    assert [(list(row.fields.values()), row.line) for row in read_rows(path, "csv")] == [(cells, 2), (cells, 5)]


@pytest.mark.parametrize("command", ["eval", "classify", "embed", "batch"])
def test_memory_of_many_rows(tmp_path, command):
    """10,000 rows are read, computed, journalled and written within little more than 50 of them."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")
    if not os.environ.get("LLAMINA_LONG"):
        pytest.skip("takes some minutes (set LLAMINA_LONG)")
    end = {"eval": "json", "embed": "npy"}.get(command, "jsonl")
    argv = {"eval": ["eval", "demo", "IN", "--samples", str(tmp_path / "s.jsonl")], "embed": ["embed", "demo", "IN"], "batch": ["batch", "IN", "-m", "demo"],
            "classify": ["classify", "demo", "IN", "--labels", "good,bad", "--label-column", "label"]}[command]
    program = ("import sys; from llamina.engine.cli import main; code = main(sys.argv[1:]);"
               "print(next(l.split()[1] for l in open('/proc/self/status') if 'VmHWM' in l), file=sys.stderr); sys.exit(code)")
    peaks = []
    for n in 50, 10000:
        source, out = tmp_path / f"{n}.jsonl", tmp_path / f"out{n}.{end}"
        with open(source, "w") as file:
            for i in range(n):
                row = {"prompt": sentence(i, 6), "max_tokens": 6} if command == "batch" else {"text": sentence(i, 12), "label": ("good", "bad")[i % 2]}
                file.write(json.dumps({**row, "id": i}) + "\n")
        done = subprocess.run([sys.executable, "-c", program, *(str(source) if part == "IN" else part for part in argv), "-q", "-o", str(out)],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0 and out.exists(), done.stderr
        peaks.append(int(done.stderr.split()[-1]) / 1024)
    print(f"{command}: {peaks[0]:.0f} MB with 50 rows, {peaks[1]:.0f} with 10,000")
    assert peaks[1] - peaks[0] < 200


def test_real_labels():
    """SST-2's file is read whole, as it is."""
    path = real_folder() / "text" / "sst2_dev.tsv"
    if not path.is_file():
        pytest.skip(f"{path} not found (set LLAMINA_REAL)")
    task = Task.open(str(path), template="{text_a}\nSentiment:", labels={"0": "negative", "1": "positive"})
    assert task.count == 872 and task.kind == "label"


def test_evaluate_is_the_command(run, demo, choices, tmp_path):
    """The same bytes; rows in memory give the same numbers; models against each other."""
    out, samples = tmp_path / "r.json", tmp_path / "s.jsonl"
    assert run("eval", "demo", str(choices), "-o", str(out), "--samples", str(samples), "--shots", "1", "--context", "512", "--limit", "30").code == 0
    found = demo.evaluate(choices, shots=1, limit=30)
    assert found.json() == out.read_text() and found.samples == [json.loads(line) for line in samples.read_text().splitlines()]
    rows = [json.loads(line) for line in choices.read_text().splitlines()]
    again = demo.evaluate(rows, shots=1, limit=30, against=demo, name="mine")
    assert again.metrics == found.metrics and again.results["against"]["answers_changed"]["value"] == 0 and "mine: 30 rows" in str(again)
    generated = demo.evaluate([{"prompt": "Once upon a", "target": "time", "match": "contains"}], max_tokens=2)
    assert generated.accuracy in (0.0, 1.0) and "accuracy" in repr(generated) and "<svg" not in generated._repr_html_()


def test_a_notebook_shows_it(demo):
    """Well-formed, self-contained, the colours of what is around it, and told in words."""
    from xml.etree import ElementTree
    rows = [{"text": sentence(i, 5), "label": ("go<od", "bad & ugly")[i % 2]} for i in range(12)]
    found = demo.evaluate(rows, labels=["go<od", "bad & ugly"])
    html = found._repr_html_()
    root = ElementTree.fromstring(html)
    pictures = [node for node in root.iter() if node.tag.endswith("svg")]
    assert len(pictures) == 2 and "http" not in html.replace("http://www.w3.org/2000/svg", "") and "<script" not in html and "go<od" not in html
    texts = ["".join(node.itertext()) for node in pictures]
    for count in (n for row in found.metrics["confusion"]["counts"] for n in row):
        assert str(count) in texts[0]
    assert all(p.get("role") == "img" and p.get("fill") == "currentColor" and p[0].tag.endswith("title") and p[1].tag.endswith("desc") for p in pictures)
    assert f"right bad & ugly: {found.metrics['confusion']['counts'][1][0]} given go<od" in (pictures[0][1].text or "")
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(set(ids)) == 4 and not set(ids) & {node.get("id") for node in ElementTree.fromstring(found._repr_html_()).iter()} - {None}


@pytest.mark.parametrize("task, options, error, words", [
    (5, {}, OptionError, "a file's path or a list of rows"), ({"text": "a"}, {}, OptionError, "a list of rows"),
    ([1], {}, OptionError, "rows must be mappings"), ([{"a": object()}], {}, OptionError, "row 0 can't be written"),
    ([{"a": 1}], {}, FormatError, "rows.jsonl, line 1"), ([], {}, FormatError, "has no rows"),
    ([{"prompt": "a", "target": "b"}], {"calibrate": "pmi"}, OptionError, "is for labels"), ([], {"shot": 1}, OptionError, "no option 'shot'"),
    ([], {"limit": 0}, OptionError, "limit must be"), ([], {"calibrate": "x"}, OptionError, "calibrate must be"),
    ([], {"labels": "a"}, OptionError, "must be a list")])
def test_evaluate_refuses(demo, task, options, error, words):
    with pytest.raises(error, match=words):
        demo.evaluate(task, **options)
