"""Conversations on disk, a folder each.

    turns.jsonl    every turn that was made, a line each; lines are only ever added
    session.json   the model, the settings, the branches and where each stands; replaced as a whole
    states/        the state after many of the turns: N.safetensors after turn N
    lock           held by the process that has the session open

A turn is saved in the order state, line, session.json, each synced: whatever ends the process in between, what
session.json names is there, and the turn in the making is lost at most.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.atomic import is_name_on_windows, named, whole_file
from rwkvcli.errors import FormatError, ModelNotFound, StateMismatch, UsageError
from rwkvcli.services.conversation import Conversation, Settings
from rwkvcli.services.json_text import json_text
from rwkvcli.services.locks import clear, locked
from rwkvcli.services.places import Place
from rwkvcli.services.snapshots import Snapshots
from rwkvcli.services.turns import MAIN, Branch, History, Turn, checked_name

if TYPE_CHECKING:
    from rwkvcli.runtime.drafting import Drafting
    from rwkvcli.runtime.model import Model

FORMAT = "rwkvcli-session"
VERSION = "0"
_POINTER, _JOURNAL, _STATES, _LOCK = "session.json", "turns.jsonl", "states", "lock"


def _default_path() -> Path:
    from platformdirs import user_data_path

    return user_data_path("rwkv", appauthor=False) / "sessions"


PLACE = Place("RWKV_SESSIONS", "folder for conversations; --no-save keeps none", _default_path)
"""RWKV_SESSIONS, or `rwkv/sessions` in the user's data folder."""


def sessions_path() -> Path:
    """The folder of all sessions; it may not be there yet."""
    return PLACE.path()


def _folder(name: str) -> Path:
    """Where a session of this name is, or would be. Raises UsageError for what is no name."""
    checked_name(name, "session")
    if sys.platform == "win32" and not is_name_on_windows(name):
        raise UsageError(
            f"{name!r} is no name for a session: Windows allows no such folder", hint="name another"
        )
    return sessions_path() / name


def exists(name: str) -> bool:
    """Whether there is a session of this name."""
    with PLACE.in_use():
        return (_folder(name) / _POINTER).is_file()


def fresh_name() -> str:
    """A name for a session that nobody named: the date and time."""
    return time.strftime("%Y%m%d-%H%M%S")


def _free(name: str, number: int) -> str:
    """`name`, with the first number from `number` up (1: none) with which there is no folder of that name."""
    while True:
        numbered = name if number == 1 else f"{name}-{number}"
        if not (sessions_path() / numbered).exists():
            return numbered
        number += 1


@dataclass(frozen=True)
class Summary:
    """What is told of a session without opening it."""

    name: str
    model: str
    turns: int
    """On the current branch."""
    branches: int
    updated: str
    nbytes: int


def names() -> list[str]:
    """Every session, by name. Raises UsageError for a place that is no folder, or that cannot be read."""
    with PLACE.in_use():
        try:
            folders = list(sessions_path().iterdir())
        except FileNotFoundError:
            return []
    return sorted(folder.name for folder in folders if (folder / _POINTER).is_file())


def summaries() -> list[Summary]:
    """Every session, the latest last. One that cannot be read is listed with an empty model. Raises as names()."""
    found = [_summary(sessions_path() / name) for name in names()]
    return sorted(found, key=lambda session: (session.updated, session.name))


def _summary(folder: Path) -> Summary:
    nbytes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may be at work on it
            nbytes += path.stat().st_size if path.is_file() else 0
    try:
        pointer = _Pointer.read(folder)
    except FormatError:
        return Summary(folder.name, "", 0, 0, "", nbytes)
    return Summary(folder.name, pointer.model, pointer.turns, len(pointer.branches), pointer.updated, nbytes)


def transcript(name: str) -> History:
    """The turns of a session, which may be open elsewhere. Raises ModelNotFound, FormatError."""
    folder = _existing(name)
    pointer = _Pointer.read(folder)
    return History(_read_journal(folder)[0], pointer.branches, pointer.current)


