"""The sampler: rules against a slow twin, draws against numpy's generator, frequencies against probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from text_oracles import chooser, completing, distribution, penalized, philox4x64, uniform

from rwkvcli import _kernels
from rwkvcli.errors import FormatError, UsageError
from rwkvcli.runtime.banning import BannedStrings
from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.tokenizer import ByteTokenizer, WorldTokenizer

INF = math.inf


def draws_for(probabilities: dict[int, float]) -> list[float]:
    """The middle of every token's stretch, its ends, and an even comb."""
    ends = np.cumsum(list(probabilities.values()))
    begins = ends - np.array(list(probabilities.values()))
    some = slice(None, None, max(1, len(ends) // 300))
    found = [*((begins + ends) / 2)[some], *begins[some], *(np.arange(64) / 64), 0.0, 1 - 2**-53]
    return [float(min(max(draw, 0.0), 1 - 2**-53)) for draw in found]


def check(
    logits: np.ndarray[Any, Any],
    temperature: float,
    top_k: int,
    probabilities: dict[int, float],
    top_p: float,
    *more: Any,
) -> None:
    native, choose = _kernels.Sampler(), chooser(probabilities)
    for draw in draws_for(probabilities):
        token = native.sample(logits, temperature, top_k, top_p, draw, *more)
        assert token in choose(draw), (draw, token)


levels = st.sampled_from([-30.0, -3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 8.0, -INF])
vectors = st.lists(levels | st.floats(-20, 20, width=32), min_size=1, max_size=300).filter(
    lambda v: max(v) > -INF
)


@given(
    vectors,
    st.sampled_from([0.1, 0.7, 1.0, 1.5, 10.0]),
    st.integers(0, 12) | st.just(1000),
    st.sampled_from([1e-9, 0.2, 0.5, 0.85, 0.999, 1.0, 2.0]),
)
@settings(derandomize=True, deadline=None, max_examples=400)
def test_equals_the_twin(values: list[float], temperature: float, top_k: int, top_p: float) -> None:
    logits = np.array(values, np.float32)
    probabilities, margin = distribution(logits.tolist(), temperature, top_k, top_p)
    assume(margin > 1e-6)  # nearer than that, float32 may cut on either side
    check(logits, temperature, top_k, probabilities, top_p)


@given(
    vectors,
    st.sampled_from([0.1, 0.7, 1.0, 1.5, 10.0]),
    st.sampled_from([0, 1, 5, 1000]),
    st.sampled_from([0.2, 0.85, 1.0]),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.sampled_from([1e-9, 0.2, 0.5, 0.9, 1.0]),
    st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_all_cuts_equal_the_twin(
    values: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical: float,
    temperature_first: bool,
) -> None:
    logits = np.array(values, np.float32)
    more = (min_p, typical, temperature_first)
    probabilities, margin = distribution(logits.tolist(), temperature, top_k, top_p, *more)
    assume(margin > 1e-5)
    check(logits, temperature, top_k, probabilities, top_p, *more)


SHAPES = ["sharp", "zipf", "broad", "flat", "equal"]


def whole_vocabulary(shape: str) -> np.ndarray[Any, Any]:
    """Logits [65530] whose distribution looks like its name."""
    size, rng = 65530, np.random.default_rng(4)
    values = {
        "sharp": rng.normal(size=size) + 20 * (np.arange(size) == 77),
        "zipf": -1.1 * np.log1p(rng.permutation(size)),
        "broad": 3 * rng.normal(size=size),
        "flat": 0.01 * rng.normal(size=size),
        "equal": np.zeros(size),
    }[shape]
    return values.astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "typical", "temperature_first"),
    [
        (1, 0, 1, 0, 0.2, False),
        (1, 0, 1, 0, 0.95, False),
        (0.8, 40, 0.9, 0.05, 0.9, False),
        (1.2, 0, 1, 0.001, 1, False),
        (0.8, 0, 0.9, 0, 1, True),
        (1.5, 40, 0.9, 0.05, 0.9, True),
    ],
)
def test_all_cuts_equal_the_twin_on_a_whole_vocabulary(
    shape: str,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical: float,
    temperature_first: bool,
) -> None:
    logits = whole_vocabulary(shape)
    more = (min_p, typical, temperature_first)
    probabilities = distribution(logits.tolist(), temperature, top_k, top_p, *more)[0]
    native, choose = _kernels.Sampler(), chooser(probabilities)
    for draw in draws_for(probabilities)[::5]:
        assert native.sample(logits, temperature, top_k, top_p, draw, *more) in choose(draw)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1, 0, 1),
        (0.7, 0, 1),
        (1, 0, 0.3),
        (1, 0, 0.85),
        (1.5, 0, 0.9999),
        (1, 50, 1),
        (1, 5000, 1),
        (0.9, 40, 0.5),
    ],
)
def test_equals_the_twin_on_a_whole_vocabulary(
    shape: str, temperature: float, top_k: int, top_p: float
) -> None:
    logits = whole_vocabulary(shape)
    check(logits, temperature, top_k, distribution(logits.tolist(), temperature, top_k, top_p)[0], top_p)


