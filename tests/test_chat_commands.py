"""The conversation's slash commands, and how answers are shown on a terminal."""
from __future__ import annotations

import io
import json
from typing import Any

import pytest
from fake_model import fake_model
from llamina.engine.answers import session
from llamina.engine.answers.chat import Chat
from llamina.engine.cli import chat_terminal
from llamina.engine.cli.chat_commands import Commands, Leave
from llamina.engine.cli.chat_terminal import finished_blocks, history_file
from llamina.engine.errors import FormatError, OptionError

OPTIONS: dict[str, Any] = {"max_tokens": -1, "temperature": 0.0, "top_k": 40, "seed": 5, "stop": (), "ignore_eos": False, "context_shift": False}


def ok_after_two(ids: list[int]) -> int:
    return (*b" ok", 258)[min(3, [*ids[::-1]].index(ord(":")))]


@pytest.fixture
def talk() -> Any:
    said: list[str] = []
    with fake_model(ok_after_two, context=500) as model, Chat(model) as chat:
        commands = Commands(chat, dict(OPTIONS), said.append)
        commands.said = said  # type: ignore[attr-defined]
        yield commands


def roles(talk: Commands) -> str:
    return "".join(m["role"][0] for m in talk.chat.settled())


def test_undo_retry_reset_system(talk):
    for text in "one", "two":
        assert talk.ask(text).text() == " ok"
    assert roles(talk) == "uaua"
    talk.run("/undo")
    assert roles(talk) == "ua" and talk.said == ["taken back: two"]
    first = talk.ask("three").stats.seed
    again = talk.run("/retry")
    assert again is not None and again.text() == " ok" and again.stats.seed == first + 1
    assert talk.chat.settled()[-2]["content"] == "three" and roles(talk) == "uaua"
    talk.run("/system be brief")
    assert roles(talk) == "suaua"
    talk.run("/system")
    assert talk.said[-1] == "be brief"
    talk.run("/clear")
    assert roles(talk) == "s"
    talk.run("/system -")
    assert roles(talk) == ""
    for line in "/undo", "/retry":
        assert talk.run(line) is None


def test_save_and_load(talk, tmp_path):
    talk.ask("one").text()
    file = tmp_path / "talk.json"
    talk.run(f"/save {file}")
    assert json.loads(file.read_text())["messages"] == [{"role": "user", "content": "one"}, {"role": "assistant", "content": " ok"}]
    talk.run("/save")  # the same file again
    assert talk.said[-1] == "saved 2 messages" and list(tmp_path.iterdir()) == [file]
    talk.run("/reset")
    talk.run(f"/load {file}")
    assert roles(talk) == "ua"
    (tmp_path / "other").write_text("{}")
    for line, message in [("/save", "saved 2"), (f"/save {tmp_path}/other", "exists already"), (f"/save {tmp_path}/none/x", "cannot be written"),
                          (f"/load {tmp_path}/none", "cannot be read"), ("/load", "needs a file"), (f"/load {tmp_path}/other", "must be a list"),
                          ("/load a\0b", "cannot be read"), ("/save a\0b", "cannot be written")]:
        talk.run(line)
        assert message in talk.said[-1], line
    (tmp_path / "deep").write_text("[" * 100_000)
    talk.run(f"/load {tmp_path}/deep")
    assert "not a saved conversation" in talk.said[-1] and roles(talk) == "ua"


def test_set(talk):
    for line, name, value in [("/set temperature 0.5", "temperature", 0.5), ("/set max-tokens 7", "max_tokens", 7), ("/set seed random", "seed", None),
                              ("/set stop the end", "stop", "the end"), ("/set ignore_eos true", "ignore_eos", True)]:
        talk.run(line)
        assert talk.options[name] == value, talk.said
    before = dict(talk.options)
    for line in "/set temperature hot", "/set top_k 1.5", "/set none 1", \
            "/set context_shift 3", "/set ignore_eos 3", "/set max_tokens []", "/set top_k " + "[" * 9999:
        talk.run(line)
        assert talk.options == before and talk.said[-1].startswith("llamina: "), line
    talk.said.clear()
    talk.run("/set")
    lines = dict(line.split(None, 1) for line in talk.said)
    assert list(lines) == list(talk.options) and lines["temperature"] == "0.5  (at first 0.0)" and lines["top_k"] == "40"  # a line each
    for line, said in [("/set top_k", "top_k is 40"), ("/set top-k 7", "top_k is now 7"), ("/set top_k=9", "top_k is now 9"),
                       ("/SET temprature 1", "did you mean temperature?"),
                       ("/set seed", "seed is none"), ("/set ignore_eos off", "ignore_eos is now false"), ("/set zzz 1", "/set alone shows all")]:
        talk.run(line)
        assert said in talk.said[-1], line


