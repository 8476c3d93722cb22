"""Real checkpoints: every file in the folder that RWKV_TEST_CHECKPOINTS names is opened and read whole."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quant.arch import parameter_count
from quant.checkpoints import open_checkpoint

FOLDER = os.environ.get("RWKV_TEST_CHECKPOINTS", "")
FILES = (
    sorted(path for path in Path(FOLDER).glob("*") if path.suffix in (".pth", ".safetensors"))
    if FOLDER
    else []
)


@pytest.mark.skipif(not FILES, reason="RWKV_TEST_CHECKPOINTS names no folder with checkpoints")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_checkpoint(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        arch = checkpoint.arch
        elements = 0
        for name in checkpoint.names:
            values = checkpoint.read(name)
            assert values.std() > 0 or values.size == 1 or ".att.v" in name, name
            elements += values.size
        assert arch.version == "7" or elements == parameter_count(arch)


@pytest.mark.skipif(not FILES, reason="RWKV_TEST_CHECKPOINTS names no folder with checkpoints")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_checkpoint_as_torch_reads_it(path: Path) -> None:
    torch = pytest.importorskip("torch")
    if path.suffix != ".pth":
        pytest.skip("not a torch file")
    loaded = torch.load(path, weights_only=True, mmap=True)
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.names) == set(loaded)
        for name in checkpoint.names:
            assert np.array_equal(checkpoint.read(name).ravel(), loaded[name].float().numpy().ravel())