def test_equals_survive_top_p_together_and_top_k_keeps_the_first() -> None:
    native, logits = _kernels.Sampler(), np.array([0, 5, 5, 0, 5], np.float32)
    comb = np.arange(100) / 100
    assert {native.sample(logits, 1.0, 0, 0.1, draw) for draw in comb} == {1, 2, 4}
    assert {native.sample(logits, 1.0, 2, 1.0, draw) for draw in comb} == {1, 2}
    assert {native.sample(logits, 1.0, 4, 1.0, draw) for draw in np.arange(10_000) / 10_000} == {0, 1, 2, 4}


def test_temperature_comes_after_top_p() -> None:
    """At temperature 10 the second token would be within top-p 0.9; at 1, where the cut is made, it is not."""
    logits = np.array([3, 0], np.float32)
    native = _kernels.Sampler()
    assert {native.sample(logits, 10.0, 0, 0.9, draw) for draw in np.arange(100) / 100} == {0}
    assert {native.sample(logits, 10.0, 0, 1.0, draw) for draw in np.arange(100) / 100} == {0, 1}


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e30])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_extreme_temperatures(temperature: float, top_p: float) -> None:
    logits = np.array([-INF, 1.0, 1.5, -1e30], np.float32)
    tokens = [_kernels.Sampler().sample(logits, temperature, 0, top_p, draw) for draw in np.arange(100) / 100]
    if temperature < 1:
        assert set(tokens) == {2}
    elif top_p < 1:
        assert (tokens.count(1), tokens.count(2)) == (50, 50)
    else:  # all but the banned token are equal (-1e30 / 1e30 is one below the top)
        assert set(tokens) == {1, 2, 3}


@pytest.mark.parametrize("temperature", [0.04, 0.01, 0.001])
def test_a_low_temperature_after_typical_cut_the_likeliest(temperature: float) -> None:
    """Those that are left are told apart, however far they lie below what was cut."""
    logits = np.array([-5.0, 0.0, *np.linspace(-4.75, -4.25, 150)], np.float32)
    probabilities, _ = distribution(logits.tolist(), temperature, 0, 1.0, 0.0, 0.2)
    assert 1 not in probabilities and len(probabilities) > 20
    check(logits, temperature, 0, probabilities, 1.0, 0.0, 0.2)


def test_a_share_too_small_for_float64_is_the_likeliest_alone() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, 5000)
    logits = np.array([0.0, *noise - 8.5], np.float32)
    drawn = [_kernels.Sampler().sample(logits, 1.0, 0, top_p, 0.5, 0.0, 0.15) for top_p in (5e-324, 1e-300)]
    kept, _ = distribution(logits.tolist(), 1.0, 0, 1.0, 0.0, 0.15)
    assert 0 not in kept and len(kept) > 512
    assert drawn == [max(kept, key=logits.__getitem__)] * 2


