"""`device="cuda"` of the Python API: what the CPU's models and states do, those of a GPU do too."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cuda_library import LIBRARY, needs_library
from python_programs import interrupt_a_long_prompt, run_python
from small_models import ModelMaker, same

from rwkvcli import Model, State, _kernels
from rwkvcli.errors import DeviceUnavailable, StateMismatch, UsageError
from rwkvcli.runtime import cuda

TOKENS = [5, 0, 299, 7, 7, 31, 2, 18, 40, 3, 11, 29, 1]


@pytest.fixture
def path(make_model: ModelMaker) -> Path:
    return make_model("7", "int8")


@pytest.fixture
def model(path: Path) -> Model:
    return Model.load(path, device="cuda")


def test_without_a_library(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RWKV_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr(_kernels, "__file__", str(tmp_path / "_kernels.so"))
    with pytest.raises(DeviceUnavailable, match=r"^this build has no CUDA kernels$") as none:
        Model.load(path, device="cuda")
    assert none.value.hint is not None
    assert none.value.exit_code == 5


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("/nowhere/librwkv_cuda.so", re.escape(str(Path("/nowhere/librwkv_cuda.so").absolute()))),
        (str(Path(_kernels.__file__).resolve()), "is not librwkv_cuda: it has no rwkv_cuda_abi"),
    ],
)
def test_libraries_that_are_none(path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str) -> None:
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", file)
    with pytest.raises(DeviceUnavailable, match=said) as refused:
        Model.load(path, device="cuda:0")
    assert "rwkv doctor" in (refused.value.hint or "")


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cuda:0:1", "cuda: 1", "cuda:1234", "CUDA"])
def test_devices_that_cannot_be(path: Path, device: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        Model.load(path, device=device)


@needs_library
def test_a_device_that_is_not_there(path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"^there is no device cuda:99$") as missing:
        Model.load(path, device="cuda:99")
    assert "cuda:0 (" in (missing.value.hint or "")


@needs_library
def test_what_a_model_says_of_itself(model: Model) -> None:
    (first, *_) = cuda.devices()
    assert model.backend.description == f"cuda:0, {first.name}"
    weights = model.file.size
    assert 0.5 * weights < model.backend.device_bytes < 3 * weights + (64 << 20)  # type: ignore[attr-defined]


@needs_library
@pytest.mark.parametrize("tokens", [[], [300], [-1], [1, 2, 1 << 40], [[1], [2]], [1.5], ["a"]])
def test_bad_tokens_change_nothing(model: Model, tokens: list[object]) -> None:
    state = model.new_state()
    model.forward([1, 2, 3], state)
    before = state.copy()
    with pytest.raises(UsageError):
        model.forward(tokens, state)  # type: ignore[arg-type]
    assert same(state, before)


@needs_library
def test_foreign_states_are_refused(model: Model, path: Path, make_model: ModelMaker) -> None:
    again, other = Model.load(path, device="cuda"), Model.load(make_model("7", "int4"), device="cuda")
    for state in (again.new_state(), other.new_state(), Model.load(path, device="cpu").new_state()):
        before = state.copy()
        with pytest.raises(StateMismatch):
            model.forward([1], state)
        with pytest.raises(StateMismatch):
            model.forward_batch([1, 2], [model.new_state(), state])
        assert same(state, before)


@needs_library
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_copies_go_their_own_ways(make_model: ModelMaker, version: str) -> None:
    model = Model.load(make_model(version, "int4"), device="cuda")
    state = model.new_state()
    model.forward(TOKENS, state)
    branch, kept = state.copy(), state.to_numpy()
    first = model.forward([3, 4], branch)
    assert all(np.array_equal(kept[name], array) for name, array in state.to_numpy().items())
    assert np.array_equal(model.forward([3, 4], state), first)
    assert same(state, branch)


@needs_library
def test_a_state_outlives_its_model(path: Path) -> None:
    state = Model.load(path, device="cuda").new_state()
    assert same(state, state.copy())


@needs_library
def test_states_that_do_not_fit_change_nothing(model: Model) -> None:
    state = model.new_state()
    model.forward(TOKENS, state)
    before, arrays = state.copy(), state.to_numpy()
    name = next(iter(arrays))
    for wrong in (
        {},
        {**arrays, "more": arrays[name]},
        {**arrays, name: arrays[name][:-1]},
        {("x" if key == name else key): array for key, array in arrays.items()},
    ):
        with pytest.raises(ValueError, match="state"):
            state.inner.load_numpy(wrong)
    assert same(state, before)


@needs_library
def test_a_saved_conversation_goes_on_bit_for_bit(model: Model, path: Path, tmp_path: Path) -> None:
    state = model.new_state()
    model.forward(TOKENS, state)
    state.save(tmp_path / "s.safetensors")
    resumed = State.load(tmp_path / "s.safetensors", Model.load(path, device="cuda"))
    assert resumed.tokens_seen == len(TOKENS)
    expected = model.forward([5, 6], state)
    again = State.load(tmp_path / "s.safetensors", model)
    assert np.array_equal(model.forward([5, 6], again), expected)


@needs_library
def test_threads_of_the_caller_wait_for_each_other(model: Model) -> None:
    expected = model.forward([1, 2, 3], model.new_state())
    results: list[bool] = []

    def work() -> None:
        for _ in range(5):
            results.append(np.array_equal(model.forward([1, 2, 3], model.new_state()), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20


@needs_library
@pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently")
def test_ctrl_c_stops_a_long_prompt_and_keeps_the_state(path: Path) -> None:
    result = interrupt_a_long_prompt(path, device="cuda")
    assert (result.stdout, result.returncode) == ("fine\n", 0), result.stderr


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_child_of_a_fork_is_told_to_load_again(path: Path) -> None:
    result = run_python(
        """
        import os, sys
        from rwkvcli import Model
        from rwkvcli.errors import DeviceUnavailable
        model = Model.load(sys.argv[1], device="cuda")
        state = model.new_state()
        child = os.fork()
        if child == 0:
            try:
                model.forward([1], state)
            except DeviceUnavailable as error:
                print(error, flush=True)
                del model, state
                os._exit(0)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        model.forward([1], state)
        sys.exit(status)
        """,
        str(path),
    )
    assert result.returncode == 0, result.stderr
    assert "fork of the process that loaded it" in result.stdout


def test_the_library_is_looked_for_beside_the_extension(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RWKV_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr(_kernels, "__file__", str(tmp_path / "_kernels.so"))
    assert cuda.library_path() is None
    name = "rwkv_cuda.dll" if sys.platform == "win32" else "librwkv_cuda.so"
    (tmp_path / name).write_bytes(b"")
    assert cuda.library_path() == cuda.automatic_library() == tmp_path / name
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", LIBRARY or "other.so")
    assert cuda.library_path() == Path(LIBRARY or "other.so").absolute()
    assert cuda.automatic_library() is None
    monkeypatch.setenv("RWKV_CUDA_LIBRARY", "")
    assert (cuda.library_path(), cuda.automatic_library()) == (None, None)
