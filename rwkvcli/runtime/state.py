"""A conversation's memory: constant in size, copied at once, saved to one small file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quant.atomic import whole_file
from rwkvcli.errors import FormatError, ModelNotFound, StateMismatch
from rwkvcli.runtime.backend import BackendState

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model

FORMAT = "rwkvcli-state"
FORMAT_VERSION = "0"


class State:
    """What a model remembers of the tokens fed so far. Made by `Model.new_state` or `State.load`.

    `fingerprint` names the model file it belongs to; `tokens_seen` counts the tokens fed.
    """

    def __init__(self, inner: BackendState, fingerprint: str, tokens_seen: int = 0) -> None:
        self.inner = inner
        self.fingerprint = fingerprint
        self.tokens_seen = tokens_seen

    def copy(self) -> State:
        """An independent copy: a branch of the conversation."""
        return State(self.inner.copy(), self.fingerprint, self.tokens_seen)

    def to_numpy(self) -> dict[str, NDArray[np.float32]]:
        """The canonical form, a copy: `blocks.N.att.x_prev` [C], `blocks.N.ffn.x_prev` [C] and `blocks.N.att.state`
        [n_head, value, key]; for RWKV-4 `blocks.N.att.aa`, `.bb`, `.pp` [C] instead of the matrices."""
        return self.inner.to_numpy()

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file. An interrupted save leaves what was there before.

        Raises OSError when the folder cannot be written, and UsageError for a path that is no regular file.
        """
        from safetensors.numpy import save

        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "tokens_seen": str(self.tokens_seen),
        }
        with whole_file(path) as file:
            file.write(save(self.to_numpy(), metadata))

    @classmethod
    def load(cls, path: str | Path, model: Model) -> State:
        """Read a saved state for `model`.

        Raises ModelNotFound (no such file), FormatError (not a state file), StateMismatch (another model's).
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = Path(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ModelNotFound(f"{path}: no such state file") from None
        except OSError as e:
            raise ModelNotFound(f"{path}: {e.strerror}") from None
        try:
            arrays = load(data)
            size = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
            tokens_seen = int(metadata["tokens_seen"])
            version = metadata["format_version"] if metadata["format"] == FORMAT else None
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise FormatError(f"{path}: not a state file, or a damaged one") from None
        if version != FORMAT_VERSION:
            raise FormatError(f"{path}: state format {version!r} is not read by this version")
        if metadata.get("fingerprint") != model.fingerprint:
            raise StateMismatch(
                f"{path}: the state of another model",
                hint="a state can be resumed only by the model file that made it",
            )
        state = model.new_state()
        if tokens_seen < 0:
            raise FormatError(f"{path}: a state that has seen {tokens_seen} tokens")
        for name, empty in state.to_numpy().items():
            array = arrays.get(name)
            if array is None or array.dtype != np.float32 or array.shape != empty.shape:
                raise FormatError(f"{path}: {name} is not float32 {list(empty.shape)}")
            if not np.isfinite(array).all():
                raise FormatError(f"{path}: {name} has values that are NaN or infinite")
        try:
            state.inner.load_numpy(arrays)
        except ValueError as e:
            raise FormatError(f"{path}: {e}") from None
        state.tokens_seen = tokens_seen
        return state


def wrong_model(state: Any) -> StateMismatch:
    """The error for a state handed to a model that did not make it."""
    kind = (
        "the state of another model" if isinstance(state, State) else f"a {type(state).__name__}, not a State"
    )
    return StateMismatch(f"forward was given {kind}", hint="make one with model.new_state()")