def test_frequencies() -> None:
    logits = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -INF, 1.5, -2.0], np.float32)
    sampler = Sampler(SamplingParams(temperature=1.3, seed=5), valid=len(logits))
    runs = 20_000
    counts = np.bincount([sampler(logits) for _ in range(runs)], minlength=len(logits))
    expected = distribution(logits.tolist(), 1.3, 0, 1.0)[0]
    assert counts[5] == 0
    chi2 = sum((counts[i] - runs * p) ** 2 / (runs * p) for i, p in expected.items() if p > 0)
    assert chi2 < 22.5  # 6 degrees of freedom: exceeded once in a thousand seeds


words = st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**64 - 1, 2**32 - 1, 2**32])


@given(words, words)
@settings(derandomize=True, deadline=None)
def test_draws_are_those_of_numpys_philox(seed: int, index: int) -> None:
    draw = _kernels.uniform(seed, index)
    assert draw == uniform(seed, index)
    assert draw == np.random.Generator(np.random.Philox(counter=index, key=seed)).random()
    assert 0 <= draw < 1


@given(st.tuples(*[st.integers(0, 2**64 - 1)] * 4), st.tuples(*[st.integers(0, 2**64 - 1)] * 2))
@settings(derandomize=True, deadline=None)
def test_philox_is_numpys(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    number = sum(word << 64 * i for i, word in enumerate(counter)) - 1
    numpys = np.random.Philox(counter=number % 2**256, key=key[0] | key[1] << 64)
    assert philox4x64(counter, key) == tuple(int(word) for word in numpys.random_raw(4))


def test_the_same_seed_gives_the_same_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 100)).astype(np.float32)
    first, second = (Sampler(SamplingParams(seed=9), valid=100) for _ in range(2))
    tokens = [first(row) for row in logits]
    assert [second(row) for row in logits[:10]] == tokens[:10]
    third = Sampler(SamplingParams(seed=1), valid=100)
    third.restore(second.state())
    assert [third(row) for row in logits[10:]] == tokens[10:]
    assert third.state() == {"seed": 9, "draws": 20}
    assert [Sampler(SamplingParams(seed=10), valid=100)(row) for row in logits] != tokens


def test_without_a_seed_one_is_chosen_that_repeats_the_run() -> None:
    logits = np.zeros(1000, np.float32)
    first, other = Sampler(SamplingParams(), valid=1000), Sampler(SamplingParams(), valid=1000)
    assert first.seed != other.seed
    again = Sampler(SamplingParams(seed=first.seed), valid=1000)
    assert [first(logits) for _ in range(5)] == [again(logits) for _ in range(5)]


def test_greedy_takes_the_first_of_the_largest_and_draws_nothing() -> None:
    sampler = Sampler(SamplingParams(temperature=0, top_p=0.5), valid=4)
    assert sampler(np.array([0, 3, 3, 1, 9], np.float32)) == 1
    assert sampler.draws == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_past_the_vocabulary_are_never_drawn(temperature: float) -> None:
    logits = np.array([0, 0, 50, 60], np.float32)
    for top_p, top_k in [(1.0, 0), (0.5, 0), (1.0, 3)]:
        sampler = Sampler(SamplingParams(temperature, top_k, top_p, seed=1), valid=2)
        assert {sampler(logits) for _ in range(50)} <= {0, 1}


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
@pytest.mark.parametrize("bad", [[math.nan, 0.0], [0.0, math.nan], [math.nan] * 40, [INF, 0.0], [-INF, -INF]])
def test_logits_that_are_no_numbers(bad: list[float], temperature: float, top_p: float) -> None:
    sampler = Sampler(SamplingParams(temperature, 0, top_p, seed=1), valid=len(bad))
    with pytest.raises(FormatError, match="logit"):
        sampler(np.array(bad, np.float32))
    assert sampler.draws == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": INF},
        {"top_p": 0.0},
        {"top_p": -1.0},
        {"top_p": math.nan},
        {"top_k": -1},
        {"seed": -1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"typical": 0.0},
        {"typical": math.nan},
        {"presence_penalty": INF},
        {"frequency_penalty": math.nan},
        {"penalty_decay": 1.01},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": INF},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1: INF}},
        {"logit_bias": {1: math.nan}},
        {"seed": 2**64},
    ],
)
def test_settings_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))) as error:
        SamplingParams(**bad)
    assert error.value.exit_code == 2


