"""Every example in the guides runs, on the demo model: shell lines through the command line's `main`, Python blocks as they stand.

In a comment before a block: `file: NAME` writes it to a file for the blocks after it, `model: tools` runs it with a model that calls a tool, `not run: WHY`.
Blocks of text show output and are not compared: the demo model may change.
"""
from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llamina.engine.model as engine
import pytest
from conftest import REPOSITORY
from llamina.engine.cli import main
from llamina.engine.model import DEMO, Model

GUIDES = ["generate.md", "chat.md", "batch.md", "structured.md", "python.md", "settings.md", "look.md", "train.md"]
BLOCK = re.compile(r"^(?:<!-- ([\w ]+): (.*?) -->\n)?```(\w+)\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[Any, Model]]:
    """Models stay open from one example to the next."""
    models: dict[Any, Model] = {}
    yield models
    for model in models.values():
        model.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: dict[Any, Model]) -> Path:
    """What the examples find: model.gguf, a story."""
    (tmp_path / "model.gguf").symlink_to(DEMO)
    (tmp_path / "story.txt").write_text("Once upon a time, there was a hen.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    load, close = engine.load, Model.close

    def cached(path: Any = "demo", *, context: int | None = None, progress: Any = None, note: Any = None, adapters: Any = (), **options: Any) -> Model:
        key = str(context)
        assert engine.resolve(path).resolve() == DEMO.resolve() and not {k for k, v in options.items() if v is not None} - {"threads"}
        if key not in loaded:
            loaded[key] = load("demo", context=context)
        loaded[key].speculate = True
        for name in [*loaded[key].adapters]:  # of an earlier example
            loaded[key].remove_adapter(name)
        for file, scale in adapters:
            loaded[key].add_adapter(file, scale)
        return loaded[key]
    monkeypatch.setattr(engine, "load", cached)
    monkeypatch.setattr(Model, "close", lambda self: None)
    monkeypatch.setattr(Model, "really_close", close, raising=False)
    return tmp_path


def blocks(page: str) -> list[tuple[str, str, str, str]]:
    """(word of the comment, what it says, language, text)."""
    return [(a or "", b or "", language, text) for a, b, language, text in BLOCK.findall((REPOSITORY / "docs" / page).read_text(encoding="utf-8"))]


def shell(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """VARIABLE=value llamina …, echo … | llamina …, llamina … < FILE."""
    with monkeypatch.context() as patch:
        given = ""
        first, pipe, rest = line.partition(" | llamina ")
        if pipe:
            words = shlex.split(first)
            assert words[0] == "echo", line
            given, line = " ".join(words[1:]) + "\n", "llamina " + rest
        words = shlex.split(line, comments=True)
        if "<" in words:
            at = words.index("<")
            given, words = Path(words[at + 1]).read_text(), words[:at]
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            patch.setenv(name, value)
        assert words[0] == "llamina", line
        if words[1] == "chat" and not given:
            given = "Tell me a story.\n"
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8"))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words[1:])
        assert code == 0, f"{line}: {err.getvalue()}"
        assert out.getvalue() or "-o" in words, line
        if "--json" in words:
            json.loads(out.getvalue())


class Caller:
    """Stands for a model that was trained for tools: the demo model, whose chat says a call once."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def chat(self, messages: Any, *, tools: Any, **options: Any) -> Any:
        from llamina.engine.text.chat_template import ChatTemplate
        from test_tool_calls import HERMES
        kept, self._model._template = self._model._template, ChatTemplate(HERMES, self._model.tokenizer)
        try:
            grammar = 'start: "Let me see. <tool_call>{\\"name\\": \\"weather\\", \\"arguments\\": {\\"place\\": \\"Paris\\"}}</tool_call>"'
            return self._model.chat(messages, tools=tools, grammar=grammar, **{**options, "max_tokens": 100})
        finally:
            self._model._template = kept


def python(text: str, word: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import llamina
    with monkeypatch.context() as patch:
        if word == "model":
            patch.setattr(llamina, "load", lambda path: Caller(engine.load("demo")), raising=False)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "<guide>", "exec"), {"__name__": "__main__"})
    return out.getvalue()


@pytest.mark.parametrize("page", GUIDES)
def test_examples_run(page, folder, monkeypatch):
    ran = 0
    for word, what, language, text in blocks(page):
        if word == "not run":
            continue
        if word == "file":
            (folder / what).write_text(text, encoding="utf-8")
        elif language == "sh":
            for line in text.splitlines():
                shell(line, monkeypatch)
                ran += 1
        elif language == "python":
            shown = python(text, word, monkeypatch)
            assert shown.strip() and (word != "model" or "weather {'place': 'Paris'}" in shown), text
            ran += 1
        else:
            assert language in ("text", "json"), f"{page}: is a block in {language} an example?"
    assert ran >= 2


def test_the_readmes_python_runs(folder, monkeypatch):
    found = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert found
    for text in found:
        assert len(python(text, "", monkeypatch)) > 100


def test_an_example_that_fails_is_seen(folder, monkeypatch):
    with pytest.raises(AssertionError, match="temperature must be"):
        shell("llamina generate -p x --temperature -1", monkeypatch)
    with pytest.raises(TypeError):
        python("import llamina\nllamina.load('demo').generate('x', nonsense=1)", "", monkeypatch)


def test_guides_are_found_from_the_readme():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for page in GUIDES:
        assert f"docs/{page}" in readme, page
