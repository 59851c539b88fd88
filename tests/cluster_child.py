"""A Ray cluster in a network namespace of its own, in a process of its own: two nodes, commands, one node killed in the middle of each, another one joining.

    python cluster_child.py    reads {"journal", "records", "node", "command"} a line, answers {"code", "out", "err", "killed"} a line, on a pipe of its own

When `journal` holds so many `records` (0: never; -1: as soon as the model is being loaded there), `node`, 0 or 1, is killed; another one like it takes its
place for the next command. The second node is made to compile for the plainest target that this CPU has.
"""
from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MAIN = "import sys; from llamina.engine.cli import main; sys.exit(main(sys.argv[1:]))"


def loopback() -> None:
    """Up, which it isn't in a new namespace."""
    with socket.socket() as sock:
        name = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, name)  # SIOCSIFFLAGS


class Nodes:
    """Two nodes beside a head that has no CPU to give."""

    def __init__(self) -> None:
        import ray
        from llamina.kernels.target import EMULATION, FEATURES, emulatable
        from ray.cluster_utils import Cluster
        other = emulatable(FEATURES)
        self._env = [None, EMULATION[other[-1]] if other else None]
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False})
        self.address: str = self._cluster.address
        self._nodes = [self._made(0), self._made(1)]
        ray.init(address=self.address, log_to_driver=False)

    def _made(self, which: int) -> Any:
        return self._cluster.add_node(num_cpus=which + 1, object_store_memory=80 << 20, env_vars=self._env[which], wait=False)

    def loading(self, which: int) -> bool:
        """Whether an actor has begun there."""
        from ray._private.state import actors
        return any(actor["State"] == "ALIVE" and actor["Address"]["NodeID"] == self._nodes[which].node_id for actor in actors().values())

    def kill(self, which: int) -> None:
        self._cluster.remove_node(self._nodes[which], allow_graceful=False)
        self._nodes[which] = self._made(which)

    def close(self) -> None:
        self._cluster.shutdown()


def answer(nodes: Nodes, journal: Path, records: int, node: int, command: list[str]) -> dict[str, Any]:
    with subprocess.Popen([sys.executable, "-c", MAIN, *command, "--ray", nodes.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        killed = False
        while records and process.poll() is None and not killed:
            if nodes.loading(node) if records < 0 else journal.exists() and journal.read_bytes().count(b"\n") > records:
                nodes.kill(node)
                killed = True
            time.sleep(0.005)
        try:
            out, err = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
    return {"code": process.returncode, "out": out, "err": err, "killed": killed}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    loopback()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}
    nodes = Nodes()
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(answer(nodes, Path(asked["journal"]), asked["records"], asked["node"], asked["command"])), file=answers, flush=True)
    finally:
        nodes.close()


if __name__ == "__main__":
    main()
