"""What `device="auto"` chooses, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_library import NAME, free_memory, is_emulated, needs_library, put_beside
from small_models import ModelMaker

from quant.container.reader import ModelFile
from rwkvcli import Model, _kernels
from rwkvcli.errors import UsageError
from rwkvcli.runtime import cuda
from rwkvcli.runtime.cuda import RESERVE, STATES, CudaDevice, Required
from rwkvcli.runtime.placement import ALL, choose, place

MB = 10**6
REQUIRED = Required([30 * MB, 40 * MB, 50 * MB, 100 * MB], 4 * MB)  # of a model with 4 layers


def gpu(number: int, free: int, capability: str = "8.6") -> CudaDevice:
    return CudaDevice(number, f"gpu {number}", capability, 40, 8 << 30, free)


def test_what_should_be_free_is_buffers_states_and_a_reserve() -> None:
    assert REQUIRED.needed(4) == 100 * MB + STATES * 4 * MB + RESERVE
    assert REQUIRED.needed(1) == 30 * MB + STATES * MB + RESERVE
    for layers in (1, 2, 3, 4):
        assert REQUIRED.layers_within(REQUIRED.needed(layers)) == layers
        assert REQUIRED.layers_within(REQUIRED.needed(layers) - 1) == layers - 1


@pytest.mark.parametrize(
    ("free", "most", "chosen"),
    [
        ([4], ALL, ("cuda", "0", ALL)),
        ([4, 4], ALL, ("cuda", "0", ALL)),
        ([3, 4], ALL, ("cuda", "1", ALL)),
        ([2, 3], ALL, ("cuda", "1", 3)),
        ([3, 2], ALL, ("cuda", "0", 3)),
        ([0, 0], ALL, ("cpu", "", ALL)),
        ([4], 2, ("cuda", "0", 2)),
        ([4], 9, ("cuda", "0", ALL)),
        ([1], 2, ("cuda", "0", 1)),
        ([2, 4], 2, ("cuda", "0", 2)),
    ],
)
def test_the_first_gpu_that_takes_all_or_the_one_that_takes_most(
    free: list[int], most: int, chosen: tuple[str, str, int]
) -> None:
    enough = [0, *(REQUIRED.needed(layers) for layers in (1, 2, 3, 4))]
    found = choose([gpu(i, enough[layers]) for i, layers in enumerate(free)], REQUIRED, most)
    assert found[:3] == chosen
    assert "that are free" in found.why


def test_old_gpus_are_not_used() -> None:
    assert [gpu(0, 0, each).is_usable for each in ("7.0", "7.5", "8.6", "10.0")] == [False, True, True, True]


@pytest.fixture
def path(make_model: ModelMaker) -> Path:
    return make_model("7", "int8")


@pytest.fixture
def file(path: Path) -> ModelFile:
    return ModelFile.open(path)


def test_a_build_without_kernels_stays_on_the_cpu(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_beside(monkeypatch, tmp_path, None)
    model = Model.load(path)
    assert model.why == "this build has no CUDA kernels"
    assert model.backend.description.startswith("cpu, ")
    assert Model.load(path, device="cpu").why == ""


def test_a_library_that_cannot_be_used_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_beside(monkeypatch, tmp_path, None)
    (tmp_path / NAME).write_bytes(b"not a library")
    model = Model.load(path)
    assert model.backend.description.startswith("cpu, ")
    assert NAME in model.why


@pytest.mark.parametrize(("device", "layers", "kind"), [("cpu", -1, "cpu"), ("cuda:2", 0, "cpu"), ("torch", 0, "torch")])  # fmt: skip
def test_what_is_asked_for_wins(file: ModelFile, device: str, layers: int, kind: str) -> None:
    assert place(file, device, layers).kind == kind


def test_layers_of_a_gpu_that_is_asked_for(file: ModelFile) -> None:
    assert [place(file, "cuda:2", layers)[:3] for layers in (None, -1, 1, 2, 3)] == [
        ("cuda", "2", ALL),
        ("cuda", "2", ALL),
        ("cuda", "2", 1),
        ("cuda", "2", ALL),
        ("cuda", "2", ALL),
    ]
    with pytest.raises(UsageError, match=r"^gpu_layers must be at least 0, or -1 for all, not -2$"):
        place(file, "cuda", -2)
    assert place(file, "cpu", -1) == place(file, "cpu", 0) == place(file, "cpu")
    for device in ("cpu", "torch", "torch:cpu"):
        with pytest.raises(UsageError, match=rf"^gpu_layers 3 and device {device} do not go together$"):
            place(file, device, 3)


def test_with_a_library_for_development_auto_is_the_cpu(
    file: ModelFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_kernels, "__file__", str(tmp_path / "_kernels.so"))
    (tmp_path / NAME).touch()
    for named in ("", "/somewhere/librwkv_cuda.so"):
        monkeypatch.setenv("RWKV_CUDA_LIBRARY", named)
        assert place(file) == ("cpu", "", ALL, "RWKV_CUDA_LIBRARY is set")


@needs_library
@pytest.mark.skipif(not is_emulated(), reason="a real GPU has the memory that it has")
def test_as_much_as_fits(
    path: Path, file: ModelFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_beside(monkeypatch, tmp_path)
    required = cuda.required(file)
    expected = Model.load(path, device="cpu")
    tokens = [5, 0, 299, 7, 31]
    logits = expected.forward(tokens, expected.new_state())
    for layers, memory in ((2, required.needed(2)), (1, required.needed(2) - 1), (0, required.needed(1) - 1)):
        monkeypatch.setenv("RWKV_CUDA_EMULATED_MEMORY", free_memory(memory))
        model = Model.load(path)
        assert np.array_equal(model.forward(tokens, model.new_state()), logits)
        described, why = model.backend.description, model.why
        if layers == 2:
            assert described == "cuda:0, emulated"
            assert why.startswith("all 2 layers fit into cuda:0 (emulated): 0.")
        elif layers == 1:
            assert described.startswith("cuda:0, emulated, 1 of 2 layers; cpu, ")
            assert why.startswith("1 of 2 layers fit; 2 do not into cuda:0 (emulated): 0.")
        else:
            assert described.startswith("cpu, ")
            assert why.startswith("not one layer fits into cuda:0 (emulated): 0.")
        del model
    monkeypatch.setenv("RWKV_CUDA_EMULATED_MEMORY", free_memory(required.needed(2)))
    assert Model.load(path, gpu_layers=0).backend.description.startswith("cpu, ")
    assert "1 of 2 layers; cpu, " in Model.load(path, gpu_layers=1).backend.description
    # what does not go as it was reckoned ends on the CPU as well
    monkeypatch.setenv("RWKV_CUDA_EMULATED_MEMORY", free_memory(required.model[1] - 1))
    monkeypatch.setattr(cuda, "required", lambda file, library: Required([1, 1 - RESERVE], 0))
    model = Model.load(path)
    assert model.backend.description.startswith("cpu, ")
    assert model.why.startswith("CUDA: the model needs ")
