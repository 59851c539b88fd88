"""`llamina batch`: killed anywhere and run again, the output is that of an uninterrupted run; what is wrong with a line is its record, nothing more."""
from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from batch_child import child_model, run
from llamina.engine.answers import batch_journal
from llamina.engine.answers.batch_job import MAX_LINE, BatchJob, count_lines, fingerprint, parse_line
from llamina.engine.answers.batch_journal import Journal
from llamina.engine.cli import main
from llamina.engine.cli.batch import duration
from llamina.engine.errors import FileError, FormatError, LlaminaError, OptionError

LINES: list[Any] = [
    "one", {"id": "a", "prompt": "two"}, {"id": 7, "prompt": [1, 2, 3], "max_tokens": 3}, {"prompt": "x", "temperature": 0, "seed": 5},
    {"id": "bad", "prompt": 3},
    {"id": {"k": [1]}, "messages": [{"role": "user", "content": "hi"}]}, {"prompt": "y" * 200}, {"prompt": "ü 🦊", "logprobs": 2, "max_tokens": 2},
    *({"id": i, "prompt": f"text {i}"} for i in range(20)),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in LINES) + "\n{bad\n", encoding="utf-8")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_records_in_the_order_of_the_lines(source, tmp_path):
    last = run(source, tmp_path / "r.jsonl")[-1]
    found = records(tmp_path / "r.jsonl")
    assert [r["id"] for r in found[:8]] == [1, "a", 7, 7, "bad", {"k": [1]}, 13, 15] and found[-1] == {
        "id": 56, "line": 56, "error": "is not JSON: Expecting property name enclosed in double quotes (character 2)"}
    assert found[4] == {"id": "bad", "line": 9, "error": '"prompt" must be a text or a list of ids, found int'}
    assert "has 201 tokens, the context 100" in found[6]["error"] and found[6]["line"] == 13
    assert (last.lines, last.done, last.errors, last.resumed) == (29, 29, 3, 0) and last.tokens == sum(r.get("generated_tokens", 0) for r in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "r.jsonl"]
    # each is what generate gives alone, with the seed that it states
    with child_model(source) as model:
        for r, line in zip(found, LINES):
            if "error" not in r and isinstance(line, dict) and "prompt" in line:
                own = {k: v for k, v in line.items() if k not in ("id", "prompt")}
                alone = model.generate(line["prompt"], **{"max_tokens": 12, "temperature": 30.0, "top_k": 0, "top_p": 1.0, **own, "seed": r["seed"]})
                assert (alone.text(), alone.finish_reason, len(alone.ids)) == (r["text"], r["finish_reason"], r["generated_tokens"])
                assert [e["id"] for e in r.get("logprobs", ())] == [e.id for e in alone.logprobs]
    assert found[0]["seed"] == 3 and found[3]["seed"] == 5


def test_killed_ten_times_and_resumed(source, tmp_path):
    run(source, tmp_path / "whole.jsonl")
    output, journal, rng = tmp_path / "r.jsonl", tmp_path / "r.jsonl.journal", random.Random(4)
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["batch_child"])  # a process in 10 ms
    sizes = []
    for _ in range(10):
        process = context.Process(target=run, args=(source, output, 0.001))
        process.start()
        before, end = journal.stat().st_size if journal.exists() else 0, time.monotonic() + 60
        while process.is_alive() and time.monotonic() < end and (not journal.exists() or journal.stat().st_size <= before):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join()
        if output.exists():  # it was faster
            assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
            output.unlink()
        sizes.append(journal.stat().st_size if journal.exists() else 0)
    assert len(set(sizes)) > 3, sizes  # they did stop in different places
    run(source, output)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not journal.exists()


