"""Model files with random damage: opened and decoded, or refused with FormatError; nothing else.

RWKV_MUTATION_CASES sets the number of cases (default 2,000).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from mutations import damaged_bytes, damaged_header
from quant_models import checkpoint, quantized

from quant.container.reader import ModelFile
from quant.errors import FormatError
from quant.synthetic import synthetic_arch

CASES = int(os.environ.get("RWKV_MUTATION_CASES", "2000"))


def small_model(folder: Path) -> bytes:
    arch = synthetic_arch("7", 1, 8, 6, 4, n_ffn=8, ranks=(2, 3, 1, 2))
    quantized(checkpoint(folder / "m.pth", arch), folder / "m.safetensors", "int4", ffn_value="kn")
    return (folder / "m.safetensors").read_bytes()


def survives(path: Path) -> bool:
    """Whether the file opens; what opens must decode in its shape."""
    try:
        with ModelFile.open(path) as model:
            for name, plan in model.plan.items():
                values = model.decode(name)
                assert values.shape == plan.shape and values.dtype == np.float32
    except FormatError as error:
        assert str(error).isprintable()
        return False
    return True


def test_damaged_structure(tmp_path: Path) -> None:
    data, path = small_model(tmp_path), tmp_path / "damaged.safetensors"
    random = np.random.default_rng(11)
    opened = 0
    for _ in range(CASES):
        path.write_bytes(damaged_header(data, random))
        opened += survives(path)
    assert 0 < opened < CASES // 2


def test_damaged_bytes(tmp_path: Path) -> None:
    data, path = small_model(tmp_path), tmp_path / "damaged.safetensors"
    random = np.random.default_rng(12)
    opened = 0
    for _ in range(CASES):
        path.write_bytes(damaged_bytes(data, random))
        opened += survives(path)
    assert 0 < opened < CASES
