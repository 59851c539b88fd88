"""A Ray cluster in a network namespace of its own, in a process of its own: two nodes, a command, one node killed in the middle, another one joining.

    python cluster_child.py JOURNAL RECORDS NODE COMMAND…    the last line is {"code", "out", "err", "killed"}

When JOURNAL holds so many RECORDS (0: never), NODE, 0 or 1, is killed. The second node is made to compile for the plainest target that this CPU has.
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


def loopback() -> None:
    """Up, which it isn't in a new namespace."""
    with socket.socket() as sock:
        name = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, name)  # SIOCSIFFLAGS


def main() -> None:
    journal, records, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]
    loopback()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from llamina.kernels.target import EMULATION, FEATURES, emulatable
    from ray.cluster_utils import Cluster
    other = emulatable(FEATURES)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20, env_vars=EMULATION[other[-1]] if other and cpus == 2 else None)
                 for cpus in (1, 2)]
        main = "import sys; from llamina.engine.cli import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen([sys.executable, "-c", main, *command, "--ray", cluster.address],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        killed = False
        while records and process.poll() is None and not killed:
            if journal.exists() and journal.read_bytes().count(b"\n") > records:
                cluster.remove_node(nodes[int(sys.argv[3])], allow_graceful=False)
                killed = True
                cluster.add_node(num_cpus=1, object_store_memory=80 << 20, wait=False)
            time.sleep(0.005)
        out, err = process.communicate(timeout=300)
    finally:
        cluster.shutdown()
    print("\n" + json.dumps({"code": process.returncode, "out": out, "err": err, "killed": killed}))


if __name__ == "__main__":
    main()
