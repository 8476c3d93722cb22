"""The layers of docs/architecture.md: a file imports from its own folder and from layers below, never upward."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Folder (or module) -> what it may import beside itself. Longest match wins.
PYTHON = {
    "rwkvcli.cli": {"rwkvcli", "rwkvcli.errors", "rwkvcli.server", "rwkvcli.services", "quant"},
    "rwkvcli.server": {"rwkvcli", "rwkvcli.errors", "rwkvcli.services", "rwkvcli.runtime"},
    "rwkvcli.services": {"rwkvcli", "rwkvcli.errors", "rwkvcli.runtime", "quant", "rwkvcli._kernels"},
    "rwkvcli.runtime": {"rwkvcli", "rwkvcli.errors", "quant", "rwkvcli._kernels"},
    "rwkvcli.errors": {"quant"},
    "rwkvcli.__main__": {"rwkvcli.cli"},
    "rwkvcli": {"rwkvcli.runtime"},
    "quant": set(),
}
CPP = {
    "core": set(),
    "formats": {"core"},
    "cpu": {"core", "formats"},
    "codec": {"core", "formats", "cpu"},
    "text": {"core", "formats", "cpu"},
    "model": {"core", "formats", "cpu"},
    "cuda": {"core", "formats", "model"},
    "device": {"core", "formats", "cpu", "model", "cuda"},
    "bindings": {"core", "formats", "cpu", "codec", "text", "model", "device"},
    "tests": {"core", "formats", "cpu", "codec", "text", "model", "cuda", "device"},
}
# All that a folder may include of another, where that is less than all.
CPP_ONLY = {("cuda", "model"): {"config.h"}, ("device", "cuda"): {"abi.h"}, ("tests", "cuda"): {"abi.h"}}
ONLY_IN = {  # heavy or interface packages -> the folders that may import them
    "typer": {"rwkvcli.cli"},
    "rich": {"rwkvcli.cli"},
    "click": {"rwkvcli.cli"},
    "torch": {"rwkvcli.runtime"},
    "bitsandbytes": {"quant"},
    "huggingface_hub": {"rwkvcli.services"},
    "prompt_toolkit": {"rwkvcli.cli"},
    "starlette": {"rwkvcli.server"},
    "uvicorn": {"rwkvcli.server"},
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in ("rwkvcli", "quant"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(part for part in parts if part != "__init__"), path))
    return found


def owner(module: str, table: set[str]) -> str:
    """The entry of `table` that `module` belongs to."""
    matches = [entry for entry in table if module == entry or module.startswith(entry + ".")]
    return max(matches, key=len) if matches else ""


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                exists = (ROOT / Path(*submodule.split("."))).with_suffix(".py").exists()
                names.add(submodule if exists or submodule == "rwkvcli._kernels" else node.module or "")
    return names


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda x: x if isinstance(x, str) else "")
def test_python_imports_point_downward(module: str, path: Path) -> None:
    home = owner(module, set(PYTHON))
    assert home, f"{module} belongs to no layer"
    for name in imports(path):
        if name.split(".")[0] in ("rwkvcli", "quant"):
            target = owner(name, set(PYTHON) | {"rwkvcli._kernels"})
            assert target == home or target in PYTHON[home], f"{module} imports {name}"
        folders = ONLY_IN.get(name.split(".")[0])
        assert folders is None or home in folders, f"{module} imports {name}"


def test_cpp_includes_point_downward() -> None:
    checked = 0
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        folder = path.relative_to(ROOT / "csrc").parts[0]
        for target, name in re.findall(r'#include "(\w+)/([\w./]+)"', path.read_text("utf-8")):
            assert target == folder or target in CPP[folder], f"{path.name} includes {target}/"
            only = CPP_ONLY.get((folder, target))
            assert only is None or name in only, f"{path.name} includes {target}/{name}"
            checked += 1
        if folder != "bindings":
            assert "pybind11" not in path.read_text("utf-8"), f"{path} knows Python"
    assert checked > 50
