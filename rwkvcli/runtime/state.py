"""A conversation's memory: constant in size, copied at once, saved to one small file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import FormatError, StateMismatch
from rwkvcli.runtime.backend import BackendState
from rwkvcli.runtime.state_file import LOGITS, Origin, Pause, StateFile, write_state

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rwkvcli.runtime.model import Model


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
        self.tokens_seen = tokens_seen
        self.pause = pause

    @property
    def fingerprint(self) -> str:
        """Names the model file that the state belongs to."""
        return self.origin.fingerprint

    def copy(self) -> State:
        """An independent copy: a branch of the conversation."""
        return State(self.inner.copy(), self.origin, self.tokens_seen, self.pause)

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
            file.check_belongs_to(model.origin)
            file.verify()
            state = model.new_state()
            expected = {name: array.shape for name, array in state.inner.to_numpy().items()}
            if file.shapes != expected:
                raise FormatError(f"{path}: its arrays are not those of the model's states")
            pause = file.pause
            logits = pause.logits if pause is not None else None
            if logits is not None and logits.shape != (model.config.vocab_size,):
                raise FormatError(f"{path}: {LOGITS} is not as long as the vocabulary")
            values = {
                name: each.cast("B").cast("f", file.shapes[name]) for name, each in file.values().items()
            }
            try:
                state.inner.load_numpy(values)
            except ValueError as e:
                raise FormatError(f"{path}: {e}") from None
            state.tokens_seen, state.pause = file.tokens_seen, pause
        return state


def wrong_model(state: Any) -> StateMismatch:
    """The error for a state handed to a model that did not make it."""
    kind = (
        "the state of another model" if isinstance(state, State) else f"a {type(state).__name__}, not a State"
    )
    return StateMismatch(f"forward was given {kind}", hint="make one with model.new_state()")
