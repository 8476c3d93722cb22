"""`gpu_layers`: a model on a GPU and the CPU together gives the bits of one of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_library import free_memory, is_emulated, needs_library
from python_programs import interrupt_a_long_prompt
from small_models import VERSIONS, ModelMaker

from rwkvcli import Model, State
from rwkvcli.errors import OutOfMemory, StateMismatch, UsageError
from rwkvcli.runtime import cuda

pytestmark = needs_library

TOKENS = [5, 0, 299, 7, 7, 31, 2, 18, 40, 3, 11]


def same(a: State, b: State) -> bool:
    x, y = a.to_numpy(), b.to_numpy()
    return list(x) == list(y) and all(np.array_equal(x[name], y[name]) for name in x)


@pytest.fixture
def path(make_model: ModelMaker) -> Path:
    return make_model("7", "int4")


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_and_states_are_those_of_the_cpu(make_model: ModelMaker, version: str, tmp_path: Path) -> None:
    path = make_model(version, "int4")
    cpu, split = Model.load(path, device="cpu"), Model.load(path, device="cuda", gpu_layers=1, threads=2)
    expected, state = cpu.new_state(), split.new_state()
    assert same(state, expected)
    logits = cpu.forward(TOKENS, expected, all_logits=True)
    assert np.array_equal(split.forward(TOKENS, state, all_logits=True), logits)
    assert same(state, expected)
    branch, steps = state.copy(), split.new_state()
    for token, row in zip(TOKENS, logits, strict=True):
        assert np.array_equal(split.forward([token], steps), row)
    assert same(steps, expected)
    both = split.forward_batch([3, 4], [branch, steps])
    assert np.array_equal(both, cpu.forward_batch([3, 4], [expected.copy(), expected.copy()]))
    assert same(state, expected)
    state.save(tmp_path / "s")
    for device, layers in (("cpu", None), ("cuda", None), ("cuda", 1)):
        other = Model.load(path, device=device, gpu_layers=layers)
        assert np.array_equal(other.forward([3], State.load(tmp_path / "s", other)), both[0])


def test_what_a_split_model_says_of_itself(path: Path) -> None:
    whole, split = Model.load(path, device="cuda"), Model.load(path, device="cuda", gpu_layers=1, threads=2)
    name = cuda.devices()[0].name
    described = split.backend.description
    assert described.startswith(f"cuda:0, {name}, 1 of 2 layers; cpu, ") and described.endswith(", 2 threads")
    assert whole.backend.description == f"cuda:0, {name}"
    required = cuda.required(split.file)
    held = [model.backend.device_bytes for model in (split, whole)]  # type: ignore[attr-defined]
    assert held == required.model
    per_state = sum(array.nbytes for array in whole.new_state().to_numpy().values())
    assert required.state - 256 < per_state <= required.state
    assert Model.load(path, device="cuda", gpu_layers=0).backend.description.startswith("cpu, ")
    with pytest.raises(UsageError):
        Model.load(path, device="cuda", gpu_layers=-2)


def test_bad_requests_change_nothing(path: Path) -> None:
    model, again = (Model.load(path, device="cuda", gpu_layers=1) for _ in range(2))
    state = model.new_state()
    model.forward(TOKENS, state)
    before, arrays = state.copy(), state.to_numpy()
    for bad in ([], [300], [-1]):
        with pytest.raises(UsageError):
            model.forward(bad, state)
    with pytest.raises(StateMismatch):
        model.forward([1], again.new_state())
    first, *_, last = arrays
    for name in (first, last):  # of the CPU's layer, of the GPU's
        with pytest.raises(ValueError, match="state"):
            state.inner.load_numpy({**arrays, name: arrays[name][:-1]})
    assert same(state, before)


@pytest.mark.skipif(not is_emulated(), reason="a real GPU has the memory that it has")
def test_too_little_memory_comes_with_what_would_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required = cuda.required(Model.load(path, device="cpu").file)
    assert required.needed(1) < required.model[1] + cuda.RESERVE
    monkeypatch.setattr(cuda, "RESERVE", 0)
    monkeypatch.setattr(cuda, "STATES", 0)
    monkeypatch.setenv("RWKV_CUDA_EMULATED_MEMORY", free_memory(required.model[1] - 1))
    with pytest.raises(OutOfMemory, match=r"^CUDA: the model needs [\d.]+ GB, [\d.]+ GB of .* are free on emulated$") as full:  # fmt: skip
        Model.load(path, device="cuda")
    assert (full.value.hint or "").startswith("`--gpu-layers 1` fits, with the other layers on the CPU")
    assert full.value.exit_code == 5
    model = Model.load(path, device="cuda", gpu_layers=1)
    assert model.forward([1], model.new_state()).shape == (300,)
    del model
    monkeypatch.setenv("RWKV_CUDA_EMULATED_MEMORY", free_memory(required.model[0] - 1))
    with pytest.raises(OutOfMemory) as full:
        Model.load(path, device="cuda", gpu_layers=1)
    assert (full.value.hint or "").startswith("not one layer fits")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently")
def test_ctrl_c_stops_a_long_prompt_and_keeps_the_state(path: Path) -> None:
    result = interrupt_a_long_prompt(path, device="cuda", gpu_layers=1)
    assert (result.stdout, result.returncode) == ("fine\n", 0), result.stderr
