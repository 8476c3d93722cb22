"""The build of the CUDA engine: what is wrong with CUDA stays without consequences unless the engine is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja") and os.name == "posix"),
    reason="no cmake, no ninja, or no scripts that stand for compilers",
)


def configure(build: Path, nvcc: Path | str, *definitions: str) -> subprocess.CompletedProcess[str]:
    """Run CMake; an empty `nvcc` leaves it to find one."""
    command = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DRWKV_PYTHON=OFF", *definitions]
    environment = {**os.environ, "CUDACXX": str(nvcc)}
    return subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An nvcc that compiles nothing."""
    file = tmp_path / "nvcc"
    file.write_text("#!/bin/sh\necho 'nvcc fatal : this one is broken' >&2\nexit 1\n")
    file.chmod(0o755)
    return file


def targets(build: Path) -> str:
    return (build / "build.ninja").read_text()


def test_a_broken_nvcc_leaves_a_cpu_build_and_one_line(tmp_path: Path, broken: Path) -> None:
    done = configure(tmp_path / "build", broken)
    assert done.returncode == 0, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "CUDA" in line]
    assert line.startswith(f"-- CUDA engine: not built, {broken} does not compile (")
    told = Path(line.rpartition("(")[2].rstrip(")"))
    assert "this one is broken" in told.read_text()
    assert "librwkv_engine.a" in targets(tmp_path / "build")
    assert "abi.cu" not in targets(tmp_path / "build")


def test_asked_for_it_fails_with_the_reason(tmp_path: Path, broken: Path) -> None:
    done = configure(tmp_path / "build", broken, "-DRWKV_CUDA=ON")
    assert done.returncode != 0
    assert f"RWKV_CUDA=ON needs a working CUDA toolkit 12 or newer: {broken} does not compile" in done.stdout
    assert "nvcc fatal : this one is broken" in done.stdout


def test_off_asks_for_no_compiler(tmp_path: Path, broken: Path) -> None:
    done = configure(tmp_path / "build", broken, "-DRWKV_CUDA=OFF")
    assert done.returncode == 0, done.stdout
    assert "CUDA" not in done.stdout
    assert not (tmp_path / "build/cuda_probe").exists()


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Path, str]:
    """Where the wheel nvidia-cuda-nvcc puts nvcc in a virtual environment, and the definition that names this one."""
    import venv

    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    folder = Path(site) / "nvidia/cu13/bin"
    folder.mkdir(parents=True)
    return folder / "nvcc", f"-DPython_EXECUTABLE={python}"


def test_the_nvcc_of_a_wheel_comes_first(tmp_path: Path, broken: Path, wheel: tuple[Path, str]) -> None:
    nvcc, python = wheel
    broken.rename(nvcc)
    done = configure(tmp_path / "build", "", python)
    assert done.returncode == 0, done.stdout
    if not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        assert f"-- CUDA engine: not built, {nvcc} does not compile (" in done.stdout
    else:  # that of the system takes its place
        assert "not built" not in done.stdout
        assert "rwkv_cuda_attempt" in targets(tmp_path / "build")


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_the_nvcc_of_a_wheel_is_used(tmp_path: Path, wheel: tuple[Path, str]) -> None:
    nvcc, python = wheel
    nvcc.write_text(f'#!/bin/sh\nexec {shutil.which("nvcc")} "$@"\n')
    nvcc.chmod(0o755)
    done = configure(tmp_path / "build", "", python)
    assert done.returncode == 0, done.stdout
    assert f"-DCUDA_COMPILER={nvcc}" in targets(tmp_path / "build")


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_an_nvcc_that_does_not_take_the_engine_leaves_a_cpu_build(tmp_path: Path) -> None:
    choosy = tmp_path / "nvcc"
    choosy.write_text(
        "#!/bin/sh\n"
        "case \"$*\" in *csrc/cuda/*) echo 'nvcc fatal : not this' >&2; exit 1 ;; esac\n"
        f'exec {shutil.which("nvcc")} "$@"\n'
    )
    choosy.chmod(0o755)
    build = tmp_path / "build"
    assert configure(build, choosy, "-DRWKV_CUDA_ARCHITECTURES=75;80").returncode == 0
    done = subprocess.run(
        ["cmake", "--build", str(build), "--target", "rwkv_cuda_attempt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"CUDA engine: not built, {choosy} does not compile it" in done.stdout
    told = build / "cuda_engine/output.txt"
    assert "nvcc fatal : not this" in told.read_text()
    assert list(build.rglob("librwkv_cuda*")) == []


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_a_working_nvcc_is_used(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    done = configure(tmp_path / "build", nvcc, "-DRWKV_CUDA=ON", "-DRWKV_CUDA_ARCHITECTURES=75")
    assert done.returncode == 0, done.stdout
    assert "-- CUDA engine: for 75\n" in done.stdout
    assert "std=c++20" in targets(tmp_path / "build")
