"""States on disk: what a later server finds there is, bit for bit, what it would read; what it cannot use changes nothing."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import model_maker
from watched_calls import tokens_of_calls

from rwkvcli import Model, State
from rwkvcli.errors import UsageError
from rwkvcli.services import kept_states, prefixes
from rwkvcli.services.generation import Read
from rwkvcli.services.kept_states import KeptStates, kept_folder
from rwkvcli.services.prefixes import Prefixes

LARGE = 1 << 30


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, all that there is gets written at the end."""
    monkeypatch.setattr(prefixes, "_LAST", 60.0)


class Run:
    """A server's states, in memory and in `folder`, until `end`."""

    def __init__(
        self, folder: Path, model: Model, limit: int = LARGE, memory: int = LARGE, **more: Any
    ) -> None:
        self.warnings: list[str] = []
        starts: list[State] = more.get("starts", [])
        self.disk = KeptStates(folder, model, limit, starts, self.warnings.append)
        self.found = len(self.disk)
        self.model = model
        self.prefixes = Prefixes(model, memory, starts, self.disk)

    def say(self, ids: list[int], start: int = 0) -> int:
        """Read `ids`, and keep what is after them as after an answer. Returns how many tokens were known."""
        read, known = self.prefixes.read(ids, start=start)
        self.prefixes.keep(ids, read.state, start=start)
        return known

    def end(self) -> None:
        self.prefixes.put_away(lambda: False)

    def settle(self) -> None:
        """Wait until nothing is to be written."""
        until(lambda: not (self.disk._waiting or self.disk._writing or self.disk._touched))


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(1, 256), k=length)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.state"))


def assert_exact(model: Model, read: Read, ids: list[int], before: State | None = None) -> None:
    """The state and the logits are those of a model that reads `ids` at once."""
    state = model.new_state() if before is None else before.copy()
    assert np.array_equal(np.asarray(read.logits), model.forward(ids, state))
    for name, array in state.to_numpy().items():
        assert np.array_equal(read.state.to_numpy()[name], array), name
    assert read.state.tokens_seen == state.tokens_seen


