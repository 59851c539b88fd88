"""How many threads to use: one for each physical core (performance cores where the system tells), and never more than this process may.

Two hyperthreads of a core share the units that the kernels keep busy, and a barrier waits for the slowest thread. What the process may
use is its CPU affinity and, in containers, the CPU quota of its control group and of every group above it. `root` stands for / so
that tests can lay out other machines.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path

ROOT = Path("/")
SLOW_CAPACITY = 0.5  # of the largest cpu_capacity (Arm): little cores are below, middle ones above
SLOW_CLOCK = 0.8  # of the highest clock, where nothing better is known: favoured cores differ by 6 %, compact ones by 30 %


def default_threads(root: Path = ROOT, cpus: Iterable[int] | None = None, platform: str = sys.platform) -> int:
    """Threads for a team on this machine: physical (performance) cores among the CPUs we may run on, at most the CPU quota; at least 1."""
    allowed = _allowed(cpus)
    if platform == "linux":
        cores = _linux_cores(root, allowed)
    elif platform == "darwin":
        cores = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or len(allowed)
    elif platform == "win32":
        cores = _windows_cores() or len(allowed)
    else:
        cores = len(allowed)
    return max(1, min(cores, usable_threads(root, allowed)))


def usable_threads(root: Path = ROOT, cpus: Iterable[int] | None = None) -> int:
    """The most threads that can really run at once: CPUs in this process's affinity, at most its control groups' quota (rounded up)."""
    quota = min(_quotas(root), default=float("inf"))
    return max(1, int(min(len(_allowed(cpus)), quota)))


def _allowed(cpus: Iterable[int] | None) -> set[int]:
    if cpus is not None:
        return set(cpus)
    with contextlib.suppress(AttributeError, OSError):  # Linux has it, macOS and Windows don't
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _read(path: Path) -> str:
    """A small system file's text; empty if there is none or it can't be read."""
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _cpu_list(text: str) -> set[int]:
    """The kernel's list format: "0-3,8,10-11"."""
    cpus: set[int] = set()
    with contextlib.suppress(ValueError):
        for part in text.split(","):
            first, _, last = part.partition("-")
            cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def _linux_cores(root: Path, allowed: set[int]) -> int:
    """Distinct cores among the fast ones of the allowed CPUs."""
    devices = root / "sys/devices"
    folder = {cpu: devices / f"system/cpu/cpu{cpu}" for cpu in allowed}
    fast = allowed & _cpu_list(_read(devices / "cpu_core/cpus"))  # Intel hybrids name their performance cores
    if not fast:
        for name, share in (("cpu_capacity", SLOW_CAPACITY), ("cpufreq/cpuinfo_max_freq", SLOW_CLOCK)):
            speed = {cpu: _number(_read(folder[cpu] / name)) for cpu in allowed}
            if min(speed.values()) > 0:
                fast = {cpu for cpu in allowed if speed[cpu] >= share * max(speed.values())}
                break
    return len({_core(folder[cpu]) or str(cpu) for cpu in fast or allowed})


def _core(folder: Path) -> str:
    """What the CPUs of one core have in common: the list of its siblings, else package and core number; empty if unknown."""
    topology = folder / "topology"
    siblings = _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list")
    core = _read(topology / "core_id")
    return siblings or (f"{_read(topology / 'physical_package_id')}:{core}" if core else "")


def _quotas(root: Path) -> Iterator[int]:
    """The CPU quota, in whole CPUs, of this process's control groups and those above them (version 1 and 2, also both at once)."""
    paths: dict[str, str] = {}  # controller -> our group; version 2 has the controller ""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" or "cpu" in controllers.split(","):
            paths["" if number == "0" else "cpu"] = group
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        controller = "" if kind[0] == "cgroup2" else "cpu" if kind[0] == "cgroup" and "cpu" in kind[2].split(",") else None
        if controller is None or controller not in paths:
            continue
        # A container sees its own group mounted as the top: the path below the mounted part is what counts.
        group, mounted = paths[controller], fields[3]
        if mounted != "/" and (group + "/").startswith(mounted + "/"):
            group = group[len(mounted):]
        top = root / fields[4].lstrip("/")
        parts = [p for p in group.split("/") if p not in ("", "..")]
        for depth in range(len(parts) + 1):
            quota = _quota(top.joinpath(*parts[:depth]), controller)
            if quota:
                yield quota


def _quota(folder: Path, controller: str) -> int:
    """Of one control group, in CPUs, rounded up; 0: unlimited or unknown."""
    if controller == "":
        limit, _, period = _read(folder / "cpu.max").partition(" ")  # "max 100000" or "150000 100000"
    else:
        limit, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # "-1" is unlimited
    return ceil(_number(limit) / _number(period)) if _number(limit) > 0 and _number(period) > 0 else 0


def _sysctl(name: str) -> int:
    """A number that macOS tells about itself; 0 if it doesn't."""
    try:
        libc = ctypes.CDLL(None)
        value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
        failed = libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return 0 if failed else value.value
    except (OSError, AttributeError):
        return 0


def _windows_cores() -> int:
    """Cores of the highest efficiency class; 0 if Windows doesn't say."""
    try:
        call = ctypes.WinDLL("kernel32").GetLogicalProcessorInformationEx  # type: ignore[attr-defined]
        size = ctypes.c_uint32(0)
        call(0, None, ctypes.byref(size))  # 0: RelationProcessorCore
        buffer = ctypes.create_string_buffer(size.value)
        return count_windows_cores(buffer.raw[:size.value]) if call(0, buffer, ctypes.byref(size)) else 0
    except (OSError, AttributeError):
        return 0


def count_windows_cores(records: bytes) -> int:
    """Records of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, one a core: uint32 relation, uint32 size, uint8 flags, uint8 efficiency class."""
    classes, offset = [], 0
    while offset + 10 <= len(records):
        size = int.from_bytes(records[offset + 4:offset + 8], "little")
        if size < 10:
            break
        classes.append(records[offset + 9])
        offset += size
    return classes.count(max(classes, default=0))
