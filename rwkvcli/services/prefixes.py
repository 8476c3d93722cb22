"""States after the beginnings of prompts, kept so that what several prompts begin with is read once.

A state is a function of the tokens that it has seen, and of nothing else: going on from a kept one gives the bits that reading
the whole prompt gives. So what is kept decides how long an answer takes, and nothing about the answer.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rwkvcli.errors import OutOfMemory
from rwkvcli.runtime.judged import Judged, judge_ids
from rwkvcli.runtime.prefill import feed_ids
from rwkvcli.services.generation import Read

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.services.kept_states import KeptStates

_T = TypeVar("_T")
_LEAST = 32
"""Tokens: a common beginning that is shorter is read again sooner than looked for."""
_LONG = 1024
"""Tokens: reading so many takes longer than writing any state."""
_LAST = 5.0
"""Seconds that are for writing when the server ends."""
_RECENT = 64
"""Prompts that a new one is compared with, at most."""
_SHARE = 8
"""They take the memory's share of one in that many."""


class _Kept(NamedTuple):
    state: State
    logits: Logits | None
    """Of the last token; None: more has to be fed before anything can be drawn."""
    judged: Judged | None
    """What the model made of all its tokens, if that was asked for."""
    lasting: bool = False
    """Whether it is for the disk too."""


