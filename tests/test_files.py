"""Files are written whole or not at all, under names nobody can guess, and what killed runs left goes at the next start."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from llamina.engine.errors import FileError
from llamina.engine.files import Stamp, new_file, open_regular, read_file, shown, write_file, writing
from llamina.kernels import new_file as mechanism
from llamina.kernels.new_file import LEFTOVER, NewFile, sweep

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, locks and signals of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with new_file(target) as new:
        new.file.write(b"one")
        assert not target.exists() and [LEFTOVER.fullmatch(name) is not None for name in names(tmp_path)] == [True]
    assert target.read_bytes() == b"one" and names(tmp_path) == ["a"]
    with pytest.raises(KeyboardInterrupt), new_file(target) as new:
        new.file.write(b"two")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"one" and names(tmp_path) == ["a"]
    write_file(target, "żółw\ud800")
    assert target.read_bytes() == "żółw".encode() + b"\\ud800"
    forgotten = new_file(target)
    del forgotten
    assert names(tmp_path) == ["a"]


@posix
def test_private_and_public(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "private", b"", private=True)
        write_file(tmp_path / "public", b"")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "public")] == [0o600, 0o644]


def test_no_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided at the end, so that what somebody wrote meanwhile stays; with and without links."""
    for _ in range(2):
        target = tmp_path / "a"
        write_file(target, b"one", overwrite=False)
        with pytest.raises(FileError, match="exists already"):
            write_file(target, b"two", overwrite=False)
        assert target.read_bytes() == b"one" and names(tmp_path) == ["a"]
        target.unlink()
        monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(PermissionError(1, "no links here")))


@pytest.mark.parametrize("rounds", [20])
def test_two_writers_of_one_target(tmp_path: Path, rounds: int) -> None:
    """The last to finish wins, whole; a reader never sees a part."""
    target, wrong = tmp_path / "a", []
    texts = [bytes([65 + i]) * 200_000 for i in range(4)]
    write_file(target, texts[0])

    def write(text: bytes) -> None:
        for _ in range(rounds):
            write_file(target, text)
            if target.read_bytes() not in texts:
                wrong.append(1)
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and names(tmp_path) == ["a"]


@posix
def test_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if somebody guesses the name."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    guesses = iter(["a" * 24, "b" * 24])
    monkeypatch.setattr(mechanism.secrets, "token_hex", lambda n: next(guesses))
    (tmp_path / f".t.llamina-{'a' * 24}.part").symlink_to(victim)
    write_file(tmp_path / "t", b"theirs")
    assert victim.read_bytes() == b"mine" and (tmp_path / "t").read_bytes() == b"theirs"


CHILD = """
import sys
from pathlib import Path
from llamina.kernels.new_file import NewFile
new = NewFile(Path(sys.argv[1]))
new.file.write(b"half")
new.file.flush()
print("half", flush=True)
sys.stdin.read()
"""


