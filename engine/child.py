"""A child process for work whose time and memory can't be bounded where it is done: templates and grammars of strangers.

    Child(service).call(request) -> the child: service's serve(request) -> text, or Fault(kind, why)

Python's and Rust's own code checks no budget of ours in the middle of `'a…'.rfind('ab…')` or of a regex's derivatives; it ends when it ends, and some of it
ends the process. So it runs where that harms nobody: in a process with a limit of memory (RLIMIT_AS), of CPU time for each request (a timer whose signal
kills), and of time by the clock, kept by the parent. A child that a request killed is told as a Fault, and the next request starts another. It stays for the
next request, so only the first one pays for its start; one child serves all models of the process.

The child is another interpreter, not a fork (the parent has threads), and not multiprocessing's (which imports the user's script again). It stands outside the
terminal's process group and ignores SIGINT, so Ctrl-C is the parent's alone; it ends when its pipe does, however the parent ended. A fork of the parent makes
its own. Requests go as marshal (the child trusts the parent), answers come as one letter and text (the parent trusts nothing).
"""
from __future__ import annotations

import atexit
import contextlib
import importlib
import marshal
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

RETRY_SECONDS = 30.0  # after a child could not be started
START_SECONDS = 60.0  # by the clock, for a busy machine; it takes 0.1 s
MAX_ANSWER = 1 << 26  # bytes
FRAME = struct.Struct("<Q")
START = """\
import sys, importlib.util
place, name, sys.path[:] = sys.argv[1], sys.argv[2], sys.argv[4:]
spec = importlib.util.spec_from_file_location(name, place + "/__init__.py", submodule_search_locations=[place])
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
importlib.import_module(name + ".engine.child").main(sys.argv[3])
"""
DONE, FAULT = b"=", b"!"


