"""One question and its answer from the command line, the hints that a wrong line gets, long waits, and how help and errors look. Over a scripted model."""
from __future__ import annotations

import io
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from llamina.convert.importance import read
from llamina.engine import model as models
from llamina.engine.cli import llamina as group
from llamina.engine.cli import main
from llamina.engine.cli.help import LAST, SECTIONS, Command, sections
from llamina.engine.cli.progress import Progress
from llamina.engine.score import perplexity as score
from test_chat_commands import ok_after_two
from test_perplexity import TEXT

# ---------------------------------------------------------------------------------------------------------------- one question


@pytest.mark.parametrize("argv", [["demo", "one"], ["-p", "one"], ["demo", "--prompt", "one"], ["-f", "FILE"], ["demo", "-f", "-"]], ids=str)
def test_ask_one_question(run, scripted, tmp_path, argv):
    (tmp_path / "q.txt").write_text("one\n")
    model = scripted(ok_after_two, context=500)
    result = run("chat", *(str(tmp_path / "q.txt") if a == "FILE" else a for a in argv), "--seed", "1", "--no-speculation",
                 stdin="one\n" if "-" in argv else None)
    assert (result.code, result.out) == (0, "ok\n") and re.fullmatch(r"\[3 tokens, \d+ a second; seed 1; end: eos\]\n", result.err), result.err
    assert sum(model.runtime.fed, [])[:-3] == model._template.encode([{"role": "user", "content": "one"}])


def test_a_question_about_a_file(run, scripted, tmp_path):
    (tmp_path / "text").write_text("a text\n")
    (tmp_path / "system").write_text("be brief\n")
    model = scripted(ok_after_two, context=500)
    assert run("chat", "demo", "Which?", "-f", str(tmp_path / "text"), "--system-file", str(tmp_path / "system"), "-q", "--no-speculation").out == "ok\n"
    fed = bytes(i for i in sum(model.runtime.fed, []) if i < 256)
    assert fed.startswith(b"s:be briefu:Which?\n\na texta:")


@pytest.mark.parametrize("more", [["--chat"], ["--system", "be brief"], ["--chat", "--json"]], ids=" ".join)
def test_generate_answers_questions(run, scripted, more):
    model = scripted(ok_after_two, context=500)
    result = run("generate", "-p", "one", "--seed", "1", "--no-speculation", *more)
    assert result.code == 0, result.err
    if "--json" in more:
        assert json.loads(result.out)["prompt_ids"] == model._template.encode([{"role": "user", "content": "one"}])
    else:
        assert result.out == "ok\n"
    assert bytes(i for i in sum(model.runtime.fed, []) if i < 256).startswith(b"s:be briefu:one" if "--system" in more else b"u:one")


def test_a_template_of_ones_own(run, tmp_path):
    (tmp_path / "t.jinja").write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    texts = []
    for argv in ["generate", "-p", "a fox", "-n", "3"], ["generate", "-p", "a fox", "-n", "3", "--template", str(tmp_path / "t.jinja")]:
        result = run(*argv, "--json", "--chat", "--seed", "1")
        assert result.code == 0, result.err
        with models.load("demo") as model:
            texts.append(model.detokenize(json.loads(result.out)["prompt_ids"]))
    assert "[INST] a fox [/INST]" in texts[0] and texts[1].strip() == "<a fox>"
    (tmp_path / "t.jinja").write_text("{% for %}")
    result = run("chat", "demo", "x", "--template", str(tmp_path / "t.jinja"))
    assert result.code == 1 and "t.jinja: the chat template has a syntax error" in result.err


@pytest.mark.parametrize(("built_in", "argv", "hint"), [
    (False, [], "try --chat, or llamina chat"), (True, [], "--ignore-eos goes on"), (False, ["--chat"], "--ignore-eos goes on")])
def test_a_model_that_ends_at_once_is_explained(run, scripted, monkeypatch, built_in, argv, hint):
    model = scripted("", after="Once") if not argv else scripted(lambda ids: 257, context=100)
    monkeypatch.setattr(model._template, "built_in", built_in, raising=False)
    result = run("generate", "-p", "Once", *argv)
    assert result.code == 0 and "ended at once" in result.err and hint in result.err and "end: eos]" in result.err
    scripted(" there", after="Once")
    assert "at once" not in run("generate", "-p", "Once").err


