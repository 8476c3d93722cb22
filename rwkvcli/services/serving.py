"""Texts for many askers at once: what a server does between its sockets and the engine.

One thread owns the model: that of `Texts.run`. Texts in the making get a token each, in turns of one call of the engine, which reads the weights
once for all of them; a place that becomes free is taken by who waits longest. A prompt is read in parts, between which the
others go on for as long as the part took. Each text is what it would be alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import OutOfMemory, RwkvError
from rwkvcli.services.batching import feed_together
from rwkvcli.services.generation import Generation, Read, Settings
from rwkvcli.services.prefixes import Prefixes

if TYPE_CHECKING:
    from rwkvcli.runtime.drafting import Drafting
    from rwkvcli.runtime.judged import Judged
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.runtime.thoughts import Part
    from rwkvcli.services.kept_states import KeptStates


class Busy(RwkvError):
    """More askers wait than may."""


class Stopped(RwkvError):
    """The server ends."""


_GLANCE = 0.1
"""Seconds: waits of the main thread are no longer, since on Windows no signal ends them."""


class _Dropped(Exception):
    """Nobody waits for this text any more."""


@dataclass(frozen=True)
class Asked:
    """A text that somebody asks for."""

    ids: Sequence[int]
    """The prompt, at least one token."""
    settings: Settings
    start: int = 0
    """Number of the state that the prompt goes on from; 0: none."""
    lasting: int | None = None
    """How many of `ids` a later prompt may begin with; None: all of them, and the text after them."""
    judged: bool = False
    """Whether log-probabilities of the prompt are told too, as `settings` have it for the text."""


@dataclass(frozen=True)
class News:
    """What is new of a text. The last that is told has `ended`, or `error`: why there will be no more."""

    prompt: Judged | None = None
    """What the model made of the prompt's tokens; comes first, where it is asked for."""
    parts: Sequence[Part] = ()
    logprobs: Sequence[dict[str, Any]] = ()
    ended: Generation | None = None
    error: BaseException | None = None


@dataclass(eq=False)
class Ticket:
    """A text that was asked for."""

    asked: Asked
    tell: Callable[[News], None]
    cached: int = 0
    """Tokens of the prompt whose state was kept from before."""
    completion_tokens: int = 0
    """Tokens that were drawn so far."""
    thinking_tokens: int = 0
    """Those of them that are thoughts: the first."""
    dropped: bool = False
    _made: Generation | None = None
    """While it is in the making: the ticket may be held for long, and a state is large."""
    _logprobs: int = field(default=0, repr=False)

    def drop(self) -> None:
        """Nobody waits for it any more; nothing is told of it."""
        self.dropped = True
        self.tell = _tell_nobody


