"""Kept beginnings of prompts: what is read from one is, bit for bit, what is read from the start."""

from __future__ import annotations

import gc
import random
import tracemalloc

import numpy as np
import pytest
from watched_calls import tokens_of_calls

from rwkvcli import Model, State
from rwkvcli.errors import OutOfMemory
from rwkvcli.runtime.judged import Judged, judge_ids
from rwkvcli.services.generation import Read
from rwkvcli.services.prefixes import Prefixes, common_prefix

LARGE = 1 << 30


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


@pytest.fixture
def fed(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the engine was given."""
    return tokens_of_calls(monkeypatch, "evaluate")


def assert_exact(model: Model, read: Read, ids: list[int]) -> None:
    """The state and the logits are those of a model that reads `ids` at once."""
    state = model.new_state()
    assert np.array_equal(np.asarray(read.logits), model.forward(ids, state))
    for name, array in state.to_numpy().items():
        assert np.array_equal(read.state.to_numpy()[name], array), name
    assert read.tokens == len(ids)
    assert read.state.tokens_seen == len(ids)


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(1, 256), k=length)


def test_a_prompt_that_goes_on_is_read_from_where_the_last_one_ended(model: Model, fed: list[int]) -> None:
    prefixes, ids = Prefixes(model, LARGE), text(1, 50)
    first, known = prefixes.read(ids)
    assert (sum(fed), known) == (50, 0)
    model.forward([65], first.state)  # the caller goes on with its state; what is kept is another
    fed.clear()
    second, known = prefixes.read([*ids, 7, 8, 9])
    assert (sum(fed), known) == (3, 50)
    assert_exact(model, second, [*ids, 7, 8, 9])


def test_the_same_prompt_is_not_read_again(model: Model, fed: list[int]) -> None:
    prefixes, ids = Prefixes(model, LARGE), text(2, 40)
    prefixes.read(ids)
    fed.clear()
    for _ in range(2):
        again, known = prefixes.read(ids)
        assert (fed, known) == ([], 40)
        model.forward([65], again.state)
        fed.clear()
    assert_exact(model, prefixes.read(ids)[0], ids)


def test_places_that_the_caller_names_are_kept(model: Model, fed: list[int]) -> None:
    prefixes, ids = Prefixes(model, LARGE), text(3, 60)
    read, _ = prefixes.read(ids, [0, 20, 60, 99])
    assert_exact(model, read, ids)
    fed.clear()
    other = [*ids[:20], *text(4, 10)]
    read, known = prefixes.read(other)
    assert (sum(fed), known) == (10, 20)
    assert_exact(model, read, other)


def test_what_two_prompts_share_is_kept_from_the_second_on(model: Model, fed: list[int]) -> None:
    prefixes, manual = Prefixes(model, LARGE), text(5, 200)
    knowns = []
    for question in range(6, 10):
        ids = [*manual, question, *text(question, 10)]
        read, known = prefixes.read(ids)
        knowns.append(known)
        assert_exact(model, read, ids)
    assert knowns == [0, 0, 200, 200]


def test_a_short_common_beginning_is_not_kept(model: Model) -> None:
    prefixes = Prefixes(model, LARGE)
    knowns = [prefixes.read([*text(1, 31), last, *text(last, 40)])[1] for last in (1, 2, 3)]
    assert knowns == [0, 0, 0]


def test_a_state_without_logits_serves_longer_prompts_alone(model: Model, fed: list[int]) -> None:
    prefixes, ids = Prefixes(model, LARGE), text(6, 40)
    state = model.new_state()
    model.evaluate(ids, state)
    prefixes.keep(ids, state)
    fed.clear()
    read, known = prefixes.read(ids)
    assert (sum(fed), known) == (40, 0)
    assert_exact(model, read, ids)
    read, known = prefixes.read([*ids, 5])
    assert known == 40
    assert_exact(model, read, [*ids, 5])


def test_the_limit_holds_and_the_longest_unused_goes_first(model: Model) -> None:
    one = sum(array.nbytes for array in model.new_state().to_numpy().values()) + 4 * model.config.vocab_size
    prefixes = Prefixes(model, 2 * one + one // 2)
    a, b, c = text(1, 10), text(2, 10), text(3, 10)
    for ids in (a, b):
        prefixes.read(ids)
    assert prefixes.read([*a, 1])[1] == 10  # keeps itself: b goes
    assert prefixes.read(b)[1] == 0
    assert prefixes.read([*a, 1])[1] == 11
    assert prefixes.read(c)[1] == 0
    assert len(prefixes) == 2


def test_the_tokens_of_what_is_kept_count_as_well(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the engine, whose states are not Python's: what is left is what they are kept under."""
    one = sum(array.nbytes for array in model.new_state().to_numpy().values()) + 4 * model.config.vocab_size
    logits = np.zeros(model.config.vocab_size, np.float32)
    monkeypatch.setattr(Model, "evaluate", lambda *_: logits)
    size = 10_000
    prefixes = Prefixes(model, 20 * one)
    beginnings = [[number, *[1] * size] for number in range(300)]
    gc.collect()
    tracemalloc.start()
    for ids in beginnings:
        prefixes.read(ids)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # of 20 states 18 and their tokens are left room for, and an eighth of it is for recent prompts
    assert len(prefixes) == (20 * one - 20 * one // 8 // (4 * size + 8) * (4 * size + 8)) // (
        one + 4 * size + 8
    )
    assert len(prefixes) * one + used < 20 * one
    assert prefixes.read([*beginnings[-1][:5000], 2])[1] == 0
    assert prefixes.read([*beginnings[-1][:5000], 3])[1] == 5000


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_device_that_is_full_keeps_less(model: Model, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    prefixes, copy = Prefixes(model, LARGE), State.copy

    def scarce(state: State) -> State:
        if len(prefixes) >= room:
            raise OutOfMemory("the device is full")
        return copy(state)

    monkeypatch.setattr(State, "copy", scarce)
    for seed in range(4):
        ids = text(seed, 40)
        assert_exact(model, prefixes.read(ids)[0], ids)
        assert len(prefixes) == min(seed + 1, room)


def test_a_prompt_that_is_larger_than_all_of_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    one = sum(array.nbytes for array in model.new_state().to_numpy().values()) + 4 * model.config.vocab_size
    monkeypatch.setattr(Model, "evaluate", lambda *_: np.zeros(model.config.vocab_size, np.float32))
    prefixes = Prefixes(model, one + one // 2)
    for _ in range(2):
        assert prefixes.read([1] * (one // 8))[1] == 0
    assert len(prefixes) == 0
    prefixes.read([1, 2, 3])
    assert prefixes.read([1, 2, 3])[1] == 3


def test_without_room_nothing_is_kept(model: Model) -> None:
    prefixes, ids = Prefixes(model, 0), text(1, 40)
    for _ in range(3):
        read, known = prefixes.read(ids)
        assert known == 0
        assert_exact(model, read, ids)
    assert len(prefixes) == 0


def test_progress_counts_what_was_known(model: Model) -> None:
    prefixes, ids = Prefixes(model, LARGE), text(7, 600)
    prefixes.read(ids[:100])
    told: list[int] = []
    prefixes.read(ids, [300], told.append)
    assert told == sorted(told)
    assert told[0] > 100
    assert 300 in told
    assert told[-1] == 600


def test_an_interrupted_reading_leaves_what_is_kept_whole(model: Model) -> None:
    prefixes, ids = Prefixes(model, LARGE), text(8, 600)

    def stop(done: int) -> None:
        if done > 300:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        prefixes.read(ids, [100], stop)
    read, known = prefixes.read(ids)
    assert known == 100
    assert_exact(model, read, ids)


def test_what_goes_on_from_a_state_is_kept_apart(model: Model, fed: list[int]) -> None:
    begun, ids = text(1, 30), text(2, 40)
    starts = [model.new_state(), model.new_state()]
    for start, tokens in zip(starts, (begun, begun[:10]), strict=True):
        model.evaluate(tokens, start)
    prefixes = Prefixes(model, LARGE, starts)
    for _ in range(2):
        for start, seen in ((0, []), (1, begun), (2, begun[:10])):
            read, _ = prefixes.read(ids, start=start)
            state = model.new_state()
            assert np.array_equal(np.asarray(read.logits), model.forward([*seen, *ids], state))
            assert read.state.tokens_seen == len(seen) + len(ids)
            assert read.tokens == 40
    fed.clear()
    assert [prefixes.read([*ids, 1], start=start)[1] for start in (0, 1, 2)] == [40, 40, 40]
    assert sum(fed) == 3


@pytest.mark.parametrize("seed", range(20))
def test_common_prefix(seed: int) -> None:
    rng = random.Random(seed)
    shared, a, b = (rng.choices(range(70_000), k=rng.randrange(50)) for _ in range(3))
    a, b = [*shared, *a], [*shared, *b]
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(a, b) == expected


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_prompts_gives_exact_states(model: Model, seed: int) -> None:
    rng = random.Random(seed)
    one = sum(array.nbytes for array in model.new_state().to_numpy().values()) + 4 * model.config.vocab_size
    prefixes = Prefixes(model, 4 * one)
    stems = [text(1, 70), text(1, 50), text(2, 40)]
    for _ in range(25):
        ids = [*rng.choice(stems), *text(rng.randrange(3), rng.randrange(1, 50))]
        read, _ = prefixes.read(ids, [rng.randrange(len(ids))])
        assert_exact(model, read, ids)
        more = text(9, 3)
        model.evaluate(more, read.state)
        prefixes.keep([*ids, *more], read.state)


def test_what_is_kept_tells_of_its_tokens_where_it_can(model: Model, fed: list[int]) -> None:
    def judged(ids: list[int], count: int) -> tuple[bytes, ...]:
        whole = Judged(count)
        judge_ids(model, model.new_state(), ids, whole, None)
        return whole.logprobs.tobytes(), whole.tops.tobytes(), whole.top_logprobs.tobytes()

    prefixes, ids = Prefixes(model, LARGE), text(7, 60)
    prefixes.read(ids)
    for count, more, expected in (
        (2, [], 0),  # what is kept says nothing
        (2, [], 60),
        (2, [1, 2, 3], 60),
        (3, [1, 2, 3], 0),  # of as many tokens only
        (2, [1, 2, 3, 4], 60),  # what was told of three is no help
        (2, [1, 2, 3, 5], 63),  # the shared beginning was kept anew
    ):
        fed.clear()
        whole = [*ids, *more]
        read, known = prefixes.read(whole, count=count)
        assert known == expected
        assert sum(fed) == len(whole) - known
        assert_exact(model, read, whole)
        assert read.judged is not None
        told = read.judged
        assert (told.logprobs.tobytes(), told.tops.tobytes(), told.top_logprobs.tobytes()) == judged(
            whole, count
        )
    read, known = prefixes.read([*ids, 1, 2, 3])  # and serves who does not ask
    assert (known, read.judged) == (63, None)


def test_what_is_told_of_tokens_counts_as_well(model: Model) -> None:
    one = sum(array.nbytes for array in model.new_state().to_numpy().values()) + 4 * model.config.vocab_size
    prefixes = Prefixes(model, 2 * one + one // 2)
    ids, count = text(1, 100), 200
    assert 100 * 12 * count > one // 2
    prefixes.read(ids)
    prefixes.read(text(2, 40))
    assert len(prefixes) == 2
    prefixes.read(ids, count=count)
    assert len(prefixes) == 1
    prefixes.read(text(3, 10))
    assert len(prefixes) == 1
    prefixes.read(text(4, 10))
    assert len(prefixes) == 2