def test_a_base_model_is_told(run, scripted, monkeypatch):
    model = scripted(ok_after_two, context=500)
    assert "template" not in run("chat", "demo", "one").err
    monkeypatch.setattr(model._template, "built_in", True, raising=False)
    result = run("chat", "demo", "one")
    assert result.out == "ok\n" and result.err.count("the model's file has no chat template") == 1


def test_a_context_beyond_the_trained_one_is_told(run):
    assert "--context 513 is more than the 512 tokens" in run("generate", "-p", "x", "-n", "1", "--context", "513").err
    assert "more than" not in run("generate", "-p", "x", "-n", "1", "--context", "512").err


# ---------------------------------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize(("argv", "message"), [
    (["generate", "Once upon a time"], "'Once upon a time' is no model: give the text to continue with -p"),
    (["chat", "Why is the sky blue?"], 'give the model first, as in: llamina chat demo "Tell me a story"'),
    (["generate", "--model", "x.gguf", "-p", "x"], "the model stands by itself, as in llamina generate model.gguf"),
    (["chat", "--model", "x.gguf"], "the model stands by itself, as in llamina chat model.gguf"),
    (["generate", "demo", "Once"], "the text to continue goes behind -p"),
    (["chat", "demo", "one", "-p", "two"], "after the model or with -p, not both"),
    (["chat", "demo", " "], "the question is empty"),
    (["chat", "demo", "x", "--system", "a", "--system-file", "b"], "not with both"),
    (["generate", "--chat", "-p", "x", "--special"], "--special is for texts to continue"),
    (["batch", "-", "-o", "x.jsonl"], "or give -o -, too"),
    (["rm"], "Missing argument"),
], ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else "")
def test_hints(run, argv, message):
    result = run(*argv)
    assert (result.code, result.out) == (2, "") and message in result.err and result.err.count("\n") == 1


def test_no_word_is_broken_on_a_terminal(run, monkeypatch):
    """A path or a name in an error can be copied, however narrow the window."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    name = "/none/" + "long-name-" * 8 + ".gguf"
    result = run("generate", name, "-p", "x")
    assert result.code == 1 and f"{name}:" in result.err.split() and max(len(line) for line in result.err.splitlines() if name not in line) <= 40


# ---------------------------------------------------------------------------------------------------------------- batch on standard output


def test_batch_to_standard_output(run, tmp_path):
    lines = '"Once"\n{"prompt": "The fox", "id": "b"}\n{"tempp": 1}\n'
    (tmp_path / "in.jsonl").write_text(lines)
    piped = run("batch", "-", "-o", "-", "-n", "5", "--seed", "1", stdin=lines)
    assert piped.code == 0 and [json.loads(line)["id"] for line in piped.out.splitlines()] == [1, "b", 3]
    assert run("batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "-n", "5", "--seed", "1").code == 0
    assert (tmp_path / "out.jsonl").read_text() == piped.out and len(list(tmp_path.iterdir())) == 2  # the same bytes, and nothing else left


def test_batch_of_nothing_but_errors(run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"tempp": 1}\nnot json\n')
    for output in "-", str(tmp_path / "out.jsonl"):
        result = run("batch", str(tmp_path / "in.jsonl"), "-o", output)
        assert result.code == 1 and "every record is an error" in result.err
    assert (tmp_path / "out.jsonl").read_text().count("error") == 2
    (tmp_path / "in.jsonl").write_text("\n")
    assert run("batch", str(tmp_path / "in.jsonl"), "-o", "-").code == 0  # nothing was asked, nothing failed


# ---------------------------------------------------------------------------------------------------------------- long waits


def test_reading_a_prompt_is_told(demo_progress):
    model, seen = demo_progress
    model.scheduler.reading = lambda done, total: seen.append((done, total))
    ids = [5] * 1300
    model.generate(ids, max_tokens=1, temperature=0.0).text()
    done = [n for n, _ in seen]
    assert {total for _, total in seen} == {1300} and done == sorted(done) and done[-1] == 1300 and len(done) >= 3  # once a step at least
    seen.clear()
    model.generate([*ids, 6], max_tokens=30, temperature=0.0, ignore_eos=True).text()  # the prefix is known; answers are no prompts
    assert not seen or seen[-1][1] < 100


@pytest.fixture
def demo_progress():
    with models.load("demo", context=1400) as model:
        model.speculate = False
        yield model, []


def test_ctrl_c_while_a_prompt_is_read_leaves_the_model_whole(demo_progress):
    model, _ = demo_progress

    def stop(done: int, total: int) -> None:
        if done > 600:
            raise KeyboardInterrupt
    ids = [int(i) for i in np.arange(1300) % 1000 + 5]
    ref = model.generate(ids, max_tokens=4, temperature=0.0).text()
    model.clear_prefix_cache()
    model.scheduler.reading = stop
    with pytest.raises(KeyboardInterrupt):
        model.generate(ids, max_tokens=4, temperature=0.0).text()
    model.scheduler.reading = None
    assert model.generate(ids, max_tokens=4, temperature=0.0).text() == ref


def test_how_progress_reads(monkeypatch, capsys):
    """Percent, then after two seconds speed and time left; a short prompt gets no line."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    clock = itertools.count(0.0, 1.5)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress() as progress:
        def shown(step: Any, *args: Any) -> str:
            now[0] = next(clock)
            step(*args)
            return capsys.readouterr().err.rpartition("\x1b[K")[2]
        shown(progress.stage, "x")
        assert shown(progress.reading, 0, 1000) == "reading prompt 0 % of 1000 tokens"
        assert shown(progress.reading, 150, 1000) == "reading prompt 15 % of 1000 tokens"
        assert shown(progress.reading, 300, 1000) == "reading prompt 30 % of 1000 tokens, 7.0 s left"
        assert shown(progress.reading, 1000, 1000) == ""
        shown(progress.counting, "windows", 1, 30)
        shown(progress.counting, "windows", 2, 30)
        assert shown(progress.counting, "windows", 4, 30, "perplexity so far 5.0000") == "windows: 4 of 30, 26 s left; perplexity so far 5.0000"
        shown(progress.loading, "loading", 0, 10**9)
        shown(progress.loading, "loading", 10**8, 10**9)
        assert shown(progress.loading, "loading", 3 * 10**8, 10**9) == "loading 30 % of 1.0 GB, 100 MB/s, 7.0 s left"


