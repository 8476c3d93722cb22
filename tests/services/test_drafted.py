"""Texts, answers and states with guesses ahead are those without, bit for bit, whatever was guessed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quant_models import quantized, world_model

from rwkvcli import Model, State
from rwkvcli.errors import DeviceUnavailable, UsageError
from rwkvcli.runtime.constraint import Constraint
from rwkvcli.runtime.drafting import Drafting, DraftModel
from rwkvcli.runtime.model import demo_path
from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.speculation import Pace
from rwkvcli.services import batching
from rwkvcli.services.conversation import Conversation
from rwkvcli.services.conversation import Settings as ChatSettings
from rwkvcli.services.generation import Generation, Settings
from rwkvcli.services.snapshots import Snapshots

SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {"seed": 1},
    "greedy": {"temperature": 0.0, "seed": 1},
    "penalties": {"seed": 2, "presence_penalty": 0.3, "frequency_penalty": 0.2, "temperature": 1.3},
    "bans": {"seed": 3, "banned_strings": ("the", "a "), "min_p": 0.02},
}
LAST = 65529
"""The last id of World."""
PROMPT = b"It was a fine day, and it was a fine day, and it was"


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model.load("demo", device="cpu", threads=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The demo with fewer bits: it is right often, and wrong now and then."""
    path = tmp_path_factory.mktemp("draft") / "small.safetensors"
    quantized(demo_path(), path, "int4")
    return Model.load(path, device="cpu", threads=1)


