"""Log-probabilities of choices: against softmaxes of whole texts, and with the same bits however they are evaluated."""

from __future__ import annotations

import math
import random
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quant_models import checkpoint, quantized, world_model
from text_oracles import log_softmax
from vocabularies import byte_level_json
from watched_calls import tokens_of_calls

from quant.synthetic import synthetic_arch
from rwkvcli import Model, State
from rwkvcli.errors import Cancelled, FormatError, StateMismatch, UsageError
from rwkvcli.runtime import scoring
from rwkvcli.runtime.choices import score_choices
from rwkvcli.runtime.scoring import of_each, score

PROMPT = "It was a fine"


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model.load("demo", threads=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(world_model(tmp_path_factory.mktemp("world")), threads=1)


def of_whole_text(model: Model, prompt: Sequence[int], choice: Sequence[int]) -> float:
    """The sum over softmaxes of one pass over all of it, without what is no token."""
    logits = model.forward([*prompt, *choice], model.new_state(), all_logits=True)
    rows = log_softmax(logits[len(prompt) - 1 : -1, : model.tokenizer.vocab_size])
    return float(rows[np.arange(len(choice)), list(choice)].sum())


def texts(count: int, seed: int = 1) -> list[str]:
    """Choices of many lengths; some begin others, some share their beginning."""
    rng = random.Random(seed)
    words = ["day", "morning", "evening", "old man", "é", "\n\n", "x" * 90, "The"]
    made = {" " + "".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(10 * count)}
    return sorted(made, key=lambda text: rng.random())[:count]


@pytest.mark.parametrize("name", ["demo", "world"])
def test_equal_softmaxes_of_whole_texts(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    encode = model.tokenizer.encode
    made = texts(30)
    expected = [of_whole_text(model, encode(PROMPT), encode(text)) for text in made]
    assert model.score(PROMPT, made) == pytest.approx(expected, rel=1e-13)
    for text, value in zip(made[:3], expected, strict=False):
        assert model.score(PROMPT, [text]) == pytest.approx([value], rel=1e-13)


def test_the_next_bytes_are_all_there_is(demo: Model) -> None:
    state = demo.new_state()
    logits = demo.forward(demo.tokenizer.encode(PROMPT), state)
    found = score_choices(demo, state, logits, [[byte] for byte in range(256)])
    assert math.fsum(map(math.exp, found)) == pytest.approx(1, abs=1e-13)
    pairs = score_choices(demo, state, logits, [[32, byte] for byte in range(256)])
    assert math.fsum(map(math.exp, pairs)) == pytest.approx(math.exp(found[32]), rel=1e-12)


@pytest.mark.parametrize("together", [1, 2, 5, 8, 64])
def test_how_many_are_evaluated_together_changes_no_bit(demo: Model, together: int) -> None:
    state = demo.new_state()
    logits = demo.forward(demo.tokenizer.encode(PROMPT), state)
    before = {name: array.copy() for name, array in state.to_numpy().items()}
    ids = [demo.tokenizer.encode(text) for text in texts(40)]
    alone = [score_choices(demo, state, logits, [one])[0] for one in ids]
    assert score_choices(demo, state, logits, ids, together=together) == alone
    assert score_choices(demo, state, logits, ids[::-1], together=together) == alone[::-1]
    assert all(np.array_equal(array, before[name]) for name, array in state.to_numpy().items())
    assert state.tokens_seen == len(PROMPT)


def test_of_a_long_choice_a_part_is_held_at_a_time(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = ("The old man sat down by the fire. " * 40)[:1200]
    whole = demo.score(PROMPT, [choice, "x" + choice, choice + "!"])
    monkeypatch.setattr(scoring, "_LOGITS", 7 * demo.config.vocab_size)
    asked = tokens_of_calls(monkeypatch, "forward")
    assert demo.score(PROMPT, [choice, "x" + choice, choice + "!"]) == whole
    assert max(asked) == 7
    encode = demo.tokenizer.encode
    assert whole[0] == pytest.approx(of_whole_text(demo, encode(PROMPT), encode(choice)), rel=1e-13)


def test_of_many_choices_some_are_held_at_a_time(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    state = demo.new_state()
    logits = demo.forward(demo.tokenizer.encode(PROMPT), state)
    ids = [demo.tokenizer.encode(f"{number:03}") for number in range(0, 1000, 25)]
    whole = score_choices(demo, state, logits, ids, together=40)
    monkeypatch.setattr(scoring, "_LOGITS", 7 * demo.config.vocab_size)
    asked: list[int] = []
    forward_batch = Model.forward_batch

    def noted(self: Model, tokens: Any, states: Any) -> Any:
        asked.append(len(tokens))
        return forward_batch(self, tokens, states)

    monkeypatch.setattr(Model, "forward_batch", noted)
    assert score_choices(demo, state, logits, ids, together=40) == whole
    assert max(asked) == 7


def test_many_choices_do_not_hold_a_state_each(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[State] = weakref.WeakSet()
    most = 0
    copy = State.copy

    def counted(self: State) -> State:
        nonlocal most
        made = copy(self)
        alive.add(made)
        most = max(most, len(alive))
        return made

    monkeypatch.setattr(State, "copy", counted)
    found = demo.score(PROMPT, [f" {number:03}" for number in range(300)])
    assert len(set(found)) == 300
    assert 8 <= most <= 8 + 8 + 2  # a group, the one before, the prompt's and what all choices begin with


def test_shared_beginnings_are_fed_once_and_single_tokens_never(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    real_forward, real_batch = demo.backend.forward, demo.backend.forward_batch

    def forward(tokens: Any, *args: Any) -> Any:
        fed.append(len(tokens))
        return real_forward(tokens, *args)

    def forward_batch(tokens: Any, *args: Any) -> Any:
        fed.append(-len(tokens))
        return real_batch(tokens, *args)

    monkeypatch.setattr(demo.backend, "forward", forward)
    monkeypatch.setattr(demo.backend, "forward_batch", forward_batch)
    for made, expected in (
        (["a", "b", "c"], []),
        (["a"], []),
        ([" the a", " the b", " the c"], [5]),
        ([" the", " then"], [3, 1]),  # " th" stands before both
        (["ab", "cd", "ef", "g"], [-3]),
        (["abc", "cde", "efg", "ghi", "ij"], [-5, -4]),
        (["abcd", "efgh"], [3, 3]),
    ):
        fed.clear()
        demo.score(PROMPT, made)
        assert fed == [len(PROMPT), *expected], made


def test_every_token_is_told_and_a_callback_can_end_it(demo: Model) -> None:
    state = demo.new_state()
    logits = demo.forward([65], state)
    ids = [demo.tokenizer.encode(text) for text in texts(20)]
    steps: list[tuple[int, int]] = []
    score_choices(demo, state, logits, ids, on_tokens=lambda *step: steps.append(step))
    total = sum(map(len, ids))
    assert steps == sorted(steps)
    assert steps[-1] == (total, total)

    def stop(done: int, _total: int) -> None:
        if done > 30:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        score_choices(demo, state, logits, ids, on_tokens=stop)


def test_the_bits_of_a_row_of_scores() -> None:
    rng = np.random.default_rng(1)
    for vocab in (1, 9, 65530):
        logits = rng.normal(0, 6, vocab).astype(np.float32)
        ids = [0, vocab // 2, vocab - 1, int(logits.argmax())]
        alone = [float(score(logits[None], [token])[0][0]) for token in ids]
        assert of_each(logits, ids).tolist() == alone
        assert of_each(memoryview(logits), ids).tolist() == alone
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(FormatError):
            of_each(np.array([0, bad, 1], np.float32), [0, 1])


def test_a_model_whose_logits_are_no_numbers(demo: Model) -> None:
    state = demo.new_state()
    demo.forward([65], state)
    broken = np.full(demo.config.vocab_size, np.nan, np.float32)
    with pytest.raises(FormatError, match="the logits are not finite numbers: the model cannot be measured"):
        score_choices(demo, state, broken, [[1]])


def test_python_api(demo: Model) -> None:
    made = [" day", " morning"]
    whole = demo.score(PROMPT, made)
    state = demo.new_state()
    demo.forward(demo.tokenizer.encode("It was"), state)
    before = state.copy()
    assert demo.score(" a fine", made, state=state) == whole
    assert (state.tokens_seen, state.pause) == (6, None)
    assert all(np.array_equal(a, before.to_numpy()[name]) for name, a in state.to_numpy().items())
    assert demo.score(PROMPT, []) == []
    assert demo.score(PROMPT, ["a", "a"])[0] == demo.score(PROMPT, ["a"])[0]
    new = demo.score("", ["a"])
    assert new == [of_each(demo.forward([0], demo.new_state()), [97])[0]]
    with pytest.raises(UsageError, match="nothing to feed: the prompt is empty and the state is not new"):
        demo.score("", made, state=state)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["a", ""], "a choice is empty"),
        ("abc", "choices are a list of strings, not one string"),
        (None, "choices are a list of strings, not None"),
        ([b"abc"], "a text is a string, not bytes"),
        (["\ud800"], "character 0 of the text is half a surrogate pair, not a character"),
    ],
)
def test_refusals(demo: Model, wanted: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        demo.score(PROMPT, wanted)
    assert str(caught.value) == message


def test_a_state_of_another_model(demo: Model, world: Model) -> None:
    with pytest.raises(StateMismatch):
        demo.score(PROMPT, ["a"], state=world.new_state())


def test_a_state_with_a_generation_to_go_on(demo: Model, tmp_path: Path) -> None:
    """An empty prompt goes on from the logits that the file holds."""
    from rwkvcli.services.states import Building

    built = Building(demo, PROMPT.encode(), demo.new_state()).run()
    built.save(tmp_path / "s")
    loaded = State.load(tmp_path / "s", demo)
    assert demo.score("", [" day", "s"], state=loaded) == demo.score(PROMPT, [" day", "s"])
    assert loaded.pause is not None


def test_a_vocabulary_that_takes_valid_text_only(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "n.pth", synthetic_arch("4", 1, 64, 500))
    quantized(source, tmp_path / "n.safetensors", "int8", tokenizer_json=byte_level_json())
    model = Model.load(tmp_path / "n.safetensors", threads=1)
    encode = model.tokenizer.encode
    made = [" cat", " the mat", "né"]
    expected = [of_whole_text(model, encode("The"), encode(text)) for text in made]
    assert model.tokenizer.vocab_size < model.config.vocab_size
    assert model.score("The", made) == pytest.approx(expected, rel=1e-13)
    with pytest.raises(UsageError) as caught:
        model.score("The", ["a\udcff"])
    assert str(caught.value) == "the choice 'a\ufffd': byte 1 of the text is not UTF-8"
