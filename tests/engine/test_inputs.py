"""What the engine adds up of the inputs of matrices, against the plain PyTorch forward."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import VERSIONS, ModelMaker

from quant.recipe import class_of
from rwkvcli import Model, _kernels
from rwkvcli.runtime.native import NativeModel

TOKENS = np.random.default_rng(0).integers(0, 300, 40)


def inputs(model: Model, *cuts: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    assert isinstance(model.backend, NativeModel)
    model.backend.collect_inputs(True)
    state = model.new_state()
    for part in np.split(TOKENS, cuts):
        model.forward(part, state, all_logits=True)
    found = model.backend.inputs
    model.backend.collect_inputs(False)
    model.forward(TOKENS, model.new_state())
    assert all(
        np.array_equal(a, b)
        for name in found
        for a, b in zip(found[name], model.backend.inputs[name], strict=True)
    )
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_sums_are_those_of_the_plain_forward(
    make_model: ModelMaker, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from rwkvcli.runtime import torch_blocks
    from rwkvcli.runtime.torch_backend import TorchModel

    model = Model.load(make_model(version, "f32"), threads=2)
    found = inputs(model)
    wanted: dict[str, list[np.ndarray]] = {}
    plain = torch_blocks.Block.linear

    def recorded(self: torch_blocks.Block, x: torch_blocks.Tensor, name: str) -> torch_blocks.Tensor:
        wanted.setdefault(name, []).append(x[0].numpy())
        return plain(self, x, name)

    monkeypatch.setattr(torch_blocks.Block, "linear", recorded)
    twin = TorchModel(model.file, "cpu", "float64", group_norm_eps=model.file.group_norm_eps)
    twin.forward(TOKENS, twin.new_state())
    matrices = [name for name in model.file.plan if class_of(name) not in ("emb", "vectors")]
    assert sorted(found) == sorted(matrices)
    for name in matrices:
        if name == "head.weight":
            continue
        layer, leaf = name.split(".", 2)[1:]
        seen = wanted[leaf]  # in the order of the layers; v7's first one has no v1 and v2
        x = seen[int(layer) - (model.config.n_layer - len(seen))]
        squares, nonzero = found[name]
        # the inputs agree within 1e-5 of their largest (the engine's bound), squares within twice that of its square
        off = np.abs(squares - np.square(x).sum(axis=0))
        assert off.max() <= 2e-5 * len(x) * np.square(x).max(), name
        assert np.array_equal(nonzero, (np.abs(x) > 0).sum(axis=0)) or leaf != "ffn.value.weight"
    assert found["head.weight"][0].sum() > 0


def test_neither_threads_nor_cuts_nor_the_level_matter(make_model: ModelMaker) -> None:
    path = make_model("7", "bf16", n_embd=48, head_size=8)
    wanted = inputs(Model.load(path, threads=1))
    for cuts in ((), (1,), (7, 30)):
        found = inputs(Model.load(path, threads=3), *cuts)
        assert all(
            np.array_equal(a, b) for name in wanted for a, b in zip(wanted[name], found[name], strict=True)
        )
    for level in _kernels.cpu_levels():
        model = Model.load(path)
        model.backend = NativeModel(model.file, 2, level)
        found = inputs(model)
        assert all(
            np.array_equal(a, b) for name in wanted for a, b in zip(wanted[name], found[name], strict=True)
        )