def _tell_the_end(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.tell(News(error=Stopped("the server is stopping")))
        ticket.drop()


def _tell_nobody(_news: News) -> None:
    pass


class Texts:
    """Texts of `model`, at most `size` in the making and `waiting` before them; `cache` bytes of states are kept. Prompts may go
    on from `starts`. `drafting`: what guesses tokens of a text that is the only one. `interruptible`: within it a signal that ends
    the program raises KeyboardInterrupt, also out of the engine; a long call of it needs no end then. `disk` keeps states too.

    `tell` of a ticket is called in the thread of `run`; it must not wait.
    """

    def __init__(
        self,
        model: Model,
        size: int,
        cache: int,
        waiting: int,
        starts: Sequence[State] = (),
        drafting: Drafting | None = None,
        interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
        disk: KeptStates | None = None,
    ) -> None:
        self._model = model
        self._interruptible = interruptible
        self._drafting = drafting
        self._size = size
        self._most_waiting = waiting
        self._prefixes = Prefixes(model, cache, starts, disk)
        self._waiting: deque[Ticket] = deque()
        self._active: list[Ticket] = []
        self._reading: Ticket | None = None
        # a prompt that was read, and that another text of its request waits for
        self._same: tuple[Sequence[int], Read] | None = None
        self._changed = threading.Condition()
        self._closing = False

    def ask(self, asked: Sequence[Asked], tell: Callable[[int, News], None]) -> list[Ticket]:
        """Have texts made; of number i of them `tell(i, news)` tells. Raises Busy and Stopped, and makes none then."""
        tickets = [Ticket(one, lambda news, i=i: tell(i, news)) for i, one in enumerate(asked)]  # type: ignore[misc]
        with self._changed:
            if self._closing:
                raise Stopped("the server is stopping")
            self._forget_who_has_gone()
            if len(self._waiting) + len(tickets) > self._most_waiting:
                raise Busy(f"{len(self._waiting)} texts are waiting already")
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    @property
    def load(self) -> tuple[int, int]:
        """How many texts are in the making, and how many wait."""
        with self._changed:
            self._forget_who_has_gone()
            return len(self._active) + (self._reading is not None), len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether no more texts are made."""
        return self._closing

    def close(self) -> None:
        """End all texts, by Stopped, and `run`. Those who wait are told at once, `run` ends with what the engine is about to
        compute."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            reading = [] if self._reading is None else [self._reading]
            there = [*self._active, *reading, *self._waiting]
        _tell_the_end(there)

    def run(self) -> None:
        """Make texts until they are closed, or interrupted."""
        try:
            self._make()
        finally:
            self.close()
            self._active.clear()
            self._waiting.clear()

    def put_away(self, over: Callable[[], bool]) -> None:
        """After `run`: have states that are for the disk written, for some seconds at most, or until `over`."""
        self._prefixes.put_away(over)

    def _make(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._active):
                    self._changed.wait(_GLANCE)
                if self._closing:
                    return
            while (
                len(self._active) < self._size and not self._closing and (ticket := self._next()) is not None
            ):
                self._begin(ticket)
            self._step()

    def _forget_who_has_gone(self) -> None:
        """They wait for nothing. The lock is the caller's."""
        if any(ticket.dropped for ticket in self._waiting):
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.dropped)

    def _next(self) -> Ticket | None:
        """Who has waited longest, and is still there."""
        with self._changed:
            self._forget_who_has_gone()
            if not self._waiting:
                return None
            self._reading = self._waiting.popleft()
            return self._reading

    def _begin(self, ticket: Ticket) -> None:
        """Read the prompt, and draw the first token."""
        try:
            made = Generation(
                self._model,
                b"",
                ticket.asked.settings,
                read_by=lambda: self._read(ticket),
                drafting=self._drafting,
                before=ticket.asked.ids,
            )
            made.read()
        except (_Dropped, KeyboardInterrupt) as reason:
            if isinstance(reason, KeyboardInterrupt):
                self.close()
            if self._closing:
                _tell_the_end([ticket])
            return
        except Exception as error:
            ticket.tell(News(error=error))
            return
        finally:
            self._reading = None
        ticket._made = made
        if made.judged is not None:
            ticket.tell(News(made.judged))
        self._active.append(ticket)
        self._advance(ticket)

    def _read(self, ticket: Ticket) -> Read:
        asked, last = ticket.asked, time.perf_counter()

        def others_too(_tokens: int) -> None:
            nonlocal last
            until = 2 * time.perf_counter() - last
            while self._active and time.perf_counter() < until:
                self._step()
            if ticket.dropped or self._closing:
                raise _Dropped
            last = time.perf_counter()

        if self._same is not None and self._same[0] is asked.ids:
            read, ticket.cached = self._same[1], len(asked.ids)
        else:
            places = () if asked.lasting is None else (asked.lasting,)
            count = asked.settings.logprobs if asked.judged else None
            with self._interruptible():  # holds no lock
                read, ticket.cached = self._prefixes.read(asked.ids, places, others_too, asked.start, count)
        self._same = self._for_the_next(asked, read)
        return read

    def _for_the_next(self, asked: Asked, read: Read) -> tuple[Sequence[int], Read] | None:
        """A copy of what was read, if the text that is next has the same prompt."""
        with self._changed:
            self._forget_who_has_gone()
            if not self._waiting or self._waiting[0].asked.ids is not asked.ids:
                return None
        try:
            return asked.ids, read._replace(state=read.state.copy())
        except OutOfMemory:
            return None

    def _step(self) -> None:
        """One token for every text."""
        for ticket in [ticket for ticket in self._active if ticket.dropped]:
            self._leave(ticket)
        made = [ticket._made for ticket in self._active if ticket._made is not None]
        if not made:
            return
        try:
            feed_together(self._model, made)
        except Exception as error:
            for ticket in self._active:
                ticket._made = None
                ticket.tell(News(error=error))
            self._active.clear()
            return
        for ticket in list(self._active):
            self._advance(ticket)

    def _advance(self, ticket: Ticket) -> None:
        """Draw a token, and tell what came of it."""
        made = ticket._made
        assert made is not None
        try:
            parts = made.advance()
        except Exception as error:
            self._active.remove(ticket)
            ticket._made = None
            ticket.tell(News(error=error))
            return
        ticket.completion_tokens, ticket.thinking_tokens = made.completion_tokens, made.thinking_tokens
        logprobs = made.logprobs[ticket._logprobs :]
        ticket._logprobs = len(made.logprobs)
        if made.done:
            self._leave(ticket)
        if parts or logprobs or made.done:
            ticket.tell(News(None, parts, logprobs, made if made.done else None))

    def _leave(self, ticket: Ticket) -> None:
        """Give the place away; the state after a text is kept, if a later prompt may begin with all of it."""
        self._active.remove(ticket)
        made, ticket._made, asked = ticket._made, None, ticket.asked
        if asked.lasting is not None or made is None or made.state is None:
            return
        try:
            state = made.whole_state()
        except RwkvError:  # of a device
            return
        self._prefixes.keep([*asked.ids, *made.fed], state, start=asked.start)
