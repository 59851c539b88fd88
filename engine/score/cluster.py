"""Rows to the nodes of a Ray cluster: `--ray` of batch, eval, classify, embed and rerank.

    Cluster(address) ──► loaded(loading): an actor on every node, each with the model ──► records(work, rows), by dispatch.py ──► the driver's journal

Each actor is bound to its node and has all its CPUs, which are its threads. Ray restarts nothing and repeats nothing: a node that dies, or one that
joins, is seen here, and gets an actor as long as there is work. Nodes whose model differs from the first one's are left out, and told.
"""
from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..errors import ClosedError, LlaminaError, OptionError, UnsupportedError, why
from .cluster_node import Facts, Loading, Worker
from .dispatch import ClusterWork, Dispatch, Outcome, Records

LOOK = 2.0
"""Seconds between two looks at which nodes there are."""
LIVES = 3
"""Actors that may die on a node, one after the other, while they load a model; at work twice as many."""
REACH = 5.0
"""Seconds that a cluster has to answer."""


def check_address(address: str) -> str:
    """"auto" or HOST:PORT. OptionError, before anything is loaded."""
    host, colon, port = address.rpartition(":")
    if address == "auto" or colon and host and "/" not in address and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        return address
    if address.startswith("ray://"):
        raise OptionError(f"--ray {address}: Ray's client is not supported: give the command on a node of the cluster, with its head's HOST:PORT (mostly 6379)")
    raise OptionError(f"--ray {address}: is no address: expected HOST:PORT of the cluster's head, or nothing (write --ray last, or --ray=auto)")


def _import() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else it warns of networks without a way out
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    try:
        import ray
    except ImportError:
        raise UnsupportedError('--ray needs Ray, which is not installed: pip install "llamina[ray]"') from None
    return ray


def _reach(address: str) -> None:
    """OptionError unless something listens there: Ray itself would try for minutes, and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except OSError as error:
        raise OptionError(f"--ray {address}: cannot be reached ({why(error)}): is a cluster's head running there (ray start --head)?") from None


@dataclass
class _Node:
    """id: Ray's. name: for people. actor: None between two lives. attempt: that it is at. state: loading, ready, gone."""

    id: str
    name: str
    cpus: int
    actor: Any = None
    state: str = "gone"
    attempt: int | None = None
    deaths: int = 0