class Prefixes:
    """Reads prompts for `model`, from the longest beginning that is kept; states, and the tokens that they have seen, are at most
    `limit` bytes. A prompt goes on from one of `starts`, by its number from 1 on, or from nothing (0).

    What was not used for the longest time goes first. Of a prompt are kept the state after all of it, those at the places that
    the caller names, and the one after the longest beginning that it shares with a recent prompt: a system message, examples,
    a document that is asked about.

    `disk` keeps more of them, and for longer: those that later prompts are likely to begin with. Not what was made of their tokens.
    """

    def __init__(
        self, model: Model, limit: int, starts: Sequence[State] = (), disk: KeptStates | None = None
    ) -> None:
        self._model = model
        self._starts = starts
        self._limit = limit
        self._disk = disk
        self._size = _state_size(model)
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._recent: deque[bytes] = deque()
        self._used = 0  # bytes: what is kept, under its keys, and recent prompts

    def read(
        self,
        ids: Sequence[int],
        places: Collection[int] = (),
        on_tokens: Callable[[int], None] = lambda n: None,
        start: int = 0,
        count: int | None = None,
    ) -> tuple[Read, int]:
        """Feed `ids` (at least one) to a state of its own, a copy of `start`. Returns that, and how many of the tokens were kept.

        `places`: numbers of tokens after which the state is kept too. `on_tokens` is called after every call of the engine
        with the number of tokens that were fed or kept; what it raises ends the reading. `count`: tell also what the model made
        of every token, and of so many of the likeliest; what is kept has to say so then.
        """
        whole = _key(ids, start)
        at, found = self._find(whole, count)
        if count is None:
            at, found = self._longer(whole, at, found)
        begin, shared = at, self._shared(whole)
        self._remember(whole)
        if found is not None and at == len(ids) and found.logits is not None:
            judged = found.judged if count is not None else None
            return Read(self._made(found.state.copy), found.logits, len(ids), judged), at
        if found is not None:
            state, logits = self._made(found.state.copy), found.logits
        else:
            state = self._made(self._starts[start - 1].copy if start else self._model.new_state)
            logits = state.pause.logits if state.pause is not None else None
        judged = None
        if count is not None:
            judged = found.judged.copy() if found is not None and found.judged is not None else Judged(count)
        ends = sorted({end for end in (*places, shared) if begin < end < len(ids)})
        for end in (*ends, len(ids)):
            part, told = ids[at:end], lambda n, done=at: on_tokens(done + n)
            if judged is None:
                logits = feed_ids(self._model, state, part, told)
            else:
                logits = judge_ids(self._model, state, part, judged, logits, told)
            at = end
            lasting = end < len(ids) or end in places or end - begin >= _LONG
            self.keep(ids[:end], state, logits, start, copied=True, judged=judged, lasting=lasting)
        assert logits is not None
        return Read(state, logits, len(ids), judged), begin

    def keep(
        self,
        ids: Sequence[int],
        state: State,
        logits: Logits | None = None,
        start: int = 0,
        *,
        copied: bool = False,
        judged: Judged | None = None,
        lasting: bool = True,
    ) -> None:
        """Keep `state`, which has seen `ids` after `start`; a copy of it where the caller goes on using it (`copied`), as always of
        `judged`. `lasting`: on disk too."""
        key = _key(ids, start)
        if lasting:
            self._write(key, state, logits)
        before = self._kept.get(key)
        if before is not None:
            logits = before.logits if logits is None else logits
            judged = before.judged if judged is None else judged
            lasting = lasting or before.lasting
        self._insert(key, _Kept(state, logits, judged, lasting), copied=copied)

    def put_away(self, over: Callable[[], bool]) -> None:
        """Write what is for the disk and not there yet, the latest first, until `over`, or for some seconds; afterwards nothing is
        written any more."""
        if self._disk is None:
            return
        end = time.monotonic() + _LAST

        def enough() -> bool:
            return over() or time.monotonic() > end

        for key, kept in reversed(self._kept.items()):
            self._disk.wait_for_room(enough)
            if enough():
                break
            if kept.lasting:
                self._write(key, kept.state, kept.logits)
        self._disk.close(enough)

    def __len__(self) -> int:
        """How many states are kept."""
        return len(self._kept)

    def _longer(self, whole: bytes, at: int, found: _Kept | None) -> tuple[int, _Kept | None]:
        """The same as `_find`, which found that, with what is on disk, where it has clearly more."""
        disk = self._disk
        if disk is None:
            return at, found
        if found is not None:
            disk.touch(whole[: 4 * at + 4])
        for length, name in disk.find(whole, at + _LEAST - 1):
            loaded = self._made(lambda name=name: disk.load(name))  # type: ignore[misc]
            key = whole[: 4 * length + 4]
            if loaded is None or (loaded[1] is None and len(key) == len(whole)):
                continue
            found = _Kept(*loaded, None, lasting=True)
            self._insert(key, found)
            return length, found
        return at, found

    def _insert(self, key: bytes, kept: _Kept, *, copied: bool = False) -> None:
        """Keep it in memory, if it fits, in place of what is under `key`."""
        size = self._size_of(key, kept.judged)
        if size > self._limit:
            return
        if key in self._kept:
            self._forget(key)
        self._make_room(size)
        try:
            own = self._made(kept.state.copy) if copied else kept.state
        except OutOfMemory:
            return
        judged = kept.judged.copy() if kept.judged is not None else None
        self._kept[key] = kept._replace(state=own, judged=judged)
        self._used += size

    def _write(self, key: bytes, state: State, logits: Logits | None) -> None:
        """Have it on disk too, if it is worth it."""
        if self._disk is not None and len(key) // 4 > _LEAST:
            self._disk.offer(key, state, logits)

    def _find(self, whole: bytes, count: int | None) -> tuple[int, _Kept | None]:
        """Tokens of the longest beginning of `whole` from which it can be gone on with, and what is kept of it."""
        best = b""
        for key, kept in self._kept.items():
            usable = len(key) < len(whole) or kept.logits is not None
            if count is not None:
                usable = kept.logits is not None and kept.judged is not None and kept.judged.count == count
            if usable and len(key) > len(best) and whole.startswith(key):
                best = key
        if not best:
            return 0, None
        self._kept.move_to_end(best)
        return len(best) // 4 - 1, self._kept[best]

    def _remember(self, whole: bytes) -> None:
        """Compare later prompts with this one, if there is room for it."""
        room = self._limit // _SHARE - len(whole)
        if self._size > self._limit or room < 0:
            return
        while len(self._recent) == _RECENT or sum(map(len, self._recent)) > room:
            self._used -= len(self._recent.popleft())
        self._make_room(len(whole))
        self._recent.append(whole)
        self._used += len(whole)

    def _make_room(self, size: int) -> None:
        """For `size` more bytes."""
        while self._kept and self._used + size > self._limit:
            self._forget_oldest()
        while self._recent and self._used + size > self._limit:
            self._used -= len(self._recent.popleft())

    def _forget_oldest(self) -> None:
        key, kept = next(iter(self._kept.items()))
        if kept.lasting:
            self._write(key, kept.state, kept.logits)
        self._forget(key)

    def _forget(self, key: bytes) -> None:
        self._used -= self._size_of(key, self._kept.pop(key).judged)

    def _size_of(self, key: bytes, judged: Judged | None) -> int:
        """Bytes that what is kept under `key` takes."""
        return self._size + len(key) + (judged.nbytes if judged is not None else 0)

    def _made(self, make: Callable[[], _T]) -> _T:
        """A new state; on a device whose memory is full what is kept goes for it. Raises OutOfMemory."""
        while True:
            try:
                return make()
            except OutOfMemory:
                if not self._kept:
                    raise
                self._forget_oldest()

    def _shared(self, whole: bytes) -> int:
        """Tokens of the longest beginning that a recent prompt has as well; 0: none that is worth it."""
        longest = max((_common(whole, other) - 1 for other in self._recent), default=0)
        return longest if longest >= _LEAST else 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return _common(_key(a), _key(b)) - 1


def _key(ids: Sequence[int], start: int = 0) -> bytes:
    return array("i", (start, *ids)).tobytes()


def _common(a: bytes, b: bytes) -> int:
    """Numbers that two keys begin with alike: the start, and tokens."""
    low, high = 0, min(len(a), len(b)) // 4
    while low < high:  # the first `low` are alike, the first `high + 1` are not
        middle = (low + high + 1) // 2
        if a[4 * low : 4 * middle] == b[4 * low : 4 * middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _state_size(model: Model) -> int:
    """Bytes of one kept state, with its logits."""
    arrays = model.new_state().to_numpy().values()
    return sum(array.nbytes for array in arrays) + 4 * model.config.vocab_size
