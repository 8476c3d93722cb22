"""NVIDIA GPUs as a backend: the extension opens librwkv_cuda, which has the kernels, when one is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli import _kernels
from rwkvcli.errors import DeviceUnavailable, FormatError, OutOfMemory, StateMismatch, UsageError
from rwkvcli.runtime.device import cpu_level
from rwkvcli.runtime.lookahead import ReplayedLookahead
from rwkvcli.runtime.native import engine_arguments, noted, too_many_threads

if TYPE_CHECKING:
    from quant.container.reader import ModelFile
    from rwkvcli.runtime.backend import Ids, Logits

KERNELS_COME_BY = (
    "none are built on Windows: install rwkvcli within WSL, as on Linux"
    if sys.platform == "win32"
    else "`pip install nvidia-cuda-nvcc`, then install rwkvcli anew from its sources"
)
"""What to do where a build has no CUDA kernels."""
LIBRARY = "RWKV_CUDA_LIBRARY"
"""Environment variable with the path of a librwkv_cuda, for development; empty, there is none. With it `auto` is the CPU."""
STATES, RESERVE = 4, 128 << 20
"""What is left free for: so many states (one that is written, one to come back to, copies), and bytes for the driver."""
OLDEST = (7, 5)
"""The least compute capability that the kernels run on."""


class CudaDevice(NamedTuple):
    """A GPU, as its driver describes it. Sizes in bytes."""

    number: int
    name: str
    capability: str
    """Compute capability: `8.9`."""
    multiprocessors: int
    memory: int
    free_memory: int

    @property
    def is_usable(self) -> bool:
        """Whether the kernels run on it."""
        return tuple(map(int, self.capability.split("."))) >= OLDEST


class Required(NamedTuple):
    """What a model takes of a GPU's memory, by the library's own arithmetic. Bytes."""

    model: list[int]
    """[n_layer] of the last 1, 2, ... layers with the head; those of all have the embedding too."""
    state: int
    """Of all layers."""

    def needed(self, layers: int) -> int:
        """What should be free for the last `layers` >= 1 layers."""
        return self.model[layers - 1] + STATES * self.state * layers // len(self.model) + RESERVE

    def layers_within(self, free: int) -> int:
        """The most layers that `free` bytes are enough for; 0: none."""
        return max((n for n in range(1, len(self.model) + 1) if self.needed(n) <= free), default=0)


def library_path() -> Path | None:
    """The file of librwkv_cuda: what RWKV_CUDA_LIBRARY names, or what lies beside the extension. None: this build
    has none.
    """
    asked = os.environ.get(LIBRARY)
    if asked is None:
        return library_beside()
    return Path(asked).absolute() if asked else None


def automatic_library() -> Path | None:
    """The librwkv_cuda that `auto` uses: that beside the extension, and none where a person names one for development."""
    return library_beside() if LIBRARY not in os.environ else None


def library_beside() -> Path | None:
    """The librwkv_cuda that was built with the extension; None if there is none."""
    name = "rwkv_cuda.dll" if sys.platform == "win32" else "librwkv_cuda.so"
    beside = Path(_kernels.__file__).with_name(name)
    return beside if beside.exists() else None


def devices(library: Path | None = None) -> list[CudaDevice]:
    """The GPUs here; there may be none. Raises DeviceUnavailable (no kernels in this build, no driver)."""
    with _errors_of_the_device():
        found = _kernels.cuda_devices(os.fsencode(library or _library()))
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


def copy_rate(number: int, library: Path | None = None) -> float:
    """Bytes per second that copies on GPU `number` read and write, measured. Raises DeviceUnavailable, OutOfMemory."""
    with _errors_of_the_device():
        return _kernels.cuda_copy_rate(os.fsencode(library or _library()), number)


def required(file: ModelFile, library: Path | None = None) -> Required:
    """What a model would take of a GPU's memory. No GPU is asked. Raises DeviceUnavailable, FormatError."""
    with _errors_of_the_device():
        return Required(*_kernels.cuda_required(os.fsencode(library or _library()), *engine_arguments(file)))


def device(number: int, library: Path | None = None) -> CudaDevice:
    """GPU `number`. Raises DeviceUnavailable."""
    found = devices(library)
    if not found:
        raise DeviceUnavailable("there is no CUDA device", hint="use `--device cpu`")
    if number >= len(found):
        there = ", ".join(f"cuda:{each.number} ({each.name})" for each in found)
        raise DeviceUnavailable(f"there is no device cuda:{number}", hint=f"there is {there}")
    return found[number]


