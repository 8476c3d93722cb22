"""Conversations on the demo model: undone, retried, branched and replayed ones are the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quant_models import checkpoint, quantized

from quant.synthetic import synthetic_arch
from rwkvcli import Model, State
from rwkvcli.errors import FormatError, ModelNotFound, SourceNotFound, UsageError
from rwkvcli.runtime import long_text, prefill
from rwkvcli.services.conversation import Conversation, Settings
from rwkvcli.services.snapshots import Snapshots

SHORT = Settings(max_tokens=30)
WORDS = ["Hello, who are you?", "The weather is fine.", "And then?", "Good bye."]


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model.load("demo", threads=1)


def begin(demo: Model, seed: int = 1, settings: Settings = SHORT) -> Conversation:
    return Conversation(demo, Snapshots(demo), settings=settings, seed=seed)


def say(talk: Conversation, text: str) -> str:
    return "".join(part.text for part in talk.send(text))


def same(one: State, other: State) -> bool:
    mine, yours = one.to_numpy(), other.to_numpy()
    equal = all(np.array_equal(mine[name], yours[name]) for name in mine)
    return equal and one.tokens_seen == other.tokens_seen


def test_the_state_has_seen_the_turns_and_nothing_else(demo: Model) -> None:
    talk = begin(demo, settings=Settings(max_tokens=300))
    for text in WORDS[:2]:
        say(talk, text)
    turns = talk.history.path()
    assert [turn.finish for turn in turns] == ["stop", "stop"]
    written = "".join(demo.tokenizer.decode(turn.ids.tolist()) for turn in turns)
    assert written == "".join(f"User: {t.user}\n\nAssistant: {t.reply}\n\n" for t in turns)
    state = demo.new_state()
    demo.forward(demo.tokenizer.encode(written), state)
    assert same(state, talk.state())


def test_undo_and_the_same_words_again_give_the_same_answer(demo: Model) -> None:
    talk = begin(demo)
    answers = [say(talk, text) for text in WORDS]
    end = talk.state().copy()
    assert [turn.user for turn in talk.undo(3)] == WORDS[:0:-1]
    assert [say(talk, text) for text in WORDS[1:]] == answers[1:]
    assert same(talk.state(), end)
    assert len(set(answers)) == len(answers)


def test_a_turn_that_had_its_own_seed_is_the_same_again_too(demo: Model, tmp_path: Path) -> None:
    talk = Conversation(demo, Snapshots(demo), settings=SHORT)
    first = say(talk, WORDS[0])  # any seed
    talk.undo()
    assert say(talk, WORDS[0]) == first
    second = "".join(part.text for part in talk.retry(None))
    talk.fork("other")
    talk.undo()
    talk.fork("third")
    assert say(talk, WORDS[0]) == second
    talk.configure(SHORT, seed=talk.history.path()[0].seed)  # the same seed, from its beginning
    third, fourth = say(talk, WORDS[1]), say(talk, WORDS[2])
    talk.undo(3)
    talk.redo()
    assert [say(talk, text) for text in WORDS[1:3]] == [third, fourth]
    talk.restart(None)
    assert talk.history.random is None
    (tmp_path / "book.txt").write_text("It was a fine morning.")
    told = []
    for _ in range(2):
        talk.read(tmp_path / "book.txt")
        told.append(say(talk, WORDS[0]))
        talk.undo(2)
    assert told[0] == told[1]


def test_redo_goes_back_to_where_undo_came_from(demo: Model) -> None:
    talk = begin(demo)
    for text in WORDS[:3]:
        say(talk, text)
    end = talk.state().copy()
    assert len(talk.undo(99)) == 3
    assert talk.history.head is None
    assert [turn.user for turn in talk.redo(2)] == WORDS[:2]
    assert [turn.user for turn in talk.redo(9)] == WORDS[2:3]
    assert same(talk.state(), end)
    talk.undo()
    say(talk, "Something else.")
    assert talk.redo() == []


def test_retry_is_the_same_conversation_with_another_seed(demo: Model) -> None:
    talk = begin(demo)
    say(talk, WORDS[0])
    first = say(talk, WORDS[1])
    again = "".join(part.text for part in talk.retry(99))
    assert again != first
    assert [turn.user for turn in talk.history.path()] == WORDS[:2]
    assert "".join(part.text for part in talk.retry(99)) == again
    assert "".join(part.text for part in talk.retry(None)) != again
    other = begin(demo)
    say(other, WORDS[0])
    assert "".join(part.text for part in other.send(WORDS[1])) == first
    with pytest.raises(UsageError, match="nothing to retry"):
        list(begin(demo).retry(1))


def test_an_edited_message_is_one_that_was_never_said(demo: Model) -> None:
    talk, straight = begin(demo), begin(demo)
    for text in (WORDS[0], WORDS[1]):
        say(talk, text)
    assert talk.take_back() == WORDS[1]
    assert say(straight, WORDS[0])
    assert say(talk, WORDS[2]) == say(straight, WORDS[2])
    assert same(talk.state(), straight.state())


def test_branches_do_not_touch_each_other(demo: Model) -> None:
    talk, straight = begin(demo), begin(demo)
    say(talk, WORDS[0])
    say(straight, WORDS[0])
    talk.fork("aside")
    say(talk, WORDS[3])
    talk.switch("main")
    assert say(talk, WORDS[1]) == say(straight, WORDS[1])
    assert same(talk.state(), straight.state())
    talk.switch("aside")
    assert [turn.user for turn in talk.history.path()] == [WORDS[0], WORDS[3]]
    for name, why in (("main", "already"), ("no/name", "no name"), ("..", "no name")):
        with pytest.raises(UsageError, match=why):
            talk.fork(name)
    with pytest.raises(UsageError, match="no branch"):
        talk.switch("nowhere")


def test_a_state_that_is_not_kept_is_made_again(demo: Model) -> None:
    talk = Conversation(demo, Snapshots(demo, memory=1), settings=SHORT, seed=1)
    kept = begin(demo)
    for text in WORDS:
        assert say(talk, text) == say(kept, text)
    assert talk.snapshots.held == 2
    for steps in (3, 1):
        talk.undo(steps)
        kept.undo(steps)
        assert same(talk.state(), kept.state())


def test_what_was_stopped_is_kept_as_far_as_it_came(demo: Model) -> None:
    talk, whole = begin(demo), begin(demo)
    text = say(whole, WORDS[0])
    parts: list[str] = []
    parts.extend(part.text for part in talk.send(WORDS[0], lambda: len("".join(parts)) > 20))
    head = talk.history.head
    assert head is not None
    assert head.finish == "interrupted"
    assert head.reply == "".join(parts)
    assert 20 < len(head.reply) < len(text) and text.startswith(head.reply)
    state = demo.new_state()
    demo.forward(demo.tokenizer.encode(f"User: {WORDS[0]}\n\nAssistant: {head.reply}\n\n"), state)
    assert same(state, talk.state())


def test_an_answer_that_never_began_is_no_turn(demo: Model) -> None:
    talk = begin(demo)
    assert list(talk.send("Hi", lambda: True))
    assert talk.history.head is None
    reply = talk.send("Hi")
    next(reply)
    reply.close()
    assert talk.history.head is None
    assert say(talk, WORDS[0]) == say(begin(demo), WORDS[0])


def test_instructions_begin_a_conversation(demo: Model) -> None:
    talk = begin(demo)
    say(talk, WORDS[0])
    talk.restart("Be brief.")
    say(talk, WORDS[1])
    (turn,) = talk.history.path()
    assert demo.tokenizer.decode(turn.ids.tolist()).startswith(f"Be brief.\n\nUser: {WORDS[1]}\n\n")
    assert talk.history.system == "Be brief."
    talk.undo()
    assert talk.history.system == "Be brief."


def test_settings_are_checked_before_they_count(demo: Model) -> None:
    talk = begin(demo)
    for bad in (
        Settings(sampling={"top_p": -1}),
        Settings(sampling={"warmth": 1}),
        Settings(max_tokens=-2),
        Settings(think="loudly"),
        Settings(think="show"),
        Settings(template="alpaca"),
    ):
        with pytest.raises(UsageError):
            talk.configure(bad)
    with pytest.raises(UsageError, match="seed"):
        begin(demo, seed=-1)
    assert talk.settings == SHORT
    talk.configure(Settings(sampling={"temperature": 0.0}, max_tokens=5), seed=3)
    say(talk, WORDS[0])
    assert talk.speed.tokens == 5
    odd = Settings({"logit_bias": {3: -1.0}, "banned_strings": ("x",)}, stop=("y",))
    assert Settings.from_json(odd.to_json()) == odd
    with pytest.raises(FormatError):
        Settings.from_json({"colour": 1})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model of the World vocabulary, where it matters which bytes are encoded together."""
    folder = tmp_path_factory.mktemp("world")
    made = checkpoint(folder / "tiny.pth", synthetic_arch("7", 1, 64, 65536))
    return Model.load(quantized(made, folder / "tiny.safetensors", "bf16").path)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut texts of a few thousand bytes in many places."""
    monkeypatch.setattr(long_text, "PIECE", 300)
    monkeypatch.setattr(prefill, "_FIRST", 50)


@pytest.mark.usefixtures("small_pieces")
def test_reading_a_file_feeds_it_as_it_stands(demo: Model, tmp_path: Path) -> None:
    text = "\ufeffIt was a fine morning.\r\n" + "Über – lines and lines of it.\n" * 25
    path = tmp_path / "book.txt"
    path.write_text(text, "utf-8", newline="")
    talk = begin(demo)
    seen: list[tuple[int, int]] = []
    turn = talk.read(path, lambda done, total: seen.append((done, total)))
    assert (turn.kind, turn.finish) == ("read", "stop")
    size = path.stat().st_size
    assert len(seen) > 3 and seen == sorted(seen) and 0 < seen[0][0] < seen[-1][0] <= size == seen[0][1]
    state = demo.new_state()
    plain = text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n") + "\n\n"
    demo.forward(demo.tokenizer.encode(plain), state)
    assert same(state, talk.state())
    say(talk, WORDS[0])
    talk.undo(2)
    assert talk.state().tokens_seen == 0
    for name, data, error in (
        ("none", None, SourceNotFound), ("empty", b"\n\n", UsageError), ("binary", b"a" * 1500 + b"\0", UsageError),
        (".", None, SourceNotFound),
    ):  # fmt: skip
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(error):
            talk.read(tmp_path / name)
    assert talk.history.head is None


@pytest.mark.usefixtures("small_pieces")
def test_a_long_message_is_read_in_calls_that_are_told(demo: Model) -> None:
    long, seen = "Über – lines and lines of it. " * 30, list[tuple[int, int]]()
    talk, all_at_once = begin(demo), begin(demo)
    talk.on_prompt = lambda done, total: seen.append((done, total))
    answer = say(talk, long)
    size = len(f"User: {long.strip()}\n\nAssistant:".encode())
    assert seen[-1] == (size, size) and len(seen) > 3
    assert seen == sorted(set(seen)) and {total for _, total in seen} == {size}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "_FIRST", 10**6)
        assert say(all_at_once, long) == answer
    assert same(talk.state(), all_at_once.state())

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before, head = talk.state().copy(), talk.history.head
    talk.on_prompt = stop
    with pytest.raises(KeyboardInterrupt):
        say(talk, long)
    assert talk.history.head is head and same(before, talk.state())


@pytest.mark.usefixtures("small_pieces")
def test_a_file_has_the_tokens_of_its_whole_text(world: Model, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = "你好，世界 and spaces          to cut in, a_long_word_without_any.\n\n" * 40 + "The end.\n\n\n"
    for data in (text.encode(), text.replace("\n", "\r\n").encode()):
        path.write_bytes(data)
        talk = Conversation(world, Snapshots(world), settings=replace(SHORT, template="g1-flower"))
        talk.restart("Read this.")
        talk.read(path)
        state = world.new_state()
        opening = talk.template.opening("Read this.")
        world.forward([0, *world.tokenizer.encode(opening + text.rstrip() + "\n\n")], state)
        assert same(state, talk.state())


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes")
def test_what_may_be_waited_for_is_not_read(demo: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(UsageError, match=f"{path} is not a regular file"):
            begin(demo).read(path)
    with pytest.raises(SourceNotFound, match="is a directory"):
        begin(demo).read(tmp_path)


@pytest.mark.usefixtures("small_pieces")
def test_reading_that_is_stopped_keeps_what_was_read(demo: Model, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(text := "It was a fine morning.\n" * 60)
    talk = begin(demo)
    read: list[int] = []
    turn = talk.read(path, lambda done, _total: read.append(done), lambda: len(read) > 3)
    assert (turn.kind, turn.finish) == ("read", "interrupted")
    assert talk.state().tokens_seen == read[-1] + 2 < len(text)
    state = demo.new_state()
    demo.forward(demo.tokenizer.encode(text[: read[-1]] + "\n\n"), state)
    assert same(state, talk.state())
    say(talk, WORDS[0])
    talk.undo(2)
    assert talk.read(path, stopped=lambda: False).tokens_seen == len(text) + 1


def test_a_loaded_state_begins_a_conversation(demo: Model, tmp_path: Path) -> None:
    talk, other = begin(demo), begin(demo)
    say(talk, WORDS[0])
    talk.state().save(tmp_path / "a.state")
    other.load(tmp_path / "a.state")
    assert same(other.state(), talk.state())
    other.configure(SHORT, seed=5)
    talk.configure(SHORT, seed=5)
    assert say(other, WORDS[1]) == say(talk, WORDS[1])
    with pytest.raises(ModelNotFound):
        other.load(tmp_path / "nowhere.state")


def test_redo_brings_back_what_a_loaded_state_took_the_place_of(demo: Model, tmp_path: Path) -> None:
    talk = begin(demo)
    for text in WORDS[:2]:
        say(talk, text)
    end = talk.state().copy()
    demo.forward([7], state := demo.new_state())
    state.save(tmp_path / "a.state")
    talk.load(tmp_path / "a.state")
    assert [turn.user for turn in talk.redo(9)] == WORDS[:2]
    assert same(talk.state(), end)
    talk.load(tmp_path / "a.state")
    talk.undo()
    assert [turn.kind for turn in talk.redo(9)] == ["load", "message", "message"]
    talk.load(tmp_path / "a.state")
    say(talk, WORDS[2])  # from now on it is a conversation of its own
    assert talk.redo() == []
    assert [turn.kind for turn in talk.history.path()] == ["load", "message"]