def child(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "half\n"
    return process


@posix
def test_leftovers_of_killed_runs(tmp_path: Path) -> None:
    """They go when the next run writes into the folder; those of a run that is alive, and other people's files, stay."""
    dead, alive = child(tmp_path / "a"), child(tmp_path / "b")
    dead.kill()
    dead.communicate()
    others = [".a.part", ".llamina-0.part", "llamina-" + "0" * 24 + ".part", ".a.partial-17"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    link = tmp_path / f".link.llamina-{'0' * 24}.part"
    link.symlink_to(tmp_path / ".a.part")
    (tmp_path / f".folder.llamina-{'0' * 24}.part").mkdir()
    before = names(tmp_path)
    assert len(before) == len(others) + 4
    try:
        sweep(tmp_path, again=True)
        gone = set(before) - set(names(tmp_path))
        assert len(gone) == 1 and gone.pop().startswith(".a.llamina-")
    finally:
        alive.communicate("")
    assert not any(name.startswith(".b.") for name in names(tmp_path))
    assert link.is_symlink()


@posix
def test_a_fork_takes_nothing_away(tmp_path: Path) -> None:
    with new_file(tmp_path / "a") as new:
        new.file.write(b"x")
        new.file.flush()
        if (pid := os.fork()) == 0:
            new.discard()
            os._exit(0)
        os.waitpid(pid, 0)
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("signals", [[signal.SIGINT], [getattr(signal, "SIGTERM", None)], [getattr(signal, "SIGHUP", None)], [getattr(signal, "SIGQUIT", None)],
                                     [getattr(signal, "SIGXCPU", None)]], ids=str)
@posix
def test_signals_take_it_away(tmp_path: Path, signals: list[signal.Signals]) -> None:
    """Whatever can be caught ends a command as an exception does."""
    usual = "default_int_handler" if signals[0] == signal.SIGINT else "SIG_DFL"  # whoever started the tests may ignore it, as nohup does
    heard = f"import signal; signal.signal({int(signals[0])}, signal.{usual})\n"
    program = heard + CHILD.replace(
        "new = NewFile", "from llamina.engine.cli import _leaving_when_told\n_c = _leaving_when_told(); _c.__enter__()\nnew = NewFile")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)
    assert process.stdout and process.stdout.readline() == "half\n"
    process.send_signal(signals[0])
    process.wait(30)
    process.communicate()
    assert process.returncode != 0 and names(tmp_path) == []


def _missing(folder: Path) -> Path:
    return folder / "missing" / "a"


def _folder(folder: Path) -> Path:
    return folder


def _long(folder: Path) -> Path:
    return folder / ("x" * 300)


def _deep(folder: Path) -> Path:
    return folder / "/".join(["x" * 200] * 30)


def _nul(folder: Path) -> Path:
    return folder / "a\0b"


def _lone_surrogate(folder: Path) -> Path:
    return folder / "a\ud800b"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _zero(folder: Path) -> Path:
    return Path("/dev/zero")


def _socket(folder: Path) -> Path:
    import socket
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as s:
        cwd = os.getcwd()
        os.chdir(folder)  # names of sockets are short
        try:
            s.bind("s")
        finally:
            os.chdir(cwd)
    return path


PLACES = [_missing, _folder, _long, _deep, _nul, _lone_surrogate, _fifo, _zero, _socket]


@posix
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    """Neither read, written nor waited for; one line of bounded length says so."""
    path = place(tmp_path)
    for use in (open_regular, lambda p: read_file(p, 100), new_file, lambda p: write_file(p, b"")):
        with pytest.raises(FileError) as error:
            use(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1400 and str(error.value).isprintable()


@posix
def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    write_file(path, b"x")
    assert read_file(path, 10) == b"x" and shown(path).isprintable()
    long = tmp_path / ("ż" * 127)
    write_file(long, b"y")
    assert long.read_bytes() == b"y"


def test_limit(tmp_path: Path) -> None:
    write_file(tmp_path / "a", bytes(11))
    with pytest.raises(FileError, match="has more than"):
        read_file(tmp_path / "a", 10)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no space left"), writing(tmp_path / "a"), NewFile(tmp_path / "a") as new:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, new.file.fileno())
        os.close(full)
        new.file.write(bytes(1 << 20))
    assert names(tmp_path) == []


def test_stamp(tmp_path: Path) -> None:
    """Length, time of writing, identity."""
    path = tmp_path / "a"
    for change in (lambda: os.truncate(path, 1), lambda: path.write_bytes(b"new!"), lambda: write_file(path, b"text"), lambda: path.unlink()):
        path.write_bytes(b"text")
        os.utime(path, ns=(1, 1))
        with open(path, "rb") as file:
            stamp = Stamp.of(file.fileno(), path)
        stamp.check()
        change()
        with pytest.raises(FileError, match="was changed while it was read|went away"):
            stamp.check()
