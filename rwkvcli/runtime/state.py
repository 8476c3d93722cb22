"""A conversation's memory: constant in size, copied at once, saved to one small file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli.errors import FormatError, StateMismatch
from rwkvcli.runtime.backend import BackendState
from rwkvcli.runtime.state_file import LOGITS, Origin, Pause, StateFile, write_state

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.model import Model


class _Call(NamedTuple):
    """A call of the engine with the state: it feeds `tokens`, which the state has seen once `done` has their logits."""

    tokens: int
    done: list[Logits]


class _Noted(NamedTuple):
    """What a state knows of its text: one value, so that Ctrl-C cannot come in the middle of a change."""

    tokens: int
    pause: Pause | None
    calls: tuple[_Call, ...] = ()

    def settled(self) -> _Noted:
        """The same with the calls that are done added up."""
        tokens = sum(call.tokens for call in self.calls if call.done)
        calls = tuple(call for call in self.calls if not call.done)
        return _Noted(self.tokens + tokens, None if tokens else self.pause, calls)


class State:
    """What a model remembers of the tokens fed so far. Made by `Model.new_state` or `State.load`.

    `tokens_seen` counts the tokens fed. `pause` holds what a generation needs to go on from here exactly; the next
    token that is fed takes it away.
    """

    def __init__(
        self, inner: BackendState, origin: Origin, tokens_seen: int = 0, pause: Pause | None = None
    ) -> None:
        self.inner = inner
        self.origin = origin
        self._noted = _Noted(tokens_seen, pause)

    @property
    def tokens_seen(self) -> int:
        return self._noted.settled().tokens

    @property
    def pause(self) -> Pause | None:
        return self._noted.settled().pause

    @pause.setter
    def pause(self, pause: Pause | None) -> None:
        self._noted = self._noted.settled()._replace(pause=pause)

    @property
    def mark(self) -> object:
        """Another object once the state has changed."""
        return self._noted

    @property
    def fingerprint(self) -> str:
        """Names the model file that the state belongs to."""
        return self.origin.fingerprint

    def begin(self, count: int, done: list[Logits]) -> None:
        """A call of the engine is about to feed `count` tokens: the state has seen them once `done` has the logits."""
        noted = self._noted.settled()
        self._noted = noted._replace(calls=(*noted.calls, _Call(count, done)))

    def end(self, done: list[Logits]) -> None:
        """That call has ended, well or not."""
        noted = self._noted.settled()
        self._noted = noted._replace(calls=tuple(call for call in noted.calls if call.done is not done))

    def copy(self) -> State:
        """An independent copy: a branch of the conversation."""
        return State(self.inner.copy(), self.origin, self.tokens_seen, self.pause)

    def assign(self, other: State) -> None:
        """Become as `other`, a state of the same model, in the memory that is there."""
        self.inner.assign(other.inner)
        self._noted = _Noted(other.tokens_seen, other.pause)

    def __copy__(self) -> State:
        return self.copy()  # the usual one would share the memory

    def __deepcopy__(self, _memo: object) -> State:
        return self.copy()

    def to_numpy(self) -> dict[str, NDArray[np.float32]]:
        """The canonical form, a copy: `blocks.N.att.x_prev` [C], `blocks.N.ffn.x_prev` [C] and `blocks.N.att.state`
        [n_head, value, key]; for RWKV-4 `blocks.N.att.aa`, `.bb`, `.pp` [C] instead of the matrices."""
        import numpy as np

        return {name: np.asarray(array) for name, array in self.inner.to_numpy().items()}

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file. An interrupted save leaves what was there before.

        Raises OSError when the folder cannot be written, and UsageError for a path that is no regular file.
        """
        write_state(path, self.inner.to_numpy(), self.origin, self.tokens_seen, self.pause)

    @classmethod
    def load(cls, path: str | Path, model: Model) -> State:
        """Read a saved state for `model`.

        Raises ModelNotFound (no such file), FormatError (not a state file, or a damaged one), StateMismatch
        (another model's).
        """
        with StateFile(path) as file:
            return cls.of(file, model)

    @classmethod
    def of(cls, file: StateFile, model: Model) -> State:
        """The state in an open file. Raises as `load`."""
        file.check_belongs_to(model.origin)
        file.verify()
        state = model.new_state()
        expected = {name: array.shape for name, array in state.inner.to_numpy().items()}
        if file.shapes != expected:
            raise FormatError(f"{file.path}: its arrays are not those of the model's states")
        pause = file.pause
        logits = pause.logits if pause is not None else None
        if logits is not None and logits.shape != (model.config.vocab_size,):
            raise FormatError(f"{file.path}: {LOGITS} is not as long as the vocabulary")
        values = {name: each.cast("B").cast("f", file.shapes[name]) for name, each in file.values().items()}
        try:
            state.inner.load_numpy(values)
        except ValueError as e:
            raise FormatError(f"{file.path}: {e}") from None
        return cls(state.inner, model.origin, file.tokens_seen, pause)


def wrong_model(state: Any) -> StateMismatch:
    """The error for what is given as a state of a model that did not make it."""
    wrong = (
        "is that of another model" if isinstance(state, State) else f"is a State, not {type(state).__name__}"
    )
    return StateMismatch(f"`state` {wrong}", hint="make one with model.new_state()")
