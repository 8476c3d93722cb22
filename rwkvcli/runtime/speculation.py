"""Several tokens in one pass of the engine, of which only the first is known: what a drafter guesses comes after it.

A pass over a few tokens reads the weights once and takes little longer than one over a single token. The text stays what it
would be: every token is drawn from the model's own logits, in order, and a guess only decides whether those of the next token
are there already (where speculative sampling, arXiv 2211.17192, keeps the distribution alone). The engine's logits do not depend
on how tokens are split over passes, so they are the same bits, too. An RNN's state cannot be taken back: a pass leaves it as it
is, and the tokens that came become part of it afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rwkvcli.errors import Cancelled, OutOfMemory, RwkvError, TimedOut
from rwkvcli.runtime.backend import LARGEST_LOOKAHEAD
from rwkvcli.runtime.drafting import First, Forced

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.drafting import Drafter, Drafting
    from rwkvcli.runtime.lookahead import Ahead
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.sampling import Sampler
    from rwkvcli.runtime.state import State


_OF_A_DRAFTER = (RwkvError, RuntimeError, MemoryError)
"""What a draft model and its device may raise."""


def speculation_for(model: Model, sampler: Sampler, drafting: Drafting | None) -> Speculation | None:
    """For a text whose tokens `sampler` draws: what its grammar forces is guessed, and what `drafting` says. None: there is
    nothing to guess by, or no way to look ahead."""
    if not sampler.conforms and drafting is None:
        return None
    ahead = model.ahead()
    if ahead is None:
        return None
    drafters: list[Drafter] = [Forced(sampler, model.tokenizer)] if sampler.conforms else []
    if drafting is not None:
        drafters.append(drafting.drafter(sampler))
    if drafting is None:
        return Speculation(model, ahead, First(drafters), 0)
    return Speculation(model, ahead, First(drafters), drafting.remembers, on_failure=drafting.failed)


class Speculation:
    """Feeds the tokens of one text to `model`, as an `Evaluator`.

    The tokens that were fed last may not have reached the state: before it is used for anything else, also to change it,
    `settle` it.
    """

    def __init__(
        self,
        model: Model,
        ahead: Ahead,
        drafter: Drafter,
        remembers: int = 1 << 15,
        clock: Callable[[], float] = time.perf_counter,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`remembers`: how many tokens that it has missed the drafter reads at most. `on_failure` is called with what
        guessing raised, where the text goes on without."""
        self._model = model
        self._drafter = drafter
        self._clock = clock
        self._on_failure = on_failure
        self._pace = Pace()
        self._ahead = ahead
        self._guesses: list[int] = []  # of the last pass
        self._rows: list[Logits] = []  # after the token that it began with, and after each guess
        self._fed = 0  # tokens of the pass
        self._unread: list[int] = []  # by the drafter
        self._remembers = remembers
        self.drafted = 0
        """Tokens that were guessed."""
        self.accepted = 0
        """Those of them that came."""

    def read(self, tokens: Sequence[int]) -> None:
        """Let the drafter know, when it is to guess, what the state has seen already."""
        self._unread += tokens

    def was_fed(self, tokens: Sequence[int]) -> None:
        """A settled state was fed by somebody else."""
        self._forget()
        self._unread += tokens

    def evaluate(self, tokens: Sequence[int], state: State) -> Logits:
        """Feed tokens; float32 logits [V] of the last. What the engine raises leaves the state, and what it has yet to see, as they
        were; only the drafter may read the token twice then."""
        if len(tokens) > 1:  # a prompt
            self._end_pass(state)
            logits = self._model.evaluate(tokens, state)
            self._unread += tokens
            with self._or_no_guesses(*_OF_A_DRAFTER):
                self._read()
            return logits
        if 0 < self._fed <= self._ahead.kept and not self._ahead.is_ahead_of(state):
            self._forget()  # somebody changed the settled state
        (token,) = tokens
        right = self._fed - 1  # guesses that came
        if 0 <= right < len(self._guesses):
            self._pace.judged(right=self._guesses[right] == token)
            if self._guesses[right] == token:
                self._unread.append(token)
                self._fed += 1
                self.accepted += 1
                return self._rows[right + 1]
        self._end_pass(state)
        return self._pass(token, state)

    def settle(self, state: State) -> None:
        """`state` has seen all that was fed."""
        if self._fed > self._ahead.kept:
            begin = self._clock()
            self._ahead.keep(state, self._fed)
            self._pace.kept(self._clock() - begin)

    def _end_pass(self, state: State) -> None:
        self.settle(state)
        self._forget()

    def _forget(self) -> None:
        self._guesses, self._rows, self._fed = [], [], 0

    def _pass(self, token: int, state: State) -> Logits:
        """Feed `token`, and guesses after it."""
        most, begin = self._pace.most(), self._clock()
        if most:
            guesses: list[int] = []
            with self._or_no_guesses(*_OF_A_DRAFTER):
                guesses = self._guess(token, most)
            begin = self._clock()
            if guesses:
                with self._or_no_guesses(OutOfMemory):  # of a GPU, which has room for a single token
                    self._rows = self._ahead.run([token, *guesses], state)
                    self._guesses, self._fed = guesses, 1
                    self.drafted += len(guesses)
        else:
            self._unread.append(token)
        logits = self._rows[0] if self._rows else self._model.evaluate([token], state)
        self._pace.passed(1 + len(self._guesses), self._clock() - begin)
        return logits

    def _guess(self, token: int, most: int) -> list[int]:
        if len(self._unread) > LARGEST_LOOKAHEAD:
            del self._unread[: max(0, len(self._unread) - self._remembers)]
            self._read()  # what others fed, or was fed without guesses: no part of what guessing takes
        begin = self._clock()
        self._unread.append(token)
        self._read()
        guesses = self._drafter.guess(most)
        self._pace.guessed(len(guesses), self._clock() - begin)
        return guesses

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        self._drafter.read(unread)

    @contextmanager
    def _or_no_guesses(self, *errors: type[Exception]) -> Iterator[None]:
        """After one of `errors` there are no guesses from then on."""
        try:
            yield
        except (Cancelled, TimedOut):
            raise
        except errors as error:
            self._drafter = First([])
            self._on_failure(error)