def test_a_journal_cut_anywhere(source, tmp_path, monkeypatch):
    """What a kill or a power cut can leave, byte for byte: every length of the journal, and rubbish behind it."""
    run(source, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    monkeypatch.setattr(Journal, "finish", lambda self, count: None)
    run(source, tmp_path / "r.jsonl")
    monkeypatch.undo()
    monkeypatch.setattr(batch_journal, "SYNC_SECONDS", 0.0)
    journal = (tmp_path / "r.jsonl.journal").read_bytes()
    header = journal.index(b"\n") + 1
    for cut in sorted({0, 1, header - 1, header, header + 1, len(journal) - 1, len(journal), *random.Random(1).sample(range(header, len(journal)), 5)}):
        for rubbish in b"", b"\0" * 700 + b"5\t00000000\t{}\n":
            (tmp_path / "r.jsonl").unlink(missing_ok=True)
            (tmp_path / "r.jsonl.journal").write_bytes(journal[:cut] + (rubbish if cut >= header else b""))
            seen = run(source, tmp_path / "r.jsonl")
            assert (tmp_path / "r.jsonl").read_bytes() == whole, cut
            assert seen[-1].resumed == journal[header:cut].count(b"\n") if cut >= header else seen[-1].resumed == 0


def test_killed_while_the_output_is_written(source, tmp_path, monkeypatch):
    """Before the rename, and between it and the journal's removal."""
    run(source, tmp_path / "whole.jsonl")
    whole, output = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "r.jsonl"

    class Killed(BaseException):
        pass

    def killed(*args: Any, **options: Any) -> None:
        raise Killed
    for target, name in (os, "replace"), (Path, "unlink"):
        monkeypatch.setattr(target, name, killed)
        with pytest.raises(Killed):
            run(source, output)
        monkeypatch.undo()
        assert output.exists() == (name == "unlink") and (not output.exists() or output.read_bytes() == whole)
        assert run(source, output)[-1].resumed == 29 and output.read_bytes() == whole
        assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "r.jsonl", "whole.jsonl"]
        output.unlink()


def test_a_journal_is_bound_to_its_job(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "finish", lambda self, count: None)
    output = tmp_path / "r.jsonl"
    run(source, output, seed=None)
    run(source, output, seed=None)  # the seed that was drawn is kept
    changed: list[tuple[dict[str, Any], str]] = [({"options": {"temperature": 2.0}}, r"options: temperature \(30.0, now 2.0\)"), ({"seed": 1 << 40}, "seed"),
                                                 ({"system": "x"}, "system"), ({"chat": True}, "chat"), ({"kv": "q8_0"}, "kv")]
    for changes, message in changed:
        with pytest.raises(OptionError, match=f"r.jsonl.journal: was begun with other {message}"):
            run(source, output, **{"seed": None, **changes})
    source.write_text('"other"\n')
    with pytest.raises(OptionError, match="was begun with other input"):
        run(source, output, seed=None)
    for content in b"hello", b"hello\n", b"[]\n", b"{}\n", b'{"llamina_batch": 99}\n', b"[" * 100_000 + b"\n", b"x" * (2 << 20):
        (tmp_path / "r.jsonl.journal").write_bytes(content)
        with pytest.raises(FormatError, match="is not the journal"):
            run(source, output)
        assert (tmp_path / "r.jsonl.journal").read_bytes() == content  # and is not touched


def test_one_run_at_a_time(source, tmp_path):
    pytest.importorskip("fcntl")
    with Journal(tmp_path / "r.jsonl"), pytest.raises(FileError, match="another run is writing it"):
        Journal(tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl.journal").exists()  # nothing was begun


def test_a_full_disk(source, tmp_path):
    """The operating system's limit on a file's size stands for it; with room again, it goes on."""
    resource = pytest.importorskip("resource")
    run(source, tmp_path / "whole.jsonl")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in 1500, 3200, 3900:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(FileError, match=r"r.jsonl(.journal)?: cannot be written \(File too large\).* run again"):
                run(source, tmp_path / "r.jsonl")
            assert not (tmp_path / "r.jsonl").exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert run(source, tmp_path / "r.jsonl")[-1].resumed > 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "s.jsonl.journal").symlink_to("/dev/zero")
    with pytest.raises(FileError, match="is not a regular file"):
        run(source, tmp_path / "s.jsonl")