def test_compiling_is_told_to_the_progress_of_load(monkeypatch):
    """load(progress=…) hears of what is compiled, while it loads and not after."""
    from llamina.engine.run import runtime
    from llamina.kernels import compile_cache
    seen: list[tuple[str, int, int]] = []
    real = runtime.Runtime._prepare

    def compiles(self: Any, *args: Any, **options: Any) -> None:
        for name in "one", "two":
            for listener in list(compile_cache._listeners):
                listener(name)
        real(self, *args, **options)
    monkeypatch.setattr(runtime.Runtime, "_prepare", compiles)
    before = len(compile_cache._listeners)
    models.load("demo", progress=lambda *row: seen.append(row)).close()
    assert [row for row in seen if row[0].startswith("compiling")][:2] == [("compiling one", 1, 1), ("compiling two", 2, 2)]
    assert any(row[0] == "loading" for row in seen) and len(compile_cache._listeners) == before


def interrupting(steps: Any, after: int) -> Any:
    def cut(*args: Any, **options: Any) -> Any:
        for i, step in enumerate(steps(*args, **options)):
            if i == after:
                raise KeyboardInterrupt
            yield step
    return cut


@pytest.mark.parametrize("against", [False, True])
def test_perplexity_keeps_what_is_done(run, tmp_path, monkeypatch, against):
    (tmp_path / "text").write_text(TEXT)
    argv = ["perplexity", "demo", str(tmp_path / "text"), "--context", "32", *(["--against", "demo"] if against else [])]
    ref = run(*argv, "--windows", "2").out
    name = "running_divergence" if against else "running_perplexity"
    steps = getattr(score, name)
    monkeypatch.setattr(score, name, interrupting(steps, 2))
    stopped = run(*argv)
    assert (stopped.code, stopped.out) == (130, ref) and "stopped after 2 of" in stopped.err
    monkeypatch.setattr(score, name, interrupting(steps, 0))
    assert run(*argv).code == 130 and run(*argv).out == ""


