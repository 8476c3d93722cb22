"""Which compiler `pip install` builds with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("scikit_build_core")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build's backend, as if nothing about compilers were set."""
    for name in ("CXX", "CMAKE_TOOLCHAIN_FILE"):
        monkeypatch.delenv(name, raising=False)
    file = Path(__file__).parents[2] / "cmake" / "rwkv_build.py"
    spec = importlib.util.spec_from_file_location("rwkv_build", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler, alone on PATH."""
    path = tmp_path / ("g++.exe" if sys.platform == "win32" else "g++")
    path.write_text("")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return path


def brought(backend: ModuleType) -> list[str]:
    """Packages of compilers that the build asks for, by name."""
    return [name for name in backend.get_requires_for_build_wheel() if name.startswith("ziglang")]


@pytest.mark.parametrize(("system", "zigs"), [("linux", 0), ("darwin", 0), ("win32", 1)])
def test_a_compiler_that_is_here_is_used_but_on_windows(
    system: str, zigs: int, backend: ModuleType, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert len(brought(backend)) == zigs


def test_without_a_compiler_one_is_brought(backend: ModuleType, compiler: Path) -> None:
    compiler.unlink()
    assert len(brought(backend)) == 1
    assert brought(backend) == [
        name for name in backend.get_requires_for_build_editable() if name.startswith("ziglang")
    ]


def test_who_names_a_compiler_gets_it(
    backend: ModuleType, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("CXX", "clang++")
    assert not brought(backend)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("CXX", "zig")
    assert len(brought(backend)) == 1


@pytest.mark.parametrize(
    ("system", "machine", "libc", "target"),
    [
        ("win32", "AMD64", "", "x86_64-windows-gnu"),
        ("darwin", "arm64", "", "aarch64-macos"),
        ("linux", "x86_64", "glibc", "x86_64-linux-gnu"),
        ("linux", "aarch64", "", "aarch64-linux-musl"),
    ],
)
def test_it_compiles_for_this_system_alone(
    system: str, machine: str, libc: str, target: str, backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(backend.platform, "machine", lambda: machine)
    monkeypatch.setattr(backend.platform, "libc_ver", lambda: (libc, ""))
    assert backend._target() == target