def remove(name: str) -> None:
    """Remove a session. Raises ModelNotFound, and UsageError while it is open."""
    folder = _existing(name)
    with _locked(folder, name):
        (folder / _POINTER).unlink()  # from here on there is none
        clear(folder)
    with contextlib.suppress(OSError):  # another process has begun one of this name
        folder.rmdir()


def _existing(name: str) -> Path:
    folder = _folder(name)
    if not (folder / _POINTER).is_file():
        raise ModelNotFound(f"no session {name}", hint="`rwkv sessions list` shows all")
    return folder


class Session:
    """A conversation on disk, open in this process alone. Use it as a context manager.

    A session that is new is written when its first turn is. One without a name is called after the date and time; when
    another has that name by then, it gets a number as well.
    """

    def __init__(self, name: str | None) -> None:
        """Raises UsageError (the name, open elsewhere, a place that cannot be written to), FormatError (damaged)."""
        self._called = fresh_name() if name is None else None
        self.name = _free(self._called, 1) if self._called is not None else name or ""
        self.folder = _folder(self.name)
        self.pointer: _Pointer | None = None
        self.history = History()
        self._lock: contextlib.ExitStack | None = None
        self._written = 0  # bytes of the journal that count
        self._last = 0  # number of the last turn in it
        if exists(self.name):
            self._open()
        else:
            PLACE.check()  # before anything is said that could not be kept
            if os.path.lexists(self.folder) and not self.folder.is_dir():
                raise UsageError(f"{self.folder} is in the way: not a folder", hint="begin another session")

    @property
    def is_new(self) -> bool:
        """Whether there is nothing of it on disk yet."""
        return self.pointer is None

    @property
    def model(self) -> str | None:
        """The model that it belongs to, as MODEL; None while it is new."""
        return self.pointer.model if self.pointer is not None else None

    def settings(self) -> Settings:
        """The settings it was left with. Raises FormatError."""
        return Settings.from_json(self.pointer.settings) if self.pointer is not None else Settings()

    def converse(
        self,
        model: Model,
        name: str,
        settings: Settings,
        seed: int | None = None,
        drafting: Drafting | None = None,
    ) -> Conversation:
        """Go on with it on `model`, called `name` on the command line; every change is saved.

        Raises StateMismatch for another model than it belongs to, and as Conversation.
        """
        if self.pointer is not None and self.pointer.fingerprint != model.fingerprint:
            raise StateMismatch(
                f"session {self.name} belongs to another model than {name}",
                hint=f"it was made with {self.pointer.model}; `rwkv sessions export {self.name}` shows its text",
            )
        snapshots = Snapshots(model, self.folder / _STATES)
        if self.pointer is not None:
            snapshots.clean(self.history.turns.values())
        talk = Conversation(
            model,
            snapshots,
            self.history,
            settings,
            seed,
            lambda: self._save(talk, _absolute(name)),
            drafting,
        )
        return talk

    def close(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        with PLACE.in_use():
            self._lock_folder()
        try:
            self.pointer = _Pointer.read(self.folder)
            turns, self._written = _read_journal(self.folder)
            self.history = History(turns, self.pointer.branches, self.pointer.current)
            self._last = max(self.history.turns, default=0)
        except BaseException:
            self.close()
            raise

    def _lock_folder(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(self.folder, self.name))
            self._lock = stack.pop_all()

    def _save(self, talk: Conversation, model: str) -> None:
        """Write what is new. Raises OSError, and UsageError for a session that another process has begun."""
        history = talk.history
        if self.is_new and not history.turns:
            return
        if self._lock is None:
            self._begin(talk)
        fresh = [turn for number, turn in history.turns.items() if number > self._last]
        for turn in fresh:
            try:
                talk.snapshots.write(turn)
            except OSError:
                if not turn.replayable:
                    raise
                # a disk that is full for a state may have room for a line, from which the state can be made again
        if fresh or self.is_new:
            self._append(fresh)
        self.pointer = _Pointer(
            model=model,
            fingerprint=talk.model.fingerprint,
            settings=talk.settings.to_json(),
            branches=history.branches,
            current=history.current,
            turns=history.head.depth if history.head is not None else 0,
        )
        self.pointer.write(self.folder)
        wanted = {
            head for branch in history.branches.values() for head in (branch.head, *branch.redo) if head
        }
        talk.snapshots.prune(history.turns.values(), wanted)

    def _begin(self, talk: Conversation) -> None:
        """Make the folder, and take it. Raises OSError, and UsageError for one that another process has."""
        while True:
            try:
                PLACE.made(self.folder, 0o700)
                self._lock_folder()
                if (self.folder / _POINTER).is_file():
                    self.close()
                    raise UsageError(f"session {self.name} was begun by another process")
                return
            except UsageError:
                other = _free(self._called, 2) if self._called is not None else self.name
                if other == self.name:
                    raise
                self.name, self.folder = other, sessions_path() / other
                talk.snapshots.folder = self.folder / _STATES

    def _append(self, turns: list[Turn]) -> None:
        """Add lines to the journal, all or none."""
        data = b"".join(_line(turn.to_json()) for turn in turns)
        path = self.folder / _JOURNAL
        with named(path), open(path, "ab", buffering=0) as file:
            if file.seek(0, os.SEEK_END) < self._written:
                raise FormatError(f"{path} is shorter than it was: another program changed it")
            file.truncate(self._written)  # what an earlier try, or a crash, left of a line
            try:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._written)
                raise
        self._written += len(data)
        self._last = max((turn.id for turn in turns), default=self._last)


