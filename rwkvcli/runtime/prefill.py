"""Feeding a long text piece by piece: in bounded memory, with progress, and stopped where it can be said where."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.runtime.tokenizer import Tokenizer

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]

TEXT_CHUNK = 1 << 16
"""Bytes of text turned into ids together: many times the longest token."""
_FIRST, _LEAST, _MOST = 256, 32, 8192
"""Tokens fed together."""
_SECONDS = 0.3
"""What a call should take, so that progress and Ctrl-C are not late."""

OnTokens = Callable[[int, int], None]
"""Called with (tokens fed, bytes of text fed)."""


def encoded(tokenizer: Tokenizer, text: bytes) -> Iterator[tuple[Ids, int]]:
    """The ids of `text` in pieces, as `encode_bytes` gives them for all of it, and the bytes that each stands for."""
    longest = tokenizer.longest_token
    if longest is None:
        yield np.asarray(tokenizer.encode_bytes(text), np.int32), len(text)
        return
    at = 0
    while at < len(text):
        part = text[at : at + TEXT_CHUNK]
        ids = tokenizer.encode_bytes(part)
        size = len(part)
        if at + size < len(text):  # the last tokens might have been longer ones
            end = size - longest
            while ids and size > end:
                size -= len(tokenizer.decode_bytes((ids.pop(),)))
        yield np.asarray(ids, np.int32), size
        at += size


def feed(
    model: Model,
    state: State,
    text: bytes,
    before: list[int],
    on_tokens: OnTokens | None = None,
) -> Float32 | None:
    """Feed the ids `before` and then `text` to the state. Returns float32 logits [V] of the last token.

    `on_tokens` is called after every call of the engine; what it raises ends the feeding there, with the state
    as told. None: there was nothing to feed.
    """
    logits: Float32 | None = None
    chunk, fed, done = _FIRST, 0, 0
    if before:
        logits = model.forward(before, state)
        fed = len(before)
    for ids, size in encoded(model.tokenizer, text):
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