class Pace:
    """How many tokens to guess: what a pass takes and how often guesses were right says it.

    With a share `a` of them right, `k` guesses bring 1 + a + ... + a^k tokens.
    """

    _USUAL = 0.7  # the share of right guesses, until it is known
    _SHARE_STEP, _TIME_STEP, _HOPE_STEP = 0.08, 0.2, 0.01
    _PER_TOKEN = 0.06  # by which a pass with one more token is thought to take longer
    _WORTH = 1.05  # what guesses must bring
    _FIRST = 3  # plain tokens before any guess: the first of them takes longer than those to come
    _AGAIN = 128  # passes with guesses, after which one without tells what that takes now
    _PATIENCE, _LONGEST_PATIENCE = 64, 4096  # tokens without a guess, after which one is made

    def __init__(self) -> None:
        self._share = self._USUAL
        self._seconds: dict[int, float] = {}  # a pass, by its tokens
        self._guess = 0.0  # seconds for one
        self._keep = 0.0  # seconds, when a pass has ended
        self._plain = 0  # passes without guesses
        self._guessing = 0  # passes with guesses since one without
        self._without = 0  # tokens since guesses were worth it, or tried
        self._patience = self._PATIENCE

    def most(self) -> int:
        """Guesses to be asked for."""
        if self._plain < self._FIRST or self._guessing >= self._AGAIN:
            return 0
        best, chosen, tokens, chance = 0.0, 0, 0.0, 1.0
        for guesses in range(LARGEST_LOOKAHEAD):
            tokens += chance
            chance *= self._share
            seconds = self._expected(1 + guesses)
            if guesses:
                seconds = (seconds + self._keep + guesses * self._guess) * self._WORTH
            rate = tokens / seconds
            if rate > best:
                best, chosen = rate, guesses
        if chosen:
            self._without, self._patience = 0, self._PATIENCE
            return chosen
        self._share += self._HOPE_STEP * (self._USUAL - self._share)  # perhaps the text has become easier
        self._without += 1
        if self._without < self._patience:
            return 0
        # perhaps something else took the time
        self._without, self._patience = 0, min(2 * self._patience, self._LONGEST_PATIENCE)
        self._guess, self._keep, self._seconds = 0.0, 0.0, {1: self._expected(1)}
        return 1

    def judged(self, *, right: bool) -> None:
        """A guess turned out right, or wrong."""
        self._share += self._SHARE_STEP * (right - self._share)

    def guessed(self, count: int, seconds: float) -> None:
        """Guessing took so long."""
        if count:
            self._guess = _nearer(self._guess, seconds / count, self._TIME_STEP)

    def kept(self, seconds: float) -> None:
        """It took so long to make tokens of a pass part of the state."""
        self._keep = _nearer(self._keep, seconds, self._TIME_STEP)

    def passed(self, tokens: int, seconds: float) -> None:
        """A pass over `tokens` tokens took so long."""
        old = self._seconds.get(tokens, 0.0)
        if tokens == 1:
            self._plain, self._guessing = self._plain + 1, 0
            if self._plain <= self._FIRST:
                old = min(old or seconds, seconds)
        else:
            self._guessing += 1
        self._seconds[tokens] = _nearer(old, seconds, self._TIME_STEP)

    def _expected(self, tokens: int) -> float:
        """Seconds for a pass."""
        nearest = min(self._seconds, key=lambda size: (abs(size - tokens), size))
        return self._seconds[nearest] * (1 + self._PER_TOKEN) ** (tokens - nearest)


def _nearer(old: float, new: float, step: float) -> float:
    return new if not old else old + step * (new - old)
