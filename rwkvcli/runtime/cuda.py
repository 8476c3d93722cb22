"""NVIDIA GPUs as a backend: the extension opens librwkv_cuda, which has the kernels, when one is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvcli import _kernels
from rwkvcli.errors import DeviceUnavailable, FormatError, OutOfMemory, StateMismatch, UsageError
from rwkvcli.runtime.backend import Float32
from rwkvcli.runtime.native import engine_arguments

if TYPE_CHECKING:
    from quant.container.reader import ModelFile

LIBRARY = "RWKV_CUDA_LIBRARY"
"""Environment variable with the path of a librwkv_cuda, for development."""


class CudaDevice(NamedTuple):
    """A GPU, as its driver describes it. Sizes in bytes."""

    number: int
    name: str
    capability: str
    """Compute capability: `8.9`."""
    multiprocessors: int
    memory: int
    free_memory: int


def library_path() -> Path | None:
    """The file of librwkv_cuda: what RWKV_CUDA_LIBRARY names, or what lies beside the extension. None: this build
    has none.
    """
    asked = os.environ.get(LIBRARY)
    if asked:
        return Path(asked).absolute()
    name = "rwkv_cuda.dll" if sys.platform == "win32" else "librwkv_cuda.so"
    beside = Path(_kernels.__file__).with_name(name)
    return beside if beside.exists() else None


def devices() -> list[CudaDevice]:
    """The GPUs here; there may be none. Raises DeviceUnavailable (no kernels in this build, no driver)."""
    with _errors_of_the_device():
        found = _kernels.cuda_devices(os.fsencode(_library()))
    return [
        CudaDevice(
            number,
            facts["name"],
            f"{facts['major']}.{facts['minor']}",
            facts["multiprocessors"],
            facts["memory"],
            facts["free_memory"],
        )
        for number, facts in enumerate(found)
    ]


def device(number: int) -> CudaDevice:
    """GPU `number`. Raises DeviceUnavailable."""
    found = devices()
    if not found:
        raise DeviceUnavailable("there is no CUDA device", hint="use `--device cpu`")
    if number >= len(found):
        there = ", ".join(f"cuda:{each.number} ({each.name})" for each in found)
        raise DeviceUnavailable(f"there is no device cuda:{number}", hint=f"there is {there}")
    return found[number]


class CudaState:
    """The recurrent state of one sequence, in the memory of a GPU."""

    def __init__(self, inner: _kernels.CudaState, model: _kernels.CudaModel) -> None:
        self.inner = inner
        self.model = model

    def copy(self) -> CudaState:
        """An independent copy on the same GPU."""
        with _errors_of_the_device():
            return CudaState(self.inner.copy(), self.model)

    def to_numpy(self) -> dict[str, Float32]:
        """The canonical form of `BackendState`."""
        with _errors_of_the_device():
            return self.inner.to_numpy()

    def load_numpy(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the canonical form over. Raises ValueError, and changes nothing, if it does not fit."""
        with _errors_of_the_device():
            self.inner.load_numpy(dict(arrays))


class CudaModel:
    """A model file evaluated on GPU `number`, by this project's CUDA kernels.

    The weights are copied to the GPU as they stand in the file. Raises DeviceUnavailable, OutOfMemory (of the
    GPU), FormatError.
    """

    def __init__(self, file: ModelFile, number: int) -> None:
        self.device = device(number)
        path, config, tensors = engine_arguments(file)
        with _errors_of_the_device():
            try:
                self._model = _kernels.CudaModel(
                    os.fsencode(_library()), path, config, tensors, self.device.number
                )
            except ValueError as e:
                raise UsageError(str(e)) from None

    @property
    def description(self) -> str:
        return f"cuda:{self.device.number}, {self.device.name}"

    @property
    def device_bytes(self) -> int:
        """Bytes of the GPU's memory that the model holds."""
        with _errors_of_the_device():
            return self._model.device_bytes

    @property
    def state_type(self) -> type:
        return CudaState

    def new_state(self) -> CudaState:
        with _errors_of_the_device():
            return CudaState(self._model.new_state(), self._model)

    def forward(self, tokens: NDArray[np.int32], state: CudaState, all_logits: bool = False) -> Float32:
        (inner,) = self._ours([state])
        with _errors_of_the_device(), _refusals():
            return self._model.forward(tokens, inner, all_logits)

    def forward_batch(self, tokens: NDArray[np.int32], states: Sequence[CudaState]) -> Float32:
        inner = self._ours(states)
        with _errors_of_the_device(), _refusals():
            return self._model.forward_batch(tokens, inner)

    def _ours(self, states: Sequence[CudaState]) -> list[_kernels.CudaState]:
        """A state lies where its model does; one of the same file that was loaded again is elsewhere."""
        if any(state.model is not self._model for state in states):
            raise StateMismatch(
                "the state lives on the GPU with another load of the model",
                hint="save it, and load it with State.load for this model",
            )
        return [state.inner for state in states]


def _library() -> Path:
    path = library_path()
    if path is None:
        raise DeviceUnavailable(
            "this build has no CUDA kernels",
            hint="use `--device cpu`, or `--device torch:cuda` with the torch extra",
        )
    return path


@contextmanager
def _errors_of_the_device() -> Iterator[None]:
    """What goes wrong with a GPU, as errors for people."""
    try:
        yield
    except _kernels.DeviceMemoryError as e:
        hint = "use a smaller model or `--device cpu`; `rwkv doctor MODEL` tells what it needs"
        raise OutOfMemory(str(e), hint=hint) from None
    except _kernels.DeviceError as e:
        hint = "use `--device cpu`; `rwkv doctor` tells what is here"
        raise DeviceUnavailable(str(e), hint=hint) from None
    except _kernels.FormatError as e:
        raise FormatError(str(e)) from None


@contextmanager
def _refusals() -> Iterator[None]:
    """What is refused at the door is the caller's mistake."""
    try:
        yield
    except ValueError as e:
        raise UsageError(str(e)) from None
