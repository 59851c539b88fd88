"""What a user of Python stumbles over: one way to a text, iterating twice, options in every form, token texts, names at the top, answers in notebooks."""
from __future__ import annotations

import json
import sys
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any, get_type_hints

import llamina
import pytest
from fake_model import fake_model
from llamina.engine.answers.batch import Request, Results
from llamina.engine.errors import OptionError
from llamina.engine.sampling.options import SamplingKeywords, SamplingOptions


@pytest.fixture(scope="module")
def demo():
    with llamina.load("demo", threads=1) as model:
        yield model


def test_one_way_to_a_text():
    with fake_model("hello", after=2) as model:
        answer, result = model.generate("x"), next(model.generate_many(["x"]))
        assert answer.text() == result.text() == result.text == str(answer) == str(result) == f"{result}" == "hello"
        assert isinstance(result.text, str) and json.dumps(result.text) == '"hello"'
        assert repr(result) == "<llamina.Result 0.0 'hello', eos>"
        assert str(model.generate("x")) == "hello"  # print runs it


def test_iterated_twice():
    with fake_model("hello", after=2) as model:
        g = model.generate("x")
        assert next(g) == "h" and list(g) == list("ello")  # a first iteration goes on where it was
        assert list(g) == list("hello") == [*g] and g.text() == "hello"


def test_chat_holds_its_answer(demo):
    with llamina.Chat(demo) as chat:
        g = chat.ask("Who are you?", max_tokens=8, seed=1)
        next(g)
        assert len(chat.messages) == 1 and g.message["content"] == g.so_far
        g.text()
        assert chat.messages[-1] == g.message == {"role": "assistant", "content": g.text()} and len(chat.messages) == 2
        assert chat.undo() == "Who are you?" and chat.messages == []
        assert chat.ask("Who are you?", max_tokens=8, options=SamplingOptions(seed=1)).text() == g.text()


def test_keywords_are_the_options():
    hints = get_type_hints(SamplingKeywords)
    assert list(hints) == [field.name for field in fields(SamplingOptions)]
    kinds = {"float": float, "int": int}
    for field in fields(SamplingOptions):
        if field.type in kinds:
            assert hints[field.name] is kinds[field.type], field.name


def test_options_in_every_form(demo):
    one, many = SamplingOptions(seed=4, temperature=1.3), {"seed": 4, "temperature": 1.3}
    ref = demo.generate("Once", max_tokens=9, **many)
    ref.text()
    for given in ({"options": one}, {"options": many}, {"options": SamplingOptions(seed=9, temperature=1.3), "seed": 4}):
        g = demo.generate("Once", max_tokens=9, **given)
        g.text()
        assert g.ids == ref.ids
        prompts: list[Any] = [Request("Once", given), {"prompt": "Once", **given}]
        assert [r.ids for r in demo.generate_many(prompts, max_tokens=9)] == [ref.ids] * 2
    assert next(demo.generate_many([Request("Once", one)], max_tokens=9)).ids == ref.ids
    found = list(demo.generate_many(["Once"], samples=2, ordered=True, options=one, max_tokens=9))
    assert found[0].ids == ref.ids and found[0].stats.seed == found[1].stats.seed == 4
    assert demo.chat("Hi", options=one, max_tokens=5).text() == demo.chat("Hi", **many, max_tokens=5).text()
    for call in demo.generate, demo.chat:
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            call("a", temprature=1)
        with pytest.raises(OptionError, match="options must be SamplingOptions or a mapping, found int"):
            call("a", options=5)


def test_log_probabilities_carry_texts(demo):
    g = demo.generate("Once upon", max_tokens=12, temperature=0.0, logprobs=3)
    g.text()
    for entry in g.logprobs:
        id, logprob, top = entry
        assert entry.text == demo.tokenizer.token_bytes(id).decode(errors="replace") and len(top) == 3
        assert [likely.text for likely in top][0] == entry.text and (top[0].id, top[0].logprob) == (id, logprob) == top[0]
        assert entry.as_dict()["top"][0] == [id, logprob, entry.text]
    bos = demo.tokenizer.bos_id
    assert demo.logprobs([5, bos])[0].text == "<s>"


def test_names_at_the_top(tmp_path):
    from llamina.convert.convert import convert
    from llamina.engine.answers.chat import Chat
    assert llamina.Chat is Chat and {"Chat", "convert"} <= set(dir(llamina)) and callable(llamina.convert)
    report = llamina.convert(llamina.engine.model.DEMO, tmp_path / "m.gguf", "f16", verify=False)
    assert (tmp_path / "m.gguf").exists() and report.tensors and convert.__name__ == "convert"
    assert repr(report).startswith("<llamina.convert.Report ") and "\n" not in repr(report) and len(repr(report)) < 300
    page = report._repr_html_()
    assert "<svg" in page and "F16" in page and "token_embd.weight" in page


class Notebook:
    """Stands in for IPython: what is displayed, and each change of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
        self.pages: list[str] = []
        top, inner = ModuleType("IPython"), ModuleType("IPython.display")
        top.get_ipython = lambda: SimpleNamespace(kernel=kernel)  # type: ignore[attr-defined]
        inner.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", top)
        monkeypatch.setitem(sys.modules, "IPython.display", inner)

    def display(self, value: Any, display_id: Any = None) -> Any:
        self.pages.append(value._repr_html_())
        return SimpleNamespace(update=self.display) if display_id else None


def test_a_cell_streams_its_answer(monkeypatch, capsys):
    from llamina.engine.answers import display
    monkeypatch.setattr(display, "_REFRESH", 0.0)
    with fake_model("<b>hello", after=2) as model:
        notebook = Notebook(monkeypatch, object())
        answer = model.generate("x")
        answer._ipython_display_()
        assert len(notebook.pages) == 10 and "nothing yet" in notebook.pages[0]
        assert "&lt;b&gt;h<" in notebook.pages[4] and "&lt;b&gt;hello<" in notebook.pages[-1]
        answer._ipython_display_()
        assert len(notebook.pages) == 11
        batch = model.generate_many(["x", {"prompt": "x", "top_k": -1}])
        batch._ipython_display_()
        assert len(batch.shown) == 2 and all(part in notebook.pages[-1] for part in ("&lt;b&gt;hello", "top_k must be", "2 results, 1 errors"))
        assert "<table" in model.generate_many(["x"]).all()._repr_html_() and isinstance(model.generate_many([]).all(), Results)
        Notebook(monkeypatch, None)  # IPython in a terminal
        model.generate("x")._ipython_display_()
        assert capsys.readouterr().out == "<b>hello\n"


def test_an_interrupted_cell_shows_what_there_is(monkeypatch):
    def say(ids: list[int]) -> int:
        if len(ids) == 5:
            raise KeyboardInterrupt
        return 120
    with fake_model(say) as model:
        notebook = Notebook(monkeypatch, object())
        with pytest.raises(KeyboardInterrupt):
            model.generate("x")._ipython_display_()
        assert "xxx<" in notebook.pages[-1] and "interrupted" in notebook.pages[-1]