class CudaState:
    """The recurrent state of one sequence, in the memory of a GPU; of layers on the CPU, here."""

    def __init__(self, inner: _kernels.CudaState, model: _kernels.CudaModel) -> None:
        self.inner = inner
        self.model = model

    def copy(self) -> CudaState:
        """An independent copy on the same GPU."""
        with _errors_of_the_device():
            return CudaState(self.inner.copy(), self.model)

    def assign(self, other: CudaState) -> None:
        """Take over the values of a state of the same model, on the same GPU."""
        with _errors_of_the_device():
            self.inner.assign(other.inner)

    def to_numpy(self) -> Mapping[str, Logits]:
        """The canonical form of `BackendState`."""
        with _errors_of_the_device():
            return self.inner.to_numpy()

    def load_numpy(self, arrays: Mapping[str, Any]) -> None:
        """Take the canonical form over. Raises ValueError, and changes nothing, if it does not fit."""
        with _errors_of_the_device():
            self.inner.load_numpy(dict(arrays))


class CudaModel:
    """A model file evaluated on GPU `number`, by this project's CUDA kernels; its last `layers` layers and the head, with the
    embedding and the other layers on the CPU in `threads` threads. -1: all of it.

    The weights are copied to the GPU as they stand in the file. Raises DeviceUnavailable, OutOfMemory (of the
    GPU), FormatError, UsageError.
    """

    def __init__(
        self, file: ModelFile, number: int, layers: int = -1, threads: int = 1, library: Path | None = None
    ) -> None:
        library = library or _library()
        self._library = library
        self.device = device(number, library)
        self._of = file.arch.n_layer
        path, config, tensors = engine_arguments(file)
        with _errors_of_the_device(lambda: _what_fits(file, number, library)), _refusals():
            self._model = _kernels.CudaModel(
                os.fsencode(library), path, config, tensors, self.device.number, layers, threads, cpu_level()
            )
        self.layers = self._model.layers
        """On the GPU."""
        self.threads = threads if self.is_split else None
        """Of the CPU; None if it has no layers."""

    @property
    def is_split(self) -> bool:
        """Whether the CPU has layers."""
        return self.layers < self._of

    @property
    def description(self) -> str:
        gpu = f"cuda:{self.device.number}, {self.device.name}"
        if not self.is_split:
            return gpu
        cpu = f"cpu, {self._model.level}, {self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{gpu}, {self.layers} of {self._of} layers; {cpu}"

    @property
    def device_bytes(self) -> int:
        """Bytes of the GPU's memory that the model holds."""
        with _errors_of_the_device():
            return self._model.device_bytes

    def copy_rate(self) -> float:
        """Of its GPU."""
        return copy_rate(self.device.number, self._library)

    @property
    def state_type(self) -> type:
        return CudaState

    def new_state(self) -> CudaState:
        with _errors_of_the_device():
            return CudaState(self._model.new_state(), self._model)

    def forward(
        self, tokens: Ids, state: CudaState, all_logits: bool = False, done: list[Logits] | None = None
    ) -> Logits:
        (inner,) = self._ours([state])
        with _errors_of_the_device(), _refusals():
            return noted(done, self._model.forward, tokens, inner, all_logits)

    def lookahead(self) -> ReplayedLookahead:
        return ReplayedLookahead(self)

    def forward_batch(
        self, tokens: Ids, states: Sequence[CudaState], done: list[Logits] | None = None
    ) -> Logits:
        inner = self._ours(states)
        with _errors_of_the_device(), _refusals():
            return noted(done, self._model.forward_batch, tokens, inner)

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
            hint=f"{KERNELS_COME_BY}; or use `--device cpu`",
        )
    return path


_SMALLER = (
    "use a smaller model, fewer `--gpu-layers` or `--device cpu`; `rwkv doctor MODEL` tells what it needs"
)


def _what_fits(file: ModelFile, number: int, library: Path) -> str:
    """The hint for a model that does not fit."""
    fits = required(file, library).layers_within(device(number, library).free_memory)
    if fits == 0:
        return "not one layer fits: use a smaller model or `--device cpu`"
    return f"`--gpu-layers {fits}` fits, with the other layers on the CPU; or use a smaller model or `--device cpu`"


@contextmanager
def _errors_of_the_device(out_of_memory: Callable[[], str] = lambda: _SMALLER) -> Iterator[None]:
    """What goes wrong with a GPU, as errors for people. `out_of_memory` gives the hint for that."""
    try:
        yield
    except _kernels.DeviceMemoryError as e:
        raise OutOfMemory(str(e), hint=out_of_memory()) from None
    except _kernels.ThreadError as e:
        raise too_many_threads(e) from None
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
