"""Texts for many askers at once: each is what it would be alone, and nobody waits for who has gone."""

from __future__ import annotations

import gc
import itertools
import queue
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from texts_in_the_making import making

from rwkvcli import Model
from rwkvcli.errors import FormatError, UsageError
from rwkvcli.services.generation import Generation, Settings
from rwkvcli.services.serving import Asked, Busy, News, Stopped, Texts, Ticket

PATIENCE = 60.0
CACHE = 64 << 20
ENDLESS = {"logit_bias": {0: -1000.0}}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


class Asker:
    """Asks `texts`, and takes what it is told."""

    def __init__(self, texts: Texts, *asked: Asked) -> None:
        self.news: queue.Queue[tuple[int, News]] = queue.Queue()
        self.tickets: list[Ticket] = texts.ask(asked, lambda number, news: self.news.put((number, news)))

    def next(self) -> News:
        return self.news.get(timeout=PATIENCE)[1]

    def all(self) -> list[tuple[str, Generation | BaseException]]:
        """Of every text what was told of it, and how it ended."""
        texts, ends = [""] * len(self.tickets), {}
        while len(ends) < len(self.tickets):
            number, news = self.news.get(timeout=PATIENCE)
            assert number not in ends
            texts[number] += "".join(part.text for part in news.parts)
            end = news.ended or news.error
            if end is not None:
                ends[number] = end
        return [(text, ends[number]) for number, text in enumerate(texts)]


@pytest.fixture
def texts(model: Model) -> Iterator[Texts]:
    with making(Texts(model, size=3, cache=CACHE, waiting=100)) as made:
        yield made


def asked(model: Model, text: str, **more: Any) -> Asked:
    chosen = {"max_tokens": 20, **more}
    sampling = {"seed": 3, **chosen.pop("sampling", {})}
    return Asked(model.tokenizer.encode(text), Settings(sampling=sampling, **chosen))


def test_each_text_is_what_it_would_be_alone(model: Model, texts: Texts) -> None:
    wanted = [
        asked(model, "Once upon a time"),
        asked(model, "Once upon a time", max_tokens=40, sampling={"seed": 4, "temperature": 1.3}),
        asked(model, "It was", stop=("e",)),
        asked(model, "It was", max_tokens=0),
        asked(model, "x" * 700, logprobs=2, sampling={"frequency_penalty": 0.3}),
        asked(model, "It was", chat=True, max_tokens=60),
        asked(model, "ends", sampling={"logit_bias": {0: 90.0}}),
        asked(model, "Once upon a time there was"),
    ]
    for _ in range(2):  # the second time from what was kept
        for one, (text, end) in zip(wanted, Asker(texts, *wanted).all(), strict=True):
            alone = Generation(model, model.tokenizer.decode(one.ids).encode(), one.settings)
            if one.settings.chat:  # the prompt is in its form already
                state = model.new_state()
                alone = Generation(model, b"x", one.settings, state)
                alone.prompt = model.tokenizer.decode(one.ids).encode()
            assert text == "".join(alone)
            assert isinstance(end, Generation)
            for name in ("text", "finish_reason", "seed", "prompt_tokens", "completion_tokens", "logprobs"):
                assert getattr(end, name) == getattr(alone, name), name


def test_a_text_goes_on_from_what_was_kept_after_the_one_before(model: Model, texts: Texts) -> None:
    first = Asker(texts, asked(model, "It was a"))
    ((text, end),) = first.all()
    assert isinstance(end, Generation)
    assert first.tickets[0].cached == 0
    then = Asker(texts, asked(model, "It was a" + text + " And"))
    then.all()
    # the last token of a text that ended by its length was not fed
    assert then.tickets[0].cached == len("It was a") + end.completion_tokens - 1


def test_of_an_answer_that_does_not_last_nothing_is_kept(model: Model, texts: Texts) -> None:
    ids = model.tokenizer.encode("It was a thought")
    settings = Settings(max_tokens=20, sampling={"seed": 3})
    ((text, _),) = Asker(texts, Asked(ids, settings, lasting=8)).all()
    then = Asker(texts, asked(model, "It was a thought" + text + " And"))
    then.all()
    assert then.tickets[0].cached == len(ids)
    other = Asker(texts, asked(model, "It was a day"))
    other.all()
    assert other.tickets[0].cached == 8


