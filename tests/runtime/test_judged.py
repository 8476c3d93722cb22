"""What a model made of a text's tokens: the same, bit for bit, however the text is read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_models import same
from text_oracles import log_softmax, rounding
from watched_calls import tokens_of_calls

from rwkvcli import Model
from rwkvcli.errors import FormatError
from rwkvcli.runtime import scoring
from rwkvcli.runtime.judged import Judged, judge_ids
from rwkvcli.runtime.scoring import likeliest, likeliest_of_each

IDS = list(b"It was a fine day, and the old man sat by the fire.\n" * 3)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


def parts(judged: Judged) -> tuple[bytes, bytes, bytes]:
    """All of it, to compare: NaN is no number that equals itself."""
    return judged.logprobs.tobytes(), judged.tops.tobytes(), judged.top_logprobs.tobytes()


@pytest.mark.parametrize("count", [0, 1, 3, 256])
def test_every_token_is_judged_by_those_before_it(model: Model, count: int) -> None:
    judged, state, twin = Judged(count), model.new_state(), model.new_state()
    logits = judge_ids(model, state, IDS, judged, None)
    rows = model.forward(IDS, twin, all_logits=True)
    assert same(state, twin)
    assert np.array_equal(np.asarray(logits), rows[-1])
    expected = log_softmax(rows)
    assert len(judged) == len(IDS)
    assert math.isnan(judged.logprobs[0])
    for number, token in enumerate(IDS[1:], start=1):
        row = expected[number - 1]
        assert judged.logprobs[number] == pytest.approx(row[token], abs=rounding(256))
        order = np.argsort(-rows[number - 1], kind="stable")[:count]
        assert [token for token, _ in judged.top(number)] == order.tolist()
        assert [value for _, value in judged.top(number)] == pytest.approx(
            row[order].tolist(), abs=rounding(256)
        )
    assert judged.nbytes == len(IDS) * (8 + 12 * count)


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_how_a_text_is_read_changes_no_bit(model: Model, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    whole = Judged(2)
    judge_ids(model, model.new_state(), IDS, whole, None)
    monkeypatch.setattr(scoring, "_MOST_ROWS", rows)
    asked = tokens_of_calls(monkeypatch, "forward")
    judged, state, told = Judged(2), model.new_state(), []
    logits = judge_ids(model, state, IDS[:60], judged, None, told.append)
    judge_ids(model, state, IDS[60:], judged, logits, told.append)
    assert parts(judged) == parts(whole)
    assert max(asked) == rows
    assert (sum(asked), told[-1]) == (len(IDS), len(IDS) - 60)
    assert parts(judged.copy()) == parts(judged)


@pytest.mark.parametrize("vocab", [5, 64, 200, 4099])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_the_likeliest_of_rows_are_those_of_each(vocab: int, count: int) -> None:
    rng = np.random.default_rng(vocab + count)
    logits = np.round(rng.normal(0, 3, (6, vocab)), 1).astype(np.float32)  # many are equal
    logits[0] = 0
    targets = [*rng.integers(0, vocab, 5).tolist(), int(logits[5].argmax())]
    chosen, best, values = likeliest_of_each(logits, targets, count)
    expected = log_softmax(logits)
    for row, target in enumerate(targets):
        order = np.argsort(-logits[row], kind="stable")[:count]
        assert best[row].tolist() == order.tolist()
        assert values[row].tolist() == pytest.approx(expected[row][order].tolist(), abs=rounding(vocab))
        assert likeliest(logits[row], target, count) == (
            chosen[row],
            list(zip(best[row].tolist(), values[row].tolist(), strict=True)),
        )
    if count:
        assert values[5][0] == chosen[5]  # to the last bit: programs compare them
    with pytest.raises(FormatError):
        likeliest_of_each(np.full((1, vocab), np.nan, np.float32), [0], count)
