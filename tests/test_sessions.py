"""A saved answer or conversation goes on, with ==, as if it had never been interrupted; damaged, foreign and hostile files do no harm."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from llamina.engine.answers import answer_state, session
from llamina.engine.answers.chat import Chat
from llamina.engine.errors import FileError, FormatError, LlaminaError, OptionError
from llamina.engine.model import Model, load
from llamina.kernels import new_file
from llamina.kernels.elementwise import PAGE
from small_models import random_ids, write_small_model
from test_speculation import REPEATING, Eager


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with load(write_small_model(folder / "m.gguf", "Q8_0", context_length=256), threads=1) as model:
        model.costs = Eager()
        yield model


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[Model]:
    """Of the same shape and vocabulary."""
    with load(write_small_model(folder / "other.gguf", "Q8_0", seed=1, context_length=256), threads=1) as model:
        yield model


CASES: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": 2}, {"seed": 1, "temperature": 1.3, "logit_bias": {5: float("-inf"), 9: 1.5}},
    {"seed": 2, "mirostat": 2, "mirostat_tau": 2.0},
    {"seed": 3, "banned": ["e", "4"], "stop": ["zz"]}, {"temperature": 0.0, "dry_multiplier": 0.8, "dry_breakers": ["\n"]},
    {"seed": 4, "regex": "[a-z0-9 ]{70,90}", "ignore_eos": False}, {"seed": 5, "context_shift": True, "keep": 3, "max_tokens": 170},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resumed_is_uninterrupted(model, folder, tmp_path, case):
    options = {"max_tokens": 80, "ignore_eos": True, **case}
    prompt = (REPEATING * 3)[:150]
    ref = model.generate(prompt, **options)
    ref.text()
    with load(folder / "m.gguf", threads=2) as again:
        for n, model_after in (0, model), (1, again), (30, model), (60, again):
            g = model.generate(prompt, **options)
            while len(g.ids) < n and g.finish_reason is None:
                next(g, "")
            g.save(tmp_path / "s")
            rest = model_after.resume(tmp_path / "s", note=pytest.fail)
            assert rest.so_far == g.so_far
            for answer in (g, rest) if n == 1 else (rest,):  # the saved one goes on, too
                answer.text()
                assert (answer.so_far, answer.ids, answer.finish_reason, answer.logprobs) == (ref.so_far, ref.ids, ref.finish_reason, ref.logprobs)
            if n:
                assert rest.stats.reused_tokens >= min(150, (150 + n - 1) // PAGE * PAGE - 64)
    model.runtime.clear_prefix_cache()


def test_a_finished_answer_stays_finished(model, tmp_path):
    g = model.generate(REPEATING, max_tokens=5, temperature=0.0, ignore_eos=True)
    text = g.text()
    g.save(tmp_path / "s")
    again = model.resume(tmp_path / "s")
    assert list(again) == [] and (again.text(), again.finish_reason, again.ids) == (text, "length", g.ids)


def converse(chat: Chat, texts: list[str]) -> list[str]:
    return [chat.ask(text, seed=3, max_tokens=25).text() for text in texts]


def test_chat_goes_on(model, other, tmp_path):
    turns = ["Tell me a story about a fox.", "And a dog?", "Who are you?"]
    with load("demo", threads=1) as demo, Chat(demo, "Be brief.") as whole:
        ref = converse(whole, turns)
        for n in range(4):
            with Chat(demo, "Be brief.") as chat:
                assert converse(chat, turns[:n]) == ref[:n]
                chat.save(tmp_path / "s")
            demo.clear_prefix_cache()
            with Chat(demo) as chat:
                assert chat.load(tmp_path / "s") is None
                assert len(chat.messages) == 1 + 2 * n
                g = chat.ask("Go on", seed=3, max_tokens=1)
                g.text()
                assert n < 2 or g.stats.reused_tokens >= 64
                chat.undo()
                assert converse(chat, turns[n:]) == ref[n:]
        # another model, or an answer: refused
        with Chat(other) as foreign:
            assert "another model file; the text is computed again" in (foreign.load(tmp_path / "s") or "")
            assert [m["content"] for m in foreign.messages][1::2] == turns and foreign._sequence.length == 0
        with pytest.raises(FormatError, match="another kind: expected answer, found 'chat'"):
            demo.resume(tmp_path / "s")


PROMPT = "the quick brown fox jumps over the lazy dog " * 3


@pytest.fixture
def saved(model, tmp_path) -> tuple[Path, bytes, Any]:
    """(file, its bytes, the whole answer)."""
    ref = model.generate(PROMPT, max_tokens=20, temperature=0.0, ignore_eos=True)
    ref.text()
    g = model.generate(PROMPT, max_tokens=20, temperature=0.0, ignore_eos=True)
    while len(g.ids) < 5:
        next(g)
    g.save(tmp_path / "s")
    assert len(g.ids) in (5, 6)
    return tmp_path / "s", (tmp_path / "s").read_bytes(), ref


def test_a_flipped_bit(model, saved):
    """In the header: an error. In the pages: they are refused and computed again, to the same bits."""
    file, raw, ref = saved
    start = len(raw) - 2 * model.runtime.page_bytes - 32
    for at in [*range(0, start, 97), *range(start, len(raw), 3001), len(raw) - 1]:
        changed = bytearray(raw)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        notes: list[str] = []
        if at < start:
            with pytest.raises(FormatError, match="is not a session of llamina|is a damaged session"):
                model.resume(file)
        else:
            found = model.resume(file, notes.append).ids
            assert found == ref.ids[:len(found)] and len(found) >= 5
            assert len(notes) == 1 and "its checksum is wrong: it is damaged; the text is computed again" in notes[0]
    notes = []
    assert model.resume(file, notes.append).text() == ref.so_far and notes


def test_cut_short_anywhere(model, saved):
    file, raw, ref = saved
    for n in [*range(0, len(raw), 1013), len(raw) - 1]:
        file.write_bytes(raw[:n])
        notes: list[str] = []
        try:
            g = model.resume(file, notes.append)
        except FormatError:
            continue
        assert len(notes) == 1 and "cut short" in notes[0] and g.ids == ref.ids[:len(g.ids)] != []
    file.write_bytes(raw + b"x")
    model.resume(file, notes.append)
    assert "something was added" in notes[-1]


def test_another_model_of_equal_shape(model, other, saved):
    file, _, _ = saved
    notes: list[str] = []
    g = other.resume(file, notes.append)
    assert "it was made with another model file" in notes[0] and g.ids == [] and g.stats.prompt_tokens > 100
    before = g.so_far
    assert g.text().startswith(before) and len(g.ids) in (14, 15)
    assert model.digest != other.digest and len(model.digest) == 64


@pytest.mark.parametrize("attribute, value, what", [("ARITHMETIC_VERSION", 10**6, "arithmetic version")])
def test_another_arithmetic(model, saved, monkeypatch, attribute, value, what):
    file, _, ref = saved
    monkeypatch.setattr(session, attribute, value)
    notes: list[str] = []
    assert model.resume(file, notes.append).text() == ref.so_far
    assert f"another {what}" in notes[0]


def forge(raw: bytes, change: Any) -> bytes:
    """The file with another header, and its checksum right."""
    n = int.from_bytes(raw[8:16], "little")
    header = json.loads(raw[16:16 + n])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    head = raw[:8] + len(text).to_bytes(8, "little") + text
    return head + blake2b(head, digest_size=32).digest() + raw[16 + n + 32:]


def set_to(*path: Any) -> Any:
    def change(header: dict[str, Any]) -> None:
        *way, last, value = path
        for key in way:
            header = header[key]
        header[last] = value
    return change


WRONG: list[Any] = [None, -1, 10**30, 1.5, "x", [], {}, [None], ["a"], [10**9], {"a": 1}, True, [[1, 2, 3]], [[[]]]]


def test_hostile_headers(model, saved):
    """Whatever stands in a file: our errors, or an answer; never a crash, a hang, or memory without bound."""
    file, raw, _ = saved
    n = int.from_bytes(raw[8:16], "little")
    header = json.loads(raw[16:16 + n])
    places = [(key,) for key in header] + [("state", key) for key in header["state"]] + [("state", "options", key) for key in header["state"]["options"]]
    for place in places:
        for value in WRONG:
            file.write_bytes(forge(raw, set_to(*place, value)))
            try:
                g = model.resume(file)
                next(g, "")
                g.close()
            except LlaminaError:
                pass
    for text in b"", b"[" * 100_000, b"{}", b"1", b'"x"', b"\xff", b'{"kind": "answer"}':
        file.write_bytes(forge(raw, lambda _, text=text: text))
        with pytest.raises(FormatError):
            model.resume(file)
    file.write_bytes(raw[:8] + b"\xff" * 8 + raw[16:])
    with pytest.raises(FormatError, match="its header would have"):
        model.resume(file)
    model.runtime.clear_prefix_cache()
    assert model.runtime._pool._promised == 0


def test_pages_from_a_file_are_lent_to_nobody(model, saved):
    """Well-formed pages with wrong numbers harm the session that brings them, and no other text."""
    file, raw, ref = saved
    pages = bytes(len(raw[len(raw) - 2 * model.runtime.page_bytes - 32:]) - 32)
    file.write_bytes(raw[:len(raw) - len(pages) - 32] + pages + blake2b(pages, digest_size=32).digest())
    model.clear_prefix_cache()
    model.resume(file, pytest.fail).text()
    again = model.generate(PROMPT, max_tokens=20, temperature=0.0, ignore_eos=True)
    assert again.text() == ref.so_far and again.stats.reused_tokens == 0


def test_what_cannot_be_read_or_written(model, tmp_path):
    g = model.generate(random_ids(9), max_tokens=3)
    next(g, "")
    with pytest.raises(FileError, match="cannot be written"):
        g.save(tmp_path / "none" / "s")
    for path in tmp_path, tmp_path / "missing":
        with pytest.raises(FileError):
            model.resume(path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FormatError):
        model.resume(tmp_path / "empty")
    with load("demo", threads=1) as demo, pytest.raises(OptionError, match="keep the messages"):
        demo.chat("Hi").save(tmp_path / "s")


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_disk_full(model, saved):
    """The old file stays as it is, and nothing is left beside it."""
    import resource
    file, raw, _ = saved
    g = model.resume(file)
    next(g)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(FileError, match="cannot be written .*; what was there before is unchanged"):
            g.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == raw and list(file.parent.iterdir()) == [file]


SAVING = """
import sys
from llamina.engine.model import load
model = load(sys.argv[1], threads=1)
g = model.generate(list(range(3, 203)), max_tokens=40, temperature=0.0, ignore_eos=True)
next(g, "")
g.save(sys.argv[2])
print("ready", flush=True)
while True:
    g.save(sys.argv[2])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_while_saving(model, folder, tmp_path):
    file = tmp_path / "s"
    ref = model.generate(list(range(3, 203)), max_tokens=40, temperature=0.0, ignore_eos=True).text()
    for delay in 0.011, 0.023:
        with subprocess.Popen([sys.executable, "-c", SAVING, str(folder / "m.gguf"), str(file)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        assert model.resume(file, pytest.fail).text() == ref


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
def test_interrupted_while_saving(model, folder, tmp_path):
    """Ctrl-C: the session is the old one or the new one, and nothing stays beside it."""
    file = tmp_path / "s"
    ref = model.generate(list(range(3, 203)), max_tokens=40, temperature=0.0, ignore_eos=True).text()
    for delay in 0.0, 0.011, 0.017, 0.023:
        with subprocess.Popen([sys.executable, "-c", SAVING, str(folder / "m.gguf"), str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(delay)
            child.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in child.communicate(timeout=60)[1]
        new_file.sweep(tmp_path, again=True)  # as the next save would: a signal between two lines of Python may leave a part
        assert list(tmp_path.iterdir()) == [file] and model.resume(file, pytest.fail).text() == ref


def test_another_session_put_under_the_name_while_one_is_read(model: Model, tmp_path: Path) -> None:
    """What was opened is what is read to its end."""
    path = tmp_path / "same.session"
    for seed in (1, 2):
        with model.generate(random_ids(PAGE * 2 + 5, 288, seed), max_tokens=4, temperature=0.0) as g:
            next(g)
            if seed == 1:
                g.save(path)
                found, ids = session.read(path, model, answer_state.KIND), list(g.window)
            else:
                g.save(path)
    sequence = session.restore(found, model)
    assert found.refused is None and sequence.ids == ids[:2 * PAGE]
    sequence.close()