BAD: list[tuple[bytes, str]] = [
    (b"{", "is not JSON"), (b"\xff", "is not UTF-8 text (byte 0 is 0xFF)"), (b"3", "must be a text or an object"), (b"null", "must be a text"),
    (b"[]", "must be a text"),
    (b"[" * 100_000, "is not JSON"), (b"{}", 'one of "prompt" and "messages"'), (b'{"prompt": "a", "messages": []}', "one of"),
    (b'{"prompt": {}}', "must be a text or a list"),
    (b'{"messages": "x"}', "must be a list of messages"), (b'{"messages": []}', "must be a list"), (b'{"prompt": "a", "n": 1}', "no option 'n'"),
    (b'{"prompt": "a", "temprature": 1}', "did you mean temperature?"), (b'{"prompt": "a", "tools": [1]}', 'go with "messages"'),
    (b"x" * (MAX_LINE + 1), "is longer than"),
    (b'{"prompt": "a", "threads": 1}', "no option 'threads'"), (b'{"prompt": "a", "x\\ud800": 1}', "no option"), (b'"a" "b"', "is not JSON"),
    (b"NaN", "NaN is no number of JSON"),
]


@pytest.mark.parametrize("raw, message", BAD, ids=lambda v: str(v)[:30])
def test_bad_lines(raw, message):
    with pytest.raises(OptionError) as caught:
        parse_line(raw, 0, 0)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [1, 10**9]}, "outside this model's vocabulary"), ({"prompt": [1.5]}, "token id"), ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "temperature": -1}, "temperature"), ({"prompt": "a", "max_tokens": -5}, "max_tokens"), ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"), ({"prompt": "a", "stop": 3}, "stop must be"),
    ({"prompt": "a", "seed": 1 << 70}, "seed"), ({"messages": [1]}, "messages[0]"), ({"messages": [{"role": 3, "content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0]"), ({"prompt": "\ud800"}, "'utf-8' codec"), ({"prompt": "a", "ignore_eos": "x"}, "ignore_eos"),
]


def test_bad_requests_are_records(tmp_path):
    """Each in one job, which ends, between two lines that are right."""
    source = tmp_path / "p.jsonl"
    good = [request for request, _ in BAD_REQUESTS if request.get("prompt") != "\ud800"]
    source.write_text("\n".join(map(json.dumps, ["first", *good, "last"])))
    run(source, tmp_path / "r.jsonl")
    found = records(tmp_path / "r.jsonl")
    assert len(found) == len(good) + 2 and "text" in found[0] and "text" in found[-1]
    for record, (request, message) in zip(found[1:-1], (pair for pair in BAD_REQUESTS if pair[0] in good)):
        if message == "ignore_eos" and "text" in record:
            continue
        assert message in record.get("error", ""), (request, record)


def test_endless_and_empty_input(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'"a"\n' + b"x" * (2 * MAX_LINE + 5) + b'\n\n  \n"b"')
    assert count_lines(tmp_path / "p.jsonl")[0] == 3
    run(tmp_path / "p.jsonl", tmp_path / "r.jsonl")
    found = records(tmp_path / "r.jsonl")
    assert [r["id"] for r in found] == [1, 2, 5] and found[1]["error"] == f"is longer than {MAX_LINE} bytes"
    (tmp_path / "e.jsonl").write_bytes(b"\n \n")
    run(tmp_path / "e.jsonl", tmp_path / "e2.jsonl")
    assert (tmp_path / "e2.jsonl").read_bytes() == b""


def test_input_that_changes_meanwhile(source, tmp_path):
    lines, digest = count_lines(source)
    with Journal(tmp_path / "r.jsonl") as journal, child_model(source) as model:
        job = BatchJob(model, source, journal, lines + 1, digest, {}, seed=1)
        with pytest.raises(FileError, match="has changed while it was read"):
            list(job.run())


def test_models_are_told_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"\0" * 9_000_000)
    data = bytearray(9_000_000)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "a")
    for at in 0, 10**6, 9_000_000 - 1:
        data[at] = 1
        (tmp_path / "b").write_bytes(data)
        data[at] = 0
        assert fingerprint(tmp_path / "b") != fingerprint(tmp_path / "a") or at == 9_000_000 - 1
    (tmp_path / "b").write_bytes(data[:-1])
    assert fingerprint(tmp_path / "b") != fingerprint(tmp_path / "a")