@dataclass
class _Pointer:
    """session.json."""

    model: str
    fingerprint: str
    settings: Mapping[str, Any]
    branches: dict[str, Branch]
    current: str = MAIN
    turns: int = 0
    updated: str = ""

    def write(self, folder: Path) -> None:
        """Replace the one in `folder`. Raises OSError."""
        self.updated = time.strftime("%Y-%m-%d %H:%M:%S")
        branches = {name: vars(branch) for name, branch in self.branches.items()}
        values = {"format": FORMAT, "version": VERSION, **vars(self), "branches": branches}
        with whole_file(folder / _POINTER) as file:
            file.write(_line(values))

    @classmethod
    def read(cls, folder: Path) -> _Pointer:
        """Raises FormatError."""
        path = folder / _POINTER
        try:
            values = json.loads(path.read_bytes())
            if values.pop("format") != FORMAT:
                raise ValueError
            version = values.pop("version")
            if version != VERSION:
                raise FormatError(f"{path}: session format {version!r} is not read by this version")
            branches = {name: Branch.from_json(item) for name, item in values.pop("branches").items()}
            pointer = cls(**values, branches=branches)
            if not all(isinstance(text, str) for text in (pointer.model, pointer.updated, pointer.current)):
                raise ValueError
        except OSError as error:
            raise FormatError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise FormatError(
                f"{path}: not the file of a session, or a damaged one",
                hint="the turns are in turns.jsonl beside it",
            ) from None
        return pointer


def _read_journal(folder: Path) -> tuple[list[Turn], int]:
    """The turns, and the bytes of the journal that count: a last line that is not whole does not."""
    path = folder / _JOURNAL
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    whole = data.rfind(b"\n") + 1
    turns = []
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        try:
            turns.append(Turn.from_json(json.loads(line)))
        except (ValueError, TypeError, FormatError):
            raise FormatError(f"{path}: line {number} is damaged") from None
    return turns, whole


def _line(values: Mapping[str, Any]) -> bytes:
    """JSON and a line end; characters that stand for bytes that are no text are escaped."""
    return json_text(values).encode() + b"\n"


def _absolute(name: str) -> str:
    """MODEL as it can be found from anywhere."""
    from rwkvcli.services.names import DEMO, alias

    is_name = name == DEMO or alias(name) is not None
    return os.path.abspath(name) if not is_name and os.path.exists(name) else name  # noqa: PTH100, PTH110


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """A session that no other process may open. Raises UsageError if one has."""

    def refuse(who: str) -> None:
        raise UsageError(
            f"session {name} is open in another process" + (f" ({who})" if who else ""),
            hint="end that one, or begin another session",
        )

    with locked(folder / _LOCK, refuse):
        yield
