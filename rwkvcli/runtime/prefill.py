"""Feeding a long text piece by piece: in bounded memory, with progress, and stopped where it can be said where."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rwkvcli.runtime.long_text import encode_long

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.decoding import Evaluator
    from rwkvcli.runtime.state import State
    from rwkvcli.runtime.tokenizer import Tokenizer

_FIRST, _LEAST, _MOST = 256, 32, 8192
"""Tokens fed together."""
_SECONDS = 0.3
"""What a call should take, so that progress and Ctrl-C are not late."""

OnTokens = Callable[[int, int], None]
"""Called with (tokens fed, bytes of text fed)."""


def feed(
    model: Evaluator,
    tokenizer: Tokenizer,
    state: State,
    text: Iterable[bytes],
    before: list[int],
    on_tokens: OnTokens | None = None,
) -> Logits | None:
    """Feed the ids `before` and then the text that the pieces `text` make up. Returns float32 logits [V] of the last token.

    `on_tokens` is called after every call of the engine; what it raises ends the feeding there, with the state
    as told. None: there was nothing to feed.
    """
    logits: Logits | None = None
    calls, fed, done = Calls(lambda ids: model.evaluate(ids, state)), 0, 0
    if before:
        logits = model.evaluate(before, state)
        fed = len(before)
    for ids, size in encode_long(tokenizer, text):
        for at, last in calls.feed(ids):
            logits = last
            if on_tokens is not None:
                on_tokens(fed + at, done + size * at // len(ids))
        fed += len(ids)
        done += size
    return logits


def feed_ids(
    model: Evaluator, state: State, ids: Sequence[int], on_tokens: Callable[[int], None] | None = None
) -> Logits:
    """The same for ids that are known, at least one: float32 logits [V] of the last. `on_tokens`: (tokens fed)."""
    for at, last in Calls(lambda part: model.evaluate(part, state)).feed(ids):
        logits = last
        if on_tokens is not None:
            on_tokens(at)
    return logits


class Calls:
    """Calls of the engine, each of about _SECONDS and of `most` tokens at most: how many that are is found out on the way.
    `evaluate` feeds tokens, and returns their logits."""

    def __init__(self, evaluate: Callable[[Sequence[int]], Logits], most: int = _MOST) -> None:
        self._evaluate, self._most, self._chunk = evaluate, most, min(_FIRST, most)

    def feed(self, ids: Sequence[int]) -> Iterator[tuple[int, Logits]]:
        """Feed `ids`, and yield after every call how many of them were fed, and the logits that it returned."""
        at = 0
        while at < len(ids):
            begin = time.perf_counter()
            part = ids[at : at + self._chunk]
            logits = self._evaluate(part)
            seconds = time.perf_counter() - begin
            at += len(part)
            if len(part) == self._chunk:
                faster = min(2.0, _SECONDS / max(seconds, 1e-9))
                self._chunk = min(max(int(self._chunk * faster), _LEAST), self._most)
            yield at, logits