def test_a_long_prompt_does_not_hold_up_the_others(model: Model, texts: Texts) -> None:
    busy = Asker(texts, asked(model, "It was", max_tokens=-1, sampling=ENDLESS))
    busy.next()
    read: list[int] = []
    evaluate = model.backend.forward

    def noted(tokens: Any, state: Any, *more: Any) -> Any:
        if len(tokens) > 1:  # of the prompt
            read.append(busy.tickets[0].completion_tokens)
        return evaluate(tokens, state, *more)

    model.backend.forward = noted  # type: ignore[method-assign]
    try:
        Asker(texts, asked(model, "y" * 20_000, max_tokens=1)).all()
    finally:
        del model.backend.forward
    assert len(read) > 2
    assert all(later > earlier for earlier, later in itertools.pairwise(read))
    busy.tickets[0].drop()


def test_who_has_gone_gives_the_place_away(model: Model, texts: Texts) -> None:
    endless = [asked(model, "It was", max_tokens=-1, sampling=ENDLESS) for _ in range(5)]
    gone = Asker(texts, *endless)
    gone.next()
    waits = Asker(texts, asked(model, "Once"))
    for ticket in gone.tickets:
        ticket.drop()
    ((text, _),) = waits.all()
    assert len(text) > 10
    while texts.load != (0, 0):  # the last of them is about to leave
        Asker(texts, asked(model, "Once", max_tokens=1)).all()


def test_who_goes_while_the_prompt_is_read_ends_the_reading(model: Model, texts: Texts) -> None:
    long = Asker(texts, asked(model, "z" * 3_000_000))
    while texts.load[1]:
        pass
    long.tickets[0].drop()
    assert Asker(texts, asked(model, "Once")).all()[0][0]
    assert long.news.empty()


def test_an_error_is_told_to_whom_it_concerns(model: Model, texts: Texts) -> None:
    fine = asked(model, "It was")
    bad = [
        asked(model, "It was", sampling={"top_k": -1}),
        Asked([5, 256], Settings()),
        asked(model, "It was", template="x"),
        asked(model, "It was", sampling={"logit_bias": {i: float("-inf") for i in range(256)}}),
    ]
    ends = Asker(texts, fine, *bad, fine).all()
    assert ends[0][0] == ends[-1][0] != ""
    for (text, end), message in zip(
        ends[1:-1],
        ["top_k must be 0 or more", "token 256 is outside", "no template 'x'", "no token is left"],
        strict=True,
    ):
        assert text == ""
        assert isinstance(end, UsageError)
        assert message in str(end)


def test_an_error_of_the_engine_ends_the_texts_of_that_call_alone(model: Model, texts: Texts) -> None:
    forward = model.backend.forward_batch
    model.backend.forward_batch = lambda *_: (_ for _ in ()).throw(FormatError("broken"))  # type: ignore[method-assign]
    try:
        ends = Asker(texts, asked(model, "It was"), asked(model, "Once")).all()
    finally:
        model.backend.forward_batch = forward  # type: ignore[method-assign]
    assert all(isinstance(end, FormatError) for _, end in ends)
    assert isinstance(Asker(texts, asked(model, "It was")).all()[0][1], Generation)


