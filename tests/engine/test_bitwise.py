"""One arithmetic: whatever the split, the batch, the thread count or the CPU level, the bits are the same."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
from small_models import VERSIONS, ModelMaker

from quant.container.reader import ModelFile
from rwkvcli import Model, _kernels
from rwkvcli.runtime.native import NativeModel

TOKENS = np.random.default_rng(7).integers(0, 300, 41).astype(np.int32)
CASES = [
    ("f32", "tile"),
    ("bf16", "tile"),
    ("int8", "tile"),
    ("int6", "tile"),
    ("int5", "tile"),
    ("int4", "tile"),
    ("int8", "kn"),
    ("int6", "kn"),
    ("int5", "kn"),
    ("int4", "kn"),
]

_ILLEGAL = 0xC000001D if sys.platform == "win32" else -signal.SIGILL
"""The exit code of a process that came upon an instruction that its processor does not know."""


@pytest.fixture(scope="module")
def levels(make_model: ModelMaker) -> list[str]:
    """Every level that this processor runs, also AVX-VNNI where it is not reported (some hypervisors hide it)."""
    names = list(_kernels.cpu_levels())
    if "avx2" in names and "avxvnni" not in names:
        # another process finds out, on a model with integer products: an illegal instruction would end this one
        quiet = (
            "import msvcrt; msvcrt.SetErrorMode(msvcrt.SEM_NOGPFAULTERRORBOX);"  # or a debugger is started
        )
        probe = (quiet if sys.platform == "win32" else "") + (
            "import sys, numpy as np; from quant.container.reader import ModelFile;"
            "from rwkvcli.runtime.native import NativeModel; m = NativeModel(ModelFile.open(sys.argv[1]), 1, 'avxvnni!');"
            "m.forward(np.array([1, 2], np.int32), m.new_state())"
        )
        command = [sys.executable, "-P", "-c", probe, str(make_model("7", "int8"))]
        code = subprocess.run(command, capture_output=True, check=False).returncode
        assert code in (0, _ILLEGAL)
        if code == 0:
            names.append("avxvnni!")
    return names


@pytest.mark.parametrize(("kind", "ffn_value"), CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_serial_prompt_splits_batches_and_threads(
    make_model: ModelMaker, levels: list[str], version: str, kind: str, ffn_value: str
) -> None:
    file = ModelFile.open(make_model(version, kind, ffn_value=ffn_value))
    expected = None
    for level in levels:
        for threads in (1, 2, 5):
            model = NativeModel(file, threads, level)
            state = model.new_state()
            whole = np.asarray(model.forward(TOKENS, state, True))
            assert np.isfinite(whole).all()
            if expected is None:
                expected, final = whole, state.to_numpy()
            np.testing.assert_array_equal(whole, expected, f"{level}, {threads} threads")
            for name, array in state.to_numpy().items():
                np.testing.assert_array_equal(array, final[name], f"{level}, {threads} threads, {name}")
        serial = model.new_state()
        for t in range(len(TOKENS)):
            np.testing.assert_array_equal(model.forward(TOKENS[t : t + 1], serial), expected[t])
        rng = np.random.default_rng(len(level))
        split = model.new_state()
        begin = 0
        while begin < len(TOKENS):
            end = begin + int(rng.integers(1, 12))
            np.testing.assert_array_equal(
                model.forward(TOKENS[begin:end], split), expected[min(end, len(TOKENS)) - 1]
            )
            begin = end
        # a batch whose members stand at different places of the same text
        places = [0, 3, 11, 17, 18, 30, 40, 1, 2, 5]
        states = []
        for place in places:
            states.append(model.new_state())
            if place:
                model.forward(TOKENS[:place], states[-1])
        together = np.asarray(model.forward_batch(TOKENS[places], states))
        for row, place in zip(together, places, strict=True):
            np.testing.assert_array_equal(row, expected[place])


@pytest.mark.parametrize("version", ["4", "5.2", "7"])
@pytest.mark.parametrize("kind", ["f32", "int8", "int6", "int5", "int4"])
def test_odd_sizes(make_model: ModelMaker, version: str, kind: str) -> None:
    # n_embd 40 with heads of 8: no multiple of a group, a tile or a vector
    model = Model.load(make_model(version, kind, n_embd=40, head_size=8, vocab_size=257), threads=3)
    tokens = TOKENS % 257
    state = model.new_state()
    whole = model.forward(tokens, state, all_logits=True)
    assert whole.shape == (len(tokens), 257)
    serial = model.new_state()
    for t in range(len(tokens)):
        np.testing.assert_array_equal(model.forward(tokens[t : t + 1], serial), whole[t])


def test_prompts_longer_than_a_chunk(make_model: ModelMaker) -> None:
    model = Model.load(make_model("7", "int8"), threads=2)
    tokens = np.random.default_rng(1).integers(0, 300, 700)
    state, halves = model.new_state(), model.new_state()
    whole = model.forward(tokens, state)
    model.forward(tokens[:123], halves)
    np.testing.assert_array_equal(model.forward(tokens[123:], halves), whole)
    assert state.tokens_seen == halves.tokens_seen == 700
