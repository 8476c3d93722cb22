"""The PyTorch backend against the reference package's stored results, and against itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.cases import BY_NAME, CASES, Case, relative_difference

torch = pytest.importorskip("torch", reason="the PyTorch backend is optional")

from rwkvcli.runtime.torch_backend import TorchModel, TorchState  # noqa: E402
from rwkvcli.runtime.torch_blocks import round_activations  # noqa: E402

torch.set_num_threads(1)  # the models are too small for more

NAMES = [case.name for case in CASES]
FEW = ["v4", "v5.1", "v6-odd", "v7-odd"]
"""One case of each family, for what does not depend on the details."""
BOUND = {"float32": 1e-5, "float64": 5e-6}
"""Of the logits' range. The reference computes in float32: its own modes differ by up to 2e-6."""


@functools.cache
def loaded(name: str, dtype: str = "float32") -> TorchModel:
    case = BY_NAME[name]
    return TorchModel((case.arch, case.logical()), "cpu", dtype)


def fed(model: TorchModel, pieces: Sequence[Sequence[int]]) -> tuple[NDArray[np.float32], TorchState]:
    """Logits after every token, and the state, of a sequence fed in pieces."""
    state = model.new_state()
    return np.concatenate([model.forward(piece, state, all_logits=True) for piece in pieces]), state


