"""What type checkers know of the packages in programs that use them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_package_that_is_installed_says_that_it_has_types() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    packages = tools["scikit-build"]["wheel"]["packages"]
    assert [name for name in packages if not (ROOT / name / "py.typed").is_file()] == []


def test_a_name_that_there_is_not_is_told(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text("from rwkvcli import Model, Sate\nfrom rwkvcli import State, __version__\n")
    checked = [str(program), str(ROOT / "rwkvcli" / "__init__.py")]
    said, _, _ = mypy.run(["--config-file=", "--cache-dir=/dev/null", "--follow-imports=skip", *checked])
    (error,) = [line for line in said.splitlines() if "error:" in line]
    assert error.startswith(f'{program}:1: error: Module "rwkvcli" has no attribute "Sate"')
