"""Long texts in pieces: the same ids, and the same state, as all at once."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rwkvcli import Model
from rwkvcli.errors import Cancelled
from rwkvcli.runtime import long_text, prefill
from rwkvcli.runtime.tokenizer import ByteTokenizer, Tokenizer, WorldTokenizer


@pytest.mark.parametrize("tokenizer", [WorldTokenizer(), ByteTokenizer()])
@pytest.mark.parametrize("chunk", [300, 1000, 1 << 16])
def test_pieces_of_a_text_have_the_ids_of_the_whole(
    tokenizer: Tokenizer, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    words = [tokenizer.decode_bytes((draw.randrange(1, tokenizer.vocab_size),)) for _ in range(4000)]
    text = b"".join(words) + draw.randbytes(1000) + b" " * 700 + b"-" * 999
    monkeypatch.setattr(long_text, "PIECE", chunk)
    pieces = list(long_text.encode_long(tokenizer, [text]))
    assert [token for ids, _ in pieces for token in ids] == tokenizer.encode_bytes(text)
    assert sum(size for _, size in pieces) == len(text)
    assert all(tokenizer.decode_bytes(list(ids)) for ids, _ in pieces)


def test_feeding_is_one_forward_and_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load("demo")
    text = b"It was a fine day. " * 40
    expected = model.new_state()
    logits = model.forward(list(text), expected)
    monkeypatch.setattr(prefill, "_FIRST", 100)
    state = model.new_state()
    told: list[tuple[int, int]] = []
    fed = prefill.feed(
        model,
        model.tokenizer,
        state,
        [text[:70], text[70:]],
        [],
        lambda tokens, done: told.append((tokens, done)),
    )
    assert fed is not None
    np.testing.assert_array_equal(fed, logits)
    assert told[0] == (100, 100)
    assert told[-1] == (len(text), len(text))

    def stop(tokens: int, done: int) -> None:
        raise Cancelled("enough")

    state = model.new_state()
    with pytest.raises(Cancelled):
        prefill.feed(model, model.tokenizer, state, [text], [0], stop)
    assert state.tokens_seen == 101
    assert prefill.feed(model, model.tokenizer, state, [b""], []) is None
