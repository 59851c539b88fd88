"""The command line: what goes to stdout and stderr, exit codes, and one line for every error. Most tests run `main` here, over a scripted model."""
from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf_builder
import llamina
import pytest
from fake_model import BOS, fake_model
from llamina.engine import model as models
from llamina.engine import selftest
from llamina.engine.cli import COMMANDS, one_line
from llamina.engine.cli.progress import Progress, closing_line, size

LLAMINA = [sys.executable, "-m", "llamina"]


# ---------------------------------------------------------------------------------------------------------------- help

def test_help_lists_all_commands(run):
    for argv in ("--help",), ("-h",):
        result = run(*argv)
        assert result.code == 0 and result.err == ""
        assert all(f"\n  {name} " in result.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run, name):
    result = run(name, "--help")
    assert result.code == 0
    assert f"Usage: llamina {name}" in result.out and "Example" in result.out and f"llamina {name}" in result.out.split("Example")[1]


def test_version(run):
    assert run("--version").out == f"llamina {llamina.__version__}\n"


def imports_of(*argv: str) -> set[str]:
    code = f"import sys; from llamina.engine.cli import main; code = main({list(argv)!r}); print(code, *sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.stderr.startswith("0 "), process.stderr
    return set(process.stderr.split())


def test_help_is_cheap():
    """0.13 s, of which Python itself is half; a heavy import would be the end of that."""
    assert not imports_of("--help") & {"numpy", "numba", "llvmlite", "sentencepiece", "tokenizers", "jinja2", "gguf", "rich"}


def test_tokenizing_needs_no_compiler():
    assert not imports_of("tokenize", "demo", "text") & {"numba", "llvmlite", "jinja2", "gguf"}


# ---------------------------------------------------------------------------------------------------------------- errors

@pytest.mark.parametrize("argv, code, message", [
    (["nonsense"], 2, "No such command 'nonsense'"),
    (["generate", "--nonsense"], 2, "No such option"),
    (["generate", "-n", "many", "-p", "x"], 2, "'many' is not a valid integer"),
    (["generate", "a.gguf", "b.gguf"], 2, "unexpected extra argument (b.gguf)"),
    (["tokenize"], 2, "Missing argument 'MODEL'"),
    (["generate", "-p", "x", "-f", "y"], 2, "with -p or with -f, not with both"),
    (["generate"], 2, "there is no prompt"),
    (["tokenize", "demo"], 2, "there is no text"),
    (["generate", "-p", "x", "--temperature", "nan"], 2, "temperature must be a finite number, found nan"),
    (["generate", "-p", "x", "--temperature", "-1"], 2, "temperature must be 0 or more, found -1.0"),
    (["generate", "-p", "x", "--top-k", "-1"], 2, "top_k must be 0"),
    (["generate", "-p", "x", "--top-p", "0"], 2, "top_p must be above 0"),
    (["generate", "-p", "x", "--min-p", "2"], 2, "min_p must be from 0"),
    (["generate", "-p", "x", "--repeat-penalty", "0"], 2, "repeat_penalty must be above 0"),
    (["generate", "-p", "x", "--seed", "-1"], 2, "seed must be from 0"),
    (["generate", "-p", "x", "--seed", str(2**64)], 2, "seed must be from 0"),
    (["generate", "-p", "x", "--stop", ""], 2, "stop must be non-empty"),
    (["generate", "-p", "x", "-n", "-2"], 2, "max_tokens must be a whole number from 0 on, or -1"),
    (["generate", "-p", "x", "--threads", "0"], 2, "threads must be a whole number above 0, found 0"),
    (["generate", "-p", "x", "--context", "0"], 2, "context must be a whole number above 0, found 0"),
    (["inspect", "--context", "0"], 2, "context must be a whole number above 0, found 0"),
    (["chat", "--top-k", "-5"], 2, "top_k must be 0"),
    (["chat", "-n", "-5"], 2, "max_tokens"),
    (["generate", "none.gguf", "-p", "x"], 1, "none.gguf: no such file"),
    (["generate", "-p", "x", "hf:b/c/"], 2, "'hf:b/c/' names no model of the hub"),
    (["generate", "", "-p", "x"], 2, "must be a path or 'demo'"),
    (["inspect", "."], 1, "is a directory"),
    (["chat", "none.gguf"], 1, "none.gguf: no such file"),
    (["tokenize", "none.gguf", "x"], 1, "none.gguf: no such file"),
    (["generate", "-f", "none.txt"], 1, "none.txt: cannot be read (No such file or directory)"),
    (["generate", "-f", "."], 1, ".: cannot be read"),
    (["generate", "-f", "a\0b"], 1, "cannot be read"),
    (["generate", "a\0b.gguf", "-p", "x"], 1, "cannot be read"),
    (["generate", "two\nlines\x1b.gguf", "-p", "x"], 1, "no such file"),
    (["tokenize", "demo", "lone \udcff surrogate"], 1, "not valid Unicode"),
    (["tokenize", "demo", "[1, 2", "--decode"], 2, "--decode wants a JSON list of whole numbers"),
    (["tokenize", "demo", "[1.5]", "--decode"], 2, "--decode wants a JSON list"),
    (["tokenize", "demo", "[" * 5000, "--decode"], 2, "--decode wants a JSON list"),
    (["tokenize", "demo", "[1000000]", "--decode"], 1, "token id 1000000 is outside the vocabulary"),
    (["tokenize", "demo", "[-1]", "--decode"], 1, "token id -1 is outside"),
], ids=lambda v: " ".join(v).replace("\0", "NUL")[:50] if isinstance(v, list) else None)
def test_errors_are_one_line(run, argv, code, message):
    result = run(*argv)
    assert (result.code, result.out) == (code, ""), result.err
    assert result.err.startswith("llamina: error: ") and result.err.count("\n") == 1 and result.err.endswith("\n")
    assert message in result.err and "Traceback" not in result.err and "\x1b" not in result.err


