"""`llamina chat` on a terminal of its own: editing, pasting, resizing, Ctrl-C and typing in the middle of an answer, and the terminal going away."""
from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))


class Terminal:
    """A process on a pseudo-terminal. `seen`: all it wrote."""

    def __init__(self, *argv: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llamina", *argv], stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=self._own,
            env={**os.environ, "TERM": "xterm-256color", "LLAMINA_HISTORY": "", "PROMPT_TOOLKIT_NO_CPR": "1", **environment})
        os.close(slave)
        self.seen = b""
        self._at = 0  # of the text: what was waited for ended here

    @staticmethod
    def _own() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C and hanging up reach it

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, pattern: str, seconds: float = 60) -> bytes:
        """Read until the pattern comes after what was read before -> what came."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern.encode(), plain(self.seen)[self._at:])):
            assert select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0], f"no {pattern!r}: {plain(self.seen)[-2000:]!r}"
            self.seen += os.read(self.master, 1 << 16)
        text = plain(self.seen)[self._at:self._at + found.end()]
        self._at += found.end()
        return text

    def leave(self) -> int:
        """Ctrl-D -> exit code."""
        self.send("\x04")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                chunk = os.read(self.master, 1 << 16) if select.select([self.master], [], [], 1)[0] else b""
            except OSError:
                break
            self.seen += chunk
            if not chunk:
                if self.process.poll() is not None:
                    break
                self.send("\x04")  # the first came while the line editor was still setting the terminal up, which drops what was typed
        code = self.process.wait(30)  # before the terminal goes: that would be a SIGHUP
        os.close(self.master)
        return code


def plain(raw: bytes) -> bytes:
    return re.sub(rb"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()].|[=>78])|\r", b"", raw)


def test_a_conversation(tmp_path: Path) -> None:
    t = Terminal("chat", "--seed", "1", "--ignore-eos", "-n", "100000", "--context-shift")  # answers that last until they are stopped
    t.wait("/help for commands, Ctrl-D leaves")
    t.wait("> ?")
    t.send("Tell me a story.\r")
    t.wait(r"story\.\n[^\n]*\w+ \w+")
    t.send("typed ahead")  # not drawn into the answer
    time.sleep(0.3)
    t.send("\x03")
    answer = t.wait(r"end: interrupted\]")
    assert b"typed ahead" not in answer.split(b"[load")[0]
    t.wait("> ?")
    t.send("\x1b[200~one\ntwo\x1b[201~")  # a paste
    t.wait("two")
    t.send("\r")
    t.wait("[a-z]{2,}")
    t.resize(20, 40)
    os.killpg(t.process.pid, signal.SIGWINCH)
    time.sleep(0.3)
    t.send("\x03")
    t.wait(r"end:\s+interrupted\]")
    t.send(f"/save {tmp_path}/talk.json\r")
    t.wait("saved 4 messages")
    t.send("/stats\r")
    t.wait("4\\s+messages")
    assert b"Traceback" not in t.seen and t.leave() == 0
    import json
    talk = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["role"] for m in talk] == ["user", "assistant"] * 2 and talk[2]["content"] == "one\ntwo"


def test_the_terminal_goes_away_in_the_middle_of_an_answer() -> None:
    t = Terminal("chat", "--seed", "1", "--ignore-eos", "-n", "100000", "--context-shift", NO_COLOR="1")
    t.wait("> ?")
    t.send("Tell me a story.\r")
    shown: Any = t.wait(r"story\.\n[^\n]*\w+ \w+ \w+")
    assert shown and not re.search(rb"\x1b\[[0-9;]*3[0-7]m", t.seen.split(b"story.")[-1])  # NO_COLOR: no colours in the answer
    os.close(t.master)
    assert t.process.wait(30) != 0  # by SIGHUP, or because nothing can be read or written any more