def test_leaving_and_confirming(talk):
    for line in "/exit", "/quit", "/bye", "/QUIT now":
        with pytest.raises(Leave):
            talk.run(line)
    talk.ask("one").text()
    for line, said in [("/system be brief", "from now on: be brief"), ("/system -", "the instructions are gone"), ("/reset", "forgot 2 messages"),
                       ("/exot", "did you mean /exit?"), ("/restet", "did you mean /reset?"), ("/ x", "/help lists them")]:
        talk.run(line)
        assert said in talk.said[-1], line


def test_a_session_and_a_saved_conversation_are_told_apart(talk, tmp_path):
    """Each of the two kinds of file names the other's way in, and neither is called rubbish."""
    talk.ask("one").text()
    talk.run(f"/save {tmp_path}/talk")
    with pytest.raises(FormatError, match=r"/load .*talk") as error:
        session.read(tmp_path / "talk", talk.chat.model, "chat")
    assert "delete" not in str(error.value)
    (tmp_path / "kept").write_bytes(session.MAGIC + bytes(100))
    talk.run(f"/load {tmp_path}/kept")
    assert "llamina chat MODEL --session" in talk.said[-1]


def test_help_and_unknown(talk):
    talk.run("/help")
    assert all(any(line.lstrip().startswith(name) for line in talk.said) for name in Commands.names()) and len(Commands.names()) == 10
    talk.run("/stats")
    assert talk.said[-1] == "nothing was asked yet"
    talk.ask("one").text()
    talk.run("/stats")
    assert "; 1 thread; seed 5;" in talk.said[-2]
    assert talk.said[-1] == f"context: {talk.chat.tokens} of 500 tokens; 2 messages" and talk.chat.tokens > 10
    talk.run("/nonsense")
    assert "/nonsense is not a command" in talk.said[-1]


def test_stats_after_a_context_shift():
    """What was dropped fills no context."""
    said: list[str] = []
    with fake_model(lambda ids: ord("x"), context=60) as model, Chat(model) as chat:
        commands = Commands(chat, {**OPTIONS, "max_tokens": 200, "context_shift": True}, said.append)
        answer = commands.ask("go on")
        assert len(answer.text()) == 200 and answer.stats.context_shifts > 2
        commands.run("/stats")
        filled = int(said[-1].removeprefix("context: ").split(" of 60 tokens; 2 messages")[0])
        assert 20 < filled <= 60 and filled == len(answer.window) - 1  # the last token was not fed


def test_restore_refuses_what_is_no_conversation(talk):
    wrong: tuple = (None, {}, "x", [1], [{"role": "user"}], [{"role": 1, "content": "x"}])
    for bad in wrong:
        with pytest.raises(OptionError):
            talk.chat.restore(bad)


# ---------------------------------------------------------------------------------------------------------------- Markdown

@pytest.mark.parametrize("text, done", [
    ("one", ""), ("one\n\n", ""), ("one\n\ntwo", "one\n\n"), ("one\n\n- a\n- b", ""), ("one\n\n    code", ""),
    ("```\na\n\nb\n", ""), ("```\na\n\nb\n```\n\nnext", "```\na\n\nb\n```\n\n"), ("a\n\nb\n\nc", "a\n\nb\n\n"),
], ids=repr)
def test_finished_blocks(text, done):
    assert finished_blocks(text) == (done, text[len(done):])


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("no_color", [False, True])
def test_markdown_streams_to_the_same_page(size, no_color):
    """Whatever the pieces, what stays on the screen is the same; NO_COLOR means no colours."""
    from rich.console import Console
    text = "# Title\n\nSome *text* and `code`.\n\n1. one\n2. two\n\n```python\nprint(1)\n\nprint(2)\n```\n\nend"
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=30, no_color=no_color, highlight=False)
    chat_terminal._show_markdown((text[i:i + size] for i in range(0, len(text), size)), console)
    assert [line for line in out.getvalue().splitlines() if line] == [line for line in text.splitlines() if line]
    assert not no_color or "\x1b[3" not in out.getvalue()


def test_history_file(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMINA_HISTORY", "")
    assert history_file() is None
    monkeypatch.setenv("LLAMINA_HISTORY", str(tmp_path / "a" / "h"))
    path = history_file()
    assert path is not None and path.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("LLAMINA_HISTORY", str(tmp_path / "a" / "h" / "below a file"))
    assert history_file() is None