def test_states_that_are_none() -> None:
    sampler = Sampler(SamplingParams(seed=1), valid=5)
    for bad in (
        {},
        {"seed": 1},
        {"seed": 1, "draws": -1},
        {"seed": 2**64, "draws": 0},
        {"seed": "1", "draws": 0},
    ):
        with pytest.raises(FormatError):
            sampler.restore(bad)  # type: ignore[arg-type]
    assert sampler.state() == {"seed": 1, "draws": 0}
    with pytest.raises(UsageError):
        Sampler(SamplingParams(), valid=0)


def test_numbers_that_float32_cannot_compute_with_are_the_largest_it_can() -> None:
    logits = np.array([1.0, 3.0, -2.0, 2.0], np.float32)

    def drawn(count: int = 3, **given: Any) -> list[int]:
        sampler = Sampler(SamplingParams(seed=1, penalty_decay=1.0, **given), 4)
        return [sampler(logits) for _ in range(count)]

    assert drawn(logit_bias={2: 1e300}) == [2, 2, 2]
    assert drawn(logit_bias={1: -1e300, 3: -1e300, 0: -1e300}) == [2, 2, 2]
    for name in ("presence_penalty", "frequency_penalty"):
        assert sorted(drawn(4, **{name: 1e300})) == [0, 1, 2, 3]
        first, *others = drawn(**{name: -1e300})
        assert others == [first, first]
    assert drawn(temperature=0, repetition_penalty=1e300) == [1, 3, 0]
    assert drawn(temperature=0, repetition_penalty=1e-300) == [1, 1, 1]


