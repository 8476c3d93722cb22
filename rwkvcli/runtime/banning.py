"""Strings that must not come up: which tokens would complete one, whatever was generated before."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from rwkvcli.errors import UsageError
from rwkvcli.runtime.tokenizer import text_to_bytes

if TYPE_CHECKING:
    from rwkvcli.runtime.tokenizer import Tokenizer

Ids: TypeAlias = NDArray[np.intp]


class BannedStrings:
    """Follows the generated tokens, and tells which next ones would complete a banned string.

    A string may begin in one token and end in another. It is looked for in the generated text alone, byte
    by byte, so that upper and lower case differ. Raises UsageError for a vocabulary in which the text of a
    token depends on its neighbours.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        if not tokenizer.has_own_bytes:
            raise UsageError(
                "strings cannot be banned: the text of this model's tokens depends on neighbours"
            )
        self._bytes_of = tokenizer.decode_bytes
        self._strings = [text_to_bytes(string) for string in strings]
        table = _vocabulary(tokenizer)
        self._anywhere = np.unique(np.concatenate([table.containing(string) for string in self._strings]))
        # {what must stand before: tokens that complete a string then}
        self._after: dict[bytes, Ids] = {}
        for string in self._strings:
            for size in range(1, len(string)):
                before, ids = string[:size], table.beginning_with(string[size:])
                if len(ids):
                    self._after[before] = np.union1d(self._after.get(before, ids), ids)
        self._longest = max(map(len, self._after), default=0)
        self._tail = b""

    def strike(self, logits: memoryview[float]) -> None:
        """Make the float32 `logits` [V] of what would complete a banned string now minus infinity."""
        values = np.asarray(logits)
        for ids in self.forbidden():
            values[ids] = -math.inf

    def forbidden(self) -> list[Ids]:
        """Ids that would complete a banned string now."""
        found = [self._anywhere]
        for size in range(1, len(self._tail) + 1):
            ids = self._after.get(self._tail[-size:])
            if ids is not None:
                found.append(ids)
        return found

    @property
    def recent(self) -> bytes:
        """The end of the generated text, as far as it matters."""
        return self._tail

    def resume(self, recent: bytes) -> None:
        """Go on after a text that ends so."""
        self._tail = recent[-self._longest :] if self._longest else b""

    def push(self, token: int) -> None:
        """`token` was generated."""
        if self._longest:
            self._tail = (self._tail + self._bytes_of((token,)))[-self._longest :]


class _Vocabulary:
    """The bytes of all ids, sorted, and one after the other."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._ids = sorted(range(len(tokens)), key=tokens.__getitem__)
        self._sorted = [tokens[token] for token in self._ids]
        self._all = b"".join(self._sorted)
        self._ends = [*accumulate(map(len, self._sorted))]

    def containing(self, part: bytes) -> Ids:
        found: list[int] = []
        at = self._all.find(part)
        while at >= 0:
            number = bisect_right(self._ends, at)  # of the token that it begins in
            if at + len(part) <= self._ends[number]:
                found.append(self._ids[number])
                at = self._ends[number] - 1
            at = self._all.find(part, at + 1)
        return np.array(found, np.intp)

    def beginning_with(self, part: bytes) -> Ids:
        begin = bisect_left(self._sorted, part)
        end = bisect_right(self._sorted, part, lo=begin, key=lambda token: token[: len(part)])
        return np.array(self._ids[begin:end], np.intp)


_known: WeakKeyDictionary[Tokenizer, _Vocabulary] = WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    """That of `tokenizer`, which is looked through once."""
    if tokenizer not in _known:
        tokens = [tokenizer.decode_bytes((token,)) for token in range(tokenizer.vocab_size)]
        _known[tokenizer] = _Vocabulary(tokens)
    return _known[tokenizer]
