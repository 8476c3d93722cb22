"""States after the beginnings of prompts on disk: what a server has read outlives it.

A file is a state file, called MODEL-TOKENS-DIGEST.state: the digest is of the model, of what the tokens went on from and of the
tokens themselves, so that no list of tokens is held, and the beginnings of a prompt are found by hashing it once. The folder belongs
to one server at a time. Other files in it are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rwkvcli.errors import FormatError, OutOfMemory, RwkvError, UsageError
from rwkvcli.services.fitting import state_bytes
from rwkvcli.services.locks import locked
from rwkvcli.services.places import is_wrong_place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State

_NAME = re.compile(r"[0-9a-f]{16}-([1-9][0-9]{0,9})-[0-9a-f]{32}\.state")
_MAGIC = b'{"__metadata__":{"format":"rwkvcli-state"'
"""What the header of a file begins with that was written here."""
_LOCK, _PART = "lock", ".part"
_MOST_WAITING = 8
"""States that wait to be written: their arrays are in memory beside all others."""
_REST = 60.0
"""Seconds after a file could not be written, until it is tried again."""
_GLANCE = 0.1
_HINT = "--keep names a folder for states"


@contextlib.contextmanager
def kept_folder(name: str) -> Iterator[Path]:
    """The folder `name`, made if it is not there, for this process alone. Raises UsageError, and OSError of a full disk."""

    def refuse(who: str) -> None:
        raise UsageError(
            f"{name} is in use by another server" + (f" ({who})" if who else ""),
            hint="each server needs a folder of its own",
        )

    with contextlib.ExitStack() as stack:
        try:
            folder = Path(name).expanduser()
            folder.mkdir(0o700, parents=True, exist_ok=True)
            stack.enter_context(locked(folder / _LOCK, refuse))
        except RuntimeError:
            raise UsageError(f"{name}: there is no such home folder", hint=_HINT) from None
        except OSError as error:
            if not is_wrong_place(error):
                raise
            reason = (error.strerror or str(error)).lower()
            if isinstance(error, FileExistsError | NotADirectoryError):
                reason = "not a folder"
            raise UsageError(f"{name}: {reason}", hint=_HINT) from None
        yield folder


class _Waiting(NamedTuple):
    """A state that is to be written."""

    arrays: Mapping[str, Logits]
    tokens_seen: int
    logits: Logits | None


class KeptStates:
    """States of `model` in `folder`, whose files, those of other models too, are at most `limit` bytes: what was not used for
    the longest time goes first. `starts` are what prompts go on from, by their numbers from 1 on. `warn` is told what could not be
    read or written.

    A thread of its own writes; the others wait for nothing. Raises UsageError if not even one state fits.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        limit: int,
        starts: Sequence[State] = (),
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._folder, self._model, self._limit, self._warn = folder, model, limit, warn
        identity = _identity(model)
        self._prefix = identity.hexdigest()[:16]
        self._digests = [identity, *(_after(identity, start) for start in starts)]
        self._files: OrderedDict[str, int] = (
            OrderedDict()
        )  # bytes; first what was not used for the longest time
        self._lengths: Counter[int] = Counter()  # of this model's
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._writing = ""
        self._touched: set[str] = set()
        self._rests_until = 0.0
        # a signal may raise in who holds or calls these: written in Python, a lock could stay locked then
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closing = False
        self._check_room()
        for _, path, size in sorted(self._found()):
            self._add(path.name, size)
        self._make_room(0)
        self._thread = threading.Thread(target=self._run, name="kept states", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many states of the model there are."""
        with self._lock:
            return self._lengths.total()

    def find(self, key: bytes, beyond: int) -> list[tuple[int, str]]:
        """(tokens, name) of what is there of the beginnings of `key`, the longest first, if they have more than `beyond` tokens.

        `key`: the number of what they go on from, and the ids, 32 bits each.
        """
        start, ids = _parts_of(key)
        digest, at, found = self._digests[start].copy(), 0, []
        with self._lock:
            for length in sorted(n for n in self._lengths if beyond < n <= len(ids) // 4):
                digest.update(ids[4 * at : 4 * length])
                at = length
                name = self._called(length, digest)
                if name in self._files:
                    found.append((length, name))
        return found[::-1]

    def load(self, name: str) -> tuple[State, Logits | None] | None:
        """The state in a file, and its logits if they are known; None if it is not as it was written. Raises OutOfMemory."""
        from rwkvcli.runtime.state import State
        from rwkvcli.runtime.state_file import StateFile

        path = self._folder / name
        try:
            with StateFile(path) as file:
                if file.metadata.get("kept") != name:
                    raise FormatError(f"{path}: a state of another name")
                state = State.of(file, self._model)
        except OutOfMemory:
            raise
        except (RwkvError, OSError) as error:
            told = str(error)
        else:
            self._touch(name)
            logits = state.pause.logits if state.pause is not None else None
            state.pause = None
            return state, logits
        with self._lock:
            self._forget(name)
        if path.exists():
            self._warn(f"warning: {told}: passed over")
            with contextlib.suppress(OSError):
                if _is_ours(path):
                    path.unlink()
        return None

    def touch(self, key: bytes) -> None:
        """The state after `key` was used, from wherever."""
        self._touch(self._name(key))

    def offer(self, key: bytes, state: State, logits: Logits | None = None) -> None:
        """Have `state`, after `key`, written, unless it is there. What waits for the longest time gives way to it."""
        name = self._name(key)
        there = name in self._files or name in self._waiting or name == self._writing
        if there or self._closing or time.monotonic() < self._rests_until:
            return
        try:
            waiting = _Waiting(state.inner.to_numpy(), state.tokens_seen, logits)
        except RwkvError:  # of a device
            return
        with self._lock:
            self._waiting[name] = waiting
            while len(self._waiting) > _MOST_WAITING:
                self._waiting.popitem(last=False)
        self._wake.put(None)

    def wait_for_room(self, over: Callable[[], bool]) -> None:
        """Until what is offered next makes nothing give way, or until `over`."""
        while len(self._waiting) >= _MOST_WAITING and not over():
            time.sleep(_GLANCE)

    def close(self, over: Callable[[], bool]) -> None:
        """Write what waits, until `over`."""
        self._closing = True
        self._wake.put(None)
        while self._thread.is_alive() and not over():
            self._thread.join(_GLANCE)
        with self._lock:
            self._waiting.clear()

    def _run(self) -> None:
        """Write states, and note which were used, until it is closed."""
        while True:
            self._wake.get()
            while self._work():
                pass
            if self._closing:
                return

    def _work(self) -> bool:
        """Do what is to be done next; False: nothing."""
        with self._lock:
            touched, self._touched = self._touched, set()
            if self._waiting:
                self._writing, waiting = self._waiting.popitem(last=False)
        for name in touched:
            with contextlib.suppress(OSError):
                os.utime(self._folder / name)
        if not self._writing:
            return False
        try:
            self._write(self._writing, waiting)
        except Exception as error:
            self._give_up(error)
        self._writing = ""
        return True

    def _give_up(self, error: Exception) -> None:
        """Write nothing for some time."""
        with self._lock:
            self._waiting.clear()
            self._rests_until = time.monotonic() + _REST
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._warn(f"warning: no states are kept in {self._folder} for now: {reason.lower()}")

    def _write(self, name: str, waiting: _Waiting) -> None:
        """Make the file. Raises OSError."""
        from rwkvcli.runtime.state_file import Pause, state_parts

        pause = Pause(waiting.logits) if waiting.logits is not None else None
        parts = state_parts(waiting.arrays, self._model.origin, waiting.tokens_seen, pause, {"kept": name})
        size = sum(map(len, parts))
        self._make_room(size)
        part = self._folder / _PART
        part.unlink(missing_ok=True)  # of a process that was killed
        try:
            with open(part, "xb", opener=_private) as file:
                for each in parts:
                    file.write(each)
            part.replace(self._folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        with self._lock:
            self._add(name, size)

    def _make_room(self, size: int) -> None:
        """For `size` more bytes."""
        while True:
            with self._lock:
                if not self._files or sum(self._files.values()) + size <= self._limit:
                    return
                name = next(iter(self._files))
                self._forget(name)
            with contextlib.suppress(OSError):  # on Windows while somebody looks at it
                (self._folder / name).unlink()

    def _check_room(self) -> None:
        size = state_bytes(self._model.config) + 4 * self._model.config.vocab_size
        if self._limit < size:
            raise UsageError(
                f"one state of this model takes {size:,} bytes on disk, and all are to take {self._limit:,}",
                hint="--keep-size SIZE allows more",
            )

    def _found(self) -> Iterator[tuple[float, Path, int]]:
        """When each file was used last, where it is, and how large."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    about = entry.stat(follow_symlinks=False)
                    yield about.st_mtime, Path(entry.path), about.st_size

    def _add(self, name: str, size: int) -> None:
        self._files[name] = size
        if name.startswith(self._prefix):
            self._lengths[_length(name)] += 1

    def _forget(self, name: str) -> None:
        if self._files.pop(name, None) is not None and name.startswith(self._prefix):
            length = _length(name)
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]

    def _touch(self, name: str) -> None:
        with self._lock:
            if name not in self._files:
                return
            self._files.move_to_end(name)
            self._touched.add(name)
        self._wake.put(None)

    def _name(self, key: bytes) -> str:
        start, ids = _parts_of(key)
        digest = self._digests[start].copy()
        digest.update(ids)
        return self._called(len(key) // 4 - 1, digest)

    def _called(self, length: int, digest: Any) -> str:
        return f"{self._prefix}-{length}-{digest.hexdigest()}.state"


def _identity(model: Model) -> Any:
    """A digest of all that decides, beside the tokens, which bits a state has."""
    from rwkvcli import __version__

    rounds_as_it_likes = model.backend.lookahead() is None
    engine = model.backend.description if rounds_as_it_likes else ""
    return hashlib.blake2b("\0".join((model.fingerprint, __version__, engine)).encode(), digest_size=16)


def _after(identity: Any, start: State) -> Any:
    """The same for what goes on from `start`."""
    digest = identity.copy()
    for name, array in sorted(start.inner.to_numpy().items()):
        digest.update(name.encode())
        digest.update(cast("Buffer", array))
    return digest


def _parts_of(key: bytes) -> tuple[int, memoryview]:
    """The number of what tokens go on from, and the bytes of their ids."""
    whole = memoryview(key)
    return whole.cast("i")[0], whole[4:]


def _length(name: str) -> int:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1])


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(8 + len(_MAGIC))[8:] == _MAGIC
    return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
