"""The child process that runs templates and tries grammars: warm, limited, replaced when a request ended it, not in the way of Ctrl-C or a fork."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from llamina.engine.child import Child, Fault, NoChild
from llamina.engine.text import template_service

ENDLESS = "{{ ('a'*800000).rfind('ab'+'a'*400000) }}"  # half a minute within one call of Python's own
posix = pytest.mark.skipif(os.name == "nt", reason="signals and forks as POSIX has them")


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child("engine.text.template_service", 0.3)
    yield child
    child.close()


def render(child: Child, source: str = "{{ x }}", **variables: object) -> str:
    return child.call([source, variables])


def test_values_go_there_and_back(child: Child) -> None:
    text = "\ud800 ü 日本 🦊 \x00\n"
    assert render(child, x=text) == text
    assert render(child, "{{ x[1] }}{{ x['a'] }}{{ n }}", x={1: "one", "a": None}, n=2**100) == "oneNone" + str(2**100)
    assert len(render(child, "{{ x * 8 }}", x="y" * 500_000)) == 4_000_000


def test_it_is_kept(child: Child) -> None:
    render(child, x=1)
    pid = child.pid
    for n in range(50):
        assert render(child, x=n) == str(n)
    assert child.pid == pid


@posix
def test_time_is_bounded_within_one_call(child: Child) -> None:
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(Fault, match=r"more than 0\.3 seconds") as caught:
            render(child, ENDLESS)
        assert caught.value.kind == "time" and time.monotonic() - start < 60
    assert render(child, x=1) == "1"  # another one


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited where the system can")
def test_memory_is_bounded(child: Child) -> None:
    child.seconds = 20
    with pytest.raises(Fault) as caught:  # lists of 600,000 items, one after the other
        render(child, "{% set ns = namespace() %}" + "".join(f"{{% set ns.a{n} = ('x,' * 600000).split(',') %}}" for n in range(60)))
    assert caught.value.kind in ("memory", "limit")
    assert render(child, x=1) == "1"


@posix
def test_the_clock_bounds_what_no_cpu_time_does(child: Child) -> None:
    render(child, x=1)
    child.clock = 0.5
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(Fault, match=r"more than 0\.5 seconds"):
        render(child, x=1)
    child.clock = 20
    assert render(child, x=2) == "2"


@posix
def test_a_child_that_was_killed_is_replaced(child: Child) -> None:
    render(child, x=1)
    assert child.pid is not None
    old = child.pid
    os.kill(old, signal.SIGKILL)
    for _ in range(100):
        if child._process is None or child._process.poll() is not None:
            break
        time.sleep(0.02)
    assert render(child, x=2) == "2" and child.pid != old


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_zombies_and_no_open_pipes(child: Child) -> None:
    render(child, x=1)
    before = len(os.listdir("/proc/self/fd"))
    gone = []
    for _ in range(3):
        gone.append(child.pid)
        with pytest.raises(Fault):
            render(child, ENDLESS)
        render(child, x=1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in gone) and len(os.listdir("/proc/self/fd")) == before
    last = child.pid
    child.close()
    assert not os.path.exists(f"/proc/{last}")


def test_threads_take_turns(child: Child) -> None:
    wrong: list[object] = []

    def work(name: int) -> None:
        for n in range(30):
            try:
                if (found := render(child, "{{ a }}-{{ b }}", a=name, b=n)) != f"{name}-{n}":
                    wrong.append(found)
            except BaseException as error:
                wrong.append(error)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_has_its_own_and_leaves_the_parents_alone(child: Child) -> None:
    render(child, x=1)
    pid = child.pid
    held = threading.Thread(target=lambda: pytest.raises(Fault, render, child, ENDLESS))  # a thread that is not in the fork holds the lock
    held.start()
    time.sleep(0.1)
    fork = os.fork()
    if not fork:
        code = 1
        try:
            code = 0 if render(child, x=2) == "2" and child.pid != pid else 3
            child.close()
        finally:
            os._exit(code)
    assert os.waitpid(fork, 0)[1] == 0
    held.join()
    assert render(child, x=3) == "3"


PROGRAM = """
import os, signal, sys
from llamina.engine.text.template_service import child
assert child.call(["{{ x }}", {"x": 1}]) == "1"
print(child.pid, flush=True)
sys.stdin.readline()
"""


@posix
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_it_ends_with_its_parent(how: signal.Signals | None) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY.parent)
    assert process.stdin and process.stdout
    pid = int(process.stdout.readline())
    if how:
        process.send_signal(how)
    process.communicate("\n")
    for _ in range(250):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().split()[2] == "Z":
            return  # ended; whoever adopted it has not looked yet
        time.sleep(0.02)
    pytest.fail("the child outlives its parent")


INTERRUPTED = """
import os, signal, threading, time
from llamina.engine.child import Fault
from llamina.engine.text.template_service import child
child.seconds = 20
child.call(["{{ x }}", {"x": 1}])
pid = child.pid
os.kill(pid, signal.SIGINT)  # as from a terminal: it does not mind
assert child.call(["{{ x }}", {"x": 2}]) == "2" and child.pid == pid and os.getpgid(pid) != os.getpgid(0)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    child.call([SOURCE, {}])
except KeyboardInterrupt:
    assert time.monotonic() - start < 20
    assert child.call(["{{ x }}", {"x": 3}]) == "3" and child.pid != pid
    print("good")
"""


@posix
def test_ctrl_c_is_the_parents() -> None:
    found = subprocess.run([sys.executable, "-c", INTERRUPTED.replace("SOURCE", repr(ENDLESS))], capture_output=True, text=True, timeout=120,
                           cwd=REPOSITORY.parent)
    assert found.stdout == "good\n", found.stderr


def test_without_a_child_templates_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Child("engine.text.template_service", 1)
    monkeypatch.setattr(template_service, "child", nowhere)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(NoChild):
        nowhere.call(["x", {}])
    template_service.apart.compile("{{ x }}")
    assert template_service.apart.render("{{ x }}", {"x": 5}) == "5" and nowhere.pid is None
    with pytest.raises(Fault, match="it takes more than"):
        template_service.apart.render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})


def test_a_service_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child("engine.text.no_such_service", 1)
    with pytest.raises(NoChild):
        child.call("x")
