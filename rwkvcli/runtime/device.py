"""Which device and how many threads: the one file of the runtime that asks the operating system about processors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from rwkvcli.errors import DeviceUnavailable, UsageError


def default_threads() -> int:
    """min(processors this process may use, its cgroup's quota, physical cores); at least 1.

    A second thread on the same core reads the same memory no faster, so sibling threads are not counted.
    """
    allowed = _allowed_processors()
    return max(1, min(_physical_cores(allowed), _cgroup_quota() or len(allowed), len(allowed)))


def last_level_cache() -> int:
    """Bytes of the largest cache that the system reports for the first processor; 32 MB if it reports none."""
    sizes = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            sizes.append(_cache_size(entry.read_text().strip()))
        except (OSError, ValueError):
            continue
    return max(sizes, default=32 << 20)


def processor_name() -> str:
    """What the processor calls itself; the architecture where it says nothing."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parse_device(text: str) -> tuple[str, str]:
    """(`cpu`, "") or (`torch`, torch device). Raises UsageError or DeviceUnavailable."""
    kind, _, rest = text.partition(":")
    if kind in ("auto", "cpu") and not rest:
        return "cpu", ""
    if kind == "torch":
        return "torch", rest or "auto"
    if kind == "cuda":
        raise DeviceUnavailable(
            "this build has no CUDA kernels",
            hint="use `--device cpu`, or `--device torch:cuda` with the torch extra",
        )
    raise UsageError(f"unknown device {text!r}", hint="one of auto, cpu, torch, torch:DEVICE")


def _cache_size(text: str) -> int:
    """`32768K` or `32M` in bytes."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
    return int(text[:-1]) * unit if unit else int(text)


def _allowed_processors() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(allowed: set[int]) -> int:
    if sys.platform == "linux":
        cores = set()
        for cpu in allowed:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            try:
                cores.add(siblings.read_text())
            except OSError:
                return len(allowed)
        return len(cores)
    if sys.platform == "darwin":
        # performance cores where the processor has two kinds: a slow one would hold every phase up
        for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            try:
                answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True)
                return int(answer.stdout)
            except (OSError, ValueError, subprocess.CalledProcessError):
                continue
    # Windows reports logical processors only without further interfaces; most have two threads a core
    return max(1, len(allowed) // 2)


def _cgroup_quota() -> int | None:
    """Whole processors that a container's CPU quota allows (cgroup v2, then v1); None without one."""
    if sys.platform != "linux":
        return None
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        micros = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        if micros > 0:
            return max(1, micros // int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        pass
    return None
