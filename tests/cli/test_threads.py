"""Threads that the system does not give: one clear line, or the same work with fewer."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runner import Outcome, rwkv

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="address space is limited on Linux only"
)
GIGABYTE = 1 << 30


def few_threads() -> None:
    """In the child: room for about three threads. A stack is as large as its limit says, root or not."""
    import resource

    for limit, size in ((resource.RLIMIT_STACK, GIGABYTE), (resource.RLIMIT_AS, 4 * GIGABYTE)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def confined(*args: str, cwd: Path) -> Outcome:
    return rwkv(*args, cwd=cwd, env={"OPENBLAS_NUM_THREADS": "1"}, preexec_fn=few_threads)


def test_generate_says_how_many_there_were(folder: Path) -> None:
    done = confined("generate", "-m", "demo", "-t", "16", "--max-tokens", "2", "x", cwd=folder)
    assert (done.code, done.out) == (5, "")
    lines = done.err.splitlines()
    assert lines[0].startswith("error: only ") and lines[0].endswith(" of 16 threads could be started")
    assert lines[1:] == ["hint: ask for fewer with `-t N`, or give the process more memory"]


def test_quantize_goes_on_with_those_there_are(folder: Path) -> None:
    for out, run in (("all", rwkv), ("few", confined)):
        done = run("quantize", "small.pth", "--to", "int4", "-o", out, "-t", "16", "-q", cwd=folder)
        assert (done.code, done.out, done.err) == (0, f"{out}\n", "")
    assert (folder / "all").read_bytes() == (folder / "few").read_bytes()
