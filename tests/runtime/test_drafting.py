"""Drafters: what they guess, against brute force and against what is drawn; and samplers that go their own way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_models import VERSIONS, ModelMaker

from rwkvcli import Model
from rwkvcli.errors import UsageError
from rwkvcli.runtime.drafting import DraftModel, First, Forced, Lookup, check_vocabulary
from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
PROMPT = [*b"One two, one two"]
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "seed": 5},
    "plain": {"temperature": 1, "seed": 5},
    "penalties": {
        "seed": 5, "presence_penalty": 0.4, "frequency_penalty": 0.6, "repetition_penalty": 1.3,
        "penalty_decay": 0.9,
    },
    "bans": {"seed": 6, "banned_strings": ("a", "bc", "\x80"), "logit_bias": {7: 2.5, 9: -1}, "top_p": 0.9},
    "all of it": {
        "temperature": 0.7, "top_k": 60, "min_p": 0.001, "seed": 7, "presence_penalty": 0.4,
        "banned_strings": ("th", "e"), "order": "temperature-first",
    },
}  # fmt: skip


def sampler_of(setting: str, regex: str | None = None) -> Sampler:
    matcher = None
    if regex is not None:
        from rwkvcli.runtime.constraint import Constraint

        matcher = Constraint.of_regex(regex).matcher(BYTES)
    return Sampler(SamplingParams(**SETTINGS[setting]), 256, BYTES, matcher)


@pytest.fixture
def model(make_model: ModelMaker) -> Model:
    return Model.load(make_model("7", "int8", vocab_size=256), device="cpu", threads=1)


# Lookup


def looked_up(text: list[int], most: int) -> list[int]:
    """What followed the last three tokens of `text` when they came up before, by trying every place: as many as are the same."""
    for place in range(len(text) - 1, 2, -1):
        if text[place - 3 : place] == text[-3:]:
            same = max(n for n in range(3, place + 1) if text[place - n : place] == text[-n:])
            guesses: list[int] = []
            for i in range(min(most, same)):  # beyond the end of the text there are the guesses
                guesses.append((text + guesses)[place + i])
            return guesses
    return []


@pytest.mark.parametrize("kinds", [1, 2, 4, 8])
def test_lookup_finds_what_followed_the_last_time(kinds: int) -> None:
    random = np.random.default_rng(kinds)
    found = 0
    for _ in range(30):
        lookup, text = Lookup(1000), list[int]()
        for size in random.integers(1, 6, 20):
            piece = random.integers(0, kinds, size).tolist()
            lookup.read(piece)
            text += piece
            for most in (1, 2, 7):
                guesses = lookup.guess(most)
                assert guesses == looked_up(text, most)
                assert guesses == lookup.guess(most)  # guessing is not reading
                found += bool(guesses)
    assert found > 20


def test_lookup_goes_on_with_what_repeats_itself() -> None:
    lookup = Lookup(100)
    lookup.read([9, 1, 2, 1, 2, 1])
    assert lookup.guess(7) == [2, 1, 2]  # three tokens came twice
    lookup.read([2, 1])
    assert lookup.guess(7) == [2, 1, 2, 1, 2]
    assert lookup.guess(4) == [2, 1, 2, 1]
    lookup.read([8, 8, 8, 8, 8])
    assert lookup.guess(7) == [8, 8, 8, 8]


def test_lookup_has_nothing_to_find() -> None:
    lookup = Lookup(100)
    assert lookup.guess(7) == []
    for token in (4, 4, 4):  # the same three tokens have to come twice
        lookup.read([token])
        assert lookup.guess(7) == []
    lookup.read([4])
    assert lookup.guess(2) == [4, 4]
    lookup.read([])
    assert lookup.guess(2) == [4, 4]
    lookup.read([5, 6, 7, 8])
    assert lookup.guess(7) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_lookup_remembers_so_much_and_no_more_than_twice_that(at_once: bool) -> None:
    for lead in range(45):
        for between, known in ((0, True), (13, True), (36, False), (80, False)):
            lookup = Lookup(20)
            text = [*range(100, 100 + lead), 1, 2, 3, 4, *range(200, 200 + between), 1, 2, 3]
            for piece in [text] if at_once else [[token] for token in text]:
                lookup.read(piece)
            assert bool(lookup.guess(1)) is known, (lead, between)
            assert len(lookup._text) <= 40
            if known:
                assert lookup.guess(1) == [4]


def test_the_first_that_has_guesses_guesses() -> None:
    one, other = Lookup(100), Lookup(100)
    both = First([one, other])
    other.read([1, 2, 3, 4, 5])
    both.read([6, 1, 2, 3])
    assert one.guess(2) == []
    assert both.guess(2) == [4, 5]
    both.read([1, 2, 3])
    assert both.guess(2) == one.guess(2) == [1, 2]
    assert First([]).guess(7) == []


# Forced


def drawn(sampler: Sampler, byte: int) -> None:
    """The sampler draws `byte`."""
    logits = np.zeros(256, np.float32)
    logits[byte] = 1e4
    assert sampler(logits) == byte


def test_what_a_grammar_forces_is_guessed() -> None:
    pytest.importorskip("llguidance")
    sampler = sampler_of("greedy", "(yes|no), my l[ao]rd")
    forced = Forced(sampler, BYTES)
    assert forced.guess(7) == []
    drawn(sampler, ord("y"))
    forced.read([ord("y")])
    assert forced.guess(100) == [*b"es, my l"]
    assert forced.guess(3) == [*b"es,"]
    for byte in b"es, my ":
        drawn(sampler, byte)
    assert forced.guess(7) == [*b"l"]
    drawn(sampler, ord("l"))
    assert forced.guess(7) == []
    drawn(sampler, ord("o"))
    assert forced.guess(7) == [*b"rd"]
    drawn(sampler, ord("r"))
    drawn(sampler, ord("d"))
    assert sampler.complete
    assert forced.guess(7) == []


def test_half_a_character_is_not_guessed() -> None:
    pytest.importorskip("llguidance")
    sampler = sampler_of("greedy", "a(é|è)b")
    forced = Forced(sampler, BYTES)
    assert forced.guess(7) == [*b"a"]  # and the first byte of either
    drawn(sampler, ord("a"))
    assert forced.guess(7) == []
    drawn(sampler, 0xC3)
    drawn(sampler, 0xA9)
    assert forced.guess(7) == [*b"b"]


def test_without_a_grammar_nothing_is_forced() -> None:
    assert Forced(sampler_of("penalties"), BYTES).guess(7) == []


# DraftModel


def continued(model: Model, tokens: Sequence[int], sampler: Sampler, most: int) -> list[int]:
    """The next tokens of a text by itself, up to its end; the sampler has drawn them afterwards."""
    state, ids = model.new_state(), list(tokens)
    logits = model.evaluate(ids, state)
    made: list[int] = []
    while len(made) < most and not sampler.complete:
        token = sampler(logits)
        if token == model.tokenizer.eos_id:
            break
        made.append(token)
        logits = model.evaluate([token], state)
    return made


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_model_guesses_what_it_draws_itself(model: Model, setting: str) -> None:
    sampler = sampler_of(setting)
    draft, text = DraftModel(model, sampler), list(PROMPT)
    draft.read(text)
    for most in (1, 7, 3, 7, 2, 7):
        guesses = draft.guess(most)
        made = continued(model, text, sampler, most)
        assert guesses == made
        text += made
        draft.read(made)


@pytest.mark.parametrize("version", VERSIONS)
def test_after_wrong_guesses_it_goes_on_right(make_model: ModelMaker, version: str) -> None:
    model = Model.load(make_model(version, "int8", vocab_size=256), device="cpu", threads=1)
    random = np.random.default_rng(1)
    sampler = sampler_of("penalties")
    draft, text = DraftModel(model, sampler), list(PROMPT)
    draft.read(text)
    for _ in range(25):
        most = int(random.integers(1, 8))
        guesses = draft.guess(most)
        if random.random() < 0.2:
            assert guesses == draft.guess(most)  # guessing is not reading; what was fed is fed anew
        right = int(random.integers(0, len(guesses) + 1))
        came = [*guesses[:right], *random.integers(1, 256, random.integers(1, 3)).tolist()]
        draft.read(came)
        text += came
        assert draft.guess(4) == continued(model, text, sampler.fork(), 4)


def test_it_guesses_nothing_before_there_is_a_text(model: Model) -> None:
    assert DraftModel(model, sampler_of("plain")).guess(7) == []


def test_its_guesses_end_with_the_text(model: Model) -> None:
    lengths = set()
    for seed in range(30):
        params = SamplingParams(seed=seed, logit_bias={0: 6.0})
        draft = DraftModel(model, Sampler(params, 256, BYTES))
        draft.read(PROMPT)
        guesses = draft.guess(7)
        assert guesses == continued(model, PROMPT, Sampler(params, 256, BYTES), 7)
        lengths.add(len(guesses))
    assert len(lengths) > 3  # the end comes at once, or later, or not at all


def test_its_guesses_end_with_what_a_grammar_allows(model: Model) -> None:
    pytest.importorskip("llguidance")
    sampler = sampler_of("plain", "[a-c]{4}")
    draft = DraftModel(model, sampler)
    draft.read(PROMPT)
    guesses = draft.guess(7)
    assert len(guesses) == 4
    assert guesses == continued(model, PROMPT, sampler, 7)
    assert sampler.complete


def test_it_guesses_nothing_where_nothing_can_be_drawn(model: Model) -> None:
    none = SamplingParams(logit_bias=dict.fromkeys(range(256), float("-inf")))
    draft = DraftModel(model, Sampler(none, 256, BYTES))
    draft.read(PROMPT)
    assert draft.guess(7) == []


# The vocabularies of a model and its draft


class Letters:
    """A vocabulary of the given texts."""

    def __init__(self, *tokens: bytes, eos_id: int = 0) -> None:
        self._tokens, self.vocab_size, self.eos_id = tokens, len(tokens), eos_id

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._tokens[token] for token in ids)


def with_vocabulary(name: str, kind: str, tokenizer: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer, file=SimpleNamespace(tokenizer=kind, path=Path("m") / name))


ABC = (b"", b"a", b"b", b"c")


@pytest.mark.parametrize(
    ("kind", "tokenizer", "same"),
    [
        ("json", Letters(*ABC), True),
        ("other", Letters(*ABC), True),  # what counts is what the tokens say
        ("json", Letters(b"", b"a", b"b", b"d"), False),
        ("other", Letters(b"", b"b", b"a", b"c"), False),
        ("json", Letters(*ABC, b"d"), False),
        ("json", Letters(*ABC[:3]), False),
        ("json", Letters(*ABC, eos_id=1), False),
    ],
)
def test_a_draft_has_the_same_vocabulary(kind: str, tokenizer: Any, same: bool) -> None:
    model = with_vocabulary("large.safetensors", "json", Letters(*ABC))
    draft = with_vocabulary("small.safetensors", kind, tokenizer)
    if same:
        check_vocabulary(model, draft)
        return
    with pytest.raises(UsageError) as refused:
        check_vocabulary(model, draft)
    assert str(refused.value) == "small.safetensors has another vocabulary than large.safetensors"
    assert (
        refused.value.hint == "a draft model is a smaller one of the same family; `--draft off` goes without"
    )


def test_models_over_bytes_have_the_same_vocabulary(model: Model) -> None:
    check_vocabulary(model, model)
    check_vocabulary(model, Model.load("demo", device="cpu"))


# Sampler.fork


@pytest.mark.parametrize("regex", [None, "[a-z ]{1,40}[.]"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_fork_draws_the_same_and_its_origin_does_not_notice(setting: str, regex: str | None) -> None:
    if regex is not None:
        pytest.importorskip("llguidance")
    rows = np.random.default_rng(3).normal(0, 2, (24, 256)).astype(np.float32)
    origin, twin = sampler_of(setting, regex), sampler_of(setting, regex)
    for row in rows[:4]:
        assert origin(row) == twin(row)
    before, forced = origin.state(), origin.forced
    fork = origin.fork()
    assert fork.state() == before
    made = [fork(row) for row in rows[4:14]]
    second = fork.fork()
    assert [second(-row) for row in rows[:5]] != made[:5]
    assert (origin.state(), origin.forced, origin.complete) == (before, forced, False)
    assert made == [twin(row) for row in rows[4:14]] == [origin(row) for row in rows[4:14]]
    assert origin.state() == fork.state() == twin.state()
    assert [fork(row) for row in rows[14:]] == [origin(row) for row in rows[14:]]


def test_a_fork_comes_to_the_end_of_a_grammar_by_itself() -> None:
    pytest.importorskip("llguidance")
    origin = sampler_of("greedy", "ab")
    fork = origin.fork()
    drawn(fork, ord("a"))
    drawn(fork, ord("b"))
    assert fork.complete
    assert not origin.complete
    assert origin.forced == b"ab"
    drawn(origin, ord("a"))
    assert origin.forced == b"b"