@pytest.fixture(autouse=True)
def always_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long passes take here."""
    turns = itertools.cycle([7, 3, 0, 1, 5])
    monkeypatch.setattr(Pace, "most", lambda self: next(turns))


def drafting(way: str, demo: Model, small: Model) -> Drafting:
    return Drafting(demo, small if way == "model" else None)


@pytest.mark.parametrize("way", ["model", "lookup"])
@pytest.mark.parametrize("change", ["fed", "in a batch", "put back", "of another text"])
def test_a_state_that_is_changed_between_two_pieces(demo: Model, small: Model, way: str, change: str) -> None:
    other = demo.new_state()
    demo.evaluate([*b"The king said"], other)

    def text(draft: Model | str | None) -> tuple[str, State]:
        state, pieces = demo.new_state(), list[str]()
        before = state.copy()
        for piece in demo.generate(PROMPT.decode(), 60, state=state, seed=1, draft=draft):
            pieces.append(piece)
            if len(pieces) == 10:
                before = state.copy()
            if len(pieces) % 20 == 17:
                if change == "fed":
                    demo.evaluate([*b" and so"], state)
                elif change == "in a batch":
                    demo.forward_batch([[104]], [state])
                else:
                    state.assign(before if change == "put back" else other)
        return "".join(pieces), state

    plain, state = text(None)
    drafted, guessed = text(small if way == "model" else "lookup")
    assert drafted == plain
    assert same(guessed, state)


def test_a_draft_model_that_fails_is_warned_of_once(
    demo: Model, small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "".join(demo.generate(PROMPT.decode(), 40, seed=1))

    def fails(*_given: Any) -> Any:
        raise DeviceUnavailable("the GPU is lost")

    monkeypatch.setattr(small.backend, "forward", fails)
    with pytest.warns(RuntimeWarning, match="^the text goes on without guesses: the GPU is lost$") as told:
        assert "".join(demo.generate(PROMPT.decode(), 40, seed=1, draft=small)) == plain
    assert len(told) == 1
    said = list[str]()
    by = Drafting(demo, small, said.append)
    for _ in range(2):
        run = Generation(demo, PROMPT, Settings(40, {"seed": 1}), drafting=by)
        assert "".join(run) == plain
    assert said == ["the text goes on without guesses: the GPU is lost"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """Over World: with rows that are no tokens, and without a row for the last token."""
    folder = tmp_path_factory.mktemp("worlds")
    return [Model.load(world_model(folder, rows), device="cpu", threads=1) for rows in (65536, 65535, 65529)]


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"presence_penalty": 0.3, "logit_bias": {LAST: 0.5}}]
)
def test_a_vocabulary_without_its_last_token_guesses_for_one_with_it(
    worlds: list[Model], sampling: dict[str, Any]
) -> None:
    for model, draft in itertools.permutations(worlds, 2):
        chosen = {**sampling, "logit_bias": {}} if model is worlds[2] else sampling

        def text(by: Model | None, chosen: dict[str, Any] = chosen, model: Model = model) -> str:
            return "".join(model.generate("It was", 20, seed=1, draft=by, **chosen))

        assert text(draft) == text(None)
    # a token that the draft model has no row for comes again and again
    model, draft = worlds[0], worlds[2]
    wanted = {"seed": 1, "presence_penalty": 0.3, "logit_bias": {LAST: 1000.0}}
    assert "".join(model.generate("It", 12, draft=draft, **wanted)) == "".join(
        model.generate("It", 12, **wanted)
    )


def same(one: State, other: State) -> bool:
    mine, yours = one.to_numpy(), other.to_numpy()
    equal = all(np.array_equal(mine[name], yours[name]) for name in mine)
    return equal and one.tokens_seen == other.tokens_seen


def made(model: Model, prompt: bytes | None, settings: Settings, **more: Any) -> Generation:
    run = Generation(model, prompt, settings, **more)
    assert "".join(run) == run.text
    return run


@pytest.mark.parametrize("way", ["lookup", "model"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_text_and_its_state(demo: Model, small: Model, kind: str, way: str) -> None:
    settings = Settings(120, SETTINGS[kind], logprobs=2)
    plain = made(demo, PROMPT, settings, keep=True)
    run = made(demo, PROMPT, settings, keep=True, drafting=drafting(way, demo, small))
    assert (run.text, run.finish_reason, run.logprobs) == (plain.text, plain.finish_reason, plain.logprobs)
    assert same(run.settle(), plain.settle())
    assert run.state is not None
    assert plain.state is not None
    assert run.state.pause is not None
    assert plain.state.pause is not None
    assert run.state.pause.sampler == plain.state.pause.sampler
    np.testing.assert_array_equal(run.state.pause.logits, plain.state.pause.logits)
    assert 0 < run.draft["came"] < run.draft["guessed"]
    assert run.report()["draft"] == run.draft
    assert "draft" not in plain.report()


@pytest.mark.parametrize("cut", [1, 2, 7, 30])
def test_a_text_that_is_cut_goes_on(demo: Model, small: Model, cut: int) -> None:
    whole = made(demo, PROMPT, Settings(60, SETTINGS["penalties"]), keep=True)
    first = made(
        demo,
        PROMPT,
        Settings(cut, SETTINGS["penalties"]),
        keep=True,
        drafting=Drafting(demo, small),
    )
    second = made(
        demo,
        None,
        Settings(60 - cut, SETTINGS["penalties"]),
        state=first.settle(),
        keep=True,
        drafting=Drafting(demo),
    )
    assert first.text + second.text == whole.text
    assert same(second.settle(), whole.settle())


def test_a_stop_string_is_no_part_of_the_state(demo: Model, small: Model) -> None:
    plain = made(demo, PROMPT, Settings(200, {"seed": 5}), keep=True)
    stop = plain.text[40:44]
    settings = Settings(200, {"seed": 5}, (stop,))
    expected = made(demo, PROMPT, settings, keep=True)
    run = made(demo, PROMPT, settings, keep=True, drafting=Drafting(demo, small))
    assert run.text == expected.text == plain.text[: plain.text.index(stop)]
    assert same(run.settle(), expected.settle())


def test_a_run_that_is_stopped_between_tokens(demo: Model, small: Model) -> None:
    for steps in range(1, 12):
        settled = []
        for way in (None, Drafting(demo, small)):
            run = Generation(demo, PROMPT, Settings(100, {"seed": 7}), keep=True, drafting=way)
            text = "".join(itertools.islice(run, steps))
            settled.append((text, run.fed, run.settle()))
        assert settled[0][:2] == settled[1][:2]
        assert same(settled[0][2], settled[1][2])


def test_what_a_grammar_forces_is_guessed_by_itself(demo: Model) -> None:
    pytest.importorskip("llguidance")
    constraint = Constraint.of_regex(r"It was (the best|the worst) of times, [a-z ]{1,20}\.")
    asked = Settings(200, {"seed": 1}, constraint=constraint)
    run = made(demo, b"Once. ", asked)
    together = [Generation(demo, b"Once. ", asked) for _ in range(2)]
    for one in together:
        one.read()
        one.advance()
    while not together[0].done:  # a batch guesses nothing
        batching.feed_together(demo, together)
        for one in together:
            one.advance()
    assert [one.text for one in together] == [run.text] * 2
    assert together[0].draft["guessed"] == 0
    assert run.draft["came"] >= 7


def test_alternatives_of_a_prompt_that_was_read_with_guesses(demo: Model) -> None:
    pytest.importorskip("llguidance")
    constraint = Constraint.of_regex(r"nce upon a time there (was|were) [a-z ]{1,20}\.")
    asked = Settings(60, {"seed": 1}, constraint=constraint)
    alone = [
        made(demo, b"O", Settings(60, {"seed": seed}, constraint=constraint), keep=True) for seed in (1, 2, 3)
    ]
    together = batching.alternatives(demo, b"O", asked, 3)
    assert [one.text for one in together] == [one.text for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.state is not None
        assert other.state is not None
        assert same(one.whole_state(), other.whole_state())


def test_alone_and_together_in_turns(demo: Model, small: Model) -> None:
    """A text that is fed by itself and with others, as a server does."""
    wanted = [Settings(80, {"seed": seed}) for seed in (1, 2)]
    plain = [made(demo, PROMPT, one, keep=True) for one in wanted]
    runs = [Generation(demo, PROMPT, one, keep=True, drafting=Drafting(demo, small)) for one in wanted]
    for run in runs:
        run.read()
        run.advance()
    pattern: Sequence[Sequence[int]] = [(0, 1), (0,), (0,), (1,), (0, 1), (1,), (0,)]
    for step in itertools.cycle(pattern):
        active = [runs[i] for i in step if not runs[i].done]
        if active:
            batching.feed_together(demo, active)
        for run in active:
            run.advance()
        if all(run.done for run in runs):
            break
    for run, one in zip(runs, plain, strict=True):
        assert run.text == one.text
        assert same(run.settle(), one.settle())
        assert run.draft["came"] > 0


@pytest.mark.parametrize("way", ["lookup", "model"])
def test_a_conversation(demo: Model, small: Model, way: str) -> None:
    words = ["Hello, who are you?", "The weather is fine.", "And then?"]
    ends: list[list[Any]] = []
    for guesses in (None, drafting(way, demo, small)):
        talk = Conversation(
            demo, Snapshots(demo), settings=ChatSettings(max_tokens=150), seed=1, drafting=guesses
        )
        said = ["".join(part.text for part in talk.send(text)) for text in words]
        first = talk.state().copy()
        talk.undo(2)
        said += ["".join(part.text for part in talk.send(text)) for text in words[2:]]
        said.append("".join(part.text for part in talk.retry(9)))
        ends.append([said, [turn.ids for turn in talk.history.path()], first, talk.state().copy()])
        assert (talk.speed.guessed > 0) == (guesses is not None)
        assert talk.speed.came <= talk.speed.guessed
    assert ends[0][:2] == ends[1][:2]
    assert same(ends[0][2], ends[1][2])
    assert same(ends[0][3], ends[1][3])


def test_an_answer_that_is_stopped(demo: Model, small: Model) -> None:
    for count in range(1, 10):
        turns = []
        for guesses in (None, Drafting(demo, small)):
            talk = Conversation(
                demo, Snapshots(demo), settings=ChatSettings(max_tokens=100), seed=1, drafting=guesses
            )
            left = iter([False] * (count - 1))
            text = "".join(part.text for part in talk.send("Hello", lambda left=left: next(left, True)))  # type: ignore[misc]
            turns.append((text, talk.history.head.ids if talk.history.head else None, talk.state().copy()))
        assert turns[0][:2] == turns[1][:2]
        assert same(turns[0][2], turns[1][2])


@pytest.mark.parametrize("way", ["lookup", "model"])
def test_generate_of_python(demo: Model, small: Model, way: str) -> None:
    draft = small if way == "model" else "lookup"
    texts, states = [], []
    for guesses in (None, draft, "off"):
        state = demo.new_state()
        texts.append(list(demo.generate("It was", 60, state=state, seed=3, draft=guesses)))
        states.append(state)
    assert texts[0] == texts[1] == texts[2]
    assert same(states[0], states[1])
    for broken_off in (1, 2, 5, 11):
        states = []
        for guesses in (None, draft):
            state = demo.new_state()
            pieces = demo.generate("It was", 60, state=state, seed=3, draft=guesses)
            for _ in range(broken_off):
                next(pieces)
            pieces.close()  # type: ignore[attr-defined]
            states.append(state)
        assert same(states[0], states[1])


@pytest.mark.parametrize("way", ["lookup", "model", "grammar"])
def test_the_state_of_generate_between_pieces(demo: Model, small: Model, way: str) -> None:
    """It has seen all that was told but the last token, whenever the caller looks."""
    ways: dict[str, dict[str, Any]] = {
        "lookup": {"draft": "lookup"},
        "model": {"draft": small},
        "grammar": {},
    }
    rules = (
        {"regex": "(It was the best of times, it was the worst of times, ){3}"} if way == "grammar" else {}
    )
    if rules:
        pytest.importorskip("llguidance")
    state = demo.new_state()
    text = PROMPT.decode()
    for piece in demo.generate(text, 40, state=state, seed=3, **rules, **ways[way]):
        expected = demo.new_state()
        demo.forward(demo.tokenizer.encode(text), expected)
        assert same(state, expected)
        text += piece


def test_ids_that_a_draft_model_has_not(small: Model) -> None:
    """A model may have rows past its vocabulary, and a prompt of ids may have those."""
    made = []
    for prompt in ([72, 105], [72, 300, 105]):
        guesses = DraftModel(small, Sampler(SamplingParams(temperature=0.0), 256))
        guesses.read(prompt)
        made.append(guesses.guess(5))
    assert made[0] == made[1] != []


def test_what_cannot_guess_is_refused(demo: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"draft is a Model or 'lookup', not 'g1-0\.1b'"):
        demo.generate("It was", draft="g1-0.1b")
    from quant_models import checkpoint, odd_arch

    path = tmp_path / "other.safetensors"
    quantized(checkpoint(tmp_path / "other.pth", odd_arch("6", vocab_size=260)), path, "int8")
    other = Model.load(path, device="cpu")
    with pytest.raises(UsageError):
        demo.generate("It was", draft=other)
