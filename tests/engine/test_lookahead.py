"""Looking ahead of a state: the logits and the states that `forward` gives, on every backend; what goes wrong counts nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_library import needs_library
from numpy.typing import NDArray
from small_models import VERSIONS, ModelMaker, same

from rwkvcli import Model, State, _kernels
from rwkvcli.errors import DeviceUnavailable, RwkvError, StateMismatch, UsageError
from rwkvcli.runtime.backend import LARGEST_LOOKAHEAD
from rwkvcli.runtime.lookahead import Ahead, ReplayedLookahead
from rwkvcli.runtime.native import NativeLookahead
from rwkvcli.runtime.state_file import Pause

PROMPT, TOKENS = [5, 0, 17], [31, 2, 18, 18, 40, 3, 11, 29, 1]


def loaded(make_model: ModelMaker, kind: str, version: str, **options: Any) -> Model:
    path = make_model(version, "int4", n_embd=40, head_size=8, vocab_size=257, **options)
    if kind == "cuda":
        return Model.load(path, device="cuda")
    if kind == "split":
        return Model.load(path, device="cuda", gpu_layers=1, threads=2)
    model = Model.load(path, device="cpu", threads=2)
    if kind == "replayed":
        backend: Any = model.backend
        backend.lookahead = lambda: ReplayedLookahead(backend)
    return model


NATIVE = ["native", "replayed"]
GPU = [pytest.param(kind, marks=needs_library) for kind in ("cuda", "split")]


@pytest.fixture(params=[*NATIVE, *GPU])
def model(request: pytest.FixtureRequest, make_model: ModelMaker) -> Model:
    return loaded(make_model, request.param, "7")


def engine_of(model: Model) -> _kernels.Model:
    backend: Any = model.backend
    engine: _kernels.Model = backend._model
    return engine


def ahead_of(model: Model) -> Ahead:
    ahead = model.ahead()
    assert ahead is not None
    return ahead


def begun(model: Model) -> State:
    """A state that has seen PROMPT, with something to go on from."""
    state = model.new_state()
    model.forward(PROMPT, state)
    state.pause = Pause(ended=True)
    return state


def steps_to(count: int) -> list[list[int]]:
    """How `count` tokens may be kept: at once, one by one, and with calls that add none."""
    return [[count], [*range(count + 1)], [0, count // 2, count // 2, count, count]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [*NATIVE, *GPU])
def test_ahead_is_as_forward_in_every_bit(make_model: ModelMaker, kind: str, version: str) -> None:
    model = loaded(make_model, kind, version)
    start = begun(model)
    expected = [start]
    logits: list[NDArray[np.float32]] = []
    for token in TOKENS:
        expected.append(expected[-1].copy())
        logits.append(model.forward([token], expected[-1]))
    ahead = ahead_of(model)
    for count in (1, 2, 5, LARGEST_LOOKAHEAD):
        for kept in sorted({0, 1, count // 2, count}):
            for steps in steps_to(kept):
                state = start.copy()
                found = ahead.run(TOKENS[:count], state)
                assert np.array_equal(np.array(found), np.array(logits[:count]))
                assert same(state, start)
                assert (state.tokens_seen, state.pause) == (len(PROMPT), start.pause)
                for step in steps:
                    ahead.keep(state, step)
                    assert state.tokens_seen == len(PROMPT) + step
                    assert (state.pause is None) == (step > 0)
                assert same(state, expected[kept])
                assert np.array_equal(model.forward([TOKENS[kept]], state), logits[kept])


def test_there_is_none_where_splits_change_the_logits(make_model: ModelMaker) -> None:
    pytest.importorskip("torch")
    assert Model.load(make_model("7", "int8"), device="torch:cpu").ahead() is None


def test_one_room_serves_many_states(model: Model) -> None:
    ahead = ahead_of(model)
    first, second = begun(model), model.new_state()
    ahead.run(TOKENS[:3], first)
    ahead.run(TOKENS[:2], second)
    ahead.keep(second, 2)
    expected = model.new_state()
    model.forward(TOKENS[:2], expected)
    assert same(second, expected)
    assert same(first, begun(model))


@pytest.mark.parametrize("tokens", [[], [257], [-1], [1, 2, 1 << 40], [[1], [2]], [1.5], ["a"]])
def test_bad_tokens_change_nothing(model: Model, tokens: Any) -> None:
    state = begun(model)
    before = state.copy()
    with pytest.raises(UsageError):
        ahead_of(model).run(tokens, state)
    assert same(state, before)
    assert (state.tokens_seen, state.pause) == (len(PROMPT), before.pause)


def test_foreign_states_are_refused(model: Model, make_model: ModelMaker) -> None:
    other = loaded(make_model, "native", "7", seed=2)
    with pytest.raises(StateMismatch):
        ahead_of(model).run([1], other.new_state())


def test_the_engine_refuses_what_it_did_not_look_at(make_model: ModelMaker) -> None:
    model = loaded(make_model, "native", "7")
    room, state = NativeLookahead(engine_of(model)), begun(model)
    before = state.copy()
    other = loaded(make_model, "native", "7", n_layer=1).new_state().inner
    two = model.ids_for([1, 2], state)
    with pytest.raises(UsageError, match=r"^too many tokens to look ahead$"):
        room.run(model.ids_for(TOKENS, state), state.inner)
    with pytest.raises(UsageError, match=r"^the state belongs to a model of another shape$"):
        room.run(two, other)
    with pytest.raises(UsageError, match=r"^so many tokens were not looked ahead$"):
        room.keep(state.inner, 0, 1)
    room.run(two, state.inner)
    for count in (-1, 3):
        with pytest.raises(UsageError, match=r"^so many tokens were not looked ahead$"):
            room.keep(state.inner, 0, count)
    with pytest.raises(UsageError, match=r"^the state belongs to a model of another shape$"):
        room.keep(other, 0, 1)
    assert same(state, before)


def test_a_room_of_fewer_threads_is_refused(make_model: ModelMaker) -> None:
    path = make_model("7", "int4", n_embd=40, head_size=8, vocab_size=257)
    one, three = (engine_of(Model.load(path, device="cpu", threads=n)) for n in (1, 3))
    room = NativeLookahead(one)
    room._model = three
    state = three.new_state()
    with pytest.raises(UsageError, match=r"^the room belongs to a model with fewer threads$"):
        room.run(np.array([1], np.int32), state)


def test_what_fails_counts_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, state, expected = ahead_of(model), begun(model), begun(model)
    room: Any = ahead._room

    def fails(*_: Any) -> None:
        raise DeviceUnavailable("the device is gone")

    for name, call in (
        ("run", lambda: ahead.run(TOKENS[:3], state)),
        ("keep", lambda: ahead.keep(state, 2)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, fails)
            with pytest.raises(RwkvError, match="gone"):
                call()
        assert (state.tokens_seen, state.pause) == (len(PROMPT), expected.pause)
        assert same(state, expected)
        ahead.run(TOKENS[:3], state)
    ahead.keep(state, 2)
    model.forward(TOKENS[:2], expected)
    assert same(state, expected)
    assert state.tokens_seen == len(PROMPT) + 2


@pytest.mark.parametrize("count", [2, 3])
def test_what_was_kept_when_a_signal_comes_counts_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    ahead, state, expected = ahead_of(model), begun(model), begun(model)
    room: Any = ahead._room
    keep = room.keep

    def interrupted(*given: Any) -> None:
        keep(*given)
        raise KeyboardInterrupt  # which comes right after

    ahead.run(TOKENS[:3], state)
    ahead.keep(state, 1)
    with monkeypatch.context() as patch:
        patch.setattr(room, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ahead.keep(state, count)
    assert state.tokens_seen == len(PROMPT) + count
    for kept in (count, 3):
        ahead.keep(state, kept)
        assert state.tokens_seen == len(PROMPT) + kept
    model.forward(TOKENS[:3], expected)
    assert same(state, expected)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["native", *GPU])
def test_a_state_becomes_as_another(make_model: ModelMaker, kind: str, version: str) -> None:
    become(loaded(make_model, kind, version))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_state_of_torch_becomes_as_another(make_model: ModelMaker, version: str) -> None:
    pytest.importorskip("torch")
    become(Model.load(make_model(version, "int8", n_embd=40, head_size=8), device="torch:cpu"))


def become(model: Model) -> None:
    """A state takes over another's values, and goes its own way from there."""
    state, other = model.new_state(), begun(model)
    model.forward([7, 7], state)
    state.assign(other)
    assert same(state, other)
    assert (state.tokens_seen, state.pause) == (len(PROMPT), other.pause)
    logits = model.forward([1], state)
    assert state.tokens_seen == len(PROMPT) + 1
    assert (other.tokens_seen, other.pause) == (len(PROMPT), Pause(ended=True))
    assert same(other, begun(model))
    assert np.array_equal(model.forward([1], other), logits)
    state.assign(state)
    assert same(state, other)


def test_states_of_another_shape_are_not_taken_over(make_model: ModelMaker) -> None:
    state = begun(loaded(make_model, "native", "7"))
    before = state.copy()
    for foreign in (loaded(make_model, "native", "7", n_layer=1), loaded(make_model, "native", "6")):
        with pytest.raises(ValueError, match=r"^the state belongs to a model of another shape$"):
            state.assign(foreign.new_state())
    assert same(state, before)
    assert (state.tokens_seen, state.pause) == (len(PROMPT), before.pause)
