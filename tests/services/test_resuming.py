"""A run that is interrupted, saved and resumed is the uninterrupted one: the same text and the same state file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import WORLD, ScriptModel
from vocabularies import byte_level_json

from rwkvcli import Model, State
from rwkvcli.errors import Cancelled, UsageError
from rwkvcli.runtime.tokenizer import JsonTokenizer
from rwkvcli.services.generation import Generation, Settings
from rwkvcli.services.loading import load_state

TOKENS = 34
ONLY_HALVES = {token: -math.inf for token in range(256) if token not in (0xC3, 0xA9, 0xE4, 0xBD)}

CASES: dict[str, Settings] = {
    "greedy": Settings(sampling={"temperature": 0.0, "seed": 1}),
    "draws": Settings(sampling={"seed": 7}),
    "penalties": Settings(
        sampling={
            "seed": 3,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.4,
            "penalty_decay": 0.9,
            "repetition_penalty": 1.2,
        }
    ),
    "bans": Settings(sampling={"seed": 11, "banned_strings": ("the", "an ", "is")}),
    "half characters": Settings(
        sampling={"seed": 5, "temperature": 3.0, "top_p": 1.0, "logit_bias": ONLY_HALVES}
    ),
    "a stop string": Settings(sampling={"seed": 7}, stop=("zz", "e m", " th")),
    "an answer": Settings(sampling={"seed": 3}, chat=True),
}

if find_spec("llguidance"):
    from rwkvcli.runtime.constraint import Constraint

    LONG = Constraint.of_schema(
        {"type": "object", "properties": {"é": {"type": "string", "minLength": 40}}, "required": ["é"]}
    )
    CASES["a schema"] = Settings(
        sampling={"seed": 3, "temperature": 2.0, "top_p": 1.0, "presence_penalty": 0.3}, constraint=LONG
    )
    CASES["an answer of a schema"] = Settings(sampling={"seed": 5}, chat=True, constraint=LONG)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


def run(
    model: Model,
    settings: Settings,
    path: Path,
    *,
    text: bytes | None = b"It was",
    tokens: int,
    state: State | None = None,
    check: Callable[[], None] = lambda: None,
) -> Generation:
    """A run of at most `tokens` tokens whose state is then in `path`."""
    settings = replace(settings, max_tokens=tokens)
    made = Generation(model, text, settings, state, keep=True, check=check)
    with contextlib.suppress(Cancelled):
        pieces = list(made)
        assert "".join(pieces) == made.text and all(pieces)
    made.save(path)
    return made


def unseeded(settings: Settings) -> Settings:
    """The same without a seed: the state has it."""
    return replace(settings, sampling={**settings.sampling, "seed": None})


Uncut = dict[str, tuple[Generation, bytes]]


@pytest.fixture(scope="module")
def uncut(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Uncut:
    """The run of each case that nothing interrupts, and its state file."""
    path = tmp_path_factory.mktemp("uncut") / "s"
    return {
        case: (run(model, settings, path, tokens=TOKENS), path.read_bytes())
        for case, settings in CASES.items()
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", [0, 1, 2, 9, 24, 33])
def test_a_cut_anywhere_changes_nothing(
    model: Model, uncut: Uncut, tmp_path: Path, case: str, cut: int
) -> None:
    settings = CASES[case]
    whole, whole_file = uncut[case]
    first = run(model, settings, tmp_path / "cut", tokens=cut)
    rest = TOKENS - first.completion_tokens
    for again in (settings, unseeded(settings)):
        state = load_state(tmp_path / "cut", model)
        second = run(model, again, tmp_path / "two", text=None, tokens=rest, state=state)
        assert first.text + second.text == whole.text
        assert second.seed == whole.seed
        if case != "a stop string":  # one that began before the state was saved stays in it
            assert (tmp_path / "two").read_bytes() == whole_file


@pytest.mark.parametrize("case", CASES)
def test_token_by_token(model: Model, uncut: Uncut, tmp_path: Path, case: str) -> None:
    settings, text = CASES[case], ""
    whole, whole_file = uncut[case]
    made = run(model, settings, tmp_path / "step", tokens=1)
    for _ in range(TOKENS - 1):
        text += made.text
        made = run(
            model, settings, tmp_path / "step", text=None, tokens=1,
            state=load_state(tmp_path / "step", model),
        )  # fmt: skip
    assert text + made.text == whole.text
    if case != "a stop string":  # one that began before the state was saved stays in it
        assert (tmp_path / "step").read_bytes() == whole_file


def test_the_cases_test_what_they_say(model: Model, uncut: Uncut, tmp_path: Path) -> None:
    made = {name: whole for name, (whole, _) in uncut.items()}
    assert "é" in made["half characters"].text
    assert made["a stop string"].finish_reason == "stop"
    plain = Settings(sampling={"seed": 3})
    assert made["penalties"].text != run(model, plain, tmp_path / "x", tokens=TOKENS).text
    plain = Settings(sampling={"seed": 11})
    assert made["bans"].text != run(model, plain, tmp_path / "x", tokens=TOKENS).text


def stop_after(calls: int) -> Callable[[], None]:
    """What stops a run at the given check."""
    counter: Iterator[int] = iter(range(calls))

    def check() -> None:
        if next(counter, None) is None:
            raise Cancelled("stopped")

    return check


@pytest.mark.parametrize("calls", [1, 2, 3, 9, 20])
def test_a_run_that_is_stopped_goes_on(model: Model, uncut: Uncut, tmp_path: Path, calls: int) -> None:
    settings = CASES["penalties"]
    whole, whole_file = uncut["penalties"]
    first = run(model, settings, tmp_path / "cut", tokens=TOKENS, check=stop_after(calls))
    assert first.finish_reason == "interrupted"
    assert first.completion_tokens == calls - 1  # one check before the prompt
    rest = TOKENS - first.completion_tokens
    second = run(
        model, settings, tmp_path / "two", text=None, tokens=rest, state=load_state(tmp_path / "cut", model)
    )
    assert first.text + second.text == whole.text
    assert (tmp_path / "two").read_bytes() == whole_file


def test_a_text_that_has_ended_stays_ended(model: Model, tmp_path: Path) -> None:
    for settings in (CASES["a stop string"], Settings(sampling={"seed": 1, "logit_bias": {0: 90.0}})):
        first = run(model, settings, tmp_path / "s", tokens=TOKENS)
        assert first.finish_reason == "stop"
        again = run(
            model, settings, tmp_path / "t", text=None, tokens=9, state=load_state(tmp_path / "s", model)
        )
        assert (again.text, again.finish_reason, again.completion_tokens) == ("", "stop", 0)


def test_a_stop_string_is_no_part_of_the_state(model: Model, tmp_path: Path) -> None:
    """What was shown is what the state has seen: new text continues that."""
    for case in ("a stop string", "an answer"):
        made = run(model, CASES[case], tmp_path / "s", tokens=400)
        assert made.finish_reason == "stop"
        state = model.new_state()
        shown = made.prompt + (b" " if case == "an answer" else b"") + made.text.encode()
        model.forward(list(shown), state)
        saved = load_state(tmp_path / "s", model)
        assert saved.tokens_seen == state.tokens_seen
        assert all((saved.to_numpy()[key] == value).all() for key, value in state.to_numpy().items())


@pytest.mark.parametrize("own_bytes", [True, False])
def test_half_a_character_before_a_stop_string(own_bytes: bool) -> None:
    """The state has seen what was shown; in a vocabulary that takes valid text only, as it was shown."""
    tokenizer = WORLD if own_bytes else JsonTokenizer(byte_level_json())
    half = next(i for i in range(1, tokenizer.vocab_size) if tokenizer.decode_bytes((i,)) == b"\xe4")

    class Halves(ScriptModel):
        def __init__(self) -> None:
            super().__init__("")
            self.tokenizer = tokenizer  # type: ignore[assignment]
            self.script = [half, *tokenizer.encode("END"), 0]

    model: Any = Halves()
    made = Generation(
        model, b"It was", Settings(sampling={"temperature": 0.0}, stop=("END",)), model.new_state(), keep=True
    )
    assert ("".join(made), made.finish_reason) == ("\ufffd", "stop")
    state: Any = made.settle()
    read = bytes(tokenizer.decode_bytes([token for token in state.seen if token >= 0]))
    assert read == b"It was" + (b"\xe4" if own_bytes else "\ufffd".encode())


def test_a_prompt_may_be_split_over_runs(model: Model, tmp_path: Path) -> None:
    settings = CASES["draws"]
    whole = run(model, settings, tmp_path / "whole", text=b"It was a fine day", tokens=TOKENS)
    run(model, settings, tmp_path / "a", text=b"It was", tokens=0)
    second = run(
        model,
        settings,
        tmp_path / "b",
        text=b" a fine day",
        tokens=TOKENS,
        state=load_state(tmp_path / "a", model),
    )
    assert second.text == whole.text
    assert (tmp_path / "b").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_conversation_over_runs_reads_as_one(model: Model, tmp_path: Path) -> None:
    settings = CASES["an answer"]
    first = run(model, settings, tmp_path / "a", text=b"Hello", tokens=400)
    second = run(
        model, settings, tmp_path / "b", text=b"And you?", tokens=5, state=load_state(tmp_path / "a", model)
    )
    assert (first.finish_reason, second.prompt) == ("stop", b"\n\nUser: And you?\n\nAssistant:")
    built = run(model, Settings(), tmp_path / "c", text=b"A manual.", tokens=0)
    assert built.text == ""
    third = Generation(model, b"Hi", settings, load_state(tmp_path / "c", model))
    assert third.prompt == b"\n\nUser: Hi\n\nAssistant:"


def test_another_seed_is_another_branch(model: Model, tmp_path: Path) -> None:
    run(model, CASES["draws"], tmp_path / "s", tokens=5)
    texts = {
        run(
            model, Settings(sampling={"seed": seed}), tmp_path / "t", text=None, tokens=20,
            state=load_state(tmp_path / "s", model),
        ).text
        for seed in (1, 2, 3)
    }  # fmt: skip
    assert len(texts) == 3


def test_a_state_without_a_text_under_way_needs_one(model: Model) -> None:
    state = model.new_state()
    model.forward([65], state)
    with pytest.raises(UsageError, match="only be continued by giving some"):
        Generation(model, None, Settings(), state)


def test_the_api_goes_on_without_text(model: Model, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"temperature": 0.0}
    whole = "".join(model.generate("It was", 20, **settings))
    run(model, CASES["greedy"], tmp_path / "s", tokens=8)
    state = State.load(tmp_path / "s", model)
    assert "".join(model.generate("", 12, state=state, **settings)) == whole[8:]


def test_a_state_goes_on_on_another_device(model: Model, uncut: Uncut, tmp_path: Path) -> None:
    """In numbers within rounding of each other, and so as a rule in the same words."""
    pytest.importorskip("torch")
    twin = Model.load("demo", device="torch:cpu", threads=1)
    for there, back in ((model, twin), (twin, model)):
        first = run(there, CASES["penalties"], tmp_path / "a", tokens=9)
        state = load_state(tmp_path / "a", back)
        second = run(back, CASES["penalties"], tmp_path / "b", text=None, tokens=TOKENS - 9, state=state)
        whole, whole_file = uncut["penalties"]
        assert first.text + second.text == whole.text
        (tmp_path / "whole").write_bytes(whole_file)
        expected = load_state(tmp_path / "whole", model).to_numpy()
        for name, found in load_state(tmp_path / "b", model).to_numpy().items():
            np.testing.assert_allclose(
                found, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max()
            )