def test_importance_keeps_what_is_done(run, tmp_path, monkeypatch):
    from llamina.convert import importance
    (tmp_path / "text").write_text(TEXT)
    argv = ["importance", "demo", str(tmp_path / "text"), "--context", "32"]
    assert run(*argv, "-o", str(tmp_path / "ref.gguf"), "--windows", "2").code == 0
    monkeypatch.setattr(importance, "collecting", interrupting(importance.collecting, 2))
    stopped = run(*argv, "-o", str(tmp_path / "kept.gguf"))
    assert stopped.code == 130 and "stopped after 2 of" in stopped.err
    ref, comp = read(tmp_path / "ref.gguf"), read(tmp_path / "kept.gguf")
    assert ref.keys() == comp.keys() and all((ref[k] == comp[k]).all() for k in ref)


def test_the_running_value_ends_at_the_result():
    with models.load("demo", threads=1, context=128) as model:
        steps = list(score.running_perplexity(model, TEXT, 32))
        assert steps[-1].done == steps[-1].total == len(steps) and steps[-1].perplexity == pytest.approx(steps[-1].result().perplexity, rel=1e-12)
        assert steps[1].result() == score.perplexity(model, TEXT, 32, most=2)  # asked for late, an early result is still the early one


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", ["generate", "chat", "batch"])
def test_options_stand_in_groups_the_basics_first(run, name):
    command = group.get_command(click.Context(group), name)
    assert isinstance(command, Command)
    grouped = sections(command)
    assert grouped[0][0] == "Basics" and [title for title, _ in grouped] == [t for t in (*SECTIONS, LAST) if t in dict(grouped)]
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    assert sorted(o.name or "" for _, listed in grouped for o in listed) == sorted(o.name or "" for o in options)  # each once
    text = run(name, "--help").out
    places = [text.index(f"\n{title}:\n") for title, _ in grouped]
    assert places == sorted(places) and all(option.opts[-1] in text for option in options) and "--help" in text


def test_the_first_help_fits_a_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--help").out.splitlines()
    assert max(map(len, lines)) <= 80 and [line.strip() for line in lines if line.endswith(":")] == [
        "Examples:", "Options:", "Ask:", "Models:", "Make and measure:"]


def test_every_option_of_the_groups_exists():
    known = {p.name for name in ("generate", "chat", "batch", "train") for p in group.get_command(click.Context(group), name).params}  # type: ignore[union-attr]
    assert {name for names in SECTIONS.values() for name in names} <= known


# ---------------------------------------------------------------------------------------------------------------- chats


def test_a_chat_on_a_terminal_goes_on_when_the_context_is_full(monkeypatch, capsys, scripted):
    """By itself on a terminal, and said once; in a pipe only if asked for."""
    monkeypatch.setenv("TERM", "dumb")
    for terminal, more, shifts in (True, [], True), (True, ["--no-context-shift"], False), (False, [], False), (False, ["--context-shift"], True):
        scripted(ok_after_two, context=40)
        stdin = io.TextIOWrapper(io.BytesIO(b"one\ntwo\nthree\nfour\nfive\nsix\n"), encoding="utf-8")
        stdin.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign, misc]
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        code = main(["chat", "--no-speculation", "--plain", *more])
        out, err = capsys.readouterr()
        told = err.count("the model no longer sees the oldest")
        if shifts:
            assert code == 0 and out.count("ok") == 6 and 1 <= told < 6, (terminal, more, out, err)
        else:
            assert told == 0 and out.count("ok") < 6, (terminal, more, out, err)


def test_an_answer_that_never_ends_ends_on_a_terminal(monkeypatch, capsys, scripted):
    monkeypatch.setenv("TERM", "dumb")
    scripted(lambda ids: ord("x"), context=60)
    stdin = io.TextIOWrapper(io.BytesIO(b"one\n/bye\nnever asked\n"), encoding="utf-8")
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["chat", "--no-speculation", "--plain"]) == 0
    out, err = capsys.readouterr()
    assert out.count("x") == 60 and "stopped after 60 tokens" in err and err.count("[60 tokens") == 1


def test_a_template_that_refuses_is_named(run, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ raise_exception('no') }}")
    result = run("generate", "--chat", "-p", "x", "--template", str(tmp_path / "mine.jinja"))
    assert result.code == 2 and "mine.jinja: the chat template refuses these messages: no" in result.err and result.out == ""


def test_guides_name_no_flags_that_are_gone() -> None:
    """--help, the pages and the settings agree on what --context-shift is called."""
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert "--context-shift / --no-context-shift" in page and "--verbose" in page
