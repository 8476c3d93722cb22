"""The CUDA kernels, as librwkv_cuda has them: the reference's stored results, and the bits of the engine on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_library import needs_library
from oracle.cases import INTEGERS, GoldenCase, relative_difference

from rwkvcli import Model, State

pytestmark = needs_library

KINDS = [("f32", "auto"), ("bf16", "auto"), *INTEGERS]
BOUND = 1e-5
"""Of the logits' range, in float32: that of the engine on the CPU."""


def assert_same(a: State, b: State) -> None:
    x, y = a.to_numpy(), b.to_numpy()
    assert x.keys() == y.keys()
    for name, array in x.items():
        assert array.shape == y[name].shape
        assert np.array_equal(array, y[name]), name


def test_equals_the_reference(golden_case: GoldenCase) -> None:
    model = Model.load(golden_case.model_file("f32"), device="cuda")
    state = model.new_state()
    logits = model.forward(golden_case.tokens, state, all_logits=True)
    for row, position in enumerate(golden_case.positions):
        difference = relative_difference(logits[position], golden_case.logits[row])
        assert difference <= BOUND, f"after token {position}"
    arrays, expected = state.to_numpy(), golden_case.golden.state
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.shape == expected[name].shape
        assert np.abs(array - expected[name]).max() <= 2e-5 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize(("kind", "ffn_value"), KINDS)
def test_has_the_bits_of_the_cpu(golden_case: GoldenCase, kind: str, ffn_value: str) -> None:
    """A prompt, tokens one by one, a batch; and states that go from one device to the other in the middle."""
    path, tokens = golden_case.model_file(kind, ffn_value), golden_case.tokens
    cpu, gpu = Model.load(path, device="cpu", threads=1), Model.load(path, device="cuda")
    there, here = cpu.new_state(), gpu.new_state()
    expected = cpu.forward(tokens[:20], there, all_logits=True)
    assert np.array_equal(gpu.forward(tokens[:20], here, all_logits=True), expected)
    for token in tokens[20:24]:
        assert np.array_equal(gpu.forward([token], here), cpu.forward([token], there))
    assert_same(here, there)
    back, forth = cpu.new_state(), gpu.new_state()
    back.inner.load_numpy(here.to_numpy())
    forth.inner.load_numpy(there.to_numpy())
    assert_same(back, forth)
    fresh = [model.new_state() for model in (cpu, gpu)]
    a = cpu.forward_batch([tokens[24], tokens[0]], [back, fresh[0]])
    b = gpu.forward_batch([tokens[24], tokens[0]], [forth, fresh[1]])
    assert np.array_equal(a, b)
    assert np.array_equal(b[1], expected[0])
    assert np.array_equal(gpu.forward(tokens[25:], forth), cpu.forward(tokens[25:], back))
    assert_same(forth, back)