def test_a_damaged_model_is_told(model: Model, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.full(model.config.vocab_size, np.nan, np.float32)
    monkeypatch.setattr(Model, "evaluate", lambda *_: nothing)
    ((_, end),) = Asker(texts, asked(model, "It was")).all()
    assert isinstance(end, FormatError)


def test_too_many_are_sent_away_at_once(model: Model) -> None:
    with making(Texts(model, size=1, cache=0, waiting=2)) as texts:
        endless = asked(model, "It was", max_tokens=-1, sampling=ENDLESS)
        first = Asker(texts, endless)
        first.next()
        second = Asker(texts, endless, endless)
        with pytest.raises(Busy, match="2 texts are waiting already"):
            Asker(texts, endless)
        assert texts.load == (1, 2)
        texts.close()
        for asker in (first, second):
            assert all(isinstance(end, Stopped) for _, end in asker.all())
        with pytest.raises(Stopped):
            Asker(texts, endless)


def test_who_has_gone_while_waiting_keeps_nobody_out(model: Model) -> None:
    with making(Texts(model, size=1, cache=0, waiting=2)) as texts:
        endless = asked(model, "It was", max_tokens=-1, sampling=ENDLESS)
        first = Asker(texts, endless)
        first.next()
        for _ in range(3):
            gone = Asker(texts, endless, endless)
            assert texts.load == (1, 2)
            for ticket in gone.tickets:
                ticket.drop()
        assert texts.load == (1, 0)
        second = Asker(texts, asked(model, "Once"))
        first.tickets[0].drop()
        assert second.all()[0][0]
        texts.close()


def test_the_end_comes_in_the_middle_of_a_prompt_too(model: Model) -> None:
    with making(Texts(model, size=1, cache=0, waiting=2)) as texts:
        asker = Asker(texts, asked(model, "z" * 3_000_000))
        while texts.load[1]:
            pass
        texts.close()
        assert isinstance(asker.all()[0][1], Stopped)


def test_the_end_is_told_while_the_engine_computes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, told = threading.Event(), threading.Event()
    evaluate = Model.evaluate

    def slow(self: Model, *given: Any) -> Any:
        computing.set()
        assert told.wait(PATIENCE)
        return evaluate(self, *given)

    monkeypatch.setattr(Model, "evaluate", slow)
    with making(Texts(model, size=1, cache=0, waiting=2)) as texts:
        asker = Asker(texts, asked(model, "It was"), asked(model, "Once"))
        assert computing.wait(PATIENCE)
        closing = threading.Thread(target=texts.close)
        closing.start()
        ends = asker.all()
        told.set()
        closing.join()
        assert all(isinstance(end, Stopped) for _, end in ends)
        assert asker.news.empty()


def test_a_prompt_of_several_texts_is_read_once_whatever_is_kept(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    evaluate = Model.evaluate

    def counted(self: Model, tokens: Any, *more: Any) -> Any:
        if len(tokens) > 1:  # of a prompt
            fed.append(len(tokens))
        return evaluate(self, tokens, *more)

    ids = model.tokenizer.encode("x" * 300)
    wanted = [Asked(ids, Settings(20, {"seed": seed})) for seed in range(5)]
    expected = ["".join(Generation(model, b"x" * 300, one.settings)) for one in wanted]
    monkeypatch.setattr(Model, "evaluate", counted)
    with making(Texts(model, size=2, cache=0, waiting=100)) as texts:
        for _ in range(2):
            fed.clear()
            asker = Asker(texts, *wanted)
            assert [text for text, _ in asker.all()] == expected
            assert sum(fed) == 300
            assert [ticket.cached for ticket in asker.tickets] == [0, 300, 300, 300, 300]
        texts.close()


def test_an_interruption_ends_a_prompt_and_all_texts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, evaluate = 0, Model.evaluate

    @contextmanager
    def interruptible() -> Iterator[None]:
        nonlocal inside
        inside += 1
        yield
        inside -= 1

    def interrupted(self: Model, tokens: Any, *more: Any) -> Any:
        if len(tokens) > 100:  # of the second prompt
            assert inside == 1
            raise KeyboardInterrupt
        assert inside == (len(tokens) > 1)
        return evaluate(self, tokens, *more)

    monkeypatch.setattr(Model, "evaluate", interrupted)
    with making(Texts(model, size=2, cache=0, waiting=3, interruptible=interruptible)) as texts:
        endless = asked(model, "It was", max_tokens=-1, sampling=ENDLESS)
        asker = Asker(texts, endless, asked(model, "x" * 101), asked(model, "Once"))
        assert all(isinstance(end, Stopped) for _, end in asker.all())
        with pytest.raises(Stopped):
            Asker(texts, endless)
        assert texts.closed


def test_of_a_text_that_has_ended_nothing_large_is_held(model: Model, texts: Texts) -> None:
    gc.collect()
    gc.disable()  # which is slow to come where circles hold few objects, whatever their size
    try:
        gone = Asker(texts, asked(model, "It was", max_tokens=-1, sampling=ENDLESS))
        gone.next()
        made = weakref.ref(gone.tickets[0]._made)
        gone.tickets[0].drop()
        there = Asker(texts, asked(model, "Once"))
        assert isinstance(there.all()[0][1], Generation)
        Asker(texts, asked(model, "Once")).all()
        assert made() is None
        assert there.tickets[0]._made is None
        assert there.tickets[0].completion_tokens == 20
    finally:
        gc.enable()