def test_a_later_server_goes_on(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text(1, 60)
    first = Run(tmp_path, model)
    assert (first.found, first.say(ids)) == (0, 0)
    first.end()
    fed = tokens_of_calls(monkeypatch, "evaluate")
    second = Run(tmp_path, model)
    assert second.found == 1
    longer = [*ids, *text(2, 10)]
    read, known = second.prefixes.read(longer)
    assert (known, sum(fed)) == (60, 10)
    assert_exact(model, read, longer)
    model.evaluate([5], read.state)  # the caller goes on with its state; what is in memory is another
    assert_exact(model, second.prefixes.read(longer)[0], longer)
    second.end()
    assert second.warnings == []


def test_without_memory_states_are_found_too(model: Model, tmp_path: Path) -> None:
    run, ids = Run(tmp_path, model, memory=0), text(1, 60)
    assert run.say(ids) == 0
    run.settle()
    longer = [*ids, *text(2, 40)]
    read, known = run.prefixes.read(longer)
    assert known == 60
    assert_exact(model, read, longer)
    assert len(run.prefixes) == 0
    run.end()


def test_what_is_written(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_LONG", 100)
    run, manual = Run(tmp_path, model), text(1, 50)

    def lengths() -> list[int]:
        run.settle()
        return sorted(int(path.name.split("-")[1]) for path in files(tmp_path))

    run.prefixes.read([*manual, 1, *text(2, 20)])
    assert lengths() == []  # a prompt's end: the answer comes
    run.prefixes.read([*manual, 2, *text(3, 20)])
    assert lengths() == [50]  # shared
    run.prefixes.read([*manual, 2, *text(3, 20), *text(4, 10)], [75])
    assert lengths() == [50, 75]  # named
    run.prefixes.read(text(5, 100))
    assert lengths() == [50, 75, 100]  # took long
    run.say(text(6, 90))
    assert lengths() == [50, 75, 90, 100]  # an answer
    run.say(text(7, 31))
    run.end()
    assert lengths() == [50, 75, 90, 100]  # read sooner than found


def test_a_prompt_that_is_there_as_a_whole(model: Model, tmp_path: Path) -> None:
    ids, other = text(1, 60), text(2, 60)
    run = Run(tmp_path, model)
    run.prefixes.read([*ids, 1], [60])  # with logits
    run.say(other[:40])
    run.prefixes.keep(other, run.prefixes.read(other)[0].state)  # without
    run.end()
    for whole, expected in ((ids, 60), (other, 40)):
        run = Run(tmp_path, model)
        read, known = run.prefixes.read(whole)
        assert known == expected
        assert_exact(model, read, whole)
        run.end()


def test_memory_is_preferred_where_the_disk_has_little_more(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, run = text(1, 200), Run(tmp_path, model)
    for length in (71, 72):
        run.say(ids[:length])
    run.end()
    loaded: list[str] = []
    load = KeptStates.load
    monkeypatch.setattr(KeptStates, "load", lambda self, name: (loaded.append(name), load(self, name))[1])
    run = Run(tmp_path, model)
    run.prefixes.read(ids[:40])
    assert run.prefixes.read(ids[:71])[1] == 40
    assert loaded == []
    run.end()
    run = Run(tmp_path, model)
    run.prefixes.read(ids[:40])
    assert run.prefixes.read(ids)[1] == 72
    assert len(loaded) == 1
    run.end()


def test_log_probabilities_are_not_taken_from_there(model: Model, tmp_path: Path) -> None:
    ids, run = text(1, 60), Run(tmp_path, model)
    run.say(ids)
    run.end()
    run = Run(tmp_path, model)
    read, known = run.prefixes.read([*ids, 1], count=2)
    assert known == 0
    assert read.judged is not None
    assert len(read.judged.logprobs) == 61
    assert run.prefixes.read([*ids, 1, 2])[1] == 61
    run.end()


def test_what_a_prompt_goes_on_from_is_known_by_its_content(model: Model, tmp_path: Path) -> None:
    ids, starts = text(3, 40), [model.new_state(), model.new_state()]
    for seed, start in enumerate(starts):
        model.evaluate(text(seed, 30), start)
    run = Run(tmp_path, model, starts=starts)
    assert [run.say(ids, start) for start in (0, 1)] == [0, 0]
    run.end()
    saved = tmp_path / "elsewhere"
    starts[0].save(saved)
    run = Run(tmp_path, model, starts=[starts[1], State.load(saved, model)])
    longer = [*ids, 1]
    for start, expected in ((1, 0), (2, 40), (0, 40)):
        read, known = run.prefixes.read(longer, start=start)
        assert known == expected
        before = run.prefixes._starts[start - 1] if start else None
        assert_exact(model, read, longer, before)
    run.end()
    run = Run(tmp_path, model)
    assert run.prefixes.read(longer)[1] == 40
    run.end()


def test_another_model_finds_nothing(model: Model, tmp_path: Path) -> None:
    ids, folder = text(1, 60), tmp_path / "kept"
    folder.mkdir()
    run = Run(folder, model)
    run.say(ids)
    run.end()
    other = Run(folder, Model.load(model_maker(tmp_path)("7", "int8"), threads=1))
    assert (other.found, other.say(ids)) == (0, 0)
    other.end()
    assert len(files(folder)) == 2
    run = Run(folder, model)
    assert (run.found, run.say([*ids, 1])) == (1, 60)
    run.end()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _replace(path: Path) -> None:
    path.write_bytes(b"a letter to somebody" * 100)


@pytest.mark.parametrize(
    ("harm", "removed"), [(_cut, True), (_change, True), (_empty, False), (_replace, False)]
)
def test_a_damaged_file_is_passed_over(
    model: Model, tmp_path: Path, harm: Callable[[Path], None], removed: bool
) -> None:
    ids, run = text(1, 90), Run(tmp_path, model)
    run.say(ids[:40])
    run.say(ids[:80])
    run.end()
    (path,) = (path for path in files(tmp_path) if "-80-" in path.name)
    harm(path)
    run = Run(tmp_path, model)
    read, known = run.prefixes.read(ids)
    assert known == 40
    assert_exact(model, read, ids)
    assert len(run.warnings) == 1
    assert run.warnings[0].startswith(f"warning: {path}")
    assert run.warnings[0].endswith(": passed over")
    assert path.exists() is not removed
    run.say(ids[:80])
    run.end()
    assert len(run.warnings) == 1
    run = Run(tmp_path, model)  # it was written anew
    assert run.prefixes.read(ids)[1] == 80
    run.end()
    assert run.warnings == []


def test_a_file_under_the_name_of_another_is_passed_over(model: Model, tmp_path: Path) -> None:
    run = Run(tmp_path, model)
    run.say(text(1, 60))
    run.say(text(2, 60))
    run.end()
    a, b = files(tmp_path)
    a.write_bytes(b.read_bytes())
    run = Run(tmp_path, model)
    assert sorted(run.say([*text(seed, 60), 1]) for seed in (1, 2)) == [0, 60]
    run.end()
    assert len(run.warnings) == 1


def test_a_file_that_somebody_removed_is_not_spoken_of(model: Model, tmp_path: Path) -> None:
    run = Run(tmp_path, model, memory=0)
    run.say(text(1, 60))
    run.settle()
    (path,) = files(tmp_path)
    path.unlink()
    assert run.say([*text(1, 60), 1]) == 0
    run.end()
    assert run.warnings == []


def test_other_files_stay_as_they_are(model: Model, tmp_path: Path) -> None:
    others = {"notes.txt", "12.state", f"{'0' * 16}-12-{'0' * 32}.safetensors", ".hidden"}
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / f"{'0' * 16}-12-{'0' * 32}.state").mkdir()
    run = Run(tmp_path, model, limit=500_000)
    run.say(text(1, 60))
    run.say(text(2, 60))
    run.end()
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert run.warnings == []


def test_what_was_not_used_for_the_longest_time_goes_first(model: Model, tmp_path: Path) -> None:
    a, b, c, d = ([number, *text(number, 59)] for number in range(1, 5))
    run = Run(tmp_path, model)
    for ids in (a, b, c):
        run.say(ids)
        run.settle()
        path = max(files(tmp_path), key=lambda path: path.stat().st_mtime)
        os.utime(path, (1e9 + ids[0], 1e9 + ids[0]))
    size = path.stat().st_size
    run.prefixes.read([*a, 1])  # from memory: it counts all the same
    run.end()
    run = Run(tmp_path, model, limit=3 * size + size // 2)
    assert run.found == 3
    run.say(d)  # b goes
    run.end()
    run = Run(tmp_path, model, limit=3 * size + size // 2)
    assert [run.prefixes.read([*ids, 1])[1] for ids in (a, b, c, d)] == [60, 0, 60, 60]
    run.end()
    run = Run(tmp_path, model, limit=size + size // 2)
    assert run.found == len(files(tmp_path)) == 1
    run.end()


def test_a_limit_below_one_state_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="one state of this model takes 406,528 bytes on disk, and all are to take 100,000"
    ):
        KeptStates(tmp_path, model, 100_000)


def test_a_folder_that_cannot_be_written_to_costs_a_warning(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".part").mkdir()
    run = Run(tmp_path, model)
    for seed in range(3):
        assert run.say(text(seed, 60)) == 0
        run.settle()
    assert run.say([*text(0, 60), 1]) == 60
    assert len(run.warnings) == 1
    assert run.warnings[0].startswith(f"warning: no states are kept in {tmp_path} for now: ")
    (tmp_path / ".part").rmdir()
    monkeypatch.setattr(run.disk, "_rests_until", 0.0)
    run.end()  # what is in memory is written after all
    assert len(files(tmp_path)) == 4
    assert len(run.warnings) == 1


def test_a_full_disk_leaves_nothing_half_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    run = Run(tmp_path, model)
    run.say(text(1, 60))
    run.settle()
    run.end()
    assert run.warnings == [f"warning: no states are kept in {tmp_path} for now: no space left on device"]
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that writes nothing until this is set."""
    may, write = threading.Event(), KeptStates._write

    def waiting(self: KeptStates, name: str, what: Any) -> None:
        assert may.wait(60)
        write(self, name, what)

    monkeypatch.setattr(KeptStates, "_write", waiting)
    return may


def test_nothing_waits_for_the_disk(
    model: Model, tmp_path: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_states, "_MOST_WAITING", 2)
    run = Run(tmp_path, model)
    for seed in range(6):
        run.say(text(seed, 60))
        until(lambda: bool(run.disk._writing))
    assert len(run.disk._waiting) == 2
    slow.set()
    run.settle()
    assert len(files(tmp_path)) == 3
    run.end()  # those that gave way are in memory
    assert len(files(tmp_path)) == 6


def test_what_leaves_memory_is_written_if_it_gave_way(
    model: Model, tmp_path: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_states, "_MOST_WAITING", 1)
    one = sum(array.nbytes for array in model.new_state().to_numpy().values())
    run = Run(tmp_path, model, memory=4 * one)
    for seed in range(3):
        run.say(text(seed, 60))
        until(lambda: bool(run.disk._writing))
    slow.set()
    run.settle()
    assert len(files(tmp_path)) == 2
    for seed in range(10, 14):  # of prompts nothing is written
        run.prefixes.read(text(seed, 40))
    run.settle()
    assert len(files(tmp_path)) == 3
    run.end()


def test_who_has_enough_of_waiting_is_not_kept(model: Model, tmp_path: Path, slow: threading.Event) -> None:
    run = Run(tmp_path, model)
    run.say(text(1, 60))
    run.prefixes.put_away(lambda: True)
    assert files(tmp_path) == []
    slow.set()


def test_a_folder_is_of_one_server(tmp_path: Path) -> None:
    name = str(tmp_path / "a" / "b")
    with kept_folder(name) as folder:
        assert folder.is_dir()
        with pytest.raises(UsageError) as caught, kept_folder(name):
            pass
        assert str(caught.value) == f"{name} is in use by another server ({os.getpid()})"
        assert caught.value.hint == "each server needs a folder of its own"
    with kept_folder(name):
        pass


def test_what_can_be_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    below = [] if sys.platform == "win32" else [tmp_path / "file" / "below"]  # which has its own words
    for name in (tmp_path / "file", *below):
        with pytest.raises(UsageError) as caught, kept_folder(str(name)):
            pass
        assert str(caught.value) == f"{name}: not a folder"
        assert caught.value.hint == "--keep names a folder for states"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="permission denied"), kept_folder(str(tmp_path)):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_others_cannot_read_it(model: Model, tmp_path: Path) -> None:
    with kept_folder(str(tmp_path / "kept")) as folder:
        run = Run(folder, model)
        run.say(text(1, 60))
        run.end()
        (path,) = files(folder)
        assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_file_is_a_state_of_its_own(model: Model, tmp_path: Path) -> None:
    run = Run(tmp_path, model)
    run.say(text(1, 60))
    run.end()
    (path,) = files(tmp_path)
    assert State.load(path, model).tokens_seen == 60
