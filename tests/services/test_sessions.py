"""Conversations on disk: resumed bit for bit, locked, and whole after a crash or on a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_runner import environment
from links import link

from rwkvcli import Model, State
from rwkvcli.errors import FormatError, ModelNotFound, StateMismatch, UsageError
from rwkvcli.services import sessions, snapshots
from rwkvcli.services.conversation import Conversation, Settings
from rwkvcli.services.sessions import Session
from rwkvcli.services.snapshots import Snapshots
from rwkvcli.services.transcripts import transcript

SHORT = Settings(max_tokens=20)
WORDS = ["Hello, who are you?", "The weather\nis fine.", "And \udcff then?", "Good bye."]


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model.load("demo", threads=1)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RWKV_SESSIONS", str(tmp_path / "sessions"))
    return tmp_path / "sessions"


def opened(demo: Model, name: str = "a", seed: int | None = 1) -> tuple[Session, Conversation]:
    session = Session(name)
    return session, session.converse(demo, "demo", session.settings() if session.model else SHORT, seed)


def say(talk: Conversation, *texts: str) -> list[str]:
    told = ["".join(part.text for part in talk.send(text)) for text in texts]
    assert talk.trouble is None
    return told


def same(one: State, other: State) -> bool:
    mine, yours = one.to_numpy(), other.to_numpy()
    equal = all(np.array_equal(mine[name], yours[name]) for name in mine)
    return equal and one.tokens_seen == other.tokens_seen


def test_a_resumed_conversation_is_the_uninterrupted_one(demo: Model) -> None:
    straight = Conversation(demo, Snapshots(demo), settings=SHORT, seed=1)
    expected = say(straight, *WORDS)
    told = []
    for word in WORDS:
        session, talk = opened(demo, seed=None if told else 1)
        with session:
            told += say(talk, word)
            assert (session.model, session.settings()) == ("demo", SHORT)
    assert told == expected
    session, talk = opened(demo, seed=None)
    with session:
        assert same(talk.state(), straight.state())
        assert [turn.user for turn in talk.history.path()] == WORDS
        talk.undo(3)
        straight.undo(3)
    session, talk = opened(demo, seed=None)
    with session:
        assert say(talk, "Well?") == say(straight, "Well?")
        assert same(talk.state(), straight.state())
        talk.undo(2)
    session, talk = opened(demo, seed=None)
    with session:
        assert say(talk, WORDS[0]) == expected[:1]


def test_redo_branches_and_settings_come_back(demo: Model) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, *WORDS[:2])
        end = talk.state().copy()
        talk.fork("aside")
        talk.undo()
        odd = Settings({"temperature": 0.5, "logit_bias": {65: -1.0}, "banned_strings": ("x",)}, 9, ("#",))
        talk.configure(odd)
    session, talk = opened(demo, seed=None)
    with session:
        assert (talk.settings, talk.history.current) == (odd, "aside")
        assert [turn.user for turn in talk.redo()] == WORDS[1:2]
        assert same(talk.state(), end)


def test_a_new_session_is_on_disk_with_its_first_turn(demo: Model, root: Path) -> None:
    session, talk = opened(demo)
    with session:
        talk.restart("Be brief.")
        assert session.is_new and not root.exists()
        say(talk, WORDS[0])
        assert sorted(path.name for path in (root / "a").iterdir()) == [
            "lock", "session.json", "states", "turns.jsonl",
        ]  # fmt: skip
        assert sys.platform == "win32" or root.stat().st_mode & 0o777 == 0o700


def test_a_session_is_open_in_one_process_only(demo: Model) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, WORDS[0])
        with pytest.raises(UsageError, match=rf"open in another process \({os.getpid()}\)"):
            Session("a")
        with pytest.raises(UsageError, match="open in another process"):
            sessions.remove("a")
        assert len(sessions.transcript("a").path()) == 1
    late, talk = opened(demo, "b")
    other, rival = opened(demo, "b")
    with other, late:
        say(rival, WORDS[0])
        list(talk.send(WORDS[1]))
        assert isinstance(talk.trouble, UsageError)
    assert [turn.user for turn in sessions.transcript("b").path()] == WORDS[:1]


def test_conversations_that_begin_in_the_same_second_are_all_kept(
    demo: Model, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "fresh_name", lambda: "now")
    begun = [Session(None) for _ in range(3)]
    talks = [session.converse(demo, "demo", SHORT, 1) for session in begun]
    assert [session.name for session in begun] == ["now"] * 3
    for session, talk in zip(begun, talks, strict=True):
        say(talk, WORDS[0])
        session.close()
    begun.append(Session(None))  # when another is there already
    say(begun[3].converse(demo, "demo", SHORT, 1), WORDS[1])
    begun[3].close()
    assert [session.name for session in begun] == ["now", "now-2", "now-3", "now-4"]
    assert sessions.names() == ["now", "now-2", "now-3", "now-4"]
    for session in begun:
        assert (root / session.name / "states" / "1.safetensors").is_file()
        assert len(sessions.transcript(session.name).path()) == 1


def test_names(root: Path) -> None:
    for name in ("", ".", "..", "a/b", "-x", ".x", "ü", "a" * 101, "a b", "a\n"):
        with pytest.raises(UsageError, match="no name for a session"):
            Session(name)
    with pytest.raises(ModelNotFound, match="no session x"):
        sessions.remove("x")
    with pytest.raises(ModelNotFound, match="no session x"):
        sessions.transcript("x")
    assert sessions.summaries() == []
    assert not root.exists()


@pytest.mark.skipif(sys.platform != "win32", reason="such names are as good as others here")
def test_names_that_windows_does_not_allow(root: Path) -> None:
    for name in ("nul", "COM1", "con.x", "a."):
        with pytest.raises(UsageError, match="no name for a session: Windows allows no such folder"):
            Session(name)
    assert not root.exists()


def test_what_is_in_the_way_is_told_before_anything_is_said(root: Path) -> None:
    root.mkdir()
    (root / "file").touch()
    link(root / "dangling", "nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(UsageError, match=rf"{name} is in the way: not a folder$"):
            Session(name)
    (root / "folder").mkdir()
    assert Session("folder").is_new


def test_listing_and_removing(demo: Model, root: Path) -> None:
    for name in ("a", "b"):
        session, talk = opened(demo, name)
        with session:
            say(talk, *WORDS[: 1 if name == "a" else 2])
    found = {item.name: item for item in sessions.summaries()}
    assert [(item.model, item.turns, item.branches) for item in found.values()] == [
        ("demo", 1, 1),
        ("demo", 2, 1),
    ]
    assert found["b"].nbytes > 2 * 250_000
    (root / "b" / "session.json").write_text("{}")
    assert [item.model for item in sessions.summaries() if item.name == "b"] == [""]
    sessions.remove("a")
    assert not (root / "a").exists()


def test_another_model_is_refused(demo: Model, tmp_path: Path) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, WORDS[0])
    pointer = tmp_path / "sessions" / "a" / "session.json"
    pointer.write_text(pointer.read_text().replace(demo.fingerprint, "0" * 64))
    with Session("a") as session, pytest.raises(StateMismatch, match="another model than demo"):
        session.converse(demo, "demo", SHORT)


def test_states_that_are_lost_or_damaged_are_made_again(demo: Model, root: Path) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, *WORDS)
        end = talk.state().copy()
    states = root / "a" / "states"
    (states / "4.safetensors").write_bytes(b"x" * 100)
    (states / "3.safetensors").unlink()
    (states / "2.safetensors").write_bytes((states / "1.safetensors").read_bytes())
    (states / "99.safetensors").write_bytes((states / "1.safetensors").read_bytes())
    session, talk = opened(demo, seed=None)
    with session:
        assert same(talk.state(), end)
    assert not (states / "99.safetensors").exists()


def test_old_states_are_pruned_and_the_rest_lies_apart(
    demo: Model, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "DISK", 1)
    session = Session("a")
    with session:
        kept = Snapshots(demo, root / "a" / "states", disk=6 * 410_000)
        monkeypatch.setattr(sessions, "Snapshots", lambda *_: kept)
        talk = session.converse(demo, "demo", Settings(max_tokens=2), 1)
        say(talk, *["Hi"] * 40)
        left = sorted(int(path.stem) for path in (root / "a" / "states").iterdir())
        assert len(left) == 6
        assert {32, 16, 40} <= set(left)
        end = talk.state().copy()
        talk.undo(35)
        talk.redo(35)
        assert same(talk.state(), end)


def test_a_line_that_is_not_whole_is_forgotten(demo: Model, root: Path) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, *WORDS[:2])
    journal = root / "a" / "turns.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"id": 3, "us')
    session, talk = opened(demo, seed=None)
    with session:
        assert [turn.user for turn in talk.history.path()] == WORDS[:2]
        say(talk, WORDS[2])
    assert journal.read_bytes().startswith(whole)
    assert [turn.user for turn in sessions.transcript("a").path()] == WORDS[:3]


def test_a_journal_that_another_program_shortened_is_not_written_to(demo: Model, root: Path) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, WORDS[0])
        (root / "a" / "turns.jsonl").write_bytes(b"")
        list(talk.send(WORDS[1]))
        assert isinstance(talk.trouble, FormatError)
    assert (root / "a" / "turns.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("session.json", b""),
        ("session.json", b"[]"),
        ("session.json", b'{"format": "rwkvcli-session"}'),
        ("session.json", b'{"format": "rwkvcli-session", "version": "9"}'),
        ("turns.jsonl", b"nonsense\n"),
        ("turns.jsonl", b'{"id": 1}\n'),
        ("turns.jsonl", b""),
    ],
)
def test_damaged_files_are_refused_by_name(demo: Model, root: Path, name: str, content: bytes) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, WORDS[0])
    (root / "a" / name).write_bytes(content)
    for _ in range(2):  # the lock is given up
        with pytest.raises(FormatError, match=name if content else "session.json|branch"):
            Session("a")


@pytest.mark.parametrize(
    ("file", "written"), [("turns.jsonl", "turns.jsonl"), ("session.json", ".session.json.part")]
)
def test_a_full_disk_loses_nothing_that_was_said(
    demo: Model, root: Path, file: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, WORDS[0])
        sync = os.fsync

        def full(handle: int) -> None:
            path = root / "a" / written
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(handle)

        monkeypatch.setattr(os, "fsync", full)
        for word in WORDS[1:3]:
            list(talk.send(word))
            assert isinstance(talk.trouble, OSError)
            assert talk.trouble.filename == str(root / "a" / file)
        assert len(sessions.transcript("a").path()) == 1
        monkeypatch.undo()
        monkeypatch.setenv("RWKV_SESSIONS", str(root))
        say(talk, WORDS[3])
        end = talk.state().copy()
    session, talk = opened(demo, seed=None)
    with session:
        assert [turn.user for turn in talk.history.path()] == WORDS
        assert same(talk.state(), end)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_without_room_for_states_takes_the_turns(
    demo: Model, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, WORDS[0])

        monkeypatch.setattr(State, "save", full_disk)
        say(talk, *WORDS[1:3])
        assert [path.name for path in (root / "a" / "states").iterdir()] == ["1.safetensors"]
        end = talk.state().copy()
        (root / "book.txt").write_text("It was a fine morning.")
        talk.read(root / "book.txt")  # its state cannot be made again
        assert isinstance(talk.trouble, OSError)
    session, talk = opened(demo, seed=None)
    with session:
        assert [turn.user for turn in talk.history.path()] == WORDS[:3]
        assert same(talk.state(), end)


def test_a_text_that_was_read_on_a_full_disk_is_saved_later(
    demo: Model, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, WORDS[0])
        (root / "book.txt").write_text("It was a fine morning.")

        with monkeypatch.context() as there:
            there.setattr(State, "save", full_disk)
            talk.read(root / "book.txt")
            read = talk.state().copy()
            talk.configure(replace(SHORT, max_tokens=1))
            for _ in range(snapshots.IN_MEMORY + 1):
                list(talk.send("Go on."))
                assert isinstance(talk.trouble, OSError)
        say(talk, "Go on.")
    session, talk = opened(demo, seed=None)
    with session:
        talk.undo(snapshots.IN_MEMORY + 2)
        assert talk.history.head is not None and talk.history.head.kind == "read"
        assert same(talk.state(), read)


def test_transcripts(demo: Model) -> None:
    session, talk = opened(demo)
    with session:
        talk.restart("Be brief.\nVery.")
        (one, two) = say(talk, "Hi", "So?")
    history = sessions.transcript("a")
    lines = [json.loads(line) for line in transcript(history, "a", "jsonl").splitlines()]
    assert lines == [
        {"role": "system", "content": "Be brief.\nVery."},
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": one},
        {"role": "user", "content": "So?"}, {"role": "assistant", "content": two},
    ]  # fmt: skip
    assert transcript(history, "a", "md") == (
        f"# a\n\n> Be brief.\n> Very.\n\n## User\n\nHi\n\n## Assistant\n\n{one}\n\n## User\n\nSo?\n\n## Assistant\n\n{two}\n"
    )


def test_a_transcript_is_json_whatever_was_said(demo: Model) -> None:
    session, talk = opened(demo)
    with session:
        say(talk, "not \udcff UTF-8")  # as it comes from a pipe
    text = transcript(sessions.transcript("a"), "a", "jsonl")
    assert json.loads(text.encode().splitlines()[0])["content"] == "not \udcff UTF-8"


_CHATTER = """
import sys
from rwkvcli import Model
from rwkvcli.services.conversation import Settings
from rwkvcli.services.sessions import Session
session = Session("crash")
talk = session.converse(Model.load("demo", threads=1), "demo", Settings(max_tokens=4), 1)
while True:
    for part in talk.send("Say something."):
        pass
    print(len(talk.history.path()), flush=True)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_kill_9_at_any_moment_loses_the_turn_in_the_making_at_most(demo: Model, kills: int) -> None:
    chance = random.Random(1)
    saved = 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-P", "-c", _CHATTER], stdout=subprocess.PIPE, env=environment(
            RWKV_SESSIONS=os.environ["RWKV_SESSIONS"]))  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * 0.05)
        process.kill()
        told = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        before = saved + 1
        session, talk = opened(demo, "crash", None)
        with session:
            saved = len(talk.history.path())
            assert saved >= max([before, *map(int, told)])
            state = demo.new_state()
            for turn in talk.history.path():
                demo.forward(turn.ids.tolist(), state)
            assert same(state, talk.state())


def turns_and_memory(demo: Model, count: int) -> list[int]:
    """Bytes of anonymous memory of this process at every tenth of `count` turns."""
    found = []
    session, talk = opened(demo, "long")
    with session:
        talk.configure(Settings(max_tokens=2))
        for number in range(count):
            say(talk, "Hi")
            if number % (count // 10) == 0:
                status = Path("/proc/self/status").read_text()
                found.append(int(status.split("RssAnon:")[1].split()[0]) << 10)
        assert len(list((talk.snapshots.folder or Path()).iterdir())) <= talk.snapshots.files
        assert talk.snapshots.held <= snapshots.IN_MEMORY
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_many_turns_hold_no_more_memory(demo: Model, count: int) -> None:
    found = turns_and_memory(demo, count)
    assert found[-1] - found[3] < 3_000_000 + 1000 * count
