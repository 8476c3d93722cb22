"""Fixtures shared by the tests of `quant`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from quant.synthetic import make_checkpoint, write_pth, write_safetensors

ZipMaker = Callable[..., Path]


@pytest.fixture
def make_zip(tmp_path: Path) -> ZipMaker:
    """Write a zip archive of stored members with the standard library: an independent writer."""

    def make(
        members: Mapping[str, bytes], name: str = "made.pth", compression: int = zipfile.ZIP_STORED
    ) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", compression) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_tensors() -> dict[str, np.ndarray]:
    """A v7 model of two layers with odd sizes; about 100 kB in f32."""
    return make_checkpoint("7", 2, 16, 11, head_size=8, n_ffn=24, ranks=(3, 5, 2, 4))


@pytest.fixture(scope="session")
def tiny_pth(tiny_tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    write_pth(path, tiny_tensors)
    return path


@pytest.fixture(scope="session")
def tiny_safetensors(tiny_tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    write_safetensors(path, tiny_tensors, metadata={"origin": "test"})
    return path