def assert_states_equal(found: TorchState, expected: dict[str, Any], bound: float) -> None:
    """Each tensor within `bound` of its own largest value."""
    arrays = found.to_numpy()
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        assert array.shape == expected[name].shape
        assert np.abs(array - expected[name]).max() <= bound * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "sequence"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name: str, dtype: str, serial: bool) -> None:
    golden = BY_NAME[name].golden()
    pieces = [[token] for token in golden.tokens] if serial else [golden.tokens]
    logits, state = fed(loaded(name, dtype), pieces)
    for row, position in enumerate(golden.positions):
        assert relative_difference(logits[position], golden.logits[row]) <= BOUND[dtype], (
            f"after token {position}"
        )
    assert_states_equal(state, golden.state, 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_any_split_gives_the_same(name: str) -> None:
    model, tokens = loaded(name, "float64"), BY_NAME[name].tokens()
    whole, after = fed(model, [tokens])
    cuts = np.sort(np.random.default_rng(5).choice(np.arange(1, len(tokens)), 4, replace=False))
    pieces = [list(piece) for piece in np.split(np.array(tokens), cuts)]
    logits, state = fed(model, pieces)
    assert relative_difference(logits, whole) <= 1e-7
    assert_states_equal(state, after.to_numpy(), 1e-6)


@pytest.mark.parametrize("name", FEW)
def test_chunks_of_a_long_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = loaded(name, "float64"), BY_NAME[name].tokens()
    whole, _ = fed(model, [tokens])
    monkeypatch.setattr("rwkvcli.runtime.torch_backend.CHUNK", 7)
    chunked, _ = fed(model, [tokens])
    assert relative_difference(chunked, whole) <= 1e-7
    last = model.forward(tokens, model.new_state())
    assert last.shape == (BY_NAME[name].vocab_size,)
    assert np.array_equal(last, chunked[-1])


@pytest.mark.parametrize("name", FEW)
def test_batch_equals_single_sequences(name: str) -> None:
    model, tokens = loaded(name, "float64"), BY_NAME[name].tokens()
    prompts = [tokens[:3], tokens[10:20], []]
    alone, together = [model.new_state() for _ in prompts], [model.new_state() for _ in prompts]
    for prompt, one, other in zip(prompts, alone, together, strict=True):
        if prompt:
            model.forward(prompt, one)
            model.forward(prompt, other)
    following = [4, 5, 4]
    logits = model.forward_batch(following, together)
    expected = np.stack(
        [model.forward([token], state) for token, state in zip(following, alone, strict=True)]
    )
    assert relative_difference(logits, expected) <= 1e-7
    for one, other in zip(alone, together, strict=True):
        assert_states_equal(other, one.to_numpy(), 1e-6)


@pytest.mark.parametrize("name", FEW)
def test_state_export_import_and_copy(name: str) -> None:
    model, tokens = loaded(name), BY_NAME[name].tokens()
    state = model.new_state()
    model.forward(tokens[:9], state)
    kept, exported = state.copy(), state.to_numpy()
    restored = model.new_state()
    restored.load_numpy(exported)
    expected = model.forward(tokens[9:], state)
    assert np.array_equal(model.forward(tokens[9:], restored), expected)
    assert np.array_equal(model.forward(tokens[9:], kept), expected)
    assert not np.array_equal(exported["blocks.0.att.x_prev"], state.to_numpy()["blocks.0.att.x_prev"])


@pytest.mark.parametrize(
    "tokens", [[], [-1], [3, 257], [10**30]], ids=["none", "negative", "past the end", "huge"]
)
def test_bad_tokens_leave_the_state(tokens: list[int]) -> None:
    model = loaded("v7-odd")
    state = model.new_state()
    model.forward([1, 2], state)
    before = state.to_numpy()
    with pytest.raises(ValueError, match="token"):
        model.forward(tokens, state)
    assert_states_equal(state, before, 0)


def test_states_of_other_models_are_refused() -> None:
    model, other = loaded("v7-odd"), loaded("v7-one-head")
    with pytest.raises(ValueError, match="another shape"):
        model.forward([1], other.new_state())
    state = model.new_state()
    with pytest.raises(ValueError, match="not a state of this model"):
        state.load_numpy(other.new_state().to_numpy())
    arrays = state.to_numpy()
    arrays["blocks.0.att.x_prev"] = arrays["blocks.0.att.x_prev"][:-1]
    with pytest.raises(ValueError, match=r"blocks\.0\.att\.x_prev has shape \[79\]"):
        state.load_numpy(arrays)
    with pytest.raises(ValueError, match="the same state twice"):
        model.forward_batch([1, 2], [state, state])
    with pytest.raises(ValueError, match="2 tokens for 1 states"):
        model.forward_batch([1, 2], [state])


@pytest.mark.parametrize("name", ["v5.2", "v6", "v7"])
def test_group_norm_eps_is_used(name: str) -> None:
    case = BY_NAME[name]
    tokens = case.tokens()[:4]
    usual, other = loaded(name), TorchModel((case.arch, case.logical()), group_norm_eps=1e-1)
    a, b = usual.forward(tokens, usual.new_state()), other.forward(tokens, other.new_state())
    assert relative_difference(a, b) > 1e-3


def test_v6_with_extreme_decay() -> None:
    """A decay exponent of exp(8) per token: the old state vanishes at once, and nothing becomes NaN or
    infinite.
    """
    case = Case("v6-extreme", "6", n_embd=64, vocab_size=64, head_size=16, ranks=(4, 4))
    weights = case.logical()
    weights["blocks.0.att.time_decay"][:] = 8
    weights["blocks.1.att.time_decay"][:] = -30
    model = TorchModel((case.arch, weights), dtype="float64")
    logits, state = fed(model, [case.tokens()])
    assert np.isfinite(logits).all()
    serial, _ = fed(model, [[token] for token in case.tokens()])
    assert relative_difference(serial, logits) <= 1e-7
    ranks = [np.linalg.matrix_rank(head, tol=1e-5) for head in state.to_numpy()["blocks.0.att.state"]]
    assert ranks == [1, 1, 1, 1]


def test_v7_with_a_zero_removal_key() -> None:
    case = BY_NAME["v7-odd"]
    weights = case.logical()
    for layer in range(case.n_layer):
        weights[f"blocks.{layer}.att.k_k"][:] = 0
    model = TorchModel((case.arch, weights))
    assert np.isfinite(model.forward(case.tokens(), model.new_state())).all()


@pytest.mark.parametrize("channels", [32, 40, 7])
def test_round_activations(channels: int) -> None:
    """Against the definition, group by group, zeros and exact halves included."""
    x = np.random.default_rng(1).normal(size=(3, channels))
    x[1] = 0
    x[2, :3] = 127, 0.5, 1.5
    found = round_activations(torch.tensor(x)).numpy()
    for row in range(3):
        for start in range(0, channels, 32):
            group = x[row, start : start + 32].astype(np.float32)
            scale = np.abs(group).max() / np.float32(127)
            codes = np.rint(group / scale) if scale > 0 else np.zeros_like(group)
            assert np.array_equal(
                found[row, start : start + 32], codes.astype(np.float64) * np.float64(scale)
            )
    assert found[2, :3].tolist() == [127, 0, 2]


def test_unknown_settings_are_refused() -> None:
    case = BY_NAME["v7-one-head"]
    with pytest.raises(ValueError, match="float16"):
        TorchModel((case.arch, case.logical()), dtype="float16")
    with pytest.raises(ValueError, match="needs a model file"):
        TorchModel((case.arch, case.logical()), imitate_engine=True)
