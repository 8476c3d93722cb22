"""Log-probabilities of choices against the reference package's stored logits. Needs no torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracle.cases import GoldenCase
from text_oracles import log_softmax

from rwkvcli import Model
from rwkvcli.runtime.choices import score_choices

BOUND = 2e-5
"""Of the logits' range: twice that of a logit, since the sum of weights is one too."""


@pytest.mark.parametrize("unused", [0, 7])
def test_equals_the_reference(golden_case: GoldenCase, unused: int) -> None:
    """After the first token: what comes second by itself, and with every kind of third token."""
    assert golden_case.positions[:2] == [0, 1]
    model: Any = Model.load(golden_case.model_file("f32"), device="cpu", threads=2)
    valid = model.config.vocab_size - unused
    model._tokenizer = SimpleNamespace(vocab_size=valid)
    first, second = log_softmax(golden_case.logits[:2, :valid])
    state, (begin, then) = model.new_state(), golden_case.tokens[:2]
    logits = model.forward([begin], state)
    thirds = range(0, valid, 17)
    choices = [[then], [valid - 1], *([then, third] for third in thirds)]
    found = score_choices(model, state, logits, choices)
    expected = [first[then], first[valid - 1], *(first[then] + second[third] for third in thirds)]
    spread = np.ptp(golden_case.logits[:2], axis=1).sum()
    assert np.abs(np.subtract(found, expected)).max() <= BOUND * spread
