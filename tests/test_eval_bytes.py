"""Results of `llamina eval` and `classify` are the same bytes: on any threads, whatever is computed together, on any CPU, killed and gone on with."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from eval_rows import sentence, write_choices, write_reviews
from llamina.kernels.target import EMULATION, FEATURES, emulatable


@pytest.fixture
def choices(tmp_path):
    return write_choices(tmp_path / "choices.jsonl")


@pytest.fixture
def reviews(tmp_path):
    return write_reviews(tmp_path / "reviews.csv")


def child(*argv: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "import sys; from llamina.engine.cli import main; sys.exit(main(sys.argv[1:]))", *argv],
                            env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


LONG = bool(os.environ.get("LLAMINA_LONG"))


def all_files(run, choices, reviews, folder, *options: str) -> list[bytes]:
    """Results and samples of choices and of generated answers, and a table of labels."""
    folder.mkdir()
    task = folder / "task.jsonl"
    task.write_text("".join(json.dumps({"prompt": sentence(i, 4), "target": "the", "match": "contains"}) + "\n" for i in range(8)))
    out = [folder / name for name in ("r.json", "s.jsonl", "g.json", "gs.jsonl", "l.csv")]
    for argv in (["eval", "demo", str(choices), "-o", str(out[0]), "--samples", str(out[1]), "--shots", "2"],
                 ["eval", "demo", str(task), "-o", str(out[2]), "--samples", str(out[3]), "-n", "6"],
                 ["classify", "demo", str(reviews), "-o", str(out[4]), "--labels", "good,bad", "--text-column", "text", "--calibrate", "contextual"]):
        assert run(*argv, *options).code == 0
    return [path.read_bytes() for path in out]


def test_results_are_the_same_bytes(run, choices, reviews, tmp_path, monkeypatch):
    """Whatever the threads, and whatever is computed together."""
    from llamina.engine.score import eval_work, paths
    expected = None
    for i, (threads, block, live) in enumerate([("1", 256, 64), ("2", 5, 3), ("3", 1, 1)]):
        monkeypatch.setattr(paths, "BLOCK", block)
        monkeypatch.setattr(paths, "LIVE", live)
        monkeypatch.setattr(eval_work, "LIVE", live)
        found = all_files(run, choices, reviews, tmp_path / str(i), "--threads", threads)
        expected = expected or found
        assert found == expected


@pytest.mark.skipif(not LONG, reason="compiles for other CPUs, a minute each (set LLAMINA_LONG)")
@pytest.mark.parametrize("target", sorted(EMULATION))
def test_results_on_every_target(run, choices, reviews, tmp_path, target):
    if target not in emulatable(FEATURES):
        pytest.skip(f"this CPU cannot run code for another target {target}")

    class Done:
        code = 0

    def elsewhere(*argv: str) -> Done:
        process = child(*argv, **EMULATION[target])
        _, err = process.communicate()
        assert process.returncode == 0, err
        return Done()
    assert all_files(elsewhere, choices, reviews, tmp_path / "there") == all_files(run, choices, reviews, tmp_path / "here")


@pytest.mark.parametrize("command", ["eval", "classify"])
def test_killed_anywhere(tmp_path, command, run):
    """Killed at some places of the journal (at ten with LLAMINA_LONG), a run ends in the same bytes."""
    kills, count = (10, 600) if LONG else (2, 200)
    rows = [{"text": sentence(i, 40 + i % 9), "label": ("good", "bad")[i % 2]} for i in range(count)]
    task = tmp_path / "t.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [command, "demo", str(task), "--threads", "1", *(["--labels", "good,bad", "--label-column", "label"] if command == "classify" else [])]
    assert run(*options, "-o", str(tmp_path / "whole.jsonl")).code == 0
    out, killed = tmp_path / "cut.jsonl", 0
    journal = tmp_path / "cut.jsonl.journal"
    for k in range(kills):
        process = child(*options, "-o", str(out))
        deadline = time.monotonic() + 60
        enough = 1 + 3 * count // 4 // kills * (k + 1)
        while process.poll() is None and time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > enough):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        if out.exists():
            break
    assert killed >= kills // 2
    if not out.exists():
        found = run(*options, "-o", str(out))
        assert found.code == 0 and "going on after" in found.err
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_journal_of_another_job_is_refused(run, choices, tmp_path):
    out = tmp_path / "r.json"
    (tmp_path / "r.json.journal").write_bytes(b"")
    assert run("eval", "demo", str(choices), "-o", str(out), "--limit", "3").code == 0
    out.rename(tmp_path / "old.json")
    process = child("eval", "demo", str(choices), "-o", str(out), "--shots", "2")
    while process.poll() is None and not (tmp_path / "r.json.journal").exists():
        time.sleep(0.005)
    while process.poll() is None and not (tmp_path / "r.json.journal").read_bytes().count(b"\n"):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    if not out.exists():
        found = run("eval", "demo", str(choices), "-o", str(out), "--shots", "3")
        assert found.code == 2 and "was begun with other shots (2, now 3)" in found.err


def test_a_journal_with_another_chat_template_is_refused(run, choices, tmp_path, monkeypatch):
    from llamina.engine.answers.batch_journal import Journal
    out, template = tmp_path / "r.json", tmp_path / "t.jinja"
    argv = ["eval", "demo", str(choices), "-o", str(out), "--limit", "2", "--chat-template", str(template)]
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*argv).code == 130
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    found = run(*argv)
    assert found.code == 2 and "was begun with other chat_template" in found.err and not out.exists()
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert run(*argv).code == 0 and out.exists()
