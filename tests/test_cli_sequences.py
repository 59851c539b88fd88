"""The command line on the demo model: several samples, memory, a full context, sessions."""
from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import llamina
import pytest
from llamina.engine.cli import main
from llamina.engine.errors import OptionError, OutOfMemoryError


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """run(*argv, stdin="") -> (exit code, stdout, stderr)"""
    def runner(*argv: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = main(list(argv))
        return (code, *capsys.readouterr())
    return runner


def test_samples(run):
    argv = ("generate", "-p", "Once upon a time", "-n", "6", "--seed", "3", "--temperature", "1.2")
    code, out, err = run(*argv, "--samples", "3", "--verbose")
    with llamina.load("demo") as model:
        texts = [model.generate("Once upon a time", max_tokens=6, seed=3, temperature=1.2, sample_index=i).text() for i in range(3)]
    assert code == 0 and out == "".join(f"=== {i + 1} ===\n{text}\n" for i, text in enumerate(texts)) and len(set(texts)) > 1
    assert err.count("seed 3") == 3 and "reused" in err
    code, out, err = run(*argv, "--samples", "2", "--json", "--logprobs", "1")
    answer = json.loads(out)
    assert [s["text"] for s in answer["samples"]] == texts[:2] and answer["samples"][1]["sample"] == 1 and len(answer["samples"][0]["logprobs"]) == 6
    assert run("generate", "-p", "x", "--samples", "0")[0] == 2


def test_memory(run):
    code, _, err = run("generate", "-p", "x", "-n", "1", "--memory", "100MB", "--context", "128")
    assert code == 0 and err.startswith("llamina: memory: weights ") and ", buffers 4." in err and ", KV cache up to 8" in err
    assert "a full context of 128 takes" in err and "instead of" not in err
    code, out, err = run("generate", "-p", "x", "--memory", "5MB")
    assert code == 1 and out == "" and "fit into the 5.0 MB that are allowed" in err and err.count("\n") == 1
    for wrong in "0", "x", "-1GB", "1e9":
        code, _, err = run("generate", "-p", "x", "--memory", wrong)
        assert code == 2 and "memory must be bytes or a size such as 4GB" in err
    with llamina.load("demo", memory="8MB") as model:
        assert model.memory_plan.weights + model.memory_plan.kv <= 8 * 10**6
        with pytest.raises(OutOfMemoryError):
            held = [model.generate([1, i], max_tokens=None) for i in range(3, 40)]
            for g in held:
                next(g)
        assert sum(g.finish_reason is None for g in held) >= 2  # those that were admitted go on
        for g in held:
            g.close()
    with llamina.load("demo", draft="demo", memory="40MB") as model:
        assert model.draft is not None
        plans = model.memory_plan, model.draft.memory_plan
        assert sum(plan.weights + plan.kv for plan in plans) <= 40 * 10**6 and plans[0].kv > plans[1].kv
    with pytest.raises(OptionError):
        llamina.load("demo", memory=-1)


def test_full_context(run):
    argv = ("generate", "-p", "Once upon a time", "-n", "60", "--context", "32", "--seed", "1", "--ignore-eos")
    code, out, err = run(*argv)
    assert code == 0 and "llamina: the context is full: the answer ends here" in err
    code, shifted, err = run(*argv, "--context-shift")
    assert code == 0 and shifted.startswith(out) and len(shifted) > len(out)
    assert "llamina: the context was full 2 times: the oldest" in err and "end: length" in err
    assert run(*argv, "--keep", "3")[0] == 2


def test_chat_whose_context_is_full(run):
    turns = "Tell me a story about a fox.\nTell me a story about a dog.\nAnd a hen?\n"
    code, out, err = run("chat", "--context", "60", "--context-shift", "--seed", "3", "-n", "30", stdin=turns)
    assert code == 0 and out.count("\n") == 3 and "the model no longer sees the oldest 2 messages" in err and "stopped after" not in err
    code, out, err = run("chat", "--context", "60", "--seed", "3", "-n", "30", stdin=turns)
    assert code == 1 and "the prompt has" in err


def test_chat_session(run, tmp_path: Path):
    turns = ["Tell me a story about a fox.", "And a dog?", "Who are you?"]
    argv = ("chat", "--seed", "3", "-n", "30")
    whole = run(*argv, stdin="\n".join(turns))[1]
    file = tmp_path / "talk.session"
    parts = [run(*argv, "-v", "--session", str(file), stdin=turn) for turn in turns]
    assert "".join(out for _, out, _ in parts) == whole and [code for code, _, _ in parts] == [0] * 3
    assert "going on after 2 messages" in parts[1][2] and "reused" in parts[2][2]
    assert list(tmp_path.iterdir()) == [file]
    # damaged: the text is kept, what was computed is not
    raw = file.read_bytes()
    file.write_bytes(raw[:-5] + b"12345")
    code, out, err = run(*argv, "--session", str(file), stdin="Go on")
    assert code == 0 and "its checksum is wrong: it is damaged; the text is computed again" in err and "going on after 6 messages" in err
    file.write_bytes(b"garbage")
    code, out, err = run(*argv, "--session", str(file), stdin="Go on")
    assert code == 1 and out == "" and "is not a session of llamina" in err and file.read_bytes() == b"garbage"
    code, out, err = run(*argv, "--session", str(tmp_path / "none" / "x"), stdin="Go on")
    assert code == 1 and out == "" and "cannot be written" in err