def test_the_native_sampler_takes_float32_vectors_only() -> None:
    native = _kernels.Sampler()
    with pytest.raises(TypeError):
        native.sample(np.zeros(5), 1.0, 0, 1.0, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one-dimensional"):
        native.sample(np.zeros((2, 5), np.float32), 1.0, 0, 1.0, 0.5)
    with pytest.raises(_kernels.FormatError):
        native.sample(np.zeros(0, np.float32), 1.0, 0, 1.0, 0.5)


@given(
    st.lists(st.tuples(st.integers(0, 19), st.sampled_from([0.0, 1.0])), max_size=60),
    st.sampled_from([0.0, 0.4, -0.5]),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([1.0, 1.3, 0.8]),
    st.sampled_from([1.0, 0.996, 0.5, 0.0]),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_penalties_equal_the_twin(
    generated: list[tuple[int, float]], presence: float, frequency: float, repetition: float, decay: float
) -> None:
    logits = np.random.default_rng(len(generated)).normal(size=20).astype(np.float32)
    native = _kernels.Penalties(presence, frequency, repetition, decay)
    for token, weight in generated:
        native.observe(token, weight)
    changed = logits.copy()
    native.apply(changed)
    expected = penalized(logits.tolist(), generated, presence, frequency, repetition, decay)
    np.testing.assert_allclose(changed, expected, rtol=1e-6, atol=1e-6)
    again = _kernels.Penalties(presence, frequency, repetition, decay)
    again.restore(native.counts())
    other = logits.copy()
    again.apply(other)
    assert (other == changed).all()


def test_penalties_are_those_of_the_reference_package() -> None:
    """presence + occurrence * frequency off every logit in `occurrence`, which decays and then grows by one."""
    occurrence: dict[int, float] = {}
    sampler = Sampler(
        SamplingParams(temperature=0, presence_penalty=0.2, frequency_penalty=0.2, penalty_decay=0.996),
        valid=256,
        tokenizer=ByteTokenizer(),
    )
    rng = np.random.default_rng(3)
    for _ in range(300):
        logits = rng.normal(size=256).astype(np.float32)
        logits[ord("0") : ord("9")] += 1
        expected = logits.astype(np.float64)
        for token, count in occurrence.items():
            expected[token] -= 0.2 + count * 0.2
        before = logits.copy()
        token = sampler(logits)
        assert (logits == before).all()
        assert token == int(np.argmax(expected))
        for other in occurrence:
            occurrence[other] *= 0.996
        grows = bytes([token]) not in b" \t0123456789"
        occurrence[token] = occurrence.get(token, 0.0) + grows


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", b"aab", b"bb", b"abba"]), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_banned_strings_equal_the_twin(words: list[bytes], banned: list[str]) -> None:
    tokens = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"bb", b"abba", b"c"]

    class Small(ByteTokenizer):
        vocab_size = len(tokens)

        def decode_bytes(self, ids: Any) -> bytes:
            return b"".join(tokens[i] for i in ids)

    follower, generated = BannedStrings(banned, Small()), list[int]()
    for word in [*words, b"c"]:
        forbidden = {int(i) for ids in follower.forbidden() for i in ids}
        assert forbidden == completing(tokens, generated, [text.encode() for text in banned])
        generated.append(tokens.index(word))
        follower.push(generated[-1])


def test_banned_strings_never_come_up_in_the_world_vocabulary() -> None:
    tokenizer = WorldTokenizer()
    wanted = tokenizer.encode("Hello world, hello world, hello you")
    sampler = Sampler(
        SamplingParams(temperature=0, banned_strings=("o wor", "zq")), tokenizer.vocab_size, tokenizer
    )
    drawn = []
    for token in wanted:
        logits = np.zeros(65536, np.float32)
        logits[token] = 5
        drawn.append(sampler(logits))
    text = tokenizer.decode(drawn)
    assert "o wor" not in text
    assert text.startswith("Hello")
    assert text.endswith("hello you")


def test_biases_and_bans() -> None:
    logits = np.array([0, 1, 2, 3, 99], np.float32)
    sampler = Sampler(SamplingParams(temperature=0, logit_bias={3: -INF, 0: 1.5}), valid=4)
    assert sampler(logits) == 2
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: 9.0}), valid=4)(logits) == 0
    with pytest.raises(UsageError, match="outside"):
        Sampler(SamplingParams(logit_bias={4: 1.0}), valid=4)
    for temperature in (0.0, 1.0):
        none = Sampler(SamplingParams(temperature, logit_bias=dict.fromkeys(range(4), -INF)), valid=4)
        with pytest.raises(UsageError, match="no token is left"):
            none(logits)
        with pytest.raises(FormatError):
            none(np.array([0, math.nan, 0, 0], np.float32))
    with pytest.raises(UsageError, match="vocabulary"):
        Sampler(SamplingParams(banned_strings=("a",)), valid=4)
    for bad in ("text", ("",)):
        with pytest.raises(UsageError, match="banned"):
            SamplingParams(banned_strings=bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="order"):
        SamplingParams(order="llama")


def test_settings_are_the_familys_but_for_what_is_given() -> None:
    params = SamplingParams.of({"top_p": 0.5, "top_k": 100}, {"top_k": 3, "min_p": None})
    assert (params.top_p, params.top_k, params.min_p) == (0.5, 3, 0.0)
    with pytest.raises(UsageError, match="no sampling setting 'temprature'"):
        SamplingParams.of({}, {"temprature": 1.0})


def test_going_on_with_penalties() -> None:
    params = SamplingParams(seed=4, presence_penalty=0.5, frequency_penalty=0.5, penalty_decay=0.9)
    rows = np.random.default_rng(1).normal(size=(40, 30)).astype(np.float32)
    one, two = Sampler(params, valid=30), Sampler(params, valid=30)
    tokens = [one(row) for row in rows]
    assert [two(row) for row in rows[:20]] == tokens[:20]
    three = Sampler(params, valid=30)
    three.restore(two.state())
    assert [three(row) for row in rows[20:]] == tokens[20:]
    for counts in (
        [[30, 1.0]],
        [[1, 1.0], [1, 2.0]],
        [[1, math.nan]],
        [[1, 10**400]],
        [[1, -1.0]],
        [[1]],
        5,
        [["a", 1.0]],
    ):
        with pytest.raises(FormatError):
            three.restore({"seed": 1, "draws": 0, "counts": counts})
