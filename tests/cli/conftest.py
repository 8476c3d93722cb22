"""A small model that all tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
from quant_models import checkpoint, quantized

from quant.synthetic import synthetic_arch


@pytest.fixture(scope="session")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RWKV-7 checkpoint over raw bytes."""
    arch = synthetic_arch("7", 2, 128, 256, 64)
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "small.pth", arch, "bf16")


@pytest.fixture(scope="session")
def model(pth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file made of it, unquantized."""
    out = tmp_path_factory.mktemp("model") / "small-bf16.safetensors"
    quantized(pth, out, "bf16")
    return out


@pytest.fixture
def folder(tmp_path: Path, pth: Path, model: Path) -> Path:
    """A folder to work in, with the checkpoint as small.pth and the model as small.safetensors."""
    (tmp_path / "small.pth").write_bytes(pth.read_bytes())
    (tmp_path / "small.safetensors").write_bytes(model.read_bytes())
    return tmp_path
