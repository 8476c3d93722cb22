"""The C++ engine on float32 model files against the reference package's stored results. Needs no torch."""

from __future__ import annotations

import numpy as np
import pytest
from oracle.cases import GoldenCase, relative_difference

from rwkvcli import Model

BOUND = 1e-5
"""Of the logits' range; the project's goal is 1e-4."""


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "sequence"])
def test_equals_the_reference(golden_case: GoldenCase, serial: bool) -> None:
    model = Model.load(golden_case.model_file("f32"), device="cpu", threads=2)
    assert model.config == golden_case.case.arch
    state = model.new_state()
    if serial:
        logits = np.stack([model.forward([token], state) for token in golden_case.tokens])
    else:
        logits = model.forward(golden_case.tokens, state, all_logits=True)
    for row, position in enumerate(golden_case.positions):
        difference = relative_difference(logits[position], golden_case.logits[row])
        assert difference <= BOUND, f"after token {position}"
    arrays, expected = state.to_numpy(), golden_case.golden.state
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.shape == expected[name].shape
        assert np.abs(array - expected[name]).max() <= 2e-5 * np.abs(expected[name]).max(), name
