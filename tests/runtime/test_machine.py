"""Threads and memory, asked of made-up systems."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rwkvcli.runtime import machine
from rwkvcli.runtime.machine import Memory, Processors, cpu_quota, default_threads, memory, processors

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("contents", "quota"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # the group itself allows more than the one above it
        (
            {
                "proc/self/cgroup": "0::/user.slice/mine.scope\n",
                "sys/fs/cgroup/user.slice/mine.scope/cpu.max": "400000 100000",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
            },
            3.0,
        ),
        # in a container: the host's path, which is not there
        ({"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        # version 1
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            },
            0.5,
        ),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, contents: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(files(tmp_path, contents)) == quota


@pytest.mark.parametrize(
    ("have", "threads"),
    [
        (Processors(8, 4, None), 4),
        (Processors(8, 8, None), 8),
        (Processors(2, 4, None), 2),
        (Processors(8, 8, 2.7), 2),
        (Processors(8, 8, 0.5), 1),
        (Processors(1, 1, 16.0), 1),
    ],
)
def test_the_smallest_limit_is_the_default(have: Processors, threads: int) -> None:
    assert have.threads == threads


@linux
def test_processors_that_share_a_core_count_once(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files(tmp_path, {topology.format(cpu): "0-99\n" for cpu in allowed})
    found = processors(tmp_path)
    assert (found.allowed, found.cores, found.threads) == (len(allowed), 1, 1)
    assert processors(tmp_path / "nothing").cores == len(allowed)


@linux
@pytest.mark.parametrize(
    ("capacities", "fast"),
    [
        ([1024] * 4, 4),
        ([430] * 4 + [1024] * 4, 4),
        ([250] * 4 + [780] * 3 + [1024], 4),  # four at 780 do more than one at 1024, and than eight at 250
        ([700, 1024], 2),
    ],
)
def test_slow_cores_that_would_hold_the_fast_up_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacities: list[int], fast: int
) -> None:
    cpus = range(len(capacities))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(cpus))
    for cpu, capacity in zip(cpus, capacities, strict=True):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files(
            tmp_path,
            {
                f"{folder}/topology/thread_siblings_list": f"{cpu}\n",
                f"{folder}/cpu_capacity": f"{capacity}\n",
            },
        )
    found = processors(tmp_path)
    assert (found.allowed, found.threads, found.slower) == (len(capacities), fast, len(capacities) - fast)


def test_a_processor_without_a_name_has_that_of_its_board(tmp_path: Path) -> None:
    board = {
        "proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd0b\n",
        "proc/device-tree/model": "Raspberry Pi 5\0",
    }
    assert machine.processor_name(files(tmp_path / "board", board)) == "Raspberry Pi 5"
    named = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU\n",
        "proc/device-tree/model": "a board\0",
    }
    assert machine.processor_name(files(tmp_path / "named", named)) == "Some CPU"


@linux
def test_affinity_limits_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {next(iter(range(1)))})
    assert default_threads() == 1


@linux
def test_memory_of_the_machine_and_of_the_group(tmp_path: Path) -> None:
    assert memory(tmp_path / "nothing").available is None
    meminfo = "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:  600 kB\nHugePages_Total: 0\n"
    files(tmp_path, {"proc/meminfo": meminfo})
    assert memory(tmp_path) == Memory(1_024_000, 614_400)
    files(tmp_path, {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "5"})
    assert memory(tmp_path) == Memory(1_024_000, 614_400)
    stat = "anon 1\ninactive_file 100000\nactive_file 50000\n"
    limited = {"memory.max": "500000", "memory.current": "300000", "memory.stat": stat}
    files(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in limited.items()})
    assert memory(tmp_path) == Memory(500_000, 350_000)  # what is cached from files can be had


def test_this_machine_has_something() -> None:
    assert default_threads() >= 1
    assert memory().total is None or memory().total > 0
    assert isinstance(machine.nvidia_gpus(), list)


def test_caches_and_names_are_told_in_one_unit_and_never_empty() -> None:
    assert machine.last_level_cache() >= 1 << 16
    assert machine.processor_name()


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("32768K", 32 << 20), ("32M", 32 << 20)])
def test_sizes_of_caches(text: str, size: int) -> None:
    assert machine._cache_size(text) == size
