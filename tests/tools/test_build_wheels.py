"""scripts/build-wheels: what it makes for this machine runs where it is unpacked, and says what the engine here says."""

from __future__ import annotations

import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cli_runner import environment, rwkv

ROOT = Path(__file__).parent.parent.parent
TARGET = {"x86_64": "linux-x86_64", "aarch64": "linux-aarch64"}.get(platform.machine(), "")

for package in ("pefile", "wheel", "ziglang"):
    pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # Zig compiles its C++ library the first time
@pytest.mark.skipif(sys.platform != "linux" or not TARGET, reason="wheels are made on 64-bit Linux")
def test_a_wheel_for_this_machine_runs(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "scripts" / "build-wheels", "--target", TARGET, "-o", tmp_path]
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.endswith(f"-{version}-{version}-manylinux_2_17_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")

    asked = ["generate", "-m", "demo", "--temperature", "0", "--max-tokens", "40", "It was a fine day"]

    def run(*words: str) -> str:
        unpacked = environment(PYTHONPATH=str(tmp_path / "site"))
        command = [sys.executable, *words]
        return subprocess.run(
            command, env=unpacked, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    kernels = run("-c", "import rwkvcli._kernels as kernels; print(kernels.__file__)")
    assert Path(kernels.strip()).is_relative_to(tmp_path)
    assert run("-m", "rwkvcli", *asked) == rwkv(*asked).out