# ---- the command


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"], "additionalProperties": False}
    lines: list[Any] = [{"id": "s", "prompt": "How many?", "json_schema": schema}, "Once upon a time", {"prompt": "Is it?", "choices": ["yes", "no"]},
                        {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 5}, {"prompt": "a", "regex": "("}]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["batch", "p.jsonl", "-o", "r.jsonl", "-n", "20", "--seed", "5"]) == 0
    out, err = capsys.readouterr()
    found = records(Path("r.jsonl"))
    assert out == "" and err.startswith("[5 records, 1 of them errors; generated ") and "tokens/s" in err
    jsonschema.validate(json.loads(found[0]["text"]), schema)
    assert found[2]["text"] in ("yes", "no") and found[3]["generated_tokens"] <= 5 and [r.get("seed") for r in found] == [5, 6, 7, 8, None]
    first = Path("r.jsonl").read_bytes()
    assert main(["generate", "-p", "Once upon a time", "-n", "20", "--seed", "6", "-q"]) == 0
    assert capsys.readouterr().out == found[1]["text"]
    assert main(["batch", "p.jsonl", "-o", "again.jsonl", "-n", "20", "--seed", "5", "--parallel", "1", "-q"]) == 0
    assert Path("again.jsonl").read_bytes() == first and capsys.readouterr().err == ""
    assert main(["batch", "p.jsonl", "-o", "chat.jsonl", "-n", "4", "--system", "Be kind.", "--choice", "a", "--temperature", "0"]) == 0
    chat = records(Path("chat.jsonl"))
    assert chat[1]["text"] == "a" and chat[1]["prompt_tokens"] > found[1]["prompt_tokens"] and chat[2]["text"] in ("yes", "no")


@pytest.mark.parametrize("argv, code, message", [
    (["p.jsonl", "-o", "old.jsonl"], 1, "old.jsonl: exists already"),
    (["p.jsonl", "-o", "none/r.jsonl"], 1, "none/r.jsonl: cannot be written (the folder does not exist)"),
    (["p.jsonl", "-o", "."], 1, "is a directory"), (["p.jsonl", "-o", "p.jsonl"], 2, "is the input"),
    (["none.jsonl", "-o", "r.jsonl"], 1, "none.jsonl: no such file"),
    ([".", "-o", "r.jsonl"], 1, "is a directory"), (["-", "-o", "r.jsonl"], 2, "come from a file"), (["p.jsonl"], 2, "Missing option '-o'"),
    (["p.jsonl", "-o", "r.jsonl", "--parallel", "0"], 2, "parallel must be"), (["p.jsonl", "-o", "r.jsonl", "--temperature", "-1"], 2, "temperature"),
    (["p.jsonl", "-o", "a\0b"], 1, "cannot be"), (["a\0b", "-o", "r.jsonl"], 1, "cannot be read"),
])
def test_refused_before_anything_is_computed(tmp_path, capsys, monkeypatch, argv, code, message):
    def no_model(*args: Any, **options: Any) -> Any:
        raise AssertionError("the model was loaded")
    monkeypatch.setattr("llamina.engine.cli.cluster.open_model", no_model)
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('"a"\n')
    Path("old.jsonl").write_text("mine\n")
    assert main(["batch", *argv]) == code
    assert message in capsys.readouterr().err and Path("old.jsonl").read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.jsonl", "p.jsonl"]


def test_durations():
    assert [duration(s) for s in (0.04, 9.94, 12.4, 59.9, 130, 3725, 90000)] == ["0.0 s", "9.9 s", "12 s", "1 min 0 s", "2 min 10 s", "1 h 2 min", "25 h 0 min"]


def test_no_error_but_ours():
    rng = random.Random(0)
    for _ in range(300):
        raw = bytes(rng.choice(b'{}[]":,\\ueE+-.0123456789 \xc3\xbc\xffpromtidesag') for _ in range(rng.randrange(40)))
        with contextlib.suppress(LlaminaError):
            parse_line(raw, 0, 0)


def test_very_many_bad_lines(tmp_path, monkeypatch):
    """More than are kept at a time, between good ones."""
    from llamina.engine.answers import batch_work
    monkeypatch.setattr(batch_work, "_MOST_READY", 3)
    source = tmp_path / "p.jsonl"
    source.write_text("".join('"good"\n' if i % 11 == 7 else "{bad\n" for i in range(60)))
    last = run(source, tmp_path / "r.jsonl")[-1]
    found = records(tmp_path / "r.jsonl")
    assert [r["id"] for r in found] == list(range(1, 61)) and all(("error" in r) is (i % 11 != 7) for i, r in enumerate(found)) and last.errors == 55
