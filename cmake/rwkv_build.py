"""Builds the package (PEP 517): scikit-build-core, with Zig's C++ compiler where a machine has none that is right.

That is on Windows, where the kernels are written for Clang, where no compiler is found, and where `CXX=zig` asks for it.
The compiler comes as the package `ziglang` into the environment of the build alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scikit_build_core import build as _scikit

build_sdist = _scikit.build_sdist
get_requires_for_build_sdist = _scikit.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = _scikit.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _scikit.prepare_metadata_for_build_editable

_ZIG = "ziglang>=0.13"
_COMPILERS = ("c++", "CC", "g++", "clang++")  # the first that CMake looks for


def _wants_zig() -> bool:
    named = os.environ.get("CXX", "")
    if named or "CMAKE_TOOLCHAIN_FILE" in os.environ:
        return named == "zig"
    return sys.platform == "win32" or not any(map(shutil.which, _COMPILERS))


def _target() -> str:
    """What this Python runs on, as Zig calls it."""
    machine = platform.machine().lower()
    processor = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if sys.platform == "win32":
        return f"{processor}-windows-gnu"
    if sys.platform == "darwin":
        return f"{processor}-macos"
    return f"{processor}-linux-{'gnu' if platform.libc_ver()[0] == 'glibc' else 'musl'}"


@contextmanager
def _compiler() -> Iterator[None]:
    if not _wants_zig():
        yield
        return
    import ziglang

    zig = Path(ziglang.__file__).with_name("zig.exe" if sys.platform == "win32" else "zig")
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="rwkv-zig-", ignore_cleanup_errors=True) as cache:
        os.environ.pop("CXX", None)
        os.environ.update(
            CMAKE_TOOLCHAIN_FILE=str(Path(__file__).with_name("zig.cmake")),
            CMAKE_GENERATOR="Ninja",
            RWKV_ZIG=str(zig),
            RWKV_ZIG_TARGET=_target(),
        )
        os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", cache)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _requirements(of_scikit: list[str]) -> list[str]:
    return [*of_scikit, _ZIG, "ninja>=1.5"] if _wants_zig() else of_scikit


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return _requirements(_scikit.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return _requirements(_scikit.get_requires_for_build_editable(config_settings))


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    with _compiler():
        return _scikit.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    with _compiler():
        return _scikit.build_editable(wheel_directory, config_settings, metadata_directory)
