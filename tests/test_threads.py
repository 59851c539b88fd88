"""The default number of threads on machines laid out as folders: hyperthreads, hybrids, affinity, control groups of both versions."""
from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from llamina.kernels import threads
from llamina.kernels.threads import count_windows_cores, default_threads, usable_threads

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def topology(siblings: list[str], extra: dict[str, list[int]] | None = None) -> dict[str, str]:
    """CPU n has the sibling list siblings[n]; extra: file -> number for each CPU."""
    base = "sys/devices/system/cpu/cpu"
    files = {f"{base}{n}/topology/thread_siblings_list": text for n, text in enumerate(siblings)}
    for name, numbers in (extra or {}).items():
        files |= {f"{base}{n}/{name}": str(number) for n, number in enumerate(numbers)}
    return files


def linux(root: Path, n_cpus: int, cpus: set[int] | None = None) -> int:
    return default_threads(root, cpus if cpus is not None else range(n_cpus), "linux")


def test_hyperthreads_of_a_core_count_once(tmp_path: Path) -> None:
    lay(tmp_path, topology(["0,4", "1,5", "2,6", "3,7"] * 2))
    assert linux(tmp_path, 8) == 4
    assert linux(tmp_path, 8, {0, 4}) == 1
    assert linux(tmp_path, 8, {0, 1, 5}) == 2
    assert usable_threads(tmp_path, range(8)) == 8


def test_package_and_core_numbers_where_there_are_no_sibling_lists(tmp_path: Path) -> None:
    base = "sys/devices/system/cpu/cpu{}/topology/{}"
    for cpu, (package, core) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)]):
        lay(tmp_path, {base.format(cpu, "physical_package_id"): str(package), base.format(cpu, "core_id"): str(core)})
    assert linux(tmp_path, 8) == 4


def test_nothing_known_means_every_allowed_cpu(tmp_path: Path) -> None:
    assert linux(tmp_path, 6) == 6
    assert default_threads(tmp_path, range(6), "freebsd") == 6


def test_intel_hybrids_use_their_performance_cores(tmp_path: Path) -> None:
    lay(tmp_path, topology(["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]) | {"sys/devices/cpu_core/cpus": "0-3"})
    assert linux(tmp_path, 8) == 2
    assert linux(tmp_path, 8, {1, 4, 5}) == 1
    assert linux(tmp_path, 8, {5, 6, 7}) == 3, "bound to efficiency cores: use them"


def test_arm_leaves_the_little_cores_out(tmp_path: Path) -> None:
    lay(tmp_path, topology([str(n) for n in range(8)], {"cpu_capacity": [300] * 4 + [800] * 3 + [1024]}))
    assert linux(tmp_path, 8) == 4
    assert linux(tmp_path, 8, {0, 1}) == 2


def test_clocks_decide_where_nothing_better_is_known(tmp_path: Path) -> None:
    favoured = lay(tmp_path / "favoured", topology(["0", "1", "2", "3"], {"cpufreq/cpuinfo_max_freq": [5_000_000, 4_700_000, 4_700_000, 4_700_000]}))
    assert linux(favoured, 4) == 4, "a favoured core is no reason to drop the others"
    compact = lay(tmp_path / "compact", topology(["0", "1", "2", "3"], {"cpufreq/cpuinfo_max_freq": [5_100_000, 5_100_000, 3_300_000, 3_300_000]}))
    assert linux(compact, 4) == 2
    partly = lay(tmp_path / "partly", topology(["0", "1"], {"cpufreq/cpuinfo_max_freq": [5_100_000]}))
    assert linux(partly, 2) == 2


@pytest.mark.parametrize("text, expected", [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("100000", 8),
                                            ("garbage", 8), ("", 8), ("-5 100000", 8), ("100000 0", 8), ("1600000 100000", 8)])
def test_version_2_quota(tmp_path: Path, text: str, expected: int) -> None:
    lay(tmp_path, {"proc/self/cgroup": "0::/user/app", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/user/app/cpu.max": text})
    assert usable_threads(tmp_path, range(8)) == expected
    assert linux(tmp_path, 8) == expected


def test_version_2_quota_of_a_group_above_counts_too(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/self/cgroup": "0::/a/b/c", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/a/b/c/cpu.max": "max 100000",
                   "sys/fs/cgroup/a/b/cpu.max": "500000 100000", "sys/fs/cgroup/a/cpu.max": "300000 100000"})
    assert usable_threads(tmp_path, range(8)) == 3


def test_version_2_in_a_container_whose_group_is_the_top(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/cpu.max": "250000 100000"})
    assert usable_threads(tmp_path, range(8)) == 3
    lay(tmp_path, {"proc/self/cgroup": "0::/../../other"})
    assert usable_threads(tmp_path, range(8)) == 3


@pytest.mark.parametrize("quota, period, expected", [("-1", "100000", 8), ("400000", "100000", 4), ("50000", "100000", 1), ("150000", "50000", 3)])
def test_version_1_quota(tmp_path: Path, quota: str, period: str, expected: int) -> None:
    lay(tmp_path, {"proc/self/cgroup": "12:memory:/x\n4:cpu,cpuacct:/docker/abc\n0::/", "proc/self/mountinfo": V1_MOUNT,
                   "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": period})
    assert usable_threads(tmp_path, range(8)) == expected


def test_version_1_in_a_container_that_sees_only_its_own_part(tmp_path: Path) -> None:
    mount = V1_MOUNT.replace("0:29 / ", "0:29 /docker/abc ")
    lay(tmp_path, {"proc/self/cgroup": "4:cpu,cpuacct:/docker/abc", "proc/self/mountinfo": mount,
                   "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"})
    assert usable_threads(tmp_path, range(8)) == 2


def test_both_versions_at_once_the_tighter_counts(tmp_path: Path) -> None:
    unified = V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    lay(tmp_path, {"proc/self/cgroup": "1:cpu:/\n0::/", "proc/self/mountinfo": f"broken line\n{V1_MOUNT}\n{unified}",
                   "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "500000", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
                   "sys/fs/cgroup/unified/cpu.max": "300000 100000"})
    assert usable_threads(tmp_path, range(8)) == 3


def test_this_machine() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= default_threads() <= usable_threads() <= allowed


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity")
def test_affinity_of_this_process_is_obeyed() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert default_threads() == usable_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_other_systems_ask_their_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_sysctl", {"hw.perflevel0.physicalcpu": 4, "hw.physicalcpu": 8}.get)
    assert default_threads(tmp_path, range(10), "darwin") == 4
    monkeypatch.setattr(threads, "_sysctl", {"hw.physicalcpu": 6}.get)  # Intel Macs
    assert default_threads(tmp_path, range(12), "darwin") == 6
    monkeypatch.setattr(threads, "_windows_cores", lambda: 3)
    assert default_threads(tmp_path, range(12), "win32") == 3
    monkeypatch.setattr(threads, "_windows_cores", lambda: 0)
    assert default_threads(tmp_path, range(12), "win32") == 12


def test_windows_records() -> None:
    def core(efficiency_class: int) -> bytes:
        return struct.pack("<IIBB20xHQH6x", 0, 48, 1, efficiency_class, 1, 3, 0)

    assert len(core(0)) == 48
    assert count_windows_cores(core(0) * 4) == 4
    assert count_windows_cores(core(0) * 4 + core(1) * 2) == 2
    assert count_windows_cores(b"") == 0
    assert count_windows_cores(core(0) + b"\0" * 12) == 1
