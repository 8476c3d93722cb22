"""Looking ahead of a state, as every backend can and as a model's states know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli.runtime.native import noted

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

    def run(self, tokens: Ids, state: Any) -> Logits:
        self._tokens = tokens
        if self._ahead is None:
            self._ahead = state.copy()
        else:
            self._ahead.assign(state)
        return self._backend.forward(tokens, self._ahead, True)

    def keep(self, state: Any, kept: int, count: int, done: list[Any] | None = None) -> None:
        assert self._tokens is not None and self._ahead is not None
        if count == len(self._tokens):
            noted(done, state.assign, self._ahead)
        else:
            self._backend.forward(self._tokens[kept:count], state, done=done)


class _Kept(NamedTuple):
    """A call that makes more of the tokens part of the state: one value, so that Ctrl-C cannot come in the middle of a change."""

    before: int
    after: int
    done: list[Any]
    """Holds something once the state has seen them."""


class Ahead:
    """Tokens after a state of `model`, which they may become part of."""

    def __init__(self, model: Model, room: Lookahead) -> None:
        self._model = model
        self._room = room
        self._last = _Kept(0, 0, [])
        self._mark: object = None

    @property
    def kept(self) -> int:
        """Of the tokens that were run last, how many the state has seen."""
        return self._last.after if self._last.done else self._last.before

    def run(self, tokens: Sequence[int], state: State) -> list[Logits]:
        """Float32 logits [V] after each of the tokens, LARGEST_LOOKAHEAD at most. `state` stays as it is."""
        ids = self._model.ids_for(tokens, state)
        self._last = _Kept(0, 0, [])
        self._mark = state.mark
        logits: Any = self._room.run(ids, state.inner)
        vocab, flat = self._model.config.vocab_size, memoryview(logits).cast("B").cast("f")
        return [flat[i * vocab : (i + 1) * vocab] for i in range(len(tokens))]

    def keep(self, state: State, count: int) -> None:
        """That state has seen the first `count` of the tokens afterwards; it must not have changed but by this."""
        kept = self.kept
        if count == kept:
            return
        self._last = last = _Kept(kept, count, [])
        state.begin(count - kept, last.done)
        try:
            self._room.keep(state.inner, kept, count, last.done)
        finally:
            state.end(last.done)
            self._mark = state.mark

    def is_ahead_of(self, state: State) -> bool:
        """Whether the state has not changed since the tokens were run, but by `keep`."""
        return self._mark is state.mark