def test_stdin_that_is_not_utf8(run):
    result = run("tokenize", "demo", stdin=b"ab\xff")
    assert (result.code, result.err) == (1, "llamina: error: standard input: is not UTF-8 text (byte 2 is 0xFF): convert it first\n")


@pytest.mark.parametrize("how", ["option", "group option", "environment"])
def test_debug_shows_the_traceback(run, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("LLAMINA_DEBUG", "1")
    argv = ["generate", "none.gguf", "-p", "x"]
    result = run(*{"option": [*argv, "--debug"], "group option": ["--debug", *argv], "environment": argv}[how])
    assert result.code == 1
    assert "Traceback" in result.err and result.err.splitlines()[-1].startswith("llamina: error: none.gguf: no such file")


def test_our_own_bugs_are_one_line_too(run, monkeypatch):
    def broken(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("planted\nfault")
    monkeypatch.setattr(models, "load", broken)
    result = run("generate", "-p", "x")
    assert result.code == 1
    assert result.err == ("llamina: error: ZeroDivisionError: planted fault (this is a bug in llamina: please report it with the output of the same "
                          "command with --debug)\n")


def test_memory_error(run, monkeypatch):
    def greedy(*args: Any, **options: Any) -> Any:
        raise MemoryError
    monkeypatch.setattr(models, "load", greedy)
    text = run("generate", "-p", "x").err
    assert text.startswith("llamina: error: ") and "no more memory" in text and "use a smaller context (--context) or a smaller quantisation\n" in text


def test_one_line():
    assert one_line("a\nb\t c\x1b[31m\u202e") == "a b c\\x1b[31m\\u202e"


# ---------------------------------------------------------------------------------------------------------------- generate

def test_generate_prints_the_continuation_and_nothing_else(run, scripted):
    scripted(" there", after="Once")
    result = run("generate", "-p", "Once", "--seed", "5", "--temperature", "0")
    assert (result.code, result.out) == (0, " there")
    assert result.err.count("\n") == 1 and "seed 5; end: eos]" in result.err and result.err.startswith("[6 tokens")
    told = run("generate", "-p", "Once", "--seed", "5", "--temperature", "0", "--verbose").err
    assert "prompt 5 tokens" in told and "generated 6" in told and told.endswith("seed 5; end: eos]\n")


@pytest.mark.parametrize("argv, stdin", [
    (["-p", "Once"], None), (["-f", "-"], "Once"), (["-f", "-"], "Once\n"), ([], "Once\n"), (["-f", "FILE"], None)], ids=str)
def test_where_the_prompt_comes_from(run, scripted, tmp_path, argv, stdin):
    (tmp_path / "prompt.txt").write_text("Once\n")
    scripted(" there", after="Once")
    result = run("generate", "-q", "--temperature", "0", *(str(tmp_path / "prompt.txt") if a == "FILE" else a for a in argv), stdin=stdin)
    assert (result.code, result.out, result.err) == (0, " there", "")


def test_generate_options(run, scripted):
    model = scripted("one two three", after="ab")
    greedy = ("generate", "-q", "-p", "ab", "--temperature", "0")
    assert run(*greedy, "--echo").out == "abone two three"
    assert run(*greedy, "-n", "3").out == "one"
    assert run(*greedy, "-n", "0").out == ""
    assert run(*greedy, "--stop", "three", "--stop", "o t").out == "one tw"
    model.runtime.fed.clear()
    run(*greedy, "--no-bos", "-n", "1")
    assert model.runtime.fed == [list(b"ab")]
    model.runtime.fed.clear()
    run(*greedy, "-n", "1")
    assert model.runtime.fed == [[BOS, *b"ab"]]


def test_generate_json(run, scripted):
    scripted("né", after="ab")
    result = run("generate", "-p", "ab", "--json", "--temperature", "0", "--seed", str(2**64 - 1))
    assert result.err == "" and result.out.count("\n") == 1
    answer = json.loads(result.out)
    assert {k: answer[k] for k in ("model", "prompt", "prompt_ids", "text", "ids", "finish_reason", "seed", "prompt_tokens", "generated_tokens")} == {
        "model": "demo", "prompt": "ab", "prompt_ids": [BOS, 97, 98], "text": "né", "ids": list("né".encode()), "finish_reason": "eos", "seed": 2**64 - 1,
        "prompt_tokens": 3, "generated_tokens": 3}
    assert all(isinstance(answer[k], float) for k in ("prompt_seconds", "generate_seconds", "load_seconds", "generated_tokens_per_second"))


def test_prompt_that_does_not_fit(run, scripted):
    scripted("x", context=4)
    result = run("generate", "-p", "abcdef")
    assert (result.code, result.out, result.err) == (1, "", "llamina: error: the prompt has 7 tokens, the context 4: shorten it or raise the context "
                                                            "(nothing was cut off)\n")


def test_full_context_is_said(run, scripted):
    scripted("xxxxxxxxx", context=6)
    result = run("generate", "-p", "ab", "-n", "-1")
    assert result.code == 0 and result.out == "xxxx"  # the last one needs no place of its own
    assert result.err.startswith("llamina: the context is full: the answer ends here (--context N for a larger one, --context-shift")
    assert "end: context]" in result.err


def test_interrupt_ends_the_answer_with_130(run, scripted):
    def say(ids):
        if len(ids) == 6:
            raise KeyboardInterrupt
        return 120
    scripted(say)
    result = run("generate", "-p", "ab")
    assert (result.code, result.out) == (130, "xxx")
    assert "end: interrupted]" in result.err and "Traceback" not in result.err


def process(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*LLAMINA, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_reader_that_goes_away():
    """`llamina generate | head -c 3`: quiet."""
    p = process("generate", "-q", "-p", "Once", "-n", "-1", "--ignore-eos")
    assert p.stdout is not None and p.stderr is not None
    assert len(p.stdout.read(3)) == 3
    p.stdout.close()
    assert (p.wait(60), p.stderr.read()) == (141, b"")
    p.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_full_disk():
    with open("/dev/full", "wb") as full:
        p = subprocess.run([*LLAMINA, "tokenize", "demo", "x"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (p.returncode, p.stderr) == (1, b"llamina: error: standard output: cannot be written (No space left on device)\n")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed, code, out", [("<&-", 0, b"[1]\n"), (">&-", 0, b""), ("2>&-", 0, b"[1]\n"), ("<&- >&- 2>&-", 0, b"")])
def test_closed_streams(closed, code, out):
    p = subprocess.run(["sh", "-c", f'exec "$0" -m llamina tokenize demo "<s>" --special {closed}', sys.executable], capture_output=True, timeout=60)
    assert (p.returncode, p.stdout, p.stderr) == (code, out, b"")


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
def test_ctrl_c():
    p = process("generate", "-p", "Once", "-n", "-1", "--ignore-eos", "--context", "100000")
    assert p.stdout is not None
    assert p.stdout.read(3)
    p.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and time.monotonic() - start < 30
    assert b"Traceback" not in err and b"end: interrupted]" in err


def test_stories260k_byte_for_byte(real: Path):
    p = process("generate", str(real / "llama2c/stories260K.gguf"), "-p", "", "--temperature", "0", "-n", "200")
    out, err = p.communicate(timeout=300)
    assert (p.returncode, out) == (0, (real / "llama2c/stories260K_greedy.txt").read_bytes()), err


# ---------------------------------------------------------------------------------------------------------------- chat

def ok_after_two(ids: list[int]) -> int:
    return (*b" ok", 258)[min(3, [*ids[::-1]].index(ord(":")))]


def test_chat_in_a_pipe(run, scripted):
    model = scripted(ok_after_two, context=500)
    result = run("chat", "--system", "be brief", "--seed", "1", "--no-speculation", stdin="one\n\n  \n/clear\ntwo")
    assert (result.code, result.out) == (0, "ok\nok\nok\n")
    assert result.err.count("seed 1; end: eos]\n") == 3 and ">" not in result.err
    text = bytes(i for f in model.runtime.fed for i in f if i < 256)
    assert text == b"s:be briefu:onea: ok" + b"u:/cleara: ok" + b"u:twoa: ok"  # every token once
    assert model.runtime.closed and model.runtime.open_sequences == 0


def test_chat_errors_end_a_pipe(run, scripted):
    scripted(ok_after_two, context=40)
    result = run("chat", "-q", stdin="one\n" + "x" * 50 + "\nthree\n")
    assert (result.code, result.out) == (1, "ok\n")
    assert result.err.startswith("llamina: error: the prompt has ") and result.err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_chat_on_a_terminal():
    """Ctrl-C stops an answer and keeps the talk, /clear works, Ctrl-D leaves."""
    import pty
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*LLAMINA, "chat", "--seed", "1", "--ignore-eos", "--context-shift"], {**os.environ, "TERM": "dumb"})
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        end, start = time.monotonic() + 60, len(seen)
        while text not in seen[start:]:
            ready = select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]
            assert ready, f"no {text!r} within a minute: {seen!r}"
            seen += os.read(terminal, 4096)
    read_until(b"\n> ")
    os.write(terminal, b"Tell me a story.\n")
    read_until(b"story.\r\n")
    read_until(b" ")
    os.write(terminal, b"\x03")
    read_until(b"end: interrupted]\r\n> ")
    os.write(terminal, b"/clear\n")
    read_until(b"> ")
    time.sleep(0.5)  # between writing the prompt and waiting for a key, readline notices a signal only with the next key
    os.write(terminal, b"\x03")
    read_until(b"(Ctrl-D leaves)\r\n> ")
    os.write(terminal, b"\x04")
    try:
        while chunk := os.read(terminal, 4096):
            seen += chunk
    except OSError:  # Linux's way of saying that the other end is closed
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, seen
    assert b"Traceback" not in seen


# ---------------------------------------------------------------------------------------------------------------- tokenize, inspect, selftest

def test_tokenize_round_trip(run):
    text = "Once upon a time,\n  Zoë met </s> a 🦊.\n"
    result = run("tokenize", "demo", stdin=text)
    ids = json.loads(result.out)
    assert all(type(i) is int for i in ids) and result.err == "" and result.code == 0
    assert run("tokenize", "demo", text).out == result.out
    assert run("tokenize", "demo", "--decode", stdin=result.out).out == text
    assert json.loads(run("tokenize", "demo", text, "--no-bos").out) == ids[1:]
    assert 2 not in ids and 2 in json.loads(run("tokenize", "demo", text, "--special").out)


def test_inspect(run):
    text = run("inspect").out
    for part in ("runs here: yes", "general.architecture = llama", "n_layers = ", "matmul_Q8_0", "row look-up", "memory: about ",
                 "vocabulary: 2048 tokens, spm", "bits per weight", " % of the bytes", "chat template"):
        assert part in text, part
    assert [line.split(":")[0] for line in text.splitlines()[:5]] == ["llamina demo", "runs here", "memory", "chat", "threads by default"]  # first of all
    report = json.loads(run("inspect", "--json", "--context", "100").out)
    assert report["runs"] is True and report["config"]["dim"] == 256 and report["memory"]["context"] == 100
    assert report["tokenizer"]["ids"]["eos"] == [2, "</s>"]
    assert sum(f["bytes"] for f in report["formats"].values()) == sum(t["bytes"] for t in report["tensors"]) and 4 < report["bits_per_weight"] < 9
    assert list(report["chat_templates"]) == ["default"]
    with models.load("demo", context=100) as model:
        assert report["memory"]["kv"] == model.runtime.kv_bytes_per_sequence
        assert report["memory"]["weights"] <= model.runtime.weight_bytes < report["memory"]["weights"] + 128 * len(report["tensors"])


def test_inspect_tells_why_a_file_does_not_run(run, tmp_path):
    b = gguf_builder.llama()
    b.set("general.architecture", "gpt\n\x1b[31m2")
    b.set("extra.number", float("nan"), gguf_builder.F32)
    result = run("inspect", str(b.write(tmp_path / "x.gguf")))
    assert result.code == 0 and "runs here: no: " in result.out and "architecture" in result.out and "\x1b" not in result.out
    report = json.loads(run("inspect", "--json", str(tmp_path / "x.gguf")).out)
    assert "architecture" in report["runs"] and str(tmp_path) not in report["runs"] and report["config"] is None and len(report["tensors"]) > 3
    assert report["metadata"]["extra.number"] == "nan"


def test_inspect_a_vocabulary(run, real: Path):
    path = str(real / "tokenizer/ggml-vocab-llama-spm.gguf")
    result = run("inspect", path)
    assert result.code == 0 and "holds only a vocabulary" in result.out and "vocabulary: 32000 tokens, spm" in result.out
    assert json.loads(run("tokenize", path, "Hello world").out) == [1, 15043, 3186]
    assert run("generate", path, "-p", "x").code == 1


@pytest.mark.parametrize("passed", [True, False])
def test_selftest_prints_a_line_for_each_check(run, monkeypatch, passed):
    checks = [selftest.Check("one", True, "", 0.1), selftest.Check("two", passed, "" if passed else "expected a, found b", 0.2)]
    monkeypatch.setattr(selftest, "run", lambda quick: iter(checks))
    result = run("selftest", "--quick")
    assert result.code == (0 if passed else 1)
    assert result.out == ("ok    one  (0.1 s)\n" + ("ok    two  (0.2 s)\n" if passed else "FAIL  two: expected a, found b  (0.2 s)\n"))
    assert result.err == ("" if passed else "llamina: 1 checks failed: results on this machine are not the promised ones\n")


# ---------------------------------------------------------------------------------------------------------------- stderr

@pytest.mark.parametrize("n, text", [
    (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123456, "123 kB"), (5_600_000, "5.6 MB"), (7e9, "7.0 GB"), (2e12, "2000 GB")])
def test_size(n, text):
    assert size(n) == text


def test_progress_is_for_terminals(monkeypatch, capsys):
    with Progress() as progress:
        progress.loading("loading", 1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress() as progress:
        progress.loading("loading", 1, 2)
        progress.loading("loading", 2, 2)
        progress.note("note")
    assert capsys.readouterr().err == "\r\x1b[Kloading 50 % of 2 B\r\x1b[Kloading 100 % of 2 B\r\x1b[Kllamina: note\n"
    with Progress(quiet=True) as progress:
        progress.loading("loading", 2, 2)
        progress.note("note")
    assert capsys.readouterr().err == ""


def test_closing_line_before_anything_was_computed():
    line = closing_line(fake_model().generate("ab", max_tokens=0, seed=3).stats)
    assert line.startswith("[load 0.00 s; prompt 3 tokens; generated 0; ") and "; 1 thread; seed 3;" in line