class Fault(Exception):
    """What a request ended with instead of an answer. `kind`: "time", "memory", "died", or one of the service's own."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class NoChild(Exception):
    """No child process can be started here."""


class Child:
    """Runs a service's requests, one after the other, in a process of its own. Any thread may call; harmless to make: the process starts with `warm` or `call`.

    service: a module of this package, such as "engine.text.template_service", with serve(request) -> str, which may raise Fault.
    seconds: CPU time of a request. The service says in MEMORY how many bytes more than at its start it may take, and prepares in ready()."""

    def __init__(self, service: str, seconds: float) -> None:
        self.service, self.seconds = service, seconds
        self.clock = 10 * seconds + 10 if hasattr(signal, "setitimer") else 3 * seconds + 2
        """Seconds by the clock that a request may take: generous, as the machine may be busy, where CPU time is limited besides."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._refused, self._again = "", 0.0
        _children.add(self)

    def warm(self) -> None:
        """Start the process if there is none, without waiting for it."""
        with contextlib.suppress(NoChild), self._lock:
            self._start()

    def call(self, request: Any) -> str:
        """serve(request) of the service. Fault; NoChild if there is no process and none can be started."""
        with self._lock:
            self._start()
            try:
                if not self._ready:
                    if self._exchange(None, START_SECONDS)[:1] != DONE:
                        raise OSError("it does not start")
                    self._ready = True
            except (OSError, Fault) as error:
                self._stop()
                self._refuse(error)
                raise NoChild(self._refused) from None
            except BaseException:  # Ctrl-C while it starts
                self._stop()
                raise
            try:
                answer = self._exchange(marshal.dumps([request, self.seconds]), self.clock)
            except OSError as error:
                self._stop()
                self._refuse(error)
                raise NoChild(self._refused) from None
            except BaseException:  # its end, or Ctrl-C: what it would answer now belongs to nobody
                self._stop()
                raise
            text = answer[1:].decode("utf-8", "surrogatepass")
            if answer[:1] == DONE:
                return text
            kind, _, why = text.partition(":")
            if kind == "memory":  # it may have no room to go on
                self._stop()
            raise Fault(kind, why)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process is not None else None

    # ---- helpers, with the lock held

    def _refuse(self, error: BaseException) -> None:
        """Not every request of a machine without room for another process should pay for trying."""
        self._refused, self._again = f"{error}" or type(error).__name__, time.monotonic() + RETRY_SECONDS

    def _start(self) -> None:
        if self._refused and time.monotonic() < self._again:
            raise NoChild(self._refused)
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        place = Path(__file__).resolve().parent.parent
        name = __name__.partition(".")[0]
        paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str) and path]
        apart: dict[str, Any] = {"creationflags": 0x08000000 | 0x00000200} if os.name == "nt" else {"start_new_session": True}  # no window, own group
        try:
            if not sys.executable:
                raise OSError("this Python has no executable")
            self._process = subprocess.Popen([sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", START, str(place), name, self.service, *paths],
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, cwd=os.path.abspath(os.sep),
                                             **apart)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self._refuse(error)
            raise NoChild(self._refused) from None

    def _exchange(self, request: bytes | None, seconds: float) -> bytes:
        """Send a request (None: only hear) -> the answer. Fault if the process ends first, or takes longer by the clock."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late: list[bool] = []

        def kill() -> None:
            late.append(True)
            process.kill()
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:  # no room for another thread
            raise OSError(f"{error}") from None
        try:
            if request is not None:
                _write(process.stdin, request)
            (size,) = FRAME.unpack(_read(process.stdout, FRAME.size))
            if 0 < size <= MAX_ANSWER:
                return _read(process.stdout, size)
            raise Fault("died", "its answer makes no sense")
        except (OSError, EOFError):
            code = process.wait()
        finally:
            timer.cancel()
        if late:
            raise Fault("time", f"more than {seconds:g} seconds")
        if code in (-_PROF, -getattr(signal, "SIGXCPU", 999)):
            raise Fault("time", f"more than {self.seconds:g} seconds")
        if code == -getattr(signal, "SIGABRT", 999):  # how Rust and C++ say that there is no memory, and panics within panics
            raise Fault("memory", "more memory or depth than it may")
        raise Fault("died", f"its process ended with {f'signal {-code}' if code < 0 else f'code {code}'}")

    def _stop(self) -> None:
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        for pipe in process.stdin, process.stdout:
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        process.kill()
        process.wait()  # no zombie

    def _forget(self) -> None:
        """In a fork: the process is the parent's, and a lock may be held by a thread that is not here."""
        process, self._process, self._ready, self._lock, self._refused = self._process, None, False, threading.Lock(), ""
        if process is not None:
            for pipe in process.stdin, process.stdout:  # or the child would not see its parent's end
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            process.returncode = 0  # not ours to wait for


_PROF = getattr(signal, "SIGPROF", 999)
_children: weakref.WeakSet[Child] = weakref.WeakSet()


def _all(action: str) -> None:
    for child in list(_children):
        with contextlib.suppress(Exception):
            getattr(child, action)()


atexit.register(_all, "_stop")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _all("_forget"))


def _write(pipe: Any, content: bytes) -> None:
    left = memoryview(FRAME.pack(len(content)) + content)
    while left:
        left = left[pipe.write(left):]


def _read(pipe: Any, size: int) -> bytes:
    parts = []
    while size:
        part = pipe.read(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# ---- in the child


def main(service: str) -> None:
    """The child's life: say that it is there, then answer requests until the pipe ends."""
    if os.name != "nt":
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve = importlib.import_module(f"{__name__.partition('.')[0]}.{service}")
    given, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    serve.ready()
    _limit_memory(serve.MEMORY)
    _write(answers, DONE)
    with contextlib.suppress(EOFError, OSError):
        while True:
            (size,) = FRAME.unpack(_read(given, FRAME.size))
            request, seconds = marshal.loads(_read(given, size))
            _write(answers, _answer(serve.serve, request, seconds))


def _answer(serve: Any, request: Any, seconds: float) -> bytes:
    timed = hasattr(signal, "setitimer")
    if timed:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return DONE + serve(request).encode("utf-8", "surrogatepass")
    except Fault as fault:
        return FAULT + f"{fault.kind}:{fault.why}".encode("utf-8", "surrogatepass")
    except MemoryError:
        return FAULT + b"memory:more memory than it may"
    except BaseException as error:  # a Rust library's panic is no Exception
        return FAULT + f"died:{type(error).__name__}: {error}"[:1000].encode("utf-8", "surrogatepass")
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(more: int) -> None:
    """Address space: what is taken now and `more` bytes. Linux only: elsewhere the limit is none, or counts what is only reserved."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = taken + more if hard == resource.RLIM_INFINITY else min(taken + more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
