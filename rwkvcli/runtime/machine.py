"""What this machine has: processors, memory, GPUs. The one file of the runtime that asks the operating system.

Every question takes `root`, the folder in which `/proc` and `/sys` are looked for: tests make their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

if sys.platform == "win32":
    from rwkvcli.runtime import windows

_ROOT = Path("/")
_NO_CACHE = 32 << 20


class Processors(NamedTuple):
    """How many threads are worth having, and why."""

    allowed: int
    """Logical processors that this process may run on (affinity)."""
    cores: int
    """Physical cores among them, but for `slower`: a second thread of a core reads the same memory no faster."""
    quota: float | None
    """Processors' worth of time that its control group allows; None: no limit."""
    slower: int = 0
    """Cores that would hold the others up: all threads have equal shares of every step."""

    @property
    def threads(self) -> int:
        """The smallest of the three, at least 1."""
        return max(1, min(self.allowed, self.cores, int(self.quota) if self.quota else self.allowed))


class Memory(NamedTuple):
    """Bytes; None where the system does not tell."""

    total: int | None
    available: int | None
    """What can be had without pushing anything out that is in use, within the control group's limit."""


def default_threads() -> int:
    """min(processors this process may use, its control group's quota, physical cores); at least 1."""
    return processors().threads


def processors(root: Path = _ROOT) -> Processors:
    """Count the processors."""
    if sys.platform == "win32":
        return Processors(*windows.processors(), quota=None)
    allowed = _allowed_processors()
    cores, slower = _physical_cores(allowed, root)
    return Processors(len(allowed), cores, cpu_quota(root), slower)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """The tightest CPU quota among the process's control groups (version 2 and 1); None without one."""
    found = []
    for folder in _groups(root, "cpu"):
        try:
            quota, period = (folder / "cpu.max").read_text("utf-8").split()
            if quota != "max":
                found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            pass
        try:
            micros = int((folder / "cpu.cfs_quota_us").read_text("utf-8"))
            if micros > 0:
                found.append(micros / int((folder / "cpu.cfs_period_us").read_text("utf-8")))
        except (OSError, ValueError, ZeroDivisionError):
            pass
    return min(found, default=None)


def memory(root: Path = _ROOT) -> Memory:
    """The memory of the machine, or what the control group leaves of it."""
    if sys.platform == "win32":
        return Memory(*windows.memory())
    total = available = None
    try:
        lines = (root / "proc/meminfo").read_text("utf-8").splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 1}
        total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    except (OSError, ValueError, IndexError):
        with contextlib.suppress(OSError, ValueError):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in _groups(root, "memory"):
        limit, used = _group_memory(folder)
        if limit is not None:
            total = limit if total is None else min(total, limit)
            left = max(0, limit - used)
            available = left if available is None else min(available, left)
    return Memory(total, available)


def last_level_cache() -> int:
    """Bytes of the largest cache that the system reports for the first processor; 32 MB if it reports none."""
    if sys.platform == "win32":
        return windows.cache() or _NO_CACHE
    sizes = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            sizes.append(_cache_size(entry.read_text("utf-8").strip()))
        except (OSError, ValueError):
            continue
    return max(sizes, default=_NO_CACHE)


def processor_name(root: Path = _ROOT) -> str:
    """What the processor calls itself, or else the board that it is on; the architecture where they say nothing."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    with contextlib.suppress(OSError):  # of ARM systems: "Raspberry Pi 5 Model B Rev 1.0", ended by a zero
        if board := (root / "proc/device-tree/model").read_text("utf-8", "replace").strip("\0\n "):
            return board
    if sys.platform == "win32" and (name := windows.processor_name()):
        return name
    if sys.platform == "darwin" and (name := _sysctl("machdep.cpu.brand_string")):
        return name
    return platform.processor() or platform.machine()


def nvidia_gpus() -> list[str]:
    """Names of the GPUs that NVIDIA's driver reports; empty without a driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count, found = ctypes.c_int(), []
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return []
        for number in range(count.value):
            device, text = ctypes.c_int(), ctypes.create_string_buffer(256)
            if (
                driver.cuDeviceGet(ctypes.byref(device), number) == 0
                and driver.cuDeviceGetName(text, len(text), device) == 0
            ):
                found.append(text.value.decode("utf-8", "replace"))
        return found
    return []


def _cache_size(text: str) -> int:
    """`32768K` or `32M` in bytes."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
    return int(text[:-1]) * unit if unit else int(text)


def _allowed_processors() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(allowed: set[int], root: Path) -> tuple[int, int]:
    """How many are worth a thread, and how many are slower than that."""
    if sys.platform == "linux":
        cores = {}
        for cpu in allowed:
            folder = root / f"sys/devices/system/cpu/cpu{cpu}"
            try:
                cores[(folder / "topology/thread_siblings_list").read_text("utf-8")] = _capacity(folder)
            except OSError:
                return len(allowed), 0
        return _fast_ones(cores.values())
    if sys.platform == "darwin":
        fast = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")
        if fast is not None:
            return int(fast), int(_sysctl("hw.perflevel1.physicalcpu") or 0)
    # a system that does not tell: most have two threads a core
    return max(1, len(allowed) // 2), 0


def _capacity(folder: Path) -> int:
    """How fast Linux takes a processor for, of 1024; ARM systems tell."""
    try:
        return max(1, int((folder / "cpu_capacity").read_text("utf-8")))
    except (OSError, ValueError):
        return 1024


def _fast_ones(capacities: Iterable[int]) -> tuple[int, int]:
    """Of cores as fast as that, how many do the most together when all do as much as the slowest; how many are left."""
    falling = sorted(capacities, reverse=True)
    best = max(range(1, len(falling) + 1), key=lambda count: count * falling[count - 1])
    return best, len(falling) - best


def _sysctl(name: str) -> str | None:
    """What macOS answers; None where it knows no such name."""
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the process's control groups that may limit `controller`, from its own up to the mount.

    Inside a container the path may be the host's, and not exist: the mount itself then is the group.
    """
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    seen = set()
    for line in [*lines, "0::/", f"1:{controller}:/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            if group not in seen:
                seen.add(group)
                yield group
            if group == top:
                break


def _group_memory(folder: Path) -> tuple[int | None, int]:
    """(limit, bytes in use that cannot be had back) of a control group; no limit is None."""
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = int((folder / limit_name).read_text("utf-8"))
            used = int((folder / usage_name).read_text("utf-8"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit >= 1 << 60:  # version 1 says "no limit" with a huge number
            return None, 0
        cached = 0
        try:
            for line in (folder / "memory.stat").read_text("utf-8").splitlines():
                name, value = line.split()
                if name in ("inactive_file", "active_file"):
                    cached += int(value)
        except (OSError, ValueError):
            pass
        return limit, max(0, used - cached)
    return None, 0
