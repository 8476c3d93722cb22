"""Feeding a long text piece by piece: in bounded memory, with progress, and stopped where it can be said where."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkvcli.runtime.long_text import encode_long

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State

Float32 = NDArray[np.float32]

_FIRST, _LEAST, _MOST = 256, 32, 8192
"""Tokens fed together."""
_SECONDS = 0.3
"""What a call should take, so that progress and Ctrl-C are not late."""

OnTokens = Callable[[int, int], None]
"""Called with (tokens fed, bytes of text fed)."""


def feed(
    model: Model,
    state: State,
    text: Iterable[bytes],
    before: list[int],
    on_tokens: OnTokens | None = None,
) -> Float32 | None:
    """Feed the ids `before` and then the text that the pieces `text` make up. Returns float32 logits [V] of the last token.

    `on_tokens` is called after every call of the engine; what it raises ends the feeding there, with the state
    as told. None: there was nothing to feed.
    """
    logits: Float32 | None = None
    chunk, fed, done = _FIRST, 0, 0
    if before:
        logits = model.forward(before, state)
        fed = len(before)
    for encoded, size in encode_long(model.tokenizer, text):
        ids = np.asarray(encoded, np.int32)
        at = 0
        while at < len(ids):
            begin = time.perf_counter()
            part = ids[at : at + chunk]
            logits = model.forward(part, state)
            seconds = time.perf_counter() - begin
            at += len(part)
            fed += len(part)
            if on_tokens is not None:
                on_tokens(fed, done + size * at // len(ids))
            if len(part) == chunk:
                chunk = min(max(int(chunk * min(2.0, _SECONDS / max(seconds, 1e-9))), _LEAST), _MOST)
        done += size
    return logits
