"""Model files with random damage, in the engine: refused, or run without a crash; and run right if nothing that counts
was hit.

RWKV_MUTATION_CASES sets the number of cases (a tenth of it here; default 2,000).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from mutations import damaged_bytes, damaged_header
from quant_models import checkpoint, quantized

from quant.container.reader import ModelFile
from quant.synthetic import synthetic_arch
from rwkvcli import Model
from rwkvcli.errors import FormatError, UsageError

CASES = int(os.environ.get("RWKV_MUTATION_CASES", "2000")) // 10
TOKENS = [1, 2, 3]


def content(path: Path) -> tuple[Any, ...]:
    """All of a model file that its logits depend on."""
    with ModelFile.open(path) as file:
        weights = {name: file.decode(name).tobytes() for name in file.plan}
        return file.arch, file.group_norm_eps, weights, dict(file.plan)


def test_damaged_model_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    arch = synthetic_arch("7", 1, 8, 6, 4, n_ffn=8, ranks=(2, 3, 1, 2))
    quantized(checkpoint(tmp_path / "m.pth", arch), whole, "int4", ffn_value="kn")
    model = Model.load(whole, threads=1)
    expected, original = model.forward(TOKENS, model.new_state()), content(whole)
    data, random = whole.read_bytes(), np.random.default_rng(13)
    ran = right = 0
    for case in range(CASES):
        path = tmp_path / f"{case}.safetensors"  # that of the case before may still be mapped
        path.write_bytes(damaged_header(data, random) if case % 2 else damaged_bytes(data, random, 0.3))
        try:
            damaged = Model.load(path, threads=1)
            logits = damaged.forward(TOKENS, damaged.new_state())
        except (FormatError, UsageError) as error:
            assert str(error).isprintable()
            continue
        ran += 1
        assert logits.shape == (arch.vocab_size,)
        if content(path) == original:
            right += 1
            assert logits.tobytes() == expected.tobytes()
    assert 0 < right < ran < CASES // 2
