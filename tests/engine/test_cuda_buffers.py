"""What a GPU's buffers take at real sizes: of a model file that is a hole, of which nothing but codebooks is read."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from cuda_library import LIBRARY, needs_library

from quant.formats import ENCODINGS, parts_of
from quant.recipe import make_plan
from quant.synthetic import synthetic_arch
from rwkvcli import _kernels

BUDGET, CHUNK = 256 << 20, 512
"""Bytes that buffers stay below, and tokens of the longest chunk (docs/cuda.md)."""


@needs_library
@pytest.mark.parametrize("ffn_value", ["tile", "kn"])
@pytest.mark.parametrize("n_embd", [2048, 4096])
def test_a_prompt_is_read_in_whole_chunks_within_the_budget(
    ffn_value: str, n_embd: int, tmp_path: Path
) -> None:
    arch = synthetic_arch("7", 2, n_embd, 65536)
    tensors, codebooks, end, weights = [], [], 0, 0
    for name, planned in make_plan(arch, "int4", ffn_value=ffn_value).items():
        parts = []
        for part, dtype, shape in parts_of(planned.encoding, planned.layout, planned.shape):
            size = math.prod(shape) * (4 if dtype == "F32" else 1)
            codebooks += [end] if part == "cb" else []
            parts.append((part, end, size))
            end += (size + 63) // 64 * 64
            weights += size
        kind = ENCODINGS[planned.encoding].computed_as
        tensors.append((name, kind, planned.layout, list(planned.shape), parts))
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(end)
        for at in codebooks:
            file.seek(at)
            file.write(bytes(range(1, 17)))
    config = {**asdict(arch), "group_norm_eps": 64e-5}
    (*_, model), _ = _kernels.cuda_required(os.fsencode(LIBRARY), os.fsencode(path), config, tensors)
    buffers = model - weights  # and what rounds weights up, less than 100 kB
    # x, normed, r, k, v, g, w, a, b, v_gate, v_first; kn: ffn's floats, and channel and factor of each
    row = 4 * 11 * arch.n_embd + (12 if ffn_value == "kn" else 1) * arch.n_ffn
    assert CHUNK * row < buffers < BUDGET
