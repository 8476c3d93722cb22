"""What a device gives: states and logits. `native` (C++) and `torch_backend` have it; nothing else depends on which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from array import array

    import numpy as np
    from numpy.typing import NDArray

    Float32: TypeAlias = NDArray[np.float32]
    Logits: TypeAlias = memoryview[float] | Float32
    """float32 [V] or [T, V]. The native engines give a memoryview, which `numpy.asarray` takes without a copy: a text is
    generated without importing numpy, which takes longer than the first token of a small model."""
    Ids: TypeAlias = array[int] | NDArray[np.int32]
    """Token ids [T], 32 bits each."""

UNUSED_EPS = 64e-5
"""RWKV-4 has no group norm; a backend's settings have its epsilon all the same."""


class BackendState(Protocol):
    """The recurrent state of one sequence, where and how the device keeps it."""

    def copy(self) -> BackendState: ...

    def assign(self, other: Any) -> None:
        """Take over the values of a state of the same model."""
        ...

    def to_numpy(self) -> Mapping[str, Logits]:
        """The canonical form (a copy), in arrays that `numpy.asarray` takes as they are: per block `att.x_prev` [C], `ffn.x_prev` [C] and `att.state`
        [H, value, key]; for RWKV-4 `att.aa`, `att.bb`, `att.pp` [C]."""
        ...

    def load_numpy(self, arrays: Mapping[str, Any]) -> None:
        """Take the canonical form over. Raises ValueError, and changes nothing, if it does not fit."""
        ...


class Lookahead(Protocol):
    """Tokens that were evaluated after a state, of which the first may become part of it."""

    def run(self, tokens: Ids, state: Any) -> Logits:
        """float32 logits [T, V] of tokens [1 <= T <= LARGEST_LOOKAHEAD] after `state`, which stays as it is."""
        ...

    def keep(self, state: Any, kept: int, count: int, done: list[Any] | None = None) -> None:
        """`state`, which stood before those tokens and has seen the first `kept` of them, has seen `count` > `kept` afterwards.
        `done` as for `Backend.forward`."""
        ...


LARGEST_LOOKAHEAD = 8


class Backend(Protocol):
    """A loaded model on one device."""

    @property
    def description(self) -> str:
        """The device in a few words: `cpu, avx512, 4 threads`."""
        ...

    @property
    def state_type(self) -> type:
        """The class of its states."""
        ...

    def new_state(self) -> BackendState: ...

    def forward(
        self, tokens: Ids, state: Any, all_logits: bool = False, done: list[Logits] | None = None
    ) -> Logits:
        """Feed tokens [T >= 1] to the state, in place. float32 logits [V] of the last, or [T, V] of all.

        `done`, an empty list, is given them as the state advances: a signal that came meanwhile raises in the next moment.
        """
        ...

    def lookahead(self) -> Lookahead | None:
        """Room for looking ahead of one state at a time. None: its logits depend on how tokens are split over calls."""
        ...

    def forward_batch(self, tokens: Ids, states: Sequence[Any], done: list[Logits] | None = None) -> Logits:
        """Feed one token to each of B different states. float32 logits [B, V], also in `done`."""
        ...