class _NotRays:
    """Standard output, but for what Ray's threads write to it: a lost node's log is no answer."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Cluster:
    """A connection to a cluster; a context manager. note: told what the user should know."""

    def __init__(self, address: str = "auto", note: Callable[[str], None] = lambda text: None):
        check_address(address)
        self._ray, self._note = _import(), note
        address = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
        if address != "auto":
            check_address(address)
            _reach(address)
        self._stdout = sys.stdout
        sys.stdout = _NotRays(sys.stdout)  # type: ignore[assignment]
        try:
            with contextlib.redirect_stdout(None):
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        except Exception as error:
            self.close()
            said = why(error)
            if address == "auto":
                raise OptionError(f"--ray: no cluster runs on this machine ({said}): start one (ray start --head), join one (ray start --address=HOST:PORT), "
                                  "or give its head's HOST:PORT") from None
            raise OptionError(f"--ray {address}: cannot be used ({said}): this machine must be a node of the cluster, with the same versions of Ray and "
                              f"Python (ray start --address={address})") from None

    def loaded(self, loading: Loading, threads: int | None = None, *, template: bool = False, expected: str | None = None,
               waiting: Callable[[str], None] = lambda text: None) -> Loaded:
        """A model on every node, as soon as one has it. threads: at most so many of a node's CPUs. template: is a fact that is wanted, too. expected:
        the fingerprint of the model that it must be. waiting: told how far it is. LlaminaError: no node can load it."""
        found = Loaded(self._ray, loading, threads, template, expected, self._note)
        try:
            found.wait(waiting)
        except BaseException:
            found.close()
            raise
        return found

    def close(self) -> None:
        with contextlib.suppress(Exception), contextlib.redirect_stdout(None):  # it prints what it kept
            self._ray.shutdown()
        if isinstance(sys.stdout, _NotRays):
            sys.stdout = self._stdout

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Loaded:
    """A model on the nodes of a cluster: `Nodes` of dispatch.py, and a context manager."""

    def __init__(self, ray: Any, loading: Loading, threads: int | None, template: bool, expected: str | None, note: Callable[[str], None]):
        self._ray, self._loading, self._threads, self._template, self._note = ray, loading, threads, template, note
        self._facts: Facts | None = None
        self._expected = expected
        self._nodes: dict[str, _Node] = {}
        self._left_out: dict[str, str] = {}
        """Nodes that get no actor any more, and why."""
        self._refs: dict[Any, _Node] = {}
        self._looked = -LOOK
        self._work: Any = None

    @property
    def facts(self) -> Facts:
        """What all nodes agree on."""
        assert self._facts is not None
        return self._facts

    def digest(self) -> str:
        """SHA-256 of the model's file."""
        while ready := [node for node in self._nodes.values() if node.state == "ready"]:
            try:
                return str(self._ray.get(ready[0].actor.digest.remote()))
            except self._ray.exceptions.RayTaskError as error:
                raise LlaminaError(f"{ready[0].name}: the model's digest can't be computed ({_said(error)})") from None
            except self._ray.exceptions.RayError as error:
                self._lost(ready[0], False, _said(error))
        raise ClosedError("no node of the cluster is left: start some again, and give the same command, which goes on from here")

    def records(self, work: ClusterWork, rows: Iterable[Any], total: int) -> Records:
        """Each row's record, in any order. total: how many rows there are, or more."""
        with self._gone():
            self._work = self._ray.put(work)
        yield from Dispatch(self, work, iter(rows), total, self._note)

    def wait(self, waiting: Callable[[str], None]) -> None:
        """Until one node is ready."""
        while self._facts is None:
            self.outcomes(0.5)
            coming = [node for node in self._nodes.values() if node.state == "loading"]
            if self._facts is None and not coming:
                if self._left_out:
                    raise LlaminaError(f"no node of the cluster has the model: {next(iter(self._left_out.values()))}")
                if not self._nodes:
                    raise OptionError("--ray: the cluster has no node with a CPU to give: start one (ray start --address=HOST:PORT)")
            waiting(f"loading the model on {len(coming)} node{'s' * (len(coming) != 1)}")

    # -- Nodes (dispatch.py) --------------------------------------------------------------------------------------------------------------

    def ready(self) -> Collection[str]:
        return [node.id for node in self._nodes.values() if node.state == "ready"]

    def coming(self) -> bool:
        return any(node.state == "loading" for node in self._nodes.values())

    def begin(self, node: str, attempt: int, rows: list[Any]) -> None:
        of = self._nodes[node]
        of.attempt = attempt
        with self._gone():
            self._refs[of.actor.work.remote(attempt, self._work, rows)] = of

    def name(self, node: str) -> str:
        return self._nodes[node].name

    def outcomes(self, seconds: float) -> list[Outcome]:
        found: list[Outcome] = []
        with self._gone():
            self._look()
            if not self._refs:
                time.sleep(seconds)
                return found
            done, _ = self._ray.wait(list(self._refs), num_returns=1, timeout=seconds)
            if done:
                done, _ = self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
            for ref in done:
                found += self._ended(ref, self._refs.pop(ref))
        return found

    # -- actors ---------------------------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Have an actor on every node that lives."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        for seen in self._ray.nodes():
            id, cpus = seen["NodeID"], int(seen["Resources"].get("CPU", 0))
            if not seen["Alive"] or cpus < 1 or id in self._left_out:
                if (dead := self._nodes.get(id)) and dead.state == "ready" and dead.attempt is None:  # else its attempt's outcome tells
                    dead.state = "gone"
                    self._note(f"{dead.name}: the node was lost, between two chunks")
                continue
            node = self._nodes.setdefault(id, _Node(id, str(seen["NodeManagerAddress"]), cpus))
            if node.state == "gone":
                self._start(node)

    def _start(self, node: _Node) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        cpus = min(node.cpus, self._threads or node.cpus)
        made = self._ray.remote(Worker).options(num_cpus=cpus, max_restarts=0, max_task_retries=0,
                                                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
        node.actor, node.state, node.attempt = made.remote(), "loading", None
        self._refs[node.actor.load.remote(self._loading, cpus, self._template)] = node

    def _ended(self, ref: Any, node: _Node) -> Iterator[Outcome]:
        attempt, node.attempt = node.attempt, None
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            said = _said(error)
            self._lost(node, attempt is None, said)
            if attempt is not None:
                yield Outcome(node.id, attempt, None, said)
            return
        if attempt is None:
            self._joined(node, result)
            return
        node.deaths = 0
        number, records = result
        yield Outcome(node.id, number, None, records) if isinstance(records, str) else Outcome(node.id, number, records)

    def _lost(self, node: _Node, loading: bool, said: str) -> None:
        """Its actor is dead, or can't be heard."""
        with contextlib.suppress(Exception):
            self._ray.kill(node.actor)
        node.state, node.actor = "gone", None
        node.deaths += 1
        if loading:  # else its attempt's failure is told
            self._note(f"{node.name}: {said}, while it loaded the model")
        if node.deaths >= (LIVES if loading else 2 * LIVES):
            self._leave_out(node, said)

    def _leave_out(self, node: _Node, problem: str) -> None:
        self._left_out[node.id] = f"{node.name}: {problem}"
        self._note(f"node {node.name} is left out: {problem}")
        with contextlib.suppress(Exception):
            self._ray.kill(node.actor)
        node.state, node.actor = "gone", None

    def _joined(self, node: _Node, result: Facts | str) -> None:
        if isinstance(result, str):
            self._leave_out(node, result)
            return
        if self._expected is not None and result.model != self._expected:
            self._leave_out(node, "its model is another one than the interrupted run's")
            return
        if self._facts is None:
            self._facts = result
        if problem := self._facts.differs(result):
            self._leave_out(node, f"it has another {problem}")
            return
        node.state = "ready"

    @contextlib.contextmanager
    def _gone(self) -> Iterator[None]:
        """What Ray says when the cluster itself is gone, as an error of ours."""
        try:
            yield
        except (self._ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            if isinstance(error, LlaminaError):
                raise
            raise ClosedError(f"the cluster can't be reached any more ({why(error)}): give the same command again, which goes on from here") from None

    # -- the end --------------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the actors. Harmless twice."""
        for node in self._nodes.values():
            if node.actor is not None:
                with contextlib.suppress(Exception):
                    self._ray.kill(node.actor)
                node.actor, node.state = None, "gone"
        self._refs.clear()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _said(error: BaseException) -> str:
    """Ray's many lines in one: the last that says something."""
    if "No module named 'llamina" in str(error):
        return "llamina is not installed there, or another version of it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the node or its process was lost ({type(error).__name__}: {why(LlaminaError(lines[0] if lines else ''), 120)})"
