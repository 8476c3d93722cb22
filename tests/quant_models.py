"""Small models and model files for tests of the file format and the quantization pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quant.arch import Arch
from quant.checkpoints import open_checkpoint
from quant.methods import numpy_encoder
from quant.pipeline import Result, quantize
from quant.synthetic import SyntheticModel, synthetic_arch, write_pth

VERSIONS = ("4", "5.0", "5.1", "5.2", "6", "7")


def odd_arch(version: str, n_layer: int = 2, vocab_size: int = 256) -> Arch:
    """A model whose sizes are multiples of nothing that a layout likes."""
    if version == "4":
        return synthetic_arch("4", n_layer, 40, vocab_size, n_ffn=88)
    ranks = {"6": (3, 5), "7": (5, 7, 3, 9)}.get(version)
    return synthetic_arch(version, n_layer, 48, vocab_size, 8, n_ffn=104, ranks=ranks)


def checkpoint(path: Path, arch: Arch, dtype: str = "f32", seed: int = 0) -> Path:
    """Write a random model of `arch` as a .pth file."""
    write_pth(path, SyntheticModel(arch, seed), dtype)
    return path


def quantized(source: Path, out: Path, kind: str, **options: Any) -> Result:
    """Quantize the checkpoint `source` with the numpy encoder."""
    options.setdefault("encoder", numpy_encoder())
    with open_checkpoint(source) as opened:
        return quantize(opened, out, kind, **options)


def relative_error(values: np.ndarray, stored: np.ndarray) -> float:
    """Relative squared error."""
    wide = values.astype(np.float64)
    return float(((wide - stored) ** 2).sum() / (wide**2).sum())
