"""Small models and model files for tests of the file format and the quantization pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quant.arch import Arch, logical_shape
from quant.arrays import F32, Array
from quant.checkpoints import open_checkpoint
from quant.methods import STATISTICS, numpy_encoder
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


def expected_logical(model: SyntheticModel) -> dict[str, np.ndarray]:
    """What FORMAT.md says the logical tensors of a checkpoint are, spelled out."""
    version, result = model.arch.version, {}
    for name, stored in model:
        values = stored.reshape(logical_shape(stored.shape))
        leaf = name.split(".")[-1]
        if version == "7" and name in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"):
            continue
        low_rank = [f"{x}{i}" for x in "wavg" for i in "12"] + [
            "time_maa_w1",
            "time_decay_w1",
            "time_decay_w2",
        ]
        if leaf in low_rank:
            result[name] = values.T
        elif leaf == "time_maa_w2":
            for i, letter in enumerate("wkvrg"):
                result[f"{name}.{letter}"] = values[i].T
        else:
            result[name] = values
    return result


class BareEncoder:
    """An encoder that gives the parts only."""

    method = "codebook"

    def encode(self, w: F32, encoding: str, layout: str, importance: F32 | None = None) -> dict[str, Array]:
        parts = numpy_encoder().encode(w, encoding, layout, importance)
        return {name: array for name, array in parts.items() if name not in STATISTICS}


def world_model(folder: Path, rows: int = 65536) -> Path:
    """A random model over World, whose tokens have several bytes, and which has rows that are no tokens."""
    source = checkpoint(folder / f"w{rows}.pth", synthetic_arch("7", 1, 64, rows, 64))
    quantized(source, source.with_suffix(".safetensors"), "int8")
    return source.with_suffix(".safetensors")
