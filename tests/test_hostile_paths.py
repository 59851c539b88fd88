"""Every command, every file it takes, and every kind of path that is no such file: an error of ours on one line, at once; and no memory, the same."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from llamina.engine.cli import main
from llamina.engine.errors import NO_MEMORY, FileError, OutOfMemoryError, is_memory, memory_errors
from test_files import PLACES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, devices and limits of POSIX")

COMMANDS = {
    "model": lambda p, out: ["generate", p, "-p", "a", "-n", "1"], "inspect": lambda p, out: ["inspect", p], "tokenize": lambda p, out: ["tokenize", p, "a"],
    "prompt": lambda p, out: ["generate", "-f", p, "-n", "1", "-q"], "schema": lambda p, out: ["generate", "-p", "a", "-n", "1", "--json-schema", p],
    "draft": lambda p, out: ["generate", "-p", "a", "-n", "1", "--draft", p], "text": lambda p, out: ["perplexity", "demo", p],
    "prompts": lambda p, out: ["batch", p, "-o", out], "output": lambda p, out: ["batch", __file__, "-o", p],
    "source": lambda p, out: ["convert", p, out, "--type", "q8_0"], "result": lambda p, out: ["convert", "demo", p, "--type", "q8_0", "--no-verify"],
    "tokenizer": lambda p, out: ["convert", str(Path(__file__).parent), out, "--tokenizer", p],
    "importance": lambda p, out: ["convert", "demo", out, "--type", "q4_0", "--importance", p],
    "importance.dat": lambda p, out: ["convert", "demo", out, "--type", "q4_0", "--importance", p + ".dat"],
    "importance's result": lambda p, out: ["importance", "demo", __file__, "-o", p, "--windows", "1"],
    "session": lambda p, out: ["chat", "--session", p],
}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """What a command waits for is then no compiler."""
    assert main(["generate", "-p", "a", "-n", "1", "-q", "--json-schema", '{"type": "integer"}']) == 0


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not done in {seconds} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _not_utf8(folder: Path) -> Path:
    return Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe\n\x1b[31m"))


@pytest.mark.parametrize("command", COMMANDS)
def test_paths(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    for number, place in enumerate([*PLACES, _not_utf8]):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            path = str(place(folder))
        except OSError:
            continue
        with within(60):
            code = main(COMMANDS[command](path, str(folder / "out")))
        captured = capsys.readouterr()
        assert "this is a bug" not in captured.err and "Traceback" not in captured.err, (place.__name__, captured.err)
        assert "\x1b" not in captured.err, place.__name__
        if place not in (_not_utf8,) and not (place.__name__ == "_fifo" and command == "prompt"):  # a pipe that nobody writes to brings nothing
            assert code in (1, 2) and captured.err.count("llamina: error:") <= 1, (place.__name__, code, captured.err)
        assert not (folder / "out").exists()


@pytest.mark.parametrize("variable", ["LLAMINA_CONFIG", "LLAMINA_HOME"])
def test_folders_and_settings(variable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for number, place in enumerate([*PLACES, _not_utf8]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = str(place(folder))
        if "\0" in path or "\ud800" in path:  # no variable of the environment holds these
            continue
        monkeypatch.setenv(variable, path)
        with within(60):
            main(["list"])
            main(["inspect", "a-short-name", "--settings"])
        assert "this is a bug" not in capsys.readouterr().err, place.__name__


def test_what_says_no_memory() -> None:
    for error in (MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("can't start new thread"),
                  ImportError("libx.so: failed to map segment from shared object")):
        assert is_memory(error)
        with pytest.raises(OutOfMemoryError, match="model"), memory_errors("model"):
            raise error
    for other in (OSError(2, "No such file"), RuntimeError("x"), ImportError("no module"), FileError("x")):
        assert not is_memory(other)
        with pytest.raises(type(other)), memory_errors("model"):
            raise other


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("megabytes, argv", [
    *((n, ["generate", "-p", "a", "-n", "1", "--threads", "1"]) for n in (160, 320)),
    *((n, ["convert", "demo", "OUT", "--type", "q4_0"]) for n in (340, 400, 440))])
def test_a_limit_of_memory(megabytes: int, argv: list[str], tmp_path: Path) -> None:
    """Never a crash or a wait: LLVM, which aborts, and threads are begun only where there is room for them."""
    argv = [str(tmp_path / "out.gguf") if a == "OUT" else a for a in argv]
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes} << 20,) * 2)\nfrom llamina.engine.cli import main\n" \
              f"raise SystemExit(main({argv!r}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 or not list(tmp_path.iterdir())
    assert result.returncode in (0, 1) and "Traceback" not in result.stderr, result.stderr
    assert result.returncode == 0 or NO_MEMORY[:20] in result.stderr or "MiB" in result.stderr or "cannot reserve" in result.stderr, result.stderr


