"""The C++ engine on int8, int6, int5, int4 and nf4 model files against float64 arithmetic on the same dequantized weights.

Before an integer product the engine rounds activations (to 8 bits per 32 channels; for a kn matrix to 16 bits per 16
active channels), which the PyTorch backend can imitate. Then
the two agree to float32's rounding, about 1e-7 of the logits' range, except that now and then an activation
lies so near the middle of two codes that it is rounded the other way. One such flip moves the logits by 1e-3
to 1e-2, and those of every later token with them. Short sequences have few: one in twenty of four tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle.cases import INTEGERS, GoldenCase, relative_difference

torch = pytest.importorskip("torch", reason="the PyTorch backend is optional")

from quant.container.reader import ModelFile  # noqa: E402
from rwkvcli import Model  # noqa: E402
from rwkvcli.runtime.torch_backend import TorchModel  # noqa: E402

torch.set_num_threads(1)

KINDS = [*INTEGERS, ("nf4", "tile")]
TOKENS, LENGTH = 48, 4
NO_FLIP = 1e-6
"""Float32's rounding, of the logits' range; medians were at most 1.4e-7."""
NO_FLIP_KN = 1e-2 / 256
"""With kn matrices float32's rounding flips 16-bit values all the time; each moves the logits 256 times less than an
8-bit one does. Medians were at most 3e-6. Such flips bring 8-bit ones about: sequences of one token have few."""
ANY = 6e-2
"""A backstop and no derived bound: twice the largest difference seen (2.8e-2, a flip in a v6 model)."""


@pytest.mark.parametrize(("kind", "ffn_value"), KINDS)
def test_integer_products(golden_case: GoldenCase, kind: str, ffn_value: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    path = golden_case.model_file(kind, ffn_value)
    engine = Model.load(path, device="cpu", threads=1)
    with ModelFile.open(path) as file:
        eps = file.group_norm_eps
        imitation = TorchModel(file, dtype="float64", group_norm_eps=eps, imitate_engine=True)
        plain = TorchModel(file, dtype="float64", group_norm_eps=eps)

    # short sequences from the empty state: most without a flip, those to the last few bits
    length, bound = (1, NO_FLIP_KN) if ffn_value == "kn" else (LENGTH, NO_FLIP)
    tokens = np.array(golden_case.tokens[:TOKENS]).reshape(-1, length)
    states = [imitation.new_state() for _ in tokens]
    expected = np.stack([imitation.forward_batch(column, states) for column in tokens.T], axis=1)
    found = np.stack([engine.forward(row, engine.new_state(), all_logits=True) for row in tokens])
    differences = [relative_difference(*pair) for pair in zip(found, expected, strict=True)]
    assert np.median(differences) <= bound, f"differences of the sequences: {differences}"
    assert max(differences) <= ANY

    # the whole text, whatever flips: as near to unrounded activations as 8 bits allow
    whole = engine.forward(golden_case.tokens, engine.new_state(), all_logits=True)
    exact = plain.forward(golden_case.tokens, plain.new_state(), all_logits=True)
    assert relative_difference(whole, exact) <= ANY
    assert rms(whole - exact) <= 0.03 * np.std(exact)
    # The imitation's own error is the cost of 8 bits, found without the engine. The engine's differs by which values
    # were rounded the other way, so it is another draw of the same noise: not twice as large.
    rounded = imitation.forward(golden_case.tokens, imitation.new_state(), all_logits=True)
    assert rms(whole - exact) <= 2 * rms(rounded - exact)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


def test_torch_model_of_a_file(golden_case: GoldenCase) -> None:
    """A float32 model file is the checkpoint: the backend computes the same of both, bit for bit."""
    with ModelFile.open(golden_case.model_file("f32")) as file:
        from_file = TorchModel(file, group_norm_eps=file.group_norm_eps)
    from_arrays = TorchModel((golden_case.case.arch, golden_case.case.logical()))
    tokens = golden_case.tokens[:3]
    found = from_file.forward(tokens, from_file.new_state())
    assert np.array_equal(found, from_arrays.forward(tokens, from_arrays.new_state()))


def test_states_move_between_devices(golden_case: GoldenCase) -> None:
    """A state exported from the engine is continued in PyTorch, and the other way round."""
    path = golden_case.model_file("f32")
    models = [Model.load(path, device=device, threads=1) for device in ("cpu", "torch:cpu")]
    tokens = golden_case.tokens
    for first, second in (models, models[::-1]):
        state, continued = first.new_state(), second.new_state()
        first.forward(tokens[:20], state)
        continued.inner.load_numpy(state.to_numpy())
        logits = second.forward(tokens[20:], continued)
        assert relative_difference(logits, golden_case.logits[-1]) <= 1e-5
