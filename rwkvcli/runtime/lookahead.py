"""Looking ahead of a state, as every backend can and as a model's states know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Backend, BackendState, Ids, Logits, Lookahead
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State


class ReplayedLookahead:
    """For a backend that can do no better: it looks ahead of a copy, and evaluates again what is kept of the tokens, unless
    that is all of them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ahead: BackendState | None = None
        self._tokens: Ids | None = None
        self._kept = 0

    def run(self, tokens: Ids, state: Any) -> Logits:
        self._tokens, self._kept = tokens, 0
        if self._ahead is None:
            self._ahead = state.copy()
        else:
            self._ahead.assign(state)
        return self._backend.forward(tokens, self._ahead, True)

    def keep(self, state: Any, count: int, done: list[Any] | None = None) -> None:
        tokens, kept = self._tokens, self._kept
        assert tokens is not None and self._ahead is not None
        if count == kept:
            return
        if count == len(tokens):
            state.assign(self._ahead)
            if done is not None:
                done.append(None)
        else:
            self._backend.forward(tokens[kept:count], state, done=done)
        self._kept = count


class Ahead:
    """Tokens after a state of `model`, which they may become part of."""

    def __init__(self, model: Model, room: Lookahead) -> None:
        self._model = model
        self._room = room
        self.kept = 0
        """Of the tokens that were run last, how many the state has seen."""

    def run(self, tokens: Sequence[int], state: State) -> list[Logits]:
        """Float32 logits [V] after each of the tokens, LARGEST_LOOKAHEAD at most. `state` stays as it is."""
        self.kept = 0
        logits: Any = self._room.run(self._model.ids_for(tokens, state), state.inner)
        vocab, flat = self._model.config.vocab_size, memoryview(logits).cast("B").cast("f")
        return [flat[i * vocab : (i + 1) * vocab] for i in range(len(tokens))]

    def keep(self, state: State, count: int) -> None:
        """That state has seen the first `count` of the tokens afterwards; it must not have changed but by this."""
        done: list[Any] = []
        state.begin(count - self.kept, done)
        try:
            self._room.keep(state.inner, count, done)
        finally:
            state.end(done)
        self.kept = count
