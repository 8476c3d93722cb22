"""Which tokens would complete a banned string: by looking at every one of them."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from rwkvcli.runtime.banning import BannedStrings
from rwkvcli.runtime.tokenizer import Tokenizer


class Words:
    """A vocabulary of these tokens."""

    has_own_bytes = True

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.read = 0

    def decode_bytes(self, ids: Any) -> bytes:
        self.read += len(ids)
        return b"".join(self.tokens[token] for token in ids)


@pytest.mark.parametrize("seed", range(30))
def test_what_would_complete_a_string_is_struck(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [bytes(rng.choices(b"abc", k=rng.randrange(6))) for _ in range(80)]
    strings = ["".join(rng.choices("abc", k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
    banned = BannedStrings(strings, cast(Tokenizer, Words(tokens)))
    text = b""
    for _ in range(20):
        expected = {
            i
            for i, token in enumerate(tokens)
            for string in map(str.encode, strings)
            if string in (text + token)[max(len(text) - len(string) + 1, 0) :]
        }
        assert {int(i) for ids in banned.forbidden() for i in ids} == expected
        allowed = [i for i in range(len(tokens)) if i not in expected]
        if not allowed:
            break
        token = rng.choice(allowed)
        banned.push(token)
        text += tokens[token]


def test_a_vocabulary_is_looked_through_once() -> None:
    words = Words([bytes([i]) for i in range(256)])
    for _ in range(3):
        BannedStrings(["ab", "c"], cast(Tokenizer, words))
    assert words.read == 256
