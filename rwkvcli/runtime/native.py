"""The C++ engine on the CPU as a backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from quant.formats import ENCODINGS
from rwkvcli import _kernels
from rwkvcli.errors import DeviceUnavailable, FormatError, UsageError
from rwkvcli.runtime.backend import UNUSED_EPS, BackendState
from rwkvcli.runtime.device import cpu_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quant.container.reader import ModelFile
    from rwkvcli.runtime.backend import Ids, Logits

_T = TypeVar("_T")


class NativeModel:
    """A model file evaluated by the C++ engine on the CPU.

    `threads` >= 1; `level` names a CPU level (`scalar`, `avx2`, `avxvnni`, `avx512`, `neon`, `dotprod`,
    `i8mm`) or is empty for the best one.
    The engine maps the file itself; nothing is copied at load.
    """

    def __init__(self, file: ModelFile, threads: int, level: str = "") -> None:
        path, config, tensors = engine_arguments(file)
        try:
            self._model = _kernels.Model(path, config, tensors, threads, level)
        except _kernels.ThreadError as e:
            raise too_many_threads(e) from None
        except _kernels.FormatError as e:
            raise FormatError(str(e)) from None
        except (_kernels.DeviceError, ValueError) as e:
            raise refused(e) from None

    @property
    def threads(self) -> int:
        return self._model.threads

    @property
    def level(self) -> str:
        """The CPU level in use."""
        return self._model.level

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read for one token when every row is used."""
        return self._model.weight_bytes

    def count_active_channels(self, on: bool) -> None:
        """Begin (at zero) or end counting `active_channels`."""
        self._model.count_active_channels(on)

    @property
    def active_channels(self) -> list[int]:
        """Channels of `ffn.value` in layout kn read since counting began, over all tokens: of each layer."""
        return self._model.active_channels

    def collect_inputs(self, on: bool) -> None:
        """Begin (at zero) or end adding up `inputs`."""
        self._model.collect_inputs(on)

    @property
    def inputs(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.uint64]]]:
        """{matrix: (sum of the squares [K], how often not 0 [K])} of what went into it since collecting began. Only
        float32 inputs are seen: those of unquantized matrices and of layout kn.
        """
        return self._model.inputs

    @property
    def description(self) -> str:
        return f"cpu, {self.level}, {self.threads} thread{'s' if self.threads != 1 else ''}"

    @property
    def state_type(self) -> type:
        return _kernels.State

    def new_state(self) -> BackendState:
        return self._model.new_state()

    def forward(
        self, tokens: Ids, state: Any, all_logits: bool = False, done: list[Logits] | None = None
    ) -> Logits:
        with _errors_of_the_engine():
            return noted(done, self._model.forward, tokens, state, all_logits)

    def lookahead(self) -> NativeLookahead:
        return NativeLookahead(self._model)

    def forward_batch(self, tokens: Ids, states: Sequence[Any], done: list[Logits] | None = None) -> Logits:
        with _errors_of_the_engine():
            return noted(done, self._model.forward_batch, tokens, list(states))


class NativeLookahead:
    """The engine keeps what each token does to a state, and does that to it later."""

    def __init__(self, model: _kernels.Model) -> None:
        self._model = model
        self._room = model.new_lookahead()

    def run(self, tokens: Ids, state: Any) -> Logits:
        with _errors_of_the_engine():
            return self._model.look_ahead(tokens, state, self._room)

    def keep(self, state: Any, kept: int, count: int, done: list[Any] | None = None) -> None:
        with _errors_of_the_engine():  # the room knows how many are kept
            noted(done, self._model.keep, state, self._room, count)


def noted(done: list[_T] | None, compute: Callable[..., _T], *given: Any) -> _T:
    """What the extension's `compute(*given)` returns, also in `done`.

    Python handles signals between its own instructions, the first time right after a call; `extend` is one call, in
    which the result is computed and noted.
    """
    done = [] if done is None else done
    done.extend(map(compute, *((each,) for each in given)))
    return done[0]


def engine_arguments(file: ModelFile) -> tuple[bytes, dict[str, Any], list[Any]]:
    """How the extension's models are told of a file: its path, its config, and where its tensors lie."""
    config: dict[str, Any] = asdict(file.arch)
    config["group_norm_eps"] = file.group_norm_eps or UNUSED_EPS
    tensors = [
        (name, ENCODINGS[plan.encoding].computed_as, plan.layout, list(plan.shape), plan.parts)
        for name, plan in file.plan.items()
    ]
    return os.fsencode(file.path), config, tensors  # as str, the path would have to be UTF-8


def native_sampler() -> _kernels.Sampler:
    """The sampler's hot loops, at the CPU level in use."""
    try:
        return _kernels.Sampler(cpu_level())
    except (_kernels.DeviceError, ValueError) as e:
        raise refused(e) from None


def refused(error: Exception) -> UsageError | DeviceUnavailable:
    """What the extension does not take, as an error for people."""
    if isinstance(error, _kernels.DeviceError):
        return DeviceUnavailable(str(error))
    hint = "`rwkv doctor` tells which there are" if "RWKV_CPU_LEVEL" in str(error) else None
    return UsageError(str(error), hint=hint)


@contextmanager
def _errors_of_the_engine() -> Iterator[None]:
    """What the engine refuses at its door is the caller's mistake; the child of a fork starts threads anew."""
    try:
        yield
    except _kernels.ThreadError as e:
        raise too_many_threads(e) from None
    except ValueError as e:
        raise UsageError(str(e)) from None


def too_many_threads(error: Exception) -> DeviceUnavailable:
    """What the extension says when the system gives it no threads, as an error for people."""
    return DeviceUnavailable(str(error), hint="ask for fewer with `-t N`, or give the process more memory")
