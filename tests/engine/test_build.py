"""What the build says to a compiler that it cannot do with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja") and shutil.which("c++") and os.name == "posix"),
    reason="no cmake, ninja or c++",
)


def configure(build: Path, compiler: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DRWKV_PYTHON=OFF", "-DRWKV_CUDA=OFF"],
        env={**os.environ, "CXX": str(compiler)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_compiler_that_is_too_old_is_named(tmp_path: Path) -> None:
    compiler = tmp_path / "old-c++"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -std=c++17\n')
    compiler.chmod(0o755)
    done = configure(tmp_path / "build", compiler)
    assert done.returncode != 0
    (line,) = [line for line in done.stdout.splitlines() if "rwkvcli" in line]
    assert "needs a compiler with C++20's std::bit_cast and std::span" in line
    assert f"{compiler} (" in line
